"""batchinfer: every row of your files through a model, every row exactly once.

files ──readers──▶ Chunk ──tokenize──▶ Requests ──plan──▶ Batch ──engine──▶ Answers ──writer──▶ shard
        └────────── ahead of the device ──────────────────┘ └─ device ─┘ └─ behind the device ─┘

from batchinfer import RunConfig, audit, infer, resume, run, verify

report = run(RunConfig(inputs=["reviews.jsonl"], model="my-model", output="out"))
report = resume("out")                    # after any failure
assert not verify("out").findings         # every row once, and as it was written
assert not audit("out").complaints        # and as transformers says, a row at a time in float32
frame = infer(["good", "bad"], model="my-model")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "Export",
    "RunConfig",
    "RunReport",
    "Verification",
    "__version__",
    "audit",
    "export",
    "infer",
    "resume",
    "run",
    "verify",
]

if TYPE_CHECKING:
    from batchinfer.api import infer
    from batchinfer.auditing import Audit, audit
    from batchinfer.config import RunConfig
    from batchinfer.exporting import Export, export
    from batchinfer.reporting.report import RunReport
    from batchinfer.runner import resume, run
    from batchinfer.verification import Verification, verify

_HOMES = {
    "Audit": "batchinfer.auditing",
    "Export": "batchinfer.exporting",
    "RunConfig": "batchinfer.config",
    "RunReport": "batchinfer.reporting.report",
    "Verification": "batchinfer.verification",
    "audit": "batchinfer.auditing",
    "export": "batchinfer.exporting",
    "infer": "batchinfer.api",
    "resume": "batchinfer.runner",
    "run": "batchinfer.runner",
    "verify": "batchinfer.verification",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: `import batchinfer` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'batchinfer' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
