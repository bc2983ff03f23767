"""What a message says beside what is wrong: the word that was meant, the file that lies next to it.

Words of other tools are known too: who writes `bf16`, `ner` or `json` means something that there is.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

#: Our word for a word of other tools (transformers' names of pipelines, torch's of types, …).
_ALIASES: Mapping[str, str] = {
    "bf16": "bfloat16",
    "fp16": "float16", "half": "float16", "f16": "float16",
    "fp32": "float32", "float": "float32", "full": "float32", "f32": "float32",
    "sentiment": "classify", "sentiment-analysis": "classify", "text-classification": "classify",
    "classification": "classify", "sequence-classification": "classify",
    "ner": "token-classify", "token-classification": "token-classify", "tag": "token-classify",
    "feature-extraction": "embed", "sentence-similarity": "embed", "embedding": "embed",
    "embeddings": "embed", "vectors": "embed",
    "rerank": "score", "reranking": "score", "text-ranking": "score", "cross-encoder": "score",
    "zero-shot-classification": "zero-shot", "zeroshot": "zero-shot", "nli": "zero-shot",
    "mlm": "fill-mask", "masked-lm": "fill-mask",
    "text-generation": "generate", "chat": "generate", "llm": "generate", "completion": "generate",
    "translation": "seq2seq", "translate": "seq2seq", "summarization": "seq2seq",
    "summarize": "seq2seq", "text2text-generation": "seq2seq", "text2text": "seq2seq",
    "tabular": "module", "table": "module", "tabular-classification": "module",
    "json": "jsonl", "ndjson": "jsonl", "pq": "parquet",
    "transformers": "local", "hf": "local", "torch": "local", "pytorch": "local", "ov": "openvino",
    "mock": "fake", "dummy": "fake",
    "flash": "packed", "flash_attention_2": "packed", "flash-attention": "packed",
    "gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps",
    "window": "stride", "sliding": "stride", "cut": "truncate",
    "integer": "int64", "long": "int64", "number": "float64", "varchar": "string",
    "datetime": "timestamp", "ansi": "cp1252",
    "schema": "types", "no_header": "header", "batch_size": "max_batch_rows",
    "--batch-size": "--max-batch-rows", "--max-tokens": "--max-new-tokens", "--gpu": "--device",
    "--gpus": "--devices", "--text": "--text-column", "--column": "--text-column",
}  # fmt: skip
#: So many names are listed in a message; a table may have thousands.
_MOST_NAMES = 20
#: Where a folder has more entries than this, nobody waits until all are compared.
_MOST_ENTRIES = 10_000


def closest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """The choice that was probably meant: another tool's word for it, or a like spelling; "": none.

    `cutoff`: how much of the two must agree, from 0 to 1.
    """
    there = list(choices)
    plain = {_plain(choice): choice for choice in reversed(there)}
    if (alias := _ALIASES.get(word.lower())) in there:
        return str(alias)
    close = difflib.get_close_matches(_plain(word), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else ""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    found = closest(word, choices)
    return f"; did you mean '{found}'?" if found else ""


def listed(names: Iterable[str]) -> str:
    """Names with commas; of very many, the first ones."""
    there = list(names)
    more = f", … ({len(there):,} in all)" if len(there) > _MOST_NAMES else ""
    return ", ".join(there[:_MOST_NAMES]) + more


def unknown_column(name: str, there: Iterable[str], flag: str) -> str:
    """That the input has no such column, which `flag` names; what it has, and what was meant."""
    columns = list(there)
    meant = closest(name, columns)
    hint = f"; did you mean {flag} {shlex.quote(meant)}?" if meant else ""
    what = f"no column '{name}' in the input; it has: {listed(columns)}"
    if flag == "--template":
        return f"{flag}: {what}" + (f"; did you mean '{meant}'?" if meant else "")
    return f"{what} (choose one with {flag}){hint}"


def near_path(name: str | os.PathLike[str]) -> str:
    """`; did you mean 'x'?` with what lies beside a path that is not there, or nothing."""
    path = Path(name)
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MOST_ENTRIES), strict=False)]
    except (OSError, ValueError):  # a zero byte
        return ""
    alike = difflib.get_close_matches(path.name, names, n=3, cutoff=0.7)
    # What ends alike is no spelling of the same: of `a.jsonl` and `b.jsonl`, only the ends agree.
    close = [name for name in alike if _similarity(name, path.name) >= 0.6]
    return f"; did you mean '{path.parent / close[0]}'?" if close else ""


def _similarity(first: str, second: str) -> float:
    one, other = (name.partition(".")[0].lower() for name in (first, second))
    return difflib.SequenceMatcher(None, one, other).ratio()


def _plain(word: str) -> str:
    """Without what people mix up: capitals, and which sign joins two words."""
    return re.sub(r"[-_ .]+", "_", word.lower())


#: What pydantic calls a mistake, in the words of these messages.
_EXPECTED: Mapping[str, str] = {
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "int_parsing_size": "should be a whole number of fewer digits",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "string_type": "should be a text",
    "string_too_short": "should not be empty",
    "tuple_type": "should be a list",
    "dict_type": "should be a mapping of names to values",
    "greater_than": "should be more than {gt:,}",
    "greater_than_equal": "should be {ge:,} or more",
    "less_than": "should be less than {lt:,}",
    "less_than_equal": "should be {le:,} or less",
}


def reason_of(detail: Mapping[str, Any], choices: Iterable[str]) -> tuple[str, str]:
    """What is wrong with a value, as pydantic's `detail` says it, and a hint at what was meant.

    `choices`: the words that the value may be, or some of them. An `input` that is no text where one
    should be is told to be put in quotes.
    """
    given, kind = detail.get("input"), str(detail["type"])
    if kind == "literal_error":
        words = [str(choice) for choice in choices]
        hint = did_you_mean(given, words) if isinstance(given, str) else ""
        return f"should be {', '.join(words[:-1])} or {words[-1]}", hint
    if kind == "string_type" and isinstance(given, (int, float)):
        shown = str(given).lower() if isinstance(given, bool) else given
        return "should be a text", f'; put it in quotes: "{shown}"'
    wanted = _EXPECTED.get(kind)
    if wanted is not None:
        limits = detail.get("ctx", {}).items()
        whole = {
            name: int(one) if isinstance(one, float) and one % 1 == 0 else one
            for name, one in limits
        }
        return wanted.format(**whole), ""
    hint = did_you_mean(given, choices) if isinstance(given, str) else ""
    return str(detail["msg"]).removeprefix("Value error, "), hint
