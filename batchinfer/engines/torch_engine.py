"""What engines that compute with PyTorch share: batches to the device, answers back, and its errors.

On a CPU a batch is answered where it is asked for. A GPU has several before it at a time: it is asked for
nothing before the answers themselves, which come back in one copy a batch while the next batches are under
way.
"""

from __future__ import annotations

import logging
import shutil
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from batchinfer.core import Answers, Batch
from batchinfer.engines import cpu
from batchinfer.engines.base import Engine, reason
from batchinfer.engines.devices import device_kind, is_out_of_memory, resolve_device
from batchinfer.engines.placement import Placement
from batchinfer.errors import ModelError
from batchinfer.machine import MemoryUse
from batchinfer.stages import StageSeconds
from batchinfer.tasks.base import Task

log = logging.getLogger("batchinfer")

#: Batches that a GPU has before it at a time: one computes, one waits, one is being landed.
_IN_FLIGHT = 3

#: Shape and type of each field of answers that travel as bytes.
Fields = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


@dataclass(frozen=True, slots=True)
class Flight:
    """Answers on their way back from a GPU; they are there once the last mark was passed.

    `landed` uint8: the answers' bytes, one field behind the other, in page-locked memory. `marks`:
    events in the stream before the inputs, before and after the model, and behind the answers.
    """

    batch: Batch
    landed: torch.Tensor
    fields: Fields
    marks: tuple[torch.cuda.Event, torch.cuda.Event, torch.cuda.Event, torch.cuda.Event]

    def land(self) -> Answers:
        self.marks[-1].synchronize()
        values, start, landed = {}, 0, self.landed.numpy()
        for name, (shape, dtype) in self.fields.items():
            end = start + int(np.prod(shape)) * dtype.itemsize
            values[name] = landed[start:end].view(dtype).reshape(shape)
            start = end
        return Answers(values)

    @property
    def seconds(self) -> StageSeconds:
        """What it took on the GPU, once it has landed. Flights share a stream: theirs never overlap."""
        begun, ready, done, arrived = self.marks
        moved = begun.elapsed_time(ready) + done.elapsed_time(arrived)
        return StageSeconds(copy=moved / 1e3, forward=ready.elapsed_time(done) / 1e3)


class TorchEngine(Engine):
    """An engine with a model on one device of PyTorch's; or spread from there, by a `placement`.

    Raises UsageError for a device that is not there.
    """

    def __init__(self, task: Task, device: str, placement: Placement | None = None) -> None:
        super().__init__(task)
        #: What spreads the model, for `from_pretrained`; {}: it is on the device.
        self.spread: dict[str, Any] = {}
        self._remove_offload: Callable[[], object] | None = None
        if placement is not None:
            folder = placement.make_folder()
            self._remove_offload = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self.spread = placement.loading(folder)
        self.device = torch.device(resolve_device(device))
        self.device_kind = device_kind(device)
        #: None once the engine is closed.
        self.model: Any = None

    @property
    def pins_memory(self) -> bool:
        return self.device.type == "cuda"

    def is_fatal(self, error: Exception) -> bool:
        """Whether the GPU is lost: a CUDA error leaves a context in which everything fails."""
        if self.device.type != "cuda" or self.is_out_of_memory(error):
            return False
        fatal: Any = getattr(torch, "AcceleratorError", ())
        if isinstance(error, fatal):
            return True
        # Libraries above CUDA report its errors as their own; a lost context says so when asked.
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return True
        return False

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether the batch was too large for the device's memory."""
        return is_out_of_memory(error)

    def recover(self) -> None:
        """Give the memory that a failed batch held back to the GPU."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def memory_use(self) -> MemoryUse | None:
        """Of a GPU: what this process held at most since this was asked last, and what it could hold."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        free, _ = torch.cuda.mem_get_info(self.device)
        return MemoryUse(peak, free + torch.cuda.memory_reserved(self.device))

    def close(self) -> None:
        """Drop the model and give its memory back."""
        super().close()
        if self.model is not None and self.threads is not None:
            torch.set_num_threads(self._threads_before)
        self.model = None
        if self._remove_offload is not None:
            self._remove_offload()
        self.recover()

    def _take_threads(self, threads: int | None) -> None:
        """Compute with so many of a CPU's threads; None: as many as it has cores."""
        self._threads_before = torch.get_num_threads()  # the process's, and the user's
        self.threads = threads or cpu.usual_threads()
        torch.set_num_threads(self.threads)

    def _put_in_layers(
        self,
        optimize: Callable[[], str],
        objection: Callable[[str], str],
        load: Callable[[], Any],
    ) -> str:
        """Put a CPU's faster layers into the model, and return what was done, in a few words.

        `objection` says, once they are in, what speaks against them ("": nothing): then `load` brings the
        model's own back.
        """
        what = "putting in faster layers"
        try:
            done = optimize()
            why = objection(what)
        except Exception as error:  # whatever a model's own layers raise when called on their own
            self._refuse_to_judge(error)
            why = f"{what} fails: {reason(error)}"
        if why:
            log.warning(f"the model's own layers are used: {why}")
            self.model, done = load(), "its own"
        return done

    def _refuse_to_judge(self, error: Exception) -> None:
        """Raise where it is the device that failed: a later run would judge otherwise, and compute so."""
        if self.is_fatal(error):
            raise self.lost(error) from error
        if self.is_out_of_memory(error):
            raise ModelError(
                f"{self.device_kind}: out of memory for a few rows, while {self.task.spec.name} was "
                "tried; free some, then start it again"
            ) from error

    def _to_device(self, values: Any) -> torch.Tensor:
        tensor = values
        if isinstance(values, np.ndarray):
            # torch warns of arrays that it may not write to, though it is only read from here.
            tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
            if self.pins_memory:
                tensor = tensor.pin_memory()
        moved: torch.Tensor = tensor.to(self.device, non_blocking=True)
        return moved


class PassEngine(TorchEngine):
    """An engine that answers a batch by one pass of its model."""

    @abstractmethod
    def _inputs(self, batch: Batch) -> Any:
        """What the model takes of a batch, on the device."""

    @abstractmethod
    def _values(self, inputs: Any) -> dict[str, torch.Tensor]:
        """The task's answers to inputs, on the device."""

    def answer(self, batch: Batch) -> Answers:
        """Answer a batch of at least one request; may raise whatever the model raises."""
        if self.device.type == "cuda":
            return self._launch(batch).land()
        values = self._forward(batch)
        return Answers({name: value.cpu().numpy() for name, value in values.items()})

    def stream(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, Answers]]:
        """Answer every request of every batch; a GPU has the next ones before one is read."""
        if self.device.type != "cuda":
            yield from super().stream(batches)
            return
        flying: deque[Flight] = deque()
        for batch in batches:
            for part in self.split(batch):
                if (launched := self._try_launch(part)) is not None:
                    flying.append(launched)
                while flying and (launched is None or len(flying) >= _IN_FLIGHT):
                    flight = flying.popleft()
                    yield flight.batch, self._land(flight)
                if launched is None:  # alone on the device now, and halved where it fails again
                    yield from self.answer_or_halve(part)
        while flying:
            flight = flying.popleft()
            yield flight.batch, self._land(flight)

    def _try_launch(self, batch: Batch) -> Flight | None:
        """Start a batch, or None where there is nothing to start or it fails."""
        if not len(batch):
            return None
        try:
            return self._launch(batch)
        except Exception as error:  # it holds the failed frame's tensors: let go of it first
            if self.is_fatal(error):
                raise self.lost(error) from error
        self.recover()
        return None

    def _land(self, flight: Flight) -> Answers:
        """Wait for a batch's answers. What failed on the GPU after the launch shows here."""
        try:
            answers = flight.land()
        except RuntimeError as error:
            raise self.lost(error) from error
        self.watch.add(flight.seconds)
        self._has_answered = True
        return answers

    @torch.inference_mode()
    def _launch(self, batch: Batch) -> Flight:
        """Start a batch on the GPU and the copy of its answers into page-locked memory.

        All on one stream: by the rate of the bus the copies of a batch (128 KB of tokens to the GPU, at
        most some MB of answers back) take a few hundredths of its time, and nothing has to be ordered.
        """
        with torch.cuda.device(self.device):
            begun = _mark()
            inputs = self._inputs(batch)
            ready = _mark()
            values = self._values(inputs)
            done = _mark()
            answers, fields = as_bytes(values)
            landed = torch.empty(answers.shape, dtype=torch.uint8, pin_memory=True)
            landed.copy_(answers, non_blocking=True)
            arrived = _mark()
        return Flight(batch, landed, fields, (begun, ready, done, arrived))

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Answer a batch of at least one request, on the device."""
        return self._values(self._inputs(batch))


def _mark() -> torch.cuda.Event:
    """An event at this place of the stream, which knows when it was passed."""
    event: Any = torch.cuda.Event
    # Blocking: the core that waits for it is left to the tokenizers.
    mark: torch.cuda.Event = event(enable_timing=True, blocking=True)
    mark.record()
    return mark


def as_bytes(values: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, Fields]:
    """Answers as uint8[n], one field behind the other, so that one copy takes them all back."""
    fields = {
        name: (tuple(value.shape), np.dtype(str(value.dtype).removeprefix("torch.")))
        for name, value in values.items()
    }
    parts = [value.contiguous().view(-1).view(torch.uint8) for value in values.values()]
    return parts[0] if len(parts) == 1 else torch.cat(parts), fields
