"""Texts become the tokens that the tokenizer gives for the whole text, in flat arrays."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel

from batchinfer.core import Requests
from batchinfer.errors import UsageError
from batchinfer.tokenization import (
    _WORD_PATTERNS,
    TextEncoder,
    _prefix,
    encode_texts,
    splits_at_spaces,
)
from tests.engines import made

LLAMA_3 = next(p for p in _WORD_PATTERNS if r"{1,3}" in p and p.startswith("(?i:"))
QWEN = next(p for p in _WORD_PATTERNS if r"\p{L}+|\p{N}| " in p and p.startswith("(?i:"))
GPT_OSS = next(p for p in _WORD_PATTERNS if r"\p{Lu}" in p)

SPLITTING: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": made.wordpiece,
    "byte-level": made.byte_level,
    "llama-3": lambda: made.byte_level(LLAMA_3),
    "qwen": lambda: made.byte_level(QWEN),
    "gpt-oss": lambda: made.byte_level(GPT_OSS),
    "unigram": made.unigram,
}


@cache
def tokenizer(kind: str) -> str:
    """A trained tokenizer's JSON, with added tokens of the awkward kinds."""
    trained = {**SPLITTING, "no-pre-tokenizer": made.sentencepiece_bpe}[kind]()
    trained.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    trained.add_tokens(
        [
            AddedToken("bada", single_word=True, normalized=False),
            AddedToken("Kilo", rstrip=True, normalized=True),
            AddedToken("42", lstrip=True),
        ]
    )
    return trained.to_str()


def strings(*texts: str) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def whole(document: str, text: str, pair: str | None = None) -> list[int]:
    """All tokens, without truncation."""
    plain = Tokenizer.from_str(document)
    plain.no_truncation()
    plain.no_padding()
    ids: list[int] = plain.encode(text, pair).ids
    return ids


FRAGMENTS = [
    *made.words()[:40], *made.ODDITIES, *"az09AZ", " ", "  ", "\n", "\t", " \n ", "\u00a0", "\u2003",
    "\u3000", "▁", "é", "e\u0301", "\u0301", "ﬁ", "Σ", "'s", "'", "don't", "<mask>", "bada", "Kilo",
    "[SEP]", "</s>", "</", "...", "—", "漢字", "🇩🇪", "\u200d", "\x00", "\ufeff", "100000", "x" * 120,
]  # fmt: skip
fragments = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=60).map("".join)
sentences = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=60).map(" ".join)


@pytest.mark.parametrize("kind", SPLITTING)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_tokens_of_a_prefix_begin_the_tokens_of_the_text(kind: str, data: Any) -> None:
    # The proof in TextEncoder's docstring, at any place where a text may be cut, without a margin.
    document = tokenizer(kind)
    assert splits_at_spaces(json.loads(document))
    text = data.draw(sentences | fragments)
    prefix = _prefix(text, data.draw(st.integers(1, len(text))))
    plain = Tokenizer.from_str(document)
    tokens = plain.encode(text, add_special_tokens=False).ids
    begin = plain.encode(prefix, add_special_tokens=False).ids
    assert tokens[: len(begin)] == begin


@pytest.mark.parametrize("kind", SPLITTING)
def test_a_thousand_cuts_leave_the_tokens_before_them_alone(kind: str) -> None:
    # Many seeded draws: to cut before just any space is wrong in 1 to 9 of 100 of these.
    draw, plain, cuts = random.Random(1), Tokenizer.from_str(tokenizer(kind)), 0
    while cuts < 1000:
        text = draw.choice(["", " "]).join(draw.choices(FRAGMENTS, k=draw.randint(1, 40)))
        prefix = _prefix(text, draw.randint(1, len(text)))
        if prefix not in ("", text):
            cuts += 1
            tokens, begin = (
                e.ids for e in plain.encode_batch([text, prefix], add_special_tokens=False)
            )
            assert tokens[: len(begin)] == begin


@pytest.mark.parametrize("kind", [*SPLITTING, "no-pre-tokenizer"])
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.tuples(sentences | fragments, st.integers(1, 40)), min_size=1, max_size=5))
def test_long_texts_keep_the_tokens_of_the_whole_text(kind: str, texts: Any) -> None:
    document = tokenizer(kind)
    encoder = TextEncoder(document, max_length=8)
    rows = [text * repeat for text, repeat in texts]
    tokens = encoder.encode(strings(*rows), None)
    plain = Tokenizer.from_str(document)
    plain.enable_truncation(8)
    for i, row in enumerate(rows):
        ids = tokens.fields["input_ids"][tokens.offsets[i] : tokens.offsets[i + 1]]
        assert ids.tolist() == plain.encode(row).ids
        assert tokens.truncated[i] == (len(whole(document, row)) > 8)


def test_without_a_pre_tokenizer_a_prefix_would_not_do() -> None:
    # Why such tokenizers always see the whole text: a merge takes the space in, as in "ha▁".
    document = tokenizer("no-pre-tokenizer")
    assert not splits_at_spaces(json.loads(document))
    plain = Tokenizer.from_str(document)
    words = made.words()[:200]
    alone = [e.ids for e in plain.encode_batch(words)]
    followed = [e.ids for e in plain.encode_batch([f"{word} lo" for word in words])]
    assert any(b[: len(a)] != a for a, b in zip(alone, followed, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "pre_tokenizer", None),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Metaspace(split=False)),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False)),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Split(" ", "merged_with_previous")),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Punctuation()),
        lambda t: setattr(
            t,
            "pre_tokenizer",
            pre_tokenizers.Sequence(
                [pre_tokenizers.ByteLevel(use_regex=False), pre_tokenizers.Whitespace()]
            ),
        ),
        lambda t: setattr(t, "normalizer", normalizers.Replace("a b", "ab")),
        lambda t: setattr(t, "normalizer", normalizers.Replace(" ", "")),
        lambda t: setattr(t, "normalizer", normalizers.Prepend("▁")),
        lambda t: t.add_tokens(["New York"]),
        lambda t: t.add_tokens([" "]),
        lambda t: t.add_tokens(["a "]),
    ],
)
def test_what_is_not_known_to_split_at_spaces_is_not_cut(
    change: Callable[[Tokenizer], Any],
) -> None:
    changed = made.wordpiece()
    assert splits_at_spaces(json.loads(changed.to_str()))
    change(changed)
    assert not splits_at_spaces(json.loads(changed.to_str()))


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre_tokenizers.Whitespace(),
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()]),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
    ],
)
def test_common_pre_tokenizers_are_known_to_split_at_spaces(pre_tokenizer: Any) -> None:
    tokenizer = made.wordpiece()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_tokens([AddedToken("   ", normalized=False)])
    assert splits_at_spaces(json.loads(tokenizer.to_str()))


def test_a_very_long_text_takes_milliseconds() -> None:
    encoder = TextEncoder(tokenizer("wordpiece"), max_length=512)
    text = " ".join(made.texts(10_000, seed=1))[:650_000]
    encoder.encode(strings("warm up", text[:10_000]), None)
    start = time.perf_counter()
    tokens = encoder.encode(strings(text), None)
    seconds = time.perf_counter() - start
    assert tokens.offsets.tolist() == [0, 512]
    assert tokens.truncated.all()
    assert seconds < 0.1  # the whole text takes ten times that


def test_long_texts_without_a_safe_space_see_the_whole_text() -> None:
    document = tokenizer("wordpiece")
    encoder = TextEncoder(document, max_length=16)
    rows = ["漢字" * 3000, "a" * 9000, ". " * 3000, " " * 9000, "a b" + " -" * 3000]
    tokens = encoder.encode(strings(*rows), None)
    for i, row in enumerate(rows):
        ids = whole(document, row)
        begin, end = tokens.offsets[i : i + 2]
        assert tokens.fields["input_ids"][begin : end - 1].tolist() == ids[:-1][:15]
        assert tokens.truncated[i] == (len(ids) > 16)


def test_truncation_and_padding_of_the_json_are_switched_off() -> None:
    carried = Tokenizer.from_str(tokenizer("wordpiece"))
    carried.enable_truncation(5)
    carried.enable_padding(length=40)
    text = made.texts(1, seed=8)[0]
    tokens = TextEncoder(carried.to_str(), max_length=512).encode(strings("lo", text), None)
    assert tokens.fields["input_ids"][tokens.offsets[1] :].tolist() == whole(carried.to_str(), text)
    assert not tokens.truncated.any()


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_are_cut_on_the_tokenizers_side(side: str) -> None:
    document, text = tokenizer("wordpiece"), " ".join(made.words()[:300])
    tokens = TextEncoder(document, 10, truncation_side=side).encode(strings(text), None)
    ids = whole(document, text)
    kept = ids[:9] + ids[-1:] if side == "right" else ids[:1] + ids[-9:]
    assert tokens.fields["input_ids"].tolist() == kept


def test_a_text_that_just_fits_is_not_truncated() -> None:
    document, text = tokenizer("wordpiece"), made.texts(1, seed=8)[0]
    length = len(whole(document, text))
    for limit, truncated in [(length + 1, False), (length, False), (length - 1, True)]:
        tokens = TextEncoder(document, limit).encode(strings(text), None)
        assert tokens.truncated.tolist() == [truncated]
        assert tokens.offsets[1] == min(length, limit)


@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(st.tuples(sentences, sentences), min_size=1, max_size=4))
def test_pairs_are_those_of_the_tokenizer(pairs: list[tuple[str, str]]) -> None:
    document = tokenizer("wordpiece")
    encoder = TextEncoder(document, max_length=24, takes_type_ids=True)
    left, right = zip(*pairs, strict=True)
    tokens = encoder.encode(strings(*left), strings(*right))
    plain = Tokenizer.from_str(document)
    plain.enable_truncation(24)
    encodings = plain.encode_batch(pairs)
    assert tokens.fields["input_ids"].tolist() == [i for e in encodings for i in e.ids]
    assert tokens.fields["token_type_ids"].tolist() == [i for e in encodings for i in e.type_ids]
    assert tokens.truncated.tolist() == [len(whole(document, *pair)) > 24 for pair in pairs]


def test_type_ids_come_only_where_they_say_something() -> None:
    document = tokenizer("wordpiece")
    takes, takes_none = TextEncoder(document, 64, takes_type_ids=True), TextEncoder(document, 64)
    one, two = strings("lo la"), strings("ke")
    assert set(takes.encode(one, None).fields) == {"input_ids"}
    assert set(takes.encode(one, two).fields) == {"input_ids", "token_type_ids"}
    assert set(takes_none.encode(one, two).fields) == {"input_ids"}
    numbered = Tokenizer.from_str(document)
    numbered.post_processor = processors.TemplateProcessing(single="$A:1", special_tokens=[])
    always = TextEncoder(numbered.to_str(), 64, takes_type_ids=True).encode(one, None)
    assert set(always.fields["token_type_ids"].tolist()) == {1}


def test_no_texts_are_no_tokens() -> None:
    tokens = TextEncoder(tokenizer("wordpiece"), 64).encode(strings(), None)
    assert tokens.offsets.tolist() == [0]
    assert tokens.offsets.dtype == np.int64
    assert tokens.fields["input_ids"].dtype == np.int32
    assert tokens.truncated.shape == (0,)


def test_a_text_that_the_tokenizer_cannot_take_fails_alone() -> None:
    fussy = Tokenizer(WordLevel({"known": 0, "word": 1}, unk_token="[UNK]"))
    fussy.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = TextEncoder(fussy.to_str(), max_length=8)
    long = "known " * 500
    tokens = encoder.encode(strings("known word", "what now", "word", long, long + "what"), None)
    assert set(tokens.errors) == {1}
    assert tokens.errors[1].startswith("the tokenizer failed: ")
    assert np.diff(tokens.offsets).tolist() == [2, 0, 1, 8, 8]
    assert tokens.truncated.tolist() == [False, False, False, True, True]
    paired = encoder.encode(strings("known", "word"), strings("word", "what"))
    assert (set(paired.errors), paired.offsets.tolist()) == ({1}, [0, 2, 2])


def test_bytes_that_are_no_utf_8_are_an_error_of_their_row() -> None:
    raw = pa.array([b"lo la", b"\xff\xfe", b"ke"], pa.large_binary())
    texts = pa.Array.from_buffers(pa.large_string(), 3, raw.buffers())
    tokens = TextEncoder(tokenizer("wordpiece"), 64).encode(texts, None)
    assert set(tokens.errors) == {1}
    assert "not valid UTF-8" in tokens.errors[1]
    assert np.diff(tokens.offsets).tolist()[1] == 0


def test_a_limit_without_room_for_text_is_a_usage_error() -> None:
    encoder = TextEncoder(tokenizer("wordpiece"), max_length=3)
    assert len(encoder.encode(strings("lo"), None).fields["input_ids"]) == 3
    with pytest.raises(UsageError, match="give 4 or more"):
        encoder.encode(strings("lo"), strings("la"))


def test_an_encoder_travels_without_its_loaded_tokenizer() -> None:
    encoder = TextEncoder(tokenizer("wordpiece"), 64, takes_type_ids=True)
    before = len(pickle.dumps(encoder))
    first = encoder.encode(strings("lo la"), None)
    assert len(pickle.dumps(encoder)) == before < len(encoder.tokenizer_json) + 500
    again = pickle.loads(pickle.dumps(encoder))
    assert again == encoder
    assert again.encode(strings("lo la"), None).fields["input_ids"].tolist() == (
        first.fields["input_ids"].tolist()
    )


def test_encoding_imports_neither_torch_nor_transformers() -> None:
    code = """
import pickle, sys, pyarrow as pa
encoder = pickle.loads(sys.stdin.buffer.read())
encoder.encode(pa.array(["lo la"], pa.large_string()), None)
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""
    encoder = TextEncoder(tokenizer("wordpiece"), 64)
    run = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(encoder), capture_output=True, check=True
    )
    assert run.stdout.decode().strip() == "[]"


def encode_rows(texts: list[str], **options: Any) -> Requests:
    encoder = TextEncoder(tokenizer("wordpiece"), 64)
    return encode_texts(encoder, pa.chunked_array([texts[:1], texts[1:]]), None, **options)


def test_rows_with_errors_make_no_requests() -> None:
    requests = encode_rows(["lo", "la", "ke"], errors={1: "broken"})
    assert requests.row.tolist() == [0, 2]
    assert requests.cost.tolist() == np.diff(requests.offsets).tolist()


def test_the_prompt_goes_before_each_text() -> None:
    with_prompt = encode_rows(["lo la", "ke"], errors={}, prompt="ba be: ")
    written_out = encode_rows(["ba be: lo la", "ba be: ke"], errors={})
    assert with_prompt.fields["input_ids"].tolist() == written_out.fields["input_ids"].tolist()
