"""The local engine: a transformers model on this machine's CPU or GPU.

Batches arrive packed. They are padded here, on the device and by arithmetic alone: nothing asks the
device for a value before the answers themselves are copied back, one copy a field.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from batchinfer.core import Answers, Batch, BatchBudget
from batchinfer.engines.base import Engine, reason
from batchinfer.engines.models import quiet
from batchinfer.errors import ModelError, UsageError
from batchinfer.tasks.base import Task

#: Measured on a CPU with 2 cores: 2,048-4,096 tokens are best, 8 k reach 0.95 and 32 k 0.61 of it.
#: A GPU wants its launches to be long: 32 k and more.
_BUDGET_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 32768}


def resolve_device(device: str) -> str:
    """The device that `auto` stands for: cuda, else mps, else cpu.

    Raises UsageError where the device that was named is not there, or is none.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in _BUDGET_TOKENS or (index and (kind != "cuda" or not index.isdecimal())):
        raise UsageError(f"--device {device}: should be auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        found = torch.cuda.device_count()
        if int(index or 0) >= found:
            raise UsageError(f"--device {device}: not available: {found} CUDA devices were found")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: not available on this machine")
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """The precision that `auto` stands for: bfloat16 where the device is fast in it, else float32.

    Raises UsageError where the device is not there.
    """
    device = resolve_device(device)
    if dtype != "auto":
        return dtype
    if device.startswith("cuda"):
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = device == "cpu" and _cpu_is_fast_in_bfloat16()
    return "bfloat16" if fast else "float32"


def _cpu_is_fast_in_bfloat16() -> bool:
    # AVX-512 bf16 or AMX; without them bfloat16 is emulated and several times slower than float32.
    # Both ways to ask are private, and which one there is depends on the release of torch.
    for owner, name in (
        (torch.cpu, "_is_avx512_bf16_supported"),
        (torch.cpu, "_is_amx_tile_supported"),
    ):
        ask = getattr(owner, name, None)
        if ask is not None and ask():
            return True
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() or {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))


@dataclass(frozen=True, slots=True)
class _Flight:
    """Answers on their way back from a GPU; they are there once the event has happened."""

    batch: Batch
    values: Mapping[str, torch.Tensor]
    arrival: torch.cuda.Event

    def land(self) -> Answers:
        self.arrival.synchronize()
        return Answers({name: value.numpy() for name, value in self.values.items()})


class LocalEngine(Engine):
    """Answers with a transformers model from a local folder with safetensors.

    Raises UsageError for a device that is not there, and ModelError for weights that are missing,
    broken, or not those of the task.
    """

    def __init__(
        self,
        task: Task,
        folder: Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        attention: str = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(task)
        self.device = torch.device(resolve_device(device))
        self.dtype = resolve_dtype(dtype, device)
        on_cuda = self.device.type == "cuda"
        self.device_kind = torch.cuda.get_device_name(self.device) if on_cuda else self.device.type
        self.default_budget = BatchBudget(
            max_batch_tokens=_BUDGET_TOKENS[self.device.type], max_batch_rows=4096
        )
        self.model = _load(task, folder, self.dtype, self.device, attention, trust_remote_code)
        self.pad_token_id = _pad_token_id(self.model.config, folder, trust_remote_code)
        self._parameters = frozenset(inspect.signature(self.model.forward).parameters)

    @property
    def pins_memory(self) -> bool:
        return self.device.type == "cuda"

    def answer(self, batch: Batch) -> Answers:
        """Answer a batch of at least one request; may raise whatever the model raises."""
        if self.device.type == "cuda":
            return self._launch(batch).land()
        values = self._forward(batch)
        return Answers({name: value.cpu().numpy() for name, value in values.items()})

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Answers]]:
        """Answer every request of every batch; a GPU starts on the next one before one is read."""
        if self.device.type != "cuda":
            yield from super().stream(batches)
            return
        flying: _Flight | None = None
        for batch in batches:
            launched = self._try_launch(batch)
            if flying is not None:
                yield flying.batch, self._land(flying)
            flying = launched
            if launched is None:  # alone on the device now, and halved where it fails again
                yield from self.answer_or_halve(batch)
        if flying is not None:
            yield flying.batch, self._land(flying)

    def is_fatal(self, error: Exception) -> bool:
        """A CUDA error other than out-of-memory leaves a context in which everything fails."""
        fatal: Any = getattr(torch, "AcceleratorError", ())
        return isinstance(error, fatal) and not isinstance(error, torch.OutOfMemoryError)

    def recover(self) -> None:
        """Give the memory that a failed batch held back to the GPU."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Drop the model and give its memory back."""
        self.model = None
        self.recover()

    def _try_launch(self, batch: Batch) -> _Flight | None:
        """Start a batch, or None where there is nothing to start or it fails."""
        if not len(batch):
            return None
        try:
            return self._launch(batch)
        except Exception as error:  # it holds the failed frame's tensors: let go of it first
            if self.is_fatal(error):
                raise ModelError(f"{self.device_kind} failed: {reason(error)}") from error
        self.recover()
        return None

    def _land(self, flight: _Flight) -> Answers:
        """Wait for a batch's answers. What failed on the GPU after the launch shows here."""
        try:
            answers = flight.land()
        except RuntimeError as error:
            raise ModelError(f"{self.device_kind} failed: {reason(error)}") from error
        self._has_answered = True
        return answers

    def _launch(self, batch: Batch) -> _Flight:
        """Start a batch on the GPU and the copy of its answers into page-locked memory."""
        with torch.cuda.device(self.device):
            values = {}
            for name, value in self._forward(batch).items():
                values[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                values[name].copy_(value, non_blocking=True)
            event: Any = torch.cuda.Event
            arrival = event()
            arrival.record()
        return _Flight(batch, values, arrival)

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self.task.forward(self.model, self._padded(batch))

    def _padded(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Packed fields to int64[b, t] on the device, padded on the right, with an attention mask."""
        lengths = self._to_device(batch.lengths).long()
        place = torch.arange(batch.max_length, device=self.device)
        mask = place < lengths[:, None]
        # Padding reads some token too (clamped to the last one), then the mask overwrites it: an
        # index of fixed shape needs no count from the device, as a boolean index would.
        starts = lengths.cumsum(0) - lengths
        source = (starts[:, None] + place).clamp_(max=batch.num_tokens - 1)
        inputs = {"attention_mask": mask.long()}
        for name, values in batch.fields.items():
            if name == "input_ids" or name in self._parameters:
                padding = self.pad_token_id if name == "input_ids" else 0
                flat = self._to_device(values).long()
                inputs[name] = flat[source].masked_fill_(~mask, padding)
        return inputs

    def _to_device(self, values: Any) -> torch.Tensor:
        tensor = values
        if isinstance(values, np.ndarray):
            # torch warns of arrays that it may not write to, though it is only read from here.
            tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
            if self.pins_memory:
                tensor = tensor.pin_memory()
        moved: torch.Tensor = tensor.to(self.device, non_blocking=True)
        return moved


def _load(
    task: Task,
    folder: Path,
    dtype: str,
    device: torch.device,
    attention: str,
    trust_remote_code: bool,
) -> Any:
    """The model on its device, for inference. Raises ModelError."""
    import transformers

    quiet()
    options = {} if attention == "auto" else {"attn_implementation": attention}
    name = task.spec.name
    try:
        model, report = getattr(transformers, task.auto_class).from_pretrained(
            folder,
            use_safetensors=True,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
        model = model.to(device).eval()
    except torch.OutOfMemoryError:
        raise ModelError(f"{name}: does not fit into the memory of {device} in {dtype}") from None
    except Exception as error:  # OSError, SafetensorError, RuntimeError, ImportError, …
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{name}: the weights cannot be loaded: {text}") from None
    # BERT's pooler is not in checkpoints of language models, and no pooling of ours uses it.
    classifies = task.name == "classify"
    missing = sorted(key for key in report["missing_keys"] if classifies or "pooler" not in key)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{name}: the weights lack {missing[0]}{more}:"
            f" they are not those of a model for --task {task.name}"
        )
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # nothing is generated: no keys and values to keep
    return model


def _pad_token_id(config: Any, folder: Path, trust_remote_code: bool) -> int:
    """The token that pads; set in the configuration too: decoders that classify look there."""
    text = config.get_text_config()
    if text.pad_token_id is not None and text.pad_token_id >= 0:
        return int(text.pad_token_id)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0):
        if token is not None:
            break
    text.pad_token_id = int(token)
    return int(token)
