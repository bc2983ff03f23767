"""Who takes part, with the settings that each may choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

FLOAT32, BFLOAT16 = "float32", "bfloat16"

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One contestant. `kind` names its class in contestants.py; of several settings the quickest is kept.

    `choices`: coordinate → values, searched one after another from there (search.py).
    `is_slow`: of the others' usual ways, several times slower than the rest; it takes the first rows only.
    `sorts`: whether it sorts rows by length itself, which decides on which rows settings are tried.
    `follows`: the contestant whose batch budget it takes over.
    """

    name: str
    kind: str
    settings: Sequence[Setting]
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    is_slow: bool = False
    sorts: bool = True
    follows: str = ""

    def takes_few(self, few_float32: bool) -> bool:
        """Whether it takes the first rows only: the slow, and in float32 everyone where that is asked."""
        return self.is_slow or (few_float32 and all(s["dtype"] == FLOAT32 for s in self.settings))


def _in(dtype: str, **others: Any) -> Setting:
    return {"dtype": dtype, **others}


def _batchinfer(dtype: str, engine: str = "local") -> list[Setting]:
    """Packed is what auto is for these models; said aloud, a run that cannot pack has no time."""
    packed = {"attention": "packed"} if engine == "local" else {}
    return [_in(dtype, engine=engine, **packed)]


#: A graph that is fed with sorted batches: the same recipe as batchinfer's own for such engines.
_BATCHING: Mapping[str, Sequence[Any]] = {"width": (1, 16), "budget": (2048, 4096, 8192)}


def _openvino(dtype: str) -> Entry:
    return Entry(
        f"openvino {'bf16' if dtype == BFLOAT16 else dtype}",
        "openvino",
        [_in(dtype, streams="one", attention="sdpa", width=16, budget=4096)],
        {"streams": ("one", "a core"), "attention": ("sdpa", "eager"), **_BATCHING},
    )


#: Of sentence-transformers; the default is one of them.
_BATCHES = (8, 16, 32, 64)

EMBED = (
    Entry("batchinfer bf16", "batchinfer", _batchinfer(BFLOAT16)),
    Entry("batchinfer float32", "batchinfer", _batchinfer(FLOAT32)),
    Entry("batchinfer openvino bf16", "batchinfer", _batchinfer(BFLOAT16, "openvino")),
    Entry("engine bf16", "engine", _batchinfer(BFLOAT16), follows="batchinfer bf16"),
    Entry(
        "engine openvino bf16",
        "engine",
        _batchinfer(BFLOAT16, "openvino"),
        follows="batchinfer openvino bf16",
    ),
    _openvino(BFLOAT16),
    _openvino(FLOAT32),
    Entry("onnxruntime float32", "onnxruntime", [_in(FLOAT32, width=1, budget=4096)], _BATCHING),
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
    Entry("batchinfer bf16", "batchinfer", _batchinfer(BFLOAT16)),
    Entry("batchinfer float32", "batchinfer", _batchinfer(FLOAT32)),
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


#: Not a contestant: what the hardware allows.
CEILINGS = Entry("ceilings", "ceilings", [_in(FLOAT32)])
#: What the goals are about, without those that take most of the time: the pattern "core".
CORE = (
    "batchinfer bf16", "batchinfer float32", "batchinfer openvino bf16", "engine bf16", "openvino bf16",
    "onnxruntime float32",
)  # fmt: skip


def chosen(task: str, patterns: Sequence[str]) -> list[Entry]:
    """The task's entries whose names match one of the patterns, of which "core" stands for several."""
    wanted = [name for pattern in patterns for name in (CORE if pattern == "core" else [pattern])]
    return [entry for entry in ENTRIES[task] if any(fnmatch(entry.name, name) for name in wanted)]
