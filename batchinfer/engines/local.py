"""The local engine: a transformers model on this machine's CPU or GPU.

Batches arrive packed. They stay so where the model's attention can be told where rows begin
(engines/attention.py). A GPU is then asked for nothing before the answers themselves, which come back
in one copy a batch while the next batches are under way; a CPU gets faster layers (engines/cpu.py).
Elsewhere batches are padded on the device,
by arithmetic alone; but transformers, when it makes a mask of the padding, asks whether there is any,
and waits for the answer once a batch.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from batchinfer.core import Batch, BatchBudget
from batchinfer.engines import attention as packing
from batchinfer.engines import cpu, weights
from batchinfer.engines.base import reason
from batchinfer.engines.canary import Canary, sample_rows
from batchinfer.engines.devices import BUDGET_TOKENS, resolve_dtype
from batchinfer.engines.placement import Placement
from batchinfer.engines.streams import share
from batchinfer.engines.torch_engine import PassEngine
from batchinfer.errors import UsageError
from batchinfer.tasks.base import OnePass

log = logging.getLogger("batchinfer")

#: A packed batch's tokens on a CPU. oneDNN makes a kernel for each number of tokens that it has not met,
#: which takes as long as using it: numbers that recur save a fifth of the time of a short run.
_CPU_MULTIPLE = 64
#: A CPU's layers are chosen by hand: compiled ones took 1.2 times as long there, and stalled whenever
#: batches had a new size.
_COMPILES = ("cuda",)
#: Packed answers may differ from those of rows alone by this share, or by three times what padding
#: changes, whichever is more. all-MiniLM-L6-v2 in bfloat16 on a CPU: padding changes 0.007, packing
#: 0.002; rows that see their neighbours 0.6, positions off by one 1.2 (in a tiny classifier 0.3).
_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_OF_HALVES = 0.03


class LocalEngine(PassEngine):
    """Answers with a transformers model from a local folder with safetensors, in one pass a batch.

    `attention`: "auto" (packed where that is possible, else the model's own), "packed", or one of
    transformers' implementations. `threads`: of a CPU; None: as many as it has cores. `streams`: batches
    that a CPU answers at a time; None: one a thread, up to a limit, where the model allows it. `compile`:
    by torch.compile, on CUDA. `adapter`: a folder with one of PEFT for the model. `placement`: spreads the
    model, which then has its own layers and one stream. `plain`: the model as
    transformers has it, with its own layers and attention, one batch at a time: slow, and what other
    answers are judged by. Raises UsageError for a device that is not there, and for packed attention,
    compiling or (on a CPU) streams where they are impossible, and ModelError for weights that are missing,
    broken, or not those of the task.
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
        placement: Placement | None = None,
        plain: bool = False,
    ) -> None:
        super().__init__(task, device, placement)
        self.task: OnePass = task
        if compile and self.device.type not in _COMPILES:
            raise UsageError(
                f"--compile: is for CUDA devices, not {self.device.type} (a CPU's layers are made fast "
                "without it); leave it out"
            )
        self.dtype = task.spec.dtype or resolve_dtype(dtype, device)
        self.default_budget = BatchBudget(
            max_batch_tokens=BUDGET_TOKENS[self.device.type], max_batch_rows=4096
        )
        load = partial(
            weights.load,
            task,
            folder,
            dtype=self.dtype,
            device=self.device,
            attention="" if attention in ("auto", "packed") else attention,
            adapter=adapter,
            spread=self.spread,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        self.model = load()
        self.pad_token_id = weights.pad_token_id(self.model.config, folder, trust_remote_code)
        self._parameters = frozenset(inspect.signature(self.model.forward).parameters)
        #: Whether rows go through the model without padding.
        self.is_packed = False
        canary = None if plain else self._canary()
        if self.device.type == "cpu":
            self._take_threads(threads)
            if not plain and not self.spread:
                self._speed_up(canary, load)
        if attention in ("auto", "packed") and not plain:
            self._pack(canary, is_wish=attention == "packed")
        if self.threads is not None:
            self._share(self.threads, streams)
        if compile:
            self._compile(canary)

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        values = super()._forward(batch)
        return {name: value[: self._num_answers(batch)] for name, value in values.items()}

    def _num_answers(self, batch: Batch) -> int:
        """How long the first axis of a batch's outputs is, without what fills it up."""
        if self.task.head == "masks":
            return int(batch.fields["is_mask"].sum())
        return batch.num_tokens if self.task.head == "tokens" else len(batch)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs = self._packed(batch) if self.is_packed else self._padded(batch)
        if self.task.head == "masks":
            inputs["mask_places"] = self._mask_places(batch)
        return inputs

    def tokens_computed(self, batch: Batch) -> int:
        """The tokens that the model computes for a batch, padding and all."""
        if self.is_packed:
            return batch.num_tokens + self._spare(batch)
        return len(batch) * batch.max_length

    def _spare(self, batch: Batch) -> int:
        """The padding of a packed batch."""
        return -batch.num_tokens % _CPU_MULTIPLE if self.device.type == "cpu" else 0

    def _mask_places(self, batch: Batch) -> torch.Tensor:
        """Where the mask tokens stand in the flat batch, int64; found here, so that no device is asked."""
        places = np.flatnonzero(np.asarray(batch.fields["is_mask"]))
        if not self.is_packed:
            lengths = batch.lengths.astype(np.int64)
            row = np.repeat(np.arange(len(batch)), lengths)[places]
            places += row * batch.max_length - (np.cumsum(lengths) - lengths)[row]
        return self._to_device(places)

    def _values(self, inputs: Any) -> dict[str, torch.Tensor]:
        return self.task.forward(self.model, inputs)

    def _padded(self, batch: Batch) -> dict[str, Any]:
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

    def _packed(self, batch: Batch) -> dict[str, Any]:
        """The fields as int64[1, t] on the device, with positions and the bounds of rows.

        On a CPU t is a multiple of `_CPU_MULTIPLE`: a last row of padding, which nobody looks at, fills it.
        """
        spare = self._spare(batch)
        lengths = [*batch.lengths.tolist(), *([spare] if spare else [])]
        bounds = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=bounds[1:])
        edges, total = self._to_device(bounds), batch.num_tokens + spare
        # With the size of its result given, this needs no count from the device.
        starts = edges[:-1].repeat_interleave(edges.diff(), output_size=total)
        longest = max(batch.max_length, spare)
        inputs: dict[str, Any] = {
            "cu_seq_lens_q": edges,
            "cu_seq_lens_k": edges,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        for name, values in batch.fields.items():
            if name == "input_ids" or name in self._parameters:
                padding = self.pad_token_id if name == "input_ids" else 0
                flat = self._to_device(values).long()
                inputs[name] = torch.nn.functional.pad(flat, (0, spare), value=padding)[None]
        ids = inputs["input_ids"][0]
        inputs["position_ids"] = packing.positions(self.model.config, ids, starts)[None]
        if "token_type_ids" in self._parameters and "token_type_ids" not in inputs:
            # BERT would take them from a buffer that is as long as its longest row.
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        return inputs

    def _canary(self) -> Canary | None:
        """A few rows with the model's own answers; None where it fails on them."""
        try:
            return Canary(self._sample_rows(), self._outputs)
        except Exception as error:
            self._refuse_to_judge(error)
            log.debug(f"the model fails on random tokens ({reason(error)}), and is left as it is")
            return None

    def _objection(self, canary: Canary | None, what: str) -> str:
        """What speaks against the model as it is now; "" where it answers the rows as it did.

        Padding alone changes the last bits; three times that is allowed, or the tolerance.
        """
        if canary is None:
            return f"{what} cannot be compared with anything: the model fails on random tokens"
        try:
            difference = canary.difference(self._outputs)
        except Exception as error:
            self._refuse_to_judge(error)
            return f"{what} fails: {reason(error)}"
        tolerance = _TOLERANCE.get(getattr(torch, self.dtype), _TOLERANCE_OF_HALVES)
        if difference <= max(tolerance, 3 * canary.padded):
            return ""
        return f"{what} changes the answers by {difference:.2g}"

    def _speed_up(self, canary: Canary | None, load: Callable[[], Any]) -> None:
        """Do what makes a CPU fast, and say so."""
        keeps = "kept" if cpu.tune_allocator() else "given back"
        done = "its own"
        if canary is not None:
            done = self._put_in_layers(
                partial(cpu.optimize, self.model, fuses=packing.is_listed(self.model)),
                partial(self._objection, canary),
                load,
            )
        log.debug(f"memory that a layer frees is {keeps}; layers: {done}")

    def _share(self, threads: int, streams: int | None) -> None:
        """Divide a CPU's threads among streams, where the model can answer several batches at a time.

        Raises UsageError where that was asked for and it cannot.
        """
        obstacle = packing.obstacle_to_streams(self.model, is_packed=self.is_packed)
        if self.spread:
            obstacle = "the weights of a spread model come and go with each layer"
        if obstacle and (streams or 1) > 1:
            raise UsageError(f"--streams {streams}: {obstacle}")
        streams, each = share(threads, 1 if obstacle else streams)
        torch.set_num_threads(each)
        self.open_streams(streams, partial(torch.set_num_threads, each))
        log.debug(f"batches at a time: {streams}, on {each} threads each")

    def _pack(self, canary: Canary | None, *, is_wish: bool) -> None:
        """Switch to packed attention where it is possible, and proven on a few rows.

        Raises UsageError where it `is_wish` of the user's and impossible; otherwise the log says why.
        """
        dtype = getattr(torch, self.dtype)
        obstacle = packing.obstacle(self.model, self.task, dtype, self.device)
        found = obstacle
        if not obstacle:
            own = self.model.config._attn_implementation
            packing.enable(self.model, self.task.head)
            self.is_packed = True
            if found := self._objection(canary, "packed attention"):
                self.is_packed = False
                self.model.set_attn_implementation(own)
        if not found:
            log.debug("rows go through the model packed, without padding")
        elif is_wish:
            raise UsageError(f"--attention packed: {found}")
        else:
            level = logging.INFO if obstacle else logging.WARNING
            log.log(level, f"rows are padded, not packed: {found}")

    def _compile(self, canary: Canary | None) -> None:
        """Compile the model for whatever sizes come.

        Raises UsageError where it does not answer as before: it was asked for.
        """
        started = time.monotonic()
        self.model.compile(dynamic=True)
        if why := self._objection(canary, "the compiled model"):
            raise UsageError(f"--compile: {why}")
        log.debug(f"compiled the model in {time.monotonic() - started:.0f} s")

    @torch.inference_mode()
    def _outputs(self, batch: Batch) -> torch.Tensor:
        """What the model says before the task makes answers of it: float32[b or tokens, n]."""
        outputs = self.task.outputs(self.model, self._inputs(batch))
        return outputs[: self._num_answers(batch)]

    def _sample_rows(self) -> list[Batch]:
        config = self.model.config.get_text_config()
        return sample_rows(config.vocab_size, self.task.spec.max_length, self.pad_token_id)
