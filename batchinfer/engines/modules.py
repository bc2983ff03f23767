"""What a module is, for --task module: its code, what it takes and what it gives.

    risk.pt2 or package.module:factory ──load──▶ Bound to the columns ──rows of zeros──▶ ModelSpec

It is loaded to be described: only a call tells what it gives, and the columns of the output must be known
before the first row. torch is imported inside the functions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batchinfer.core import ModelSpec, TensorSpec
from batchinfer.engines.base import reason
from batchinfer.errors import BatchInferError, ModelError, UsageError
from batchinfer.hints import near_path
from batchinfer.readers.base import shown
from batchinfer.tasks.features import as_tensors

if TYPE_CHECKING:
    import torch

    from batchinfer.config import RunConfig
    from batchinfer.engines.bound import Bound

log = logging.getLogger("batchinfer")

#: The ending of an exported program.
EXPORTED = ".pt2"
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
#: An exported program that takes fewer rows at a time spends more on calls than on rows.
_FEW_ROWS = 1024


def names_module(model: str) -> bool:
    """Whether a model is named as modules are: a .pt2 file, or package.module:factory."""
    return model.endswith(EXPORTED) or _FACTORY.fullmatch(model) is not None


def require(config: RunConfig) -> None:
    """See that nothing is asked of a module that modules have not. Raises UsageError."""
    wrong = ""
    if not names_module(config.model):
        wrong = (
            f"--model {shown(config.model)}: --task module takes an exported program (a {EXPORTED} "
            "file) or package.module:factory"
        )
    elif config.engine == "openvino":
        wrong = "--engine openvino is of transformers models; leave it out with --task module"
    elif config.attention != "auto":
        wrong = f"--attention {config.attention}: means nothing to --task module; leave it out"
    elif config.revision is not None:
        wrong = f"--revision is of hub models; {shown(config.model)} is none"
    elif config.max_length not in (None, 1):
        wrong = f"--max-length {config.max_length}: means nothing to --task module; leave it out"
    elif config.model.endswith(EXPORTED) and config.dtype not in ("auto", "float32"):
        wrong = (
            f"--dtype {config.dtype}: a {EXPORTED} file computes as it was exported; leave it out"
        )
    if wrong:
        raise UsageError(wrong)


def describe(
    config: RunConfig, schema: pa.Schema, widths: Mapping[str, int]
) -> tuple[ModelSpec, Path]:
    """What the module of a job takes and gives, found out by a call, and the file that it is from.

    `schema` has the columns of the input, `widths` the numbers in a row of those that hold lists. Raises
    ModelError where it cannot be had or gives no table, UsageError where it takes other columns.
    """
    import torch

    cpu = torch.device("cpu")
    bound, path = open_module(config, as_tensors(config.features, schema, widths), cpu)
    try:
        outputs = bound.outputs(cpu)
    except BatchInferError:
        raise
    except Exception as error:  # whatever the module raises
        raise ModelError(
            f"{config.model} fails on rows of zeros in {', '.join(map(shown, config.features))}: "
            f"{reason(error)}"
        ) from None
    if not outputs:
        raise ModelError(f"{config.model} gives nothing")
    if bound.loaded.most is not None and bound.loaded.most < _FEW_ROWS:
        log.warning(
            f"{config.model} was exported for batches of at most {bound.loaded.most:,} rows; one that "
            "takes any number is faster: torch.export.export(model, (x,), "
            'dynamic_shapes=({0: torch.export.Dim("rows")},))'
        )
    spec = ModelSpec(
        name=path.name if config.model.endswith(EXPORTED) else config.model,
        identity=bound.loaded.identity,
        architecture=bound.loaded.kind,
        task="module",
        max_length=1,
        inputs=bound.match.inputs,
        is_stacked=bound.match.is_stacked,
        outputs=outputs,
    )
    return spec, path


def open_module(
    config: RunConfig, columns: Sequence[TensorSpec], device: torch.device
) -> tuple[Bound, Path]:
    """The module of a job on a device, bound to its columns, and the file that it is from.

    Raises ModelError where it cannot be had, UsageError where the columns are not what it takes.
    """
    from batchinfer.engines import bound, programs

    loaded: Any
    if config.model.endswith(EXPORTED):
        path = _program(config)
        loaded = programs.load_program(path, device)
    else:
        dtype = "float32" if config.dtype == "auto" else config.dtype
        loaded, path = programs.load_factory(config.model, dtype, device)
    return bound.Bound(loaded, columns), path


def _program(config: RunConfig) -> Path:
    """The file of an exported program, where the user trusts it. Raises ModelError."""
    path = Path(config.model).expanduser()
    if "\0" in config.model or not path.exists():
        hint = shown(near_path(path)) or "; check the path"
        raise ModelError(f"{shown(config.model)}: no such file{hint}")
    if not path.is_file():
        raise ModelError(f"{shown(config.model)}: no regular file; copy what it gives into one")
    if not config.trust_remote_code:
        raise ModelError(
            f"{shown(config.model)}: an exported program is code, which runs when it is loaded; if you "
            "trust where it comes from, give --trust-remote-code"
        )
    return path
