"""The engine of `generate`: by transformers' continuous batching where that pays, else batch by batch.

A batch that is answered together takes until its longest answer ends. Answers of real models differ in
length by an order of magnitude, so that it ends with few rows, whose steps take a GPU as long as those of
many. A manager in a thread of its own (engines/manager.py) lets rows in as others end; here it is fed from
the batches as they come, across the bounds of batches and chunks, and rows are handed on as they end:
whoever is slow keeps none of its neighbours.

It pays where attention can read each row's keys and values where they are, which flash attention does. The
one that every PyTorch has puts those of all rows under way one behind the other, and masks: work that grows
with the square of the rows. Measured on two CPU cores, 135 M weights in bfloat16, 64 prompts: 52.7 s,
against 7.3 s batch by batch.
"""

from __future__ import annotations

import copy
import itertools
import logging
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from batchinfer.core import Answers, Batch, Int64Array
from batchinfer.engines.base import CEILING_SHARE, StoppedError, reason
from batchinfer.engines.canary import sample_rows
from batchinfer.engines.generation import GenerationEngine
from batchinfer.engines.manager import Manager, ManagerError, flash_attention, obstacle
from batchinfer.stages import StageSeconds
from batchinfer.tasks.generation import LENGTH, STOP, Generation

log = logging.getLogger("batchinfer")

#: Rows of a step. A GPU's time for one hardly grows up to a few hundred: until then, weights are read.
ROWS_A_STEP = 512
#: Rows under way from which on no further batch is asked for: those of a step, and so many more that one
#: which ends is replaced at once.
ROWS_UNDER_WAY = 768
#: The share of a GPU's free memory for keys and values. transformers counts most of what a step needs
#: beside them, but not all (the widest layer of an MLP).
_SHARE = 0.8
#: After so many failures, no manager is started again.
_MOST_FAILURES = 3
#: How long to wait for an answer before looking whether the manager lives, in seconds.
_LOOK_SECONDS = 1.0
#: How long the first answers may take: graphs are captured and kernels chosen.
_CANARY_SECONDS = 600.0
#: Prompts of a canary have at most so many tokens, the answers so many: beyond a page, and more steps than
#: it takes to mix rows that read with rows that write.
_CANARY_PROMPT, _CANARY_ANSWER = 300, 8
#: By how much the score of the manager's token may be below the best one, in standard deviations of the
#: scores: what rounding explains. One by chance is three to five below.
_TIE, _TIE_OF_HALVES = 1e-3, 0.2


class ContinuousEngine(GenerationEngine):
    """Answers with the text that a transformers model writes, continuously batched where that pays.

    That is: on a GPU with flash attention, of a decoder with attention in the usual layers, taking the
    likeliest token, with `attention` "auto" and not `plain`; and where a few prompts are answered as by
    `generate`. Else, and once the manager has failed too often, it is a GenerationEngine, and says so.
    `force`: on any device, with whatever attention there is. Raises what GenerationEngine raises.
    """

    def __init__(
        self,
        task: Generation,
        folder: Path,
        *,
        attention: str = "auto",
        plain: bool = False,
        force: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(task, folder, attention=attention, plain=plain, **options)
        #: Whether prompts are batched continuously: where that is right, and has not failed too often.
        self.is_continuous = False
        self._flash = flash_attention(self.model, self.device)
        self._share, self._failures = _SHARE, 0
        self._numbers = itertools.count()
        self._manager: Manager | None = None
        level = logging.WARNING
        if plain:
            why, level = "others are judged by this engine", logging.DEBUG
        elif why := obstacle(task, self.model) or ("" if force else self._drawback(attention)):
            level = logging.INFO if self.device.type == "cuda" else logging.DEBUG
        elif not (why := self._objection()):
            self.is_continuous = True
            log.debug(f"prompts are batched continuously, by {self._flash or 'its own'} attention")
            return
        log.log(level, f"no continuous batching: {why}; prompts are answered batch by batch")

    def answer(self, batch: Batch) -> Answers:
        """Answer a batch of at least one request; may raise whatever the model raises."""
        if self._manager is None:
            return super().answer(batch)
        under_way = _UnderWay()
        try:
            self._enter(batch, under_way)
            ended: list[_Ended] = []
            while len(ended) < len(batch):
                for _, rows in under_way.land(self._manager.wait(_LOOK_SECONDS)):
                    ended += rows
        except ManagerError as failed:
            raise self._stop(failed) from None
        finally:
            self._drop(under_way)
        return _answers(ended)

    def stream(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, Answers]]:
        """Answer every request of every batch, each as it ends; a batch comes back in parts.

        The next batch is asked for as soon as few enough rows are under way. Where the manager fails, those
        rows are answered batch by batch, and halved as usual, before another one is started.
        """
        if not self.is_continuous:
            yield from super().stream(batches)
            return
        under_way = _UnderWay()
        try:
            for batch in batches:
                if not len(batch) or not self._has_manager():
                    yield from self.answer_or_halve(batch)
                    continue
                self._enter(batch, under_way)
                yield from self._land(under_way, 0.0)
                while under_way.rows >= ROWS_UNDER_WAY:
                    yield from self._land(under_way, _LOOK_SECONDS)
            while under_way.rows:
                yield from self._land(under_way, _LOOK_SECONDS)
        except StoppedError:
            return
        finally:
            self._drop(under_way)

    def close(self) -> None:
        """Stop the manager, drop the model and give its memory back."""
        self._end()
        super().close()

    def _enter(self, batch: Batch, under_way: _UnderWay) -> None:
        """Hand the rows of a batch to the manager."""
        assert self._manager is not None
        numbers = list(itertools.islice(self._numbers, len(batch)))
        under_way.enter(batch, numbers)
        for number, prompt in zip(numbers, _prompts(batch), strict=True):
            self._manager.add(number, prompt, self.generation.max_new_tokens)

    def _land(self, under_way: _UnderWay, seconds: float) -> Iterator[tuple[Batch, Answers]]:
        """Yield what has ended of each batch; wait for so many seconds where nothing has.

        Raises StoppedError once the run was told to stop.
        """
        if self.stopped():
            raise StoppedError
        assert self._manager is not None
        try:
            ended = under_way.land(self._manager.wait(seconds))
        except ManagerError as failed:
            yield from self._answer_otherwise(under_way, failed)
            return
        self.watch.add(StageSeconds(forward=under_way.seconds()))
        for flight, rows in ended:
            self._has_answered = True
            yield flight.part([one.row for one in rows]), _answers(rows)

    def _answer_otherwise(
        self, under_way: _UnderWay, failed: ManagerError
    ) -> Iterator[tuple[Batch, Answers]]:
        """Answer what a manager that failed has left, batch by batch: a row that is at fault is found."""
        error = self._stop(failed)
        self._failures += 1
        if self._failures >= _MOST_FAILURES:
            self.is_continuous = False
        if self.is_out_of_memory(error):
            self._share *= CEILING_SHARE
        until = "then it goes on" if self.is_continuous else "and so is all that follows"
        log.warning(
            f"continuous batching failed ({reason(error)}): what is under way is answered batch by batch, "
            f"{until}"
        )
        for flight, rows in under_way.leave():
            yield from self.answer_or_halve(flight.part(rows))

    def _has_manager(self) -> bool:
        """Whether there is a manager; one that failed, or was stopped, is replaced."""
        if self._manager is None and self.is_continuous:
            try:
                self._manager = self._open()
            except ManagerError as failed:
                self._refuse_lost(failed.cause)
                self.is_continuous = False
                log.warning(
                    f"continuous batching cannot be started again ({failed}): what follows is answered "
                    "batch by batch"
                )
        return self._manager is not None

    def _open(self) -> Manager:
        """A running manager. Raises ManagerError."""
        return Manager(
            self.model,
            self._settings,
            attention=self._flash,
            rows=ROWS_A_STEP,
            longest=self.task.spec.max_length + self.generation.max_new_tokens,
            share=self._share,
        )

    def _drop(self, under_way: _UnderWay) -> None:
        """Stop the manager where rows are under way that nobody waits for any more."""
        if under_way.rows:
            self._end()

    def _end(self) -> bool:
        """Stop the manager, if there is one; whether what it computes has ended."""
        manager, self._manager = self._manager, None
        if manager is None or manager.close():
            return True
        log.warning(
            f"{self.device_kind}: a step of continuous batching does not end; it is left alone"
        )
        return False

    def _stop(self, failed: ManagerError) -> Exception:
        """Stop a manager that has failed, and say of what. Raises DeviceLostError where the device is."""
        manager = self._manager
        assert manager is not None
        if not self._end():
            raise self.lost(TimeoutError("a step does not end"))
        error = manager.failure or failed.cause
        self._refuse_lost(error)
        self.recover()
        return error

    def _refuse_lost(self, error: Exception) -> None:
        """Raise where the device is lost."""
        if self.is_fatal(error):
            raise self.lost(error) from error

    def _drawback(self, attention: str) -> str:
        """Why this machine, or the user, is better off without; "" where nothing is."""
        if self.spread:
            return "the model is spread over devices"
        if self.device.type != "cuda":
            return f"it is slower on this device ({self.device.type})"
        if attention != "auto":
            return f"--attention {attention}"
        return (
            ""
            if self._flash
            else "it is slower without flash attention (flash-attn, half precision)"
        )

    def _objection(self) -> str:
        """What speaks against the manager, after a few prompts: "" where it writes what `generate` does."""
        vocabulary = self.model.config.get_text_config().vocab_size
        longest = min(_CANARY_PROMPT, self.task.spec.max_length)
        rows = sample_rows(vocabulary, longest, self._pad_token_id)
        try:
            expected = [self._alone(row) for row in rows]
        except Exception as error:
            self._refuse_to_judge(error)
            return f"the model fails on random tokens ({reason(error)})"
        try:
            self._manager = self._open()
            found = self._continuously(rows)
        except ManagerError as failed:
            cause = failed.cause
            if self._manager is not None:
                cause = self._stop(failed)
            self._refuse_lost(cause)
            return f"it fails here ({reason(cause)})"
        for (tokens, scores), others in zip(expected, found, strict=True):
            if why := self._difference(tokens, scores, others):
                self._end()
                return why
        return ""

    @torch.inference_mode()
    def _alone(self, row: Batch) -> tuple[list[int], torch.Tensor]:
        """What `generate` writes behind one prompt: n tokens, and all scores for each, float32[n, v]."""
        settings = copy.copy(self._settings)
        settings.max_new_tokens = _CANARY_ANSWER
        found: Any = self.model.generate(
            **self._inputs(row, on_the_left=True),
            generation_config=settings,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return found.sequences[0, row.max_length :].tolist(), torch.cat(found.logits).float()

    def _continuously(self, rows: list[Batch]) -> list[list[int]]:
        """What the manager writes behind these prompts, all of them under way together."""
        assert self._manager is not None
        numbers = list(itertools.islice(self._numbers, len(rows)))
        for number, row in zip(numbers, rows, strict=True):
            self._manager.add(number, _prompts(row)[0], _CANARY_ANSWER)
        found: dict[int, list[int]] = {}
        ends = time.monotonic() + _CANARY_SECONDS
        while len(found) < len(rows):
            if time.monotonic() > ends:
                raise ManagerError(TimeoutError(f"no answer within {_CANARY_SECONDS:g} s"))
            for number, tokens, _ in self._manager.wait(_LOOK_SECONDS):
                found[number] = tokens
        return [found[number] for number in numbers]

    def _difference(self, tokens: list[int], scores: torch.Tensor, others: list[int]) -> str:
        """How other tokens differ from those of `generate` by more than rounding; "" where they do not."""
        for token, other, row in zip(tokens, others, scores, strict=False):
            if token != other:  # what follows differs with it
                below = float((row.max() - row[other]) / row.std())
                tie = _TIE if self.dtype == "float32" else _TIE_OF_HALVES
                said = f"it takes another token, {below:.2g} deviations below the best"
                return said if below > tie else ""
        return "" if len(tokens) == len(others) else "it ends answers elsewhere"


@dataclass(frozen=True, slots=True)
class _Ended:
    """The answer of a row of a batch: its tokens, and whether the model ended it."""

    row: int
    tokens: list[int]
    by_model: bool


@dataclass(frozen=True, eq=False, slots=True)
class _Flight:
    """A batch under way; `bounds` int64[b + 1]: where the tokens of its rows begin, and the end."""

    batch: Batch
    bounds: Int64Array

    def part(self, rows: list[int]) -> Batch:
        """These rows of it, which are in order."""
        whole, places = self.batch, zip(self.bounds[rows], self.bounds[1:][rows], strict=True)
        tokens = np.concatenate([np.arange(*place) for place in places])
        fields = {name: np.asarray(values)[tokens] for name, values in whole.fields.items()}
        return Batch(whole.chunk, whole.indices[rows], whole.lengths[rows], fields)


class _UnderWay:
    """The batches whose rows a manager has."""

    def __init__(self) -> None:
        #: By the number that the manager has for a row.
        self._places: dict[int, tuple[_Flight, int]] = {}
        self._since = 0.0

    @property
    def rows(self) -> int:
        """Rows that have not ended."""
        return len(self._places)

    def enter(self, batch: Batch, numbers: list[int]) -> None:
        """Add a batch; `numbers`: of its rows."""
        if not self._places:
            self._since = time.perf_counter()
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(batch.lengths, dtype=np.int64)])
        flight = _Flight(batch, bounds)
        self._places.update({number: (flight, row) for row, number in enumerate(numbers)})

    def land(self, found: list[tuple[int, list[int], bool]]) -> list[tuple[_Flight, list[_Ended]]]:
        """Take rows out that have ended; by batch, in order."""
        ended: dict[_Flight, list[_Ended]] = {}
        for number, tokens, by_model in found:
            flight, row = self._places.pop(number)
            ended.setdefault(flight, []).append(_Ended(row, tokens, by_model))
        return [(flight, sorted(rows, key=lambda one: one.row)) for flight, rows in ended.items()]

    def leave(self) -> list[tuple[_Flight, list[int]]]:
        """Take all rows out; by batch, in order."""
        left: dict[_Flight, list[int]] = {}
        for flight, row in self._places.values():
            left.setdefault(flight, []).append(row)
        self._places.clear()
        return [(flight, sorted(rows)) for flight, rows in left.items()]

    def seconds(self) -> float:
        """Seconds for which there were rows, since it was asked last."""
        now = time.perf_counter()
        since, self._since = self._since, now
        return now - since


def _answers(ended: list[_Ended]) -> Answers:
    """The answers of rows of a batch, in their order."""
    ended = sorted(ended, key=lambda one: one.row)
    return Answers(
        {
            "check": np.zeros(len(ended), np.float32),
            "count": np.array([len(one.tokens) for one in ended], np.int32),
            "finish": np.array([STOP if one.by_model else LENGTH for one in ended], np.int8),
            "tokens": np.array([token for one in ended for token in one.tokens], np.int32),
        }
    )


def _prompts(batch: Batch) -> list[list[int]]:
    """The token ids of each row."""
    ends = np.cumsum(batch.lengths, dtype=np.int64)
    rows = np.split(np.asarray(batch.fields["input_ids"]), ends[:-1])
    return [row.tolist() for row in rows]
