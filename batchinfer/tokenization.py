"""Text to token ids: flat arrays, truncated at the model's limit, never padded."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchinfer.core import Int32Array, Int64Array, Requests, Windows
from batchinfer.errors import UsageError, one_line
from batchinfer.readers.columns import is_list
from batchinfer.windows import cut

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

#: A cut text must give this many tokens more than the model takes. The proof below needs none; the
#: margin guards against what it does not foresee.
CUT_MARGIN = 64

#: First guess of the characters of a token; English has 4 to 5, so one prefix nearly always does.
_CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True, slots=True)
class Tokens:
    """n encoded texts: `offsets` int64[n + 1], `fields` int32[offsets[n]], `truncated` bool[n].

    `errors`: which of the texts could not be encoded, and why; they own no tokens. `notes`: arrays as
    long as a field, of what only decoding needs. `windows`: where long texts are several runs of tokens;
    then `offsets` and `truncated` are of those.
    """

    offsets: Int64Array
    fields: Mapping[str, Int32Array]
    truncated: npt.NDArray[np.bool_]
    errors: Mapping[int, str]
    notes: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    windows: Windows | None = None

    def in_windows(
        self, begin: Int64Array, end: Int64Array, max_length: int, stride: int | None
    ) -> Tokens:
        """These tokens of whole texts as windows of at most `max_length`; the arguments are those of `cut`.

        Where tokens have notes, one more says where each stands among those of its text: `place` int32.
        """
        cuts = cut(self.offsets, begin, end, max_length, stride)
        notes = {name: array[cuts.source] for name, array in self.notes.items()}
        return Tokens(
            offsets=cuts.offsets,
            fields={name: values[cuts.source] for name, values in self.fields.items()},
            truncated=np.zeros(len(cuts.offsets) - 1, np.bool_),
            errors={**self.errors, **cuts.errors},
            notes={**notes, "place": cuts.place} if notes else {},
            windows=cuts.windows,
        )


class Role(IntEnum):
    """What a token is to the word that it stands for."""

    BEGINS = 0
    GOES_ON = 1
    #: The vocabulary has no sign for either.
    UNKNOWN = 2
    #: None of the text's tokens, but one that the model wants around it.
    SPECIAL = 3


class Encoder(Protocol):
    """Encodes texts. Encoders are sent to loader processes: they pickle small, and load there."""

    def encode(self, texts: pa.Array[Any], pairs: pa.Array[Any] | None) -> Tokens:
        """Encode large_string arrays without nulls; `pairs` is as long as `texts`.

        `texts` may be lists of large_strings: texts that are split into words already.
        """
        ...


@dataclass(frozen=True)
class NoEncoder:
    """The encoder of a task whose rows are no texts."""

    def encode(self, texts: pa.Array[Any], pairs: pa.Array[Any] | None) -> Tokens:
        """There is nothing to encode."""
        raise NotImplementedError("rows of this task are not tokenized")


@dataclass(frozen=True)
class TextEncoder:
    """A model's tokenizer, from the text of its tokenizer.json; loaded where it is first used.

    It imports `tokenizers` alone: neither transformers nor torch. Truncation and padding that the
    JSON carries are switched off (MiniLM's cuts at 128 tokens and pads to 128); texts are cut at
    `max_length` tokens, special tokens counted and kept, on `truncation_side` (left, right).
    `input_ids` always come; `token_type_ids` where the model takes them and they are not all zero.
    `truncation`: which text of a pair is cut (longest_first, only_first).
    `windowed`: which text of a pair becomes windows of `max_length` tokens (first, second) instead of being
    cut, where the two are too long; a single text is the first. `stride`: tokens that neighbours share;
    None: a quarter of those that slide.
    `notes_places`: also note `start` and `end` int32, the characters that a token stands for, and its
    `role` int8 (a Role); of words, the characters of the words joined by spaces.
    `mask_token`: a text that does not hold it, or loses it when it is cut, is an error; where it stands,
    the field `is_mask` is 1.

    Long texts
        The tokenizer cuts last: 650,000 characters cost seconds for 512 kept tokens. So a text much
        longer than the limit is cut first, at the space of "…c d…" with c and d ASCII letters or
        digits, and the kept tokens are the same. Let P be what stands before the space. Then:

        1. Added tokens ("[SEP]") are found from left to right, and none has the space inside it
           (that is checked), so those within P are found alike; whether one stands alone as a word
           is decided by its neighbours, and P's end and a space count the same.
        2. The normalizers allowed here change each character, or each run of characters up to the
           next one that starts a new grapheme, by itself; a space between ASCII letters or digits
           starts one, and does so again after it. So normalized(P…) begins with normalized(P).
        3. The pre-tokenizers allowed here never put a letter or digit and the space behind it into
           one piece, and look ahead no further than the next character, and that only behind
           white space. So the pieces of P… begin with the pieces of P.
        4. The model sees one piece at a time, the template adds special tokens at the ends. So the
           tokens of P… begin with the tokens of P; where P alone gives more than `max_length`,
           cutting both on the right keeps the same ones, and both are truncated.

        Where P gives fewer than `max_length` + 64, a P twice as long is tried, up to the whole
        text. Tokenizers for which this does not hold (no pre-tokenizer, as in Llama 2 and Gemma,
        where a merge may reach across spaces), pairs, texts with masks, and left truncation see the
        whole text.
    """

    tokenizer_json: str
    max_length: int
    truncation_side: str = "right"
    takes_type_ids: bool = False
    notes_places: bool = False
    truncation: str = "longest_first"
    windowed: str = ""
    stride: int | None = None
    mask_token: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the loaded tokenizer, which is larger than the text and slower to send.
        return TextEncoder, tuple(getattr(self, one.name) for one in fields(self))

    def encode(self, texts: pa.Array[Any], pairs: pa.Array[Any] | None) -> Tokens:
        """Encode large_string arrays without nulls, or (without `pairs`) lists of them: words.

        Raises UsageError where `max_length` leaves no room beside the special tokens.
        """
        specials = self._num_specials[pairs is not None]
        if self.max_length <= specials:
            raise UsageError(
                f"--max-length {self.max_length} leaves no room for text:"
                f" {specials} tokens are special; give {specials + 1} or more"
            )
        errors: dict[int, str] = {}
        are_words = is_list(texts.type)
        inputs: list[Any] = (_words if are_words else as_strings)(texts, errors)
        if pairs is not None:
            inputs = list(zip(inputs, as_strings(pairs, errors), strict=True))
            encodings = self._encode_whole(inputs, errors)
        elif (
            not (self.windowed or are_words or self.mask_token)
            and _longest(texts) > self._prefix_length
            and self._cuts_long_texts
        ):
            encodings = self._encode_prefixes(inputs, errors)
        else:
            encodings = self._encode_whole(inputs, errors, are_words=are_words)
        if self.mask_token:
            self._require_masks(encodings, errors)

        for i in errors:
            encodings[i] = None
        good = [encoding for encoding in encodings if encoding is not None]
        lengths = np.fromiter(
            (len(e) if e is not None else 0 for e in encodings), np.int64, len(encodings)
        )
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        total = int(offsets[-1])
        found = {
            "input_ids": np.fromiter(chain.from_iterable(e.ids for e in good), np.int32, total)
        }
        if self.takes_type_ids and (pairs is not None or self._has_type_ids):
            ids = chain.from_iterable(e.type_ids for e in good)
            found["token_type_ids"] = np.fromiter(ids, np.int32, total)
        if self.mask_token:
            found["is_mask"] = (found["input_ids"] == self._mask_id).astype(np.int32)
        notes = self._places(good, found["input_ids"]) if self.notes_places else {}
        if notes and are_words:
            shift = _shifts(
                (e, row) for e, row in zip(encodings, inputs, strict=True) if e is not None
            )
            notes |= {name: notes[name] + shift for name in ("start", "end")}
        truncated = (e is not None and bool(e.overflowing) for e in encodings)
        tokens = Tokens(
            offsets=offsets,
            fields=found,
            truncated=np.fromiter(truncated, np.bool_, len(encodings)),
            errors=errors,
            notes=notes,
        )
        long = np.flatnonzero(lengths > self.max_length)
        if not (self.windowed and len(long)):
            return tokens
        sliding = int(pairs is not None and self.windowed == "second")
        begin, end = np.zeros((2, len(lengths)), np.int64)
        for i in long.tolist():
            begin[i], end[i] = _span_of(sliding, encodings[i])
        return tokens.in_windows(begin, end, self.max_length, self.stride)

    def _require_masks(self, encodings: Sequence[Encoding | None], errors: dict[int, str]) -> None:
        """Note the texts that hold no mask token, or one behind the limit."""
        for i, encoding in enumerate(encodings):
            if encoding is not None:
                num_cut = sum(part.ids.count(self._mask_id) for part in encoding.overflowing)
                num_kept = encoding.ids.count(self._mask_id)
                if why := mask_problem(self.mask_token, num_kept, num_cut, self.max_length):
                    errors.setdefault(i, why)

    def _places(
        self, encodings: Sequence[Encoding], ids: Int32Array
    ) -> dict[str, npt.NDArray[Any]]:
        """Where each token stands in its text, and its role; by the rules of transformers' pipelines."""
        flat = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
        start, end = np.fromiter(flat, np.int32, 2 * len(ids)).reshape(-1, 2).T
        masks = chain.from_iterable(e.special_tokens_mask for e in encodings)
        is_special = np.fromiter(masks, np.bool_, len(ids))
        sizes, unknown = self._vocabulary
        if sizes is None:
            role = np.full(len(ids), Role.UNKNOWN, np.int8)
        else:
            # "##ing" is longer than what it stands for.
            role = np.where(sizes[ids] != end - start, Role.GOES_ON, Role.BEGINS).astype(np.int8)
        role[ids == unknown] = Role.BEGINS
        role[is_special] = Role.SPECIAL
        return {"start": start.copy(), "end": end.copy(), "role": role}

    @cached_property
    def _vocabulary(self) -> tuple[Int32Array | None, int]:
        """The length of each token's name, where names say whether a word goes on; the unknown token."""
        model = json.loads(self.tokenizer_json)["model"]
        name = model.get("unk_token")
        unknown = self._tokenizer.token_to_id(name) if name else model.get("unk_id")
        unknown = -1 if unknown is None else int(unknown)
        if not model.get("continuing_subword_prefix"):
            return None, unknown
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        sizes = np.zeros(max(vocabulary.values()) + 1, np.int32)
        for token, id in vocabulary.items():
            sizes[id] = len(token)
        return sizes, unknown

    @cached_property
    def _mask_id(self) -> int:
        id = self._tokenizer.token_to_id(self.mask_token)
        assert id is not None, "what the model is was read from the same files"
        return id

    @property
    def _encode_batch(self) -> Callable[..., Sequence[Encoding]]:
        """The quick one does not know where tokens stand."""
        tokenizer = self._tokenizer
        return tokenizer.encode_batch if self.notes_places else tokenizer.encode_batch_fast

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        tokenizer.no_padding()
        if self.windowed:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(
                self.max_length, direction=self.truncation_side, strategy=self.truncation
            )
        return tokenizer

    @cached_property
    def _num_specials(self) -> tuple[int, int]:
        """Special tokens added to a single text, and to a pair."""
        count = self._tokenizer.num_special_tokens_to_add
        return count(False), count(True)

    @cached_property
    def _has_type_ids(self) -> bool:
        """Whether single texts too have type ids other than zero (XLNet's do)."""
        return any(any(e.type_ids) for e in self._tokenizer.encode_batch_fast(["a"]))

    @cached_property
    def _cuts_long_texts(self) -> bool:
        if self.truncation_side != "right" or not splits_at_spaces(json.loads(self.tokenizer_json)):
            return False
        # A Precompiled normalizer is a table of its own: see that ASCII stays as it is.
        normalizer, letters = (
            self._tokenizer.normalizer,
            " ".join(string.ascii_letters + string.digits),
        )
        return normalizer is None or normalizer.normalize_str(letters).lower() == letters.lower()

    @property
    def _prefix_length(self) -> int:
        return _CHARACTERS_PER_TOKEN * (self.max_length + CUT_MARGIN)

    def _encode_prefixes(
        self, texts: Sequence[str], errors: dict[int, str]
    ) -> list[Encoding | None]:
        """Encode so much of each text as fills the model, by the proof above."""
        inputs, tries = list(texts), self._prefix_length
        pending = list(range(len(texts)))
        encodings: list[Encoding | None] = [None] * len(texts)
        while pending:
            cut = []
            for i in pending:
                inputs[i] = _prefix(texts[i], tries)
                if len(inputs[i]) < len(texts[i]):
                    cut.append(i)
            fresh: dict[int, str] = {}
            for i, encoding in zip(
                pending, self._encode_whole([inputs[i] for i in pending], fresh), strict=True
            ):
                encodings[i] = encoding
            errors.update({pending[i]: why for i, why in fresh.items()})
            pending = [i for i in cut if not self._is_enough(encodings[i])]
            tries *= 2
        return encodings

    def _is_enough(self, encoding: Encoding | None) -> bool:
        """Whether a prefix gave so many tokens that the rest of the text cannot matter."""
        if encoding is None:  # the prefix cannot be encoded, hence neither can the text
            return True
        cut = sum(len(part) - self._num_specials[False] for part in encoding.overflowing)
        return len(encoding) + cut >= self.max_length + CUT_MARGIN

    def _encode_whole(
        self, inputs: Sequence[Any], errors: dict[int, str], *, are_words: bool = False
    ) -> list[Encoding | None]:
        """Encode all at once; where that raises, one by one, so that only the culprits fail."""
        try:
            return list(self._encode_batch(inputs, is_pretokenized=are_words))
        except BaseException as error:
            if not _is_tokenizer_failure(error):
                raise
        encodings: list[Encoding | None] = []
        for i, text in enumerate(inputs):
            encoding = None
            if i not in errors:
                try:
                    encoding = self._encode_batch([text], is_pretokenized=are_words)[0]
                except BaseException as error:
                    if not _is_tokenizer_failure(error):
                        raise
                    errors[i] = f"the tokenizer failed: {one_line(error)}"
            encodings.append(encoding)
        return encodings


def mask_problem(mask_token: str, num_kept: int, num_cut: int, max_length: int) -> str:
    """Why a text with so many mask tokens within and behind the limit cannot be filled; "" where it can."""
    if num_cut:
        return (
            f"{mask_token} is cut off: the text has more than {max_length:,} tokens (--max-length)"
        )
    return "" if num_kept else f"no {mask_token} in this text"


def splits_at_spaces(document: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json allows a long text to be cut at a space; see `TextEncoder`.

    What is not known to allow it does not.
    """
    normalizer = document.get("normalizer")
    return (
        not document["model"].get("dropout")
        and all(_hides_no_space(token, normalizer) for token in document.get("added_tokens") or ())
        and _normalizes_locally(normalizer)
        and _cuts_before_space(document.get("pre_tokenizer"))
    )


# The regular expressions of GPT-2, of Llama 3, of Qwen 2 and 3.5, and of gpt-oss. Of each: no
# alternative takes white space after a letter or digit, and the one lookahead is `\s+(?!\S)`.
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD_PATTERNS = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES,
        _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES,
        _ENDINGS
        + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
        + _SPACES,
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        + _ENDINGS
        + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        + _ENDINGS
        + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
        + _SPACES,
    }
)
# What XLM-R, ALBERT and T5 replace by one space or "▁": a lone space between letters stays a space.
_SPACE_PATTERNS = frozenset({" {2,}", r"\s{2,}|[\n\r\t]", r"[\n\r\t]", r"\n"})
_DIGIT_PATTERNS = frozenset({r"\p{N}", r"\p{N}{1,3}"})
_LOCAL_NORMALIZERS = frozenset(
    {
        "BertNormalizer",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Lowercase",
        "StripAccents",
        "Strip",
        "Nmt",
        "Precompiled",
    }
)


def _hides_no_space(token: Mapping[str, Any], normalizer: Mapping[str, Any] | None) -> bool:
    """Whether an added token cannot reach over the space at which a text is cut.

    That space has no other beside it, so runs of spaces (CodeGen, ModernBERT) are harmless unless
    they are compared in a normalized form that shortens them.
    """
    content = str(token["content"])
    as_written = not token["normalized"] or normalizer is None or normalizer["type"] == "NFC"
    return not re.search(r"\s", content) or (content.isspace() and len(content) > 1 and as_written)


def _normalizes_locally(normalizer: Mapping[str, Any] | None) -> bool:
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(_normalizes_locally, normalizer["normalizers"]))
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"]
        if "Regex" in pattern:
            known = pattern["Regex"] in _SPACE_PATTERNS
            return known and normalizer["content"] in (" ", "▁")
        return not re.search(r"[\sA-Za-z0-9]", pattern["String"])
    return normalizer["type"] in _LOCAL_NORMALIZERS


def _cuts_before_space(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return False
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        # Once the space is a border, whatever comes later sees one piece at a time.
        for member in pre_tokenizer["pretokenizers"]:
            if _cuts_before_space(member):
                return True
            if not _cuts_by_class(member):
                return False
        return False
    if kind == "ByteLevel":
        return bool(pre_tokenizer.get("use_regex", True))
    if kind == "Metaspace":
        return bool(pre_tokenizer.get("split", True))
    if kind == "Split":
        return _splits_by(_WORD_PATTERNS, pre_tokenizer)
    return kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


def _cuts_by_class(pre_tokenizer: Mapping[str, Any]) -> bool:
    """Whether it only cuts around digits or punctuation, of which a space is neither."""
    if pre_tokenizer["type"] == "Split":
        return _splits_by(_DIGIT_PATTERNS, pre_tokenizer)
    isolates = bool(pre_tokenizer.get("behavior", "Isolated") == "Isolated")
    return pre_tokenizer["type"] == "Digits" or (
        pre_tokenizer["type"] == "Punctuation" and isolates
    )


def _splits_by(patterns: frozenset[str], split: Mapping[str, Any]) -> bool:
    """Whether each match of one of these patterns becomes a piece of its own."""
    behavior = (split["behavior"], bool(split["invert"]))
    known = bool(split["pattern"].get("Regex") in patterns)
    return known and behavior in (("Isolated", False), ("Removed", True))


def _prefix(text: str, stop: int) -> str:
    """Cut before the last space between ASCII letters or digits within `stop` characters."""
    if len(text) <= stop + 1:
        return text
    while (space := text.rfind(" ", 1, stop)) > 0:
        before, after = text[space - 1], text[space + 1]
        if before.isascii() and before.isalnum() and after.isascii() and after.isalnum():
            return text[:space]
        stop = space
    return ""


def _longest(texts: pa.Array[Any]) -> int:
    """Bytes of the longest text."""
    compute: Any = pc
    return int(compute.max(compute.binary_length(texts)).as_py() or 0)


def as_strings(texts: pa.Array[Any], errors: dict[int, str]) -> list[str]:
    """The texts as Python strings; "" for one that is no UTF-8, with its error."""
    try:
        whole: list[Any] = texts.to_pylist()
        return whole
    except UnicodeDecodeError:  # Parquet files are not checked when they are read
        strings: list[str] = []
    raws: list[Any] = texts.cast(pa.large_binary()).to_pylist()
    for i, raw in enumerate(raws):
        try:
            strings.append(raw.decode())
        except UnicodeDecodeError as error:
            strings.append("")
            errors[i] = f"the text is not valid UTF-8: {error.reason} at byte {error.start}"
    return strings


def _span_of(sequence: int, encoding: Encoding | None) -> tuple[int, int]:
    """Where the tokens of one text of a pair, or of the only one (0), begin and end."""
    assert encoding is not None
    ids = encoding.sequence_ids
    if sequence not in ids:
        return 0, 0
    return ids.index(sequence), len(ids) - ids[::-1].index(sequence)


def _words(lists: Any, errors: dict[int, str]) -> list[list[str]]:
    """The lists of words as Python lists; "" for a word that is no UTF-8, with the error of its list."""
    wrong: dict[int, str] = {}
    words = as_strings(lists.flatten(), wrong)
    counts: Any = pc.list_value_length(lists)
    ends = np.cumsum(counts.to_numpy(zero_copy_only=False), dtype=np.int64)
    for index in sorted(wrong):
        errors.setdefault(int(np.searchsorted(ends, index, side="right")), wrong[index])
    return [words[start:end] for start, end in pairwise([0, *ends.tolist()])]


def _shifts(encoded: Iterable[tuple[Encoding, Sequence[str]]]) -> Int32Array:
    """Of each token, where its word begins in the words joined by spaces."""
    shifts: list[int] = []
    for encoding, words in encoded:
        begins = list(accumulate((len(word) + 1 for word in words), initial=0))
        shifts += [0 if word is None else begins[word] for word in encoding.word_ids]
    return np.array(shifts, dtype=np.int32)


def _is_tokenizer_failure(error: BaseException) -> bool:
    # A panic of the Rust code derives from BaseException, by a class that cannot be imported.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def encode_texts(
    encoder: Encoder,
    texts: pa.ChunkedArray[Any],
    pairs: pa.ChunkedArray[Any] | None,
    *,
    errors: Mapping[int, str],
    prompt: str = "",
) -> Requests:
    """Encode the rows without an error into requests, one a row; `prompt` precedes each text."""
    row = rows_without(errors, len(texts))
    chosen = choose(texts, row)
    if prompt:
        join: Any = pc.binary_join_element_wise  # its stubs know no mixture of scalars and arrays
        before, between = (pa.scalar(text, pa.large_string()) for text in (prompt, ""))
        chosen = join(before, chosen, between)
    return encode_requests(encoder, row, chosen, None if pairs is None else choose(pairs, row))


def encode_requests(
    encoder: Encoder, row: Int32Array, texts: pa.Array[Any], pairs: pa.Array[Any] | None
) -> Requests:
    """Encode large_string arrays into a request each, or one a window.

    `row` int32[n] says which row each text is of.
    """
    tokens = encoder.encode(texts, pairs)
    cost = np.diff(tokens.offsets).astype(np.int32)
    failed = {int(row[i]): why for i, why in tokens.errors.items()}
    windows = tokens.windows
    if windows is not None:
        row = row[windows.text]
    for i in np.flatnonzero(cost == 0):
        failed.setdefault(
            int(row[i]), "no tokens: the model's tokenizer makes nothing of this text"
        )
    answerable = cost > 0  # what owns no token needs no room in the flat arrays either
    ends = np.cumsum(cost[answerable], dtype=np.int64)
    if windows is not None:
        windows = Windows(windows.text[answerable], windows.fresh[answerable])
    return Requests(
        row=row[answerable],
        cost=cost[answerable],
        truncated=tokens.truncated[answerable],
        offsets=np.concatenate([np.zeros(1, np.int64), ends]),
        fields=tokens.fields,
        errors=failed,
        notes=tokens.notes,
        windows=windows if len(ends) else None,
    )


def rows_without(errors: Mapping[int, str], num_rows: int) -> Int32Array:
    """The rows without an error."""
    good = np.ones(num_rows, dtype=np.bool_)
    if errors:
        good[np.fromiter(errors, dtype=np.int64)] = False
    return np.flatnonzero(good).astype(np.int32)


def choose(texts: pa.ChunkedArray[Any], rows: Int32Array) -> pa.Array[Any]:
    """The texts of these rows, in their order and as often, as one string array."""
    if len(rows) != len(texts) or not np.array_equal(rows, np.arange(len(texts))):
        texts = texts.take(rows)
    return texts.cast(pa.large_string()).combine_chunks()
