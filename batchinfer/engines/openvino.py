"""The OpenVINO engine: the same transformers model, exported once, on the CPU.

    weights ─trace with the task's forward─▶ graph ─compare─▶ cache ─compile for the CPU─▶ answers

What is traced are the model and `Task.forward` together, so the graph's outputs are the task's answers.
Tracing writes down what one call did, and what Python decided in that call may be wrong for the next;
so every new export answers rows of several lengths, alone and together, and is refused where it does
not say what the model says. With that proven it is kept for the next run (engines/exports.py).

Nothing is sent anywhere. The package `openvino` imports another one, `openvino_telemetry`, and reports
its own import where it finds it, asking nobody; so it is kept from finding it, and the user's consent
file is neither read nor written. The export goes through OpenVINO's frontend, below `convert_model`,
which reports too, sets up the root logger, and looks for `--verbose` in the arguments of the process.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import random
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer import __version__
from batchinfer.core import Answers, Batch, BatchBudget, ChunkId
from batchinfer.engines import exports, models
from batchinfer.engines.base import Engine, reason
from batchinfer.engines.devices import resolve_dtype
from batchinfer.engines.streams import share
from batchinfer.errors import BatchInferError, ModelError, UsageError, one_line
from batchinfer.machine import usable_cores
from batchinfer.tasks.base import OnePass

log = logging.getLogger("batchinfer")

#: Counts up where an export is made otherwise than before.
_FORMAT = 1
#: all-MiniLM-L6-v2 in bfloat16 on 2 cores with AMX: 4,096 tokens reach 0.94 of it, 16,384 tokens 0.8.
_BUDGET = BatchBudget(max_batch_tokens=2048, max_batch_rows=4096)
#: A token of a row of so many tokens, or a multiple, takes 0.8 of the time that it takes in others
#: (MiniLM in bfloat16, as above); so rows are padded to it where that adds no more than a quarter.
_WIDTHS = 16
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
#: The model may attend in these ways. In a sliding window, tokens of padding may see nothing; the
#: first one makes NaN of that, where the second makes a number.
_ATTENTIONS = ("sdpa", "eager")
#: An export may differ from the model by this share. Measured: 1e-6 to 1e-4 in float32.
_TOLERANCE = 1e-3
#: Words of the rows that are compared; the first row is as long as rows of the job may be, up to here.
_COMPARED_WORDS = (1024, 300, 130, 33, 7, 1)
_PAIRED_WORDS = 7
_WORDS = (
    "the of and to in is for with on that was 7 2024 not from this rain, tea. good bad very why?"
)
_MODEL = "model.xml"
#: Settings of tasks that only encoding and decoding read; all others may be in the graph.
_NOT_TRACED = frozenset(
    {"prompt", "embedding_dtype", "labels", "labels_column", "hypothesis", "multi_label", "stride"}
)


def require(*, device: str, dtype: str, attention: str, compile: bool) -> None:
    """See that the engine is installed, and is asked for nothing that it cannot do. Raises UsageError."""
    if importlib.util.find_spec("openvino") is None:
        raise UsageError(
            "--engine openvino needs a package that is not installed: "
            "pip install 'batchinfer[openvino]'"
        )
    wrong = ""
    if device not in ("auto", "cpu"):
        wrong = f"--device {device}: with --engine openvino it should be auto or cpu"
    elif dtype not in ("auto", *_PRECISIONS):
        wrong = f"--dtype {dtype}: with --engine openvino it should be {' or '.join(_PRECISIONS)}"
    elif attention != "auto":
        wrong = f"--attention {attention} is of --engine local; leave it out with openvino"
    elif compile:
        wrong = "--compile is of --engine local; leave it out with openvino, which always compiles"
    if wrong:
        raise UsageError(wrong)


class OpenVinoEngine(Engine):
    """Answers with a transformers model from a local folder, by OpenVINO on the CPU.

    `threads`: None is one a core. `streams`: batches at a time; None is one a thread, up to a limit.
    Raises UsageError for what `require` refuses and for a precision that
    the CPU has not, and ModelError for weights that are missing or broken, and for a model that cannot
    be exported so that it answers as it did.
    """

    def __init__(
        self,
        task: OnePass,
        folder: Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        attention: str = "auto",
        threads: int | None = None,
        streams: int | None = None,
        compile: bool = False,
        adapter: Path | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        super().__init__(task)
        if task.head in ("tokens", "masks"):
            raise UsageError(f"--engine openvino: not for --task {task.name}; use --engine local")
        require(device=device, dtype=dtype, attention=attention, compile=compile)
        self.dtype = resolve_dtype(dtype, "cpu")
        self.device_kind = "cpu"
        self.default_budget = _BUDGET
        facts = _facts(task, trust_remote_code)
        kept = exports.find(facts)
        if kept is None:
            graph = _export(task, folder, adapter, trust_remote_code, allow_pickle)
            kept = exports.keep(facts, graph.notes, graph.save)
        if kept is not None:  # from the file in the first run too: then all runs compile the same
            place, notes = kept
            graph = _Graph(place / _MODEL, tuple(notes["inputs"]), notes["pad_token_id"])
            log.debug(f"the exported model lies in {place}")
        self._graph = graph
        self.threads = threads or usable_cores()
        streams, _ = share(self.threads, streams)
        self._compiled = _compile(graph, task, self.dtype, self.threads, streams)
        #: Of each thread that answers: its `InferRequest`, which holds the answers of one batch.
        self._own = threading.local()
        # Its binding to Python sets itself up when it is first used, and two threads that use it first
        # at the same time wait for each other for good.
        with suppress(
            RuntimeError, MemoryError
        ):  # what is wrong with the model will show on the rows
            self.answer(_smallest_batch(graph))
        self.open_streams(streams, _do_nothing)

    def tokens_computed(self, batch: Batch) -> int:
        """The tokens that the model computes for a batch, padding and all."""
        return len(batch) * _width(batch, self.task.spec.max_length)

    def answer(self, batch: Batch) -> Answers:
        """Answer a batch of at least one request; may raise RuntimeError and MemoryError."""
        inputs = self._graph.padded(batch, widest=self.task.spec.max_length)
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        found = _ask(self._own.request, inputs)
        values = {
            name: np.array(values, dtype=field.dtype)  # a copy: the next batch reuses the memory
            for values, (name, field) in zip(found, self.task.answers.items(), strict=False)
        }
        # OpenVINO's softmax and maximum make a number of NaN, and nobody would know.
        wrong = ~np.isfinite(found[-1]).all(axis=1)
        if wrong.any():
            for name, value in values.items():
                if self.task.answers[name].dtype is np.float32:
                    value[wrong] = np.nan
        return Answers(values)

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether the batch was too large for memory; OpenVINO says so in words."""
        return _is_out_of_memory(error)

    def close(self) -> None:
        """Drop the model."""
        super().close()
        self._compiled, self._own = None, threading.local()


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or "bad_alloc" in said or "allocate memory" in said


def _width(batch: Batch, widest: int) -> int:
    """How many tokens each row of a batch is padded to."""
    width = -(-batch.max_length // _WIDTHS) * _WIDTHS
    return batch.max_length if width > min(widest, 1.25 * batch.max_length) else width


@dataclass(frozen=True)
class _Graph:
    """A model as OpenVINO has it (an `openvino.Model`, or the file of one), and what it is asked with.

    `inputs`: the names of its inputs, in their order.
    """

    source: Any
    inputs: tuple[str, ...]
    pad_token_id: int

    @property
    def notes(self) -> dict[str, Any]:
        """What must be known of it beside the file."""
        return {"inputs": list(self.inputs), "pad_token_id": self.pad_token_id}

    def save(self, folder: Path) -> None:
        """Write it into a folder. Raises RuntimeError where that cannot be."""
        _openvino().save_model(self.source, folder / _MODEL, compress_to_fp16=False)

    def padded(self, batch: Batch, *, widest: int) -> list[npt.NDArray[np.int64]]:
        """The inputs, int64[b, t]: t is the longest row's length, rounded up where that is quicker.

        Never above `widest`: a model has no positions beyond the longest row that it takes.
        """
        mask = np.arange(_width(batch, widest)) < batch.lengths[:, None]
        inputs = []
        for name in self.inputs:
            padding = self.pad_token_id if name == "input_ids" else 0
            values = np.full(mask.shape, padding, dtype=np.int64)
            if name == "attention_mask":
                values[mask] = 1
            elif name in batch.fields:
                values[mask] = batch.fields[name]
            inputs.append(values)
        return inputs


def _smallest_batch(graph: _Graph) -> Batch:
    """A row of one token."""
    fields = {name: np.zeros(1, np.int32) for name in graph.inputs if name != "attention_mask"}
    return Batch(ChunkId(0, 0), np.zeros(1, np.int64), np.ones(1, np.int32), fields)


def _do_nothing() -> None:
    """What a stream begins with: OpenVINO has threads of its own."""


def _compile(
    graph: _Graph, task: OnePass, dtype: str, threads: int | None = None, streams: int = 1
) -> Any:
    """Make a graph ready for this CPU: a `CompiledModel`, which computes so many batches at a time.

    Raises ModelError where that cannot be, and UsageError for a precision that the CPU has not.
    """
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": streams,
        # Pinned, all processes with N threads would share the same N cores.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_NUM_THREADS": threads or usable_cores(),
    }
    try:
        compiled = _openvino().Core().compile_model(graph.source, "CPU", options)
    except RuntimeError as error:
        raise ModelError(
            f"{task.spec.name}: OpenVINO cannot compile it: {one_line(error)}"
        ) from None
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision != _PRECISIONS[dtype]:
        raise UsageError(f"--dtype {dtype}: OpenVINO has only {precision} on this CPU")
    return compiled


def _ask(request: Any, inputs: list[npt.NDArray[np.int64]]) -> list[npt.NDArray[Any]]:
    """What a graph says, in its own memory: the task's answers in their order, and its outputs."""
    found = request.infer(inputs, share_inputs=True, share_outputs=True)
    return [found[index] for index in range(len(found))]


def _facts(task: OnePass, trust_remote_code: bool) -> dict[str, Any]:
    """All that an export depends on."""
    spec = asdict(task.spec)
    spec["labels"] = len(spec["labels"])
    for name in ("name", "prompt", "inputs", "is_stacked", "outputs", "generation", "chat"):
        del spec[name]  # of other tasks, and what the graph does not see
    # Longer rows are not compared, whatever the limit; but whether there are any decides.
    spec["max_length"] = min(task.spec.max_length, _COMPARED_WORDS[0] + 1)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {
        "format": _FORMAT,
        "versions": {
            **versions, "openvino": _openvino().get_version(), "batchinfer": __version__,
        },
        "model": spec,
        "pairs": task.takes_pairs,
        "settings": {
            name: getattr(task.config, name) for name in sorted(task.knobs - _NOT_TRACED)
        },
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip


def _openvino() -> Any:
    """The package, imported without its telemetry. Raises UsageError where it cannot be imported."""
    known: dict[str, Any] = sys.modules
    if "openvino" in known:
        return known["openvino"]
    telemetry = "openvino_telemetry"
    held = known.get(telemetry)
    known[telemetry] = None  # an import of it now fails, and OpenVINO does without
    try:
        with _hushed():
            return importlib.import_module("openvino")
    except ImportError as error:
        raise UsageError(f"--engine openvino: it cannot be imported: {one_line(error)}") from None
    finally:
        del known[telemetry]
        if held is not None:
            known[telemetry] = held


@contextmanager
def _hushed() -> Iterator[None]:
    """Without warnings: of the tracer (what was traced is compared), and of what will be removed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -- the export: what needs torch and transformers --------------------------------------------------


def _export(
    task: OnePass, folder: Path, adapter: Path | None, trust_remote_code: bool, allow_pickle: bool
) -> _Graph:
    """Trace the model, and see that the graph answers as it does.

    Raises ModelError where the model cannot be traced, or the graph does not.
    """
    import torch

    from batchinfer.engines import weights

    log.info(f"{task.spec.name}: exporting it to OpenVINO, once for this model and these versions")
    rows = _sample_rows(task, folder, trust_remote_code)
    why = ""
    for attention in _ATTENTIONS:
        model = weights.load(
            task,
            folder,
            dtype="float32",
            device=torch.device("cpu"),
            attention=attention,
            adapter=adapter,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        if "longrope" in str(model.config.to_dict()) and task.spec.max_length > _COMPARED_WORDS[0]:
            why = "its positions change with the length of the rows"
            break
        takes = inspect.signature(model.forward).parameters
        names = [n for n in rows[0].fields if n == "input_ids" or n in takes]
        graph = _Graph(
            None,
            ("attention_mask", *names),
            weights.pad_token_id(model.config, folder, trust_remote_code),
        )
        try:
            with _hushed(), torch.no_grad():
                module = _as_module(model, task, graph.inputs)
                example = graph.padded(_joined(rows[-3:]), widest=task.spec.max_length)
                graph = replace(graph, source=_trace(module, example))
                why = _difference(module, task, graph, rows)
        except BatchInferError:
            raise
        except Exception as error:  # whatever the model's code, the tracer or the frontend raises
            if _is_out_of_memory(error):  # what is kept must not depend on what else runs here
                raise ModelError(
                    f"{task.spec.name}: out of memory while it was exported to OpenVINO; free some, or "
                    "use --engine local"
                ) from None
            why = f"it cannot be exported: {reason(error)}"
        if not why:
            return graph
        log.debug(f"with {attention} attention {why}")
    raise ModelError(f"{task.spec.name}: OpenVINO cannot run it: {why}; use --engine local")


def _as_module(model: Any, task: OnePass, inputs: Sequence[str]) -> Any:
    """The model and the task's forward: tensors in the order of `inputs` to the task's answers.

    Behind them comes what those are made of, float32[b, n].
    """
    import torch

    class Answering(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = task.outputs(self.model, dict(zip(inputs, tensors, strict=True)))
            answers = task.reduce(outputs)
            return (*(answers[name] for name in task.answers), outputs)

    return Answering().eval()


def _trace(module: Any, example: list[npt.NDArray[np.int64]]) -> Any:
    """The `openvino.Model` of a module, for batches and rows of any size."""
    import torch

    _openvino()
    frontend = importlib.import_module("openvino.frontend").FrontEndManager()
    decoder = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    traced = decoder.TorchScriptPythonDecoder(
        module, example_input=tuple(torch.from_numpy(values) for values in example)
    )
    pytorch = frontend.load_by_framework("pytorch")
    model = pytorch.convert(pytorch.load(traced))
    if len(model.inputs) != len(example):
        raise ValueError(f"it has {len(model.inputs)} inputs, not {len(example)}")
    return model


def _difference(module: Any, task: OnePass, graph: _Graph, rows: list[Batch]) -> str:
    """Ask the module for each row alone, and the graph for each alone and for several together.

    Returns in words how they differ; "" where they agree.
    """
    import torch

    request = _compile(graph, task, "float32").create_infer_request()
    widest = task.spec.max_length
    expected = []
    for row in rows:
        tensors = (torch.from_numpy(values) for values in graph.padded(row, widest=row.max_length))
        expected.append([values.numpy() for values in module(*tensors)])
    # Copies: the next answers take the memory of these.
    alone = [
        [values.copy() for values in _ask(request, graph.padded(row, widest=widest))]
        for row in rows
    ]
    # The longest row stays alone: padded to its length, all the others would be as expensive.
    together = _ask(request, graph.padded(_joined(rows[1:]), widest=widest))
    for index, values in enumerate(together):
        wanted = np.concatenate([row[index] for row in expected])
        pairs = (
            (np.concatenate([row[index] for row in alone]), wanted),
            (values, wanted[1:]),
        )
        for found, right in pairs:
            if np.issubdtype(right.dtype, np.floating):
                share = _distance(found, right)
            else:
                share = float((found != right).mean())
            if not share <= _TOLERANCE:  # NaN is not
                return f"exported, its answers differ by {share:.2g} from what they are"
    return ""


def _distance(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """The norm of the difference as a share of the expected one's."""
    norm = max(1e-30, float(np.linalg.norm(expected)))
    return float(np.linalg.norm(found.astype(np.float64) - expected) / norm)


def _sample_rows(task: OnePass, folder: Path, trust_remote_code: bool) -> list[Batch]:
    """Rows of words, the same ones each time, each a batch of its own; longest first."""
    draw = random.Random(0)
    words = _WORDS.split()
    # The longest texts; and pairs that leave them room, as some tasks cut the first text only.
    texts, pairs = (
        pa.array(
            [" ".join(draw.choices(words, k=min(k, most))) for k in _COMPARED_WORDS],
            pa.large_string(),
        )
        for most in (max(_COMPARED_WORDS), _PAIRED_WORDS)
    )
    spec = replace(task.spec, max_length=min(task.spec.max_length, _COMPARED_WORDS[0]))
    encoder = models.make_encoder(folder, spec, trust_remote_code=trust_remote_code)
    tokens = encoder.encode(texts, pairs if task.takes_pairs else None)
    rows = [
        Batch(
            ChunkId(0, 0),
            np.zeros(1, np.int64),
            np.array([end - start], np.int32),
            {name: values[start:end] for name, values in tokens.fields.items()},
        )
        for start, end in pairwise(tokens.offsets)
    ]
    return sorted(rows, key=lambda row: row.max_length, reverse=True)


def _joined(rows: Sequence[Batch]) -> Batch:
    """Rows that are batches of their own, longest first, as one batch."""
    return Batch(
        rows[0].chunk,
        np.arange(len(rows), dtype=np.int64),
        np.concatenate([row.lengths for row in rows]),
        {name: np.concatenate([row.fields[name] for row in rows]) for name in rows[0].fields},
    )
