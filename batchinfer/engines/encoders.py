"""Tokenizing by transformers itself: chat templates, and tokenizers that are written in Python.

All else is tokenized by batchinfer.tokenization, which is quicker and needs no transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchinfer.errors import one_line
from batchinfer.tokenization import Tokens, as_strings


@dataclass(frozen=True)
class TransformersEncoder:
    """A model's tokenizer, loaded by transformers from its folder where it is first used.

    `chats`: texts are conversations in JSON, lists of messages with `role` and `content`, and go through
    the model's chat template, up to where the answer begins. Otherwise they are cut at `max_length`
    tokens, special ones counted and kept, as `truncation` says: `longest_first` of a pair, or
    `only_first`. A conversation is cut, too, and marked as truncated: whoever asks decides what that means.
    """

    folder: Path
    max_length: int
    chats: bool = False
    trust_remote_code: bool = False
    truncation: str = "longest_first"

    def __reduce__(self) -> tuple[Any, ...]:
        state = (self.folder, self.max_length, self.chats, self.trust_remote_code, self.truncation)
        return TransformersEncoder, state  # without the loaded tokenizer

    def encode(self, texts: pa.Array[Any], pairs: pa.Array[Any] | None) -> Tokens:
        """Encode large_string arrays without nulls; `pairs` is as long as `texts`."""
        errors: dict[int, str] = {}
        firsts = as_strings(texts, errors)
        seconds = [None] * len(firsts) if pairs is None else as_strings(pairs, errors)
        found: list[_Encoded] = []
        for i, (text, pair) in enumerate(zip(firsts, seconds, strict=True)):
            encoded = _Encoded([])
            if i not in errors:
                try:
                    encoded = self._chat(text) if self.chats else self._encode(text, pair)
                except (
                    Exception
                ) as error:  # whatever the template, or a tokenizer in Python, raises
                    what = "chat template" if self.chats else "tokenizer"
                    errors[i] = f"the model's {what} fails: {one_line(error)}"
            found.append(encoded)
        lengths = np.array([len(encoded.ids) for encoded in found], np.int64)
        fields = {"input_ids": _flat([encoded.ids for encoded in found])}
        if pairs is not None and any(encoded.type_ids for encoded in found):
            fields["token_type_ids"] = _flat([encoded.type_ids for encoded in found])
        return Tokens(
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            fields=fields,
            truncated=np.array([encoded.is_cut for encoded in found], np.bool_),
            errors=errors,
        )

    def _chat(self, conversation: str) -> _Encoded:
        ids: list[int] = self._tokenizer.apply_chat_template(
            json.loads(conversation), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return _Encoded(ids[: self.max_length], is_cut=len(ids) > self.max_length)

    def _encode(self, text: str, pair: str | None) -> _Encoded:
        tokenizer = self._tokenizer
        encoded = tokenizer(text, pair)
        if is_cut := len(encoded["input_ids"]) > self.max_length:
            encoded = tokenizer(text, pair, truncation=self.truncation, max_length=self.max_length)
        return _Encoded(encoded["input_ids"], encoded.get("token_type_ids", []), is_cut)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder, self.trust_remote_code)


@dataclass(frozen=True)
class _Encoded:
    """The tokens of one row that are kept; `type_ids` are as many, or none where the model takes none."""

    ids: list[int]
    type_ids: Sequence[int] = ()
    is_cut: bool = False


def _flat(runs: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """All runs behind each other: int32[sum of their lengths]."""
    return np.fromiter(chain.from_iterable(runs), np.int32)


@dataclass(frozen=True)
class TransformersDetokenizer:
    """Token ids to text by a tokenizer that is written in Python."""

    folder: Path
    trust_remote_code: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return TransformersDetokenizer, (self.folder, self.trust_remote_code)

    def decode(self, ids: Sequence[Sequence[int]], *, skips_special: bool = False) -> list[str]:
        """The text of each run of ids; `skips_special`: without those of special tokens.

        A model's vocabulary may be rounded up: what no token stands for is passed over.
        """
        decode, size = self._tokenizer.decode, len(self._tokenizer)
        known = ([id for id in run if id < size] for run in ids)
        return [decode(run, skip_special_tokens=skips_special) for run in known]

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder, self.trust_remote_code)


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """A folder's tokenizer as transformers loads it; raises whatever that raises."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
