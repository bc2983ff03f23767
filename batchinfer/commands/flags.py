"""Which fields of RunConfig each command takes as options."""

from __future__ import annotations

from batchinfer.config import RunConfig, knob_of

RUN_FLAGS = [name for name in RunConfig.model_fields if name != "inputs"]
#: A plan cannot give these: whoever wrote it may be another than who resumes it.
CONSENTS = ("trust_remote_code", "allow_pickle")
RESUME_FLAGS = [name for name in RUN_FLAGS if knob_of(name)["free"] or name in CONSENTS]
AUDIT_FLAGS = ["device", *CONSENTS]
#: `tune` has an option of its own for the profile.
TUNE_FLAGS = [name for name in RUN_FLAGS if name != "profile"]
#: What a run writes, and when it stops, is no matter of its speed: `tune` takes these, so that it can
#: stand in the place of `run`, and hands them on to the command that it ends with.
NOT_TUNED = (
    "output", "keep", "output_prefix", "chunk_rows", "max_errors", "deadline", "batch_timeout", "dedup",
    "cache", "cache_size",
)  # fmt: skip
