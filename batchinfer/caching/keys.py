"""What the answer to an input depends on, as a digest.

Of the job: what cannot change when it is resumed and bears on answers, which is the model by its digest or
commit, the task, the engine, the precision and the task's settings; and the versions of what computes. What
is free to change at a resume (device, attention, batches) is no part of it: those move last bits only, by
the project's own rule. Of the input: all of a request's tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from batchinfer.config import RunConfig, knob_of
from batchinfer.core import Int64Array, ModelSpec, Requests
from batchinfer.knobs import TASK

#: Rises where entries mean something else than before.
FORMAT = 1
#: Bytes of a key. It is a BLAKE2b digest: no two inputs are known to share one, nor can one be made to.
KEY_BYTES = 24
#: Settings of tasks that only say which tokens are asked about, and those are in the key; or what is made
#: of answers once they are there.
_BESIDE_ANSWERS = {
    "labels", "labels_column", "hypothesis", "multi_label", "prompt", "chat", "system", "seed", "long",
    "stride", "embedding_dtype",
}  # fmt: skip
_SETTINGS = tuple(
    name
    for name in RunConfig.model_fields
    if knob_of(name)["panel"] == TASK and name not in _BESIDE_ANSWERS
)
#: Packages that decide what a model answers, by engine.
_PACKAGES = {
    "local": ("batchinfer", "torch", "transformers"),
    "openvino": ("batchinfer", "torch", "transformers", "openvino"),
    "fake": ("batchinfer",),
}


def identity_of(config: RunConfig, spec: ModelSpec) -> bytes:
    """A digest of all that answers depend on beside their input; `config` is a plan's, so resolved."""
    document = {
        "format": FORMAT,
        "model": dataclasses.asdict(dataclasses.replace(spec, name="")),
        "engine": config.engine,
        "dtype": config.dtype,
        "settings": {name: getattr(config, name) for name in _SETTINGS},
        "versions": {name: _version(name) for name in _PACKAGES.get(config.engine, ())},
    }
    canonical = json.dumps(document, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(canonical.encode(), digest_size=32).digest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that was not installed
        return ""


def keys_of(requests: Requests, indices: Int64Array, identity: bytes) -> list[bytes]:
    """What the answers to these requests are called, of KEY_BYTES each."""
    names = sorted(requests.fields)
    own = hashlib.blake2b(identity + json.dumps(names).encode(), digest_size=32).digest()
    columns = [requests.fields[name] for name in names]
    # Of several fields, those of a token stand side by side.
    tokens = columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
    content = tokens.tobytes()
    width = len(content) // max(1, len(tokens))
    starts = (requests.offsets[indices] * width).tolist()
    ends = (requests.offsets[indices + 1] * width).tolist()
    digest, view = hashlib.blake2b, memoryview(content)
    return [
        digest(view[start:end], digest_size=KEY_BYTES, key=own).digest()
        for start, end in zip(starts, ends, strict=True)
    ]
