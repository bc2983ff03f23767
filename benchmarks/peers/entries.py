"""Who takes part, with the settings that each may choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

FLOAT32, BFLOAT16 = "float32", "bfloat16"

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One contestant. `kind` names its class in contestants.py; of several settings the quickest is kept.

    `is_slow`: of the others' usual ways, several times slower than the rest; it takes the first rows only.
    `sorts`: whether it sorts rows by length itself, which decides on which rows settings are tried.
    `follows`: the contestant whose batch budget it takes over.
    """

    name: str
    kind: str
    settings: Sequence[Setting]
    is_slow: bool = False
    sorts: bool = True
    follows: str = ""

    def takes_few(self, few_float32: bool) -> bool:
        """Whether it takes the first rows only: the slow, and in float32 everyone where that is asked."""
        return self.is_slow or (few_float32 and all(s["dtype"] == FLOAT32 for s in self.settings))


def _in(dtype: str, **others: Any) -> Setting:
    return {"dtype": dtype, **others}


def _sorted_batches(dtype: str) -> list[Setting]:
    """A graph fed with sorted batches: one request on all cores, or one a core."""
    return [_in(dtype, budget=4096, streams=streams) for streams in ("one", "a core")]


#: Of sentence-transformers; the default is one of them.
_BATCHES = (8, 16, 32, 64)

EMBED = (
    Entry("batchinfer bf16", "batchinfer", [_in(BFLOAT16, engine="local")]),
    Entry("batchinfer float32", "batchinfer", [_in(FLOAT32, engine="local")]),
    Entry("batchinfer openvino bf16", "batchinfer", [_in(BFLOAT16, engine="openvino")]),
    Entry("engine bf16", "engine", [_in(BFLOAT16, engine="local")], follows="batchinfer bf16"),
    Entry(
        "engine openvino bf16",
        "engine",
        [_in(BFLOAT16, engine="openvino")],
        follows="batchinfer openvino bf16",
    ),
    Entry("openvino bf16", "openvino", _sorted_batches(BFLOAT16)),
    Entry("openvino float32", "openvino", _sorted_batches(FLOAT32)),
    Entry(
        "onnxruntime float32",
        "onnxruntime",
        [_in(FLOAT32, budget=budget) for budget in (2048, 4096)],
    ),
    Entry(
        "sentence-transformers best",
        "sentence-transformers",
        [_in(dtype, batch=batch) for dtype in (FLOAT32, BFLOAT16) for batch in _BATCHES],
    ),
    Entry(
        "sentence-transformers default",
        "sentence-transformers",
        [_in(FLOAT32, batch=32)],
        is_slow=True,
    ),
    Entry("naive loop", "loop", [_in(FLOAT32, batch=32)], is_slow=True, sorts=False),
)

CLASSIFY = (
    Entry("batchinfer bf16", "batchinfer", [_in(BFLOAT16, engine="local")]),
    Entry("batchinfer float32", "batchinfer", [_in(FLOAT32, engine="local")]),
    *(
        Entry(
            f"pipeline {name}",
            "pipeline",
            [_in(dtype, batch=batch) for batch in (1, 8, 16, 32)],
            is_slow=True,
            sorts=False,
        )
        for name, dtype in (("float32", FLOAT32), ("bf16", BFLOAT16))
    ),
)

ENTRIES = {"embed": EMBED, "classify": CLASSIFY}
#: What everyone's answers are held against: one row at a time, nothing padded, nothing sorted.
REFERENCE = Entry("one by one", "loop", [_in(FLOAT32, batch=1)])


def chosen(task: str, patterns: Sequence[str]) -> list[Entry]:
    """The task's entries whose names match one of the patterns."""
    return [entry for entry in ENTRIES[task] if any(fnmatch(entry.name, p) for p in patterns)]
