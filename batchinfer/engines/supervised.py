"""An engine in a process of its own, for rows that kill the process which answers them.

The chunks that were under way when a run died without a word are answered here, in the batches that
were planned for them. Where the child dies, its parent lives to see it: the batch is halved, as one
that raises is, and a row that has killed two children alone is the row. Nothing else is ever marked.
The same goes for a batch that takes longer than the time allowed (`--batch-timeout`).

The parent imports no torch, and holds no model.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.children import Child, Line, Said, settle_child
from batchinfer.core import Answers, Batch, ChunkId, Windows
from batchinfer.engines.base import (
    HOPELESS,
    DeviceLostError,
    Engine,
    StoppedError,
    reason,
)
from batchinfer.errors import BatchInferError, Interrupted, ModelError
from batchinfer.lean import spare_pandas
from batchinfer.stages import Stopwatch
from batchinfer.stop import never
from batchinfer.tasks.base import Task
from batchinfer.tasks.generation import SEED, Generation
from batchinfer.tokenization import Encoder, Tokens

if TYPE_CHECKING:
    from batchinfer.config import RunConfig

log = logging.getLogger("batchinfer")

#: A row that kills this many processes alone, one after the other, is given up.
DEATHS_OF_A_ROW = 2
#: Rows given up one after the other, with none answered in between, where others of the job were
#: answered before: more of them, and it is the machine. Rows of a kind stand together when sorted.
HOPELESS_LATER = 8 * HOPELESS
#: How often a parent that waits looks whether it should stop, in seconds.
_LOOK_SECONDS = 0.2


class SupervisedEngine(Engine):
    """The engine of a job, in a child process that may die.

    `timeout`: seconds that a batch may take, once the model is warm, before its child is killed;
    None: any time. `stopped` says when to give up waiting. Raises what creating the engine raises,
    ModelError where the child dies while the model is loaded, and Interrupted where `stopped`.
    """

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        folder: Path | None,
        *,
        timeout: float | None = None,
        stopped: Callable[[], bool] = never,
    ) -> None:
        super().__init__(task)
        self._job = (task, config, folder)
        self._timeout, self.stopped = timeout, stopped
        self._child: _Child | None = None
        self._has_seen_death = False
        self._given_up = 0
        try:
            ready = self._living_child().ready
        except StoppedError:
            raise Interrupted(
                "stopped while the model was being loaded; go on with `batchinfer resume`"
            ) from None
        self.dtype, self.device_kind, self.default_budget = ready

    def tokens_computed(self, batch: Batch) -> None:
        """None: the child does not say whether it pads."""

    def answer(self, batch: Batch) -> Answers:
        """Answer a batch of at least one request, in the child."""
        raise NotImplementedError("stream() asks the child, which halves what fails there")

    def stream(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, Answers]]:
        """Answer every request of every batch, up to a stop.

        A row that kills its process comes back with an error. Raises ModelError where many do and no
        row is answered: then it is the model or the machine.
        """
        try:
            for batch in batches:
                yield from self._answer_or_narrow(batch)
        except StoppedError:
            return

    def _answer_or_narrow(self, batch: Batch) -> Iterator[tuple[Batch, Answers]]:
        pending = [batch]
        while pending:
            part = pending.pop()
            reply, death = self._ask("answer", part, alone=len(part) <= 1, timeout=self._timeout)
            if not death:
                answered, seconds, ceiling = reply
                self.splits += ceiling != self._ceiling
                self._ceiling = ceiling
                self.watch.add(seconds)
                if any(answers.error is None for _, answers in answered):
                    self._has_answered, self._given_up = True, 0
                yield from answered
            elif len(part) <= 1:
                self._give_up(death)
                yield part, Answers({}, error=f"this row alone {death}, twice")
            else:
                pending += reversed(part.halves())

    def encode(self, texts: pa.Array[Any], pairs: pa.Array[Any] | None) -> Tokens:
        """Encode texts in the child, too: a tokenizer can die of a row as a model can."""
        try:
            reply, death = self._ask("encode", (texts, pairs), alone=len(texts) <= 1, timeout=None)
        except StoppedError:
            raise Interrupted(
                "stopped while a suspected chunk was being tokenized; go on with `batchinfer resume`"
            ) from None
        if not death:
            tokens: Tokens = reply
            return tokens
        if len(texts) <= 1:
            self._give_up(death)
            return Tokens(
                offsets=np.zeros(len(texts) + 1, np.int64),
                fields={},
                truncated=np.zeros(len(texts), np.bool_),
                errors={0: f"this row alone {death}, twice"},
            )
        middle = len(texts) // 2
        return _joined(
            self.encode(texts[:middle], None if pairs is None else pairs[:middle]),
            self.encode(texts[middle:], None if pairs is None else pairs[middle:]),
        )

    def vouch(self) -> None:
        """Say that this model has answered before, to the child too."""
        super().vouch()
        with suppress(StoppedError):
            self._ask("vouch", None, alone=False, timeout=None)

    def stay_below(self, tokens: int) -> None:
        """Split larger batches from the start, in this child and those that come after it."""
        super().stay_below(tokens)
        with suppress(StoppedError):
            self._ask("stay_below", tokens, alone=False, timeout=None)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _ask(
        self, what: str, argument: Any, *, alone: bool, timeout: float | None
    ) -> tuple[Any, str]:
        """What the child answers, or how it died; a single row is asked until it killed two."""
        death = ""
        for _ in range(DEATHS_OF_A_ROW if alone else 1):
            if self.stopped():
                raise StoppedError
            reply, death = self._living_child().ask(what, argument, timeout)
            if not death:
                return reply, ""
            self.close()
            level = logging.DEBUG if self._has_seen_death else logging.WARNING
            subject = "a batch" if what == "answer" else "tokenizing"
            log.log(level, f"{subject} {death}; it is halved until the row is found")
            self._has_seen_death = True
        return None, death

    def _give_up(self, death: str) -> None:
        """Count a row that is given up; too many of them and it is not the rows."""
        self._given_up += 1
        if self._given_up >= (HOPELESS_LATER if self._has_answered else HOPELESS):
            raise ModelError(
                f"{self.task.spec.name}: {self._given_up} rows one after the other each {death}: look at "
                "the model, the driver and the memory of this machine; then `batchinfer resume`"
            )

    def _living_child(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._job, self._has_answered, self._ceiling, self.stopped)
        return self._child


class _Child(Child):
    """A process with the model."""

    def __init__(
        self,
        job: tuple[Task, RunConfig, Path | None],
        has_answered: bool,
        ceiling: int | None,
        stopped: Callable[[], bool],
    ) -> None:
        self._stopped = stopped
        super().__init__(_serve, *job, has_answered, ceiling, log.getEffectiveLevel())
        self.ready, death = self._receive(None)
        if death:
            raise ModelError(f"{job[0].spec.name}: loading the model {death}{self.hint}")

    def ask(self, what: str, argument: Any, timeout: float | None) -> tuple[Any, str]:
        """The reply, or in words how the child died. Raises what the child's engine raises."""
        try:
            self.pipe.send((what, argument))
        except OSError:  # it died before it had read all of it
            return None, self.death()
        return self._receive(timeout)

    def _receive(self, timeout: float | None) -> tuple[Any, str]:
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            if not connection.wait([self.pipe, self.process.sentinel], _LOOK_SECONDS):
                if self._stopped():
                    self.kill()
                    raise StoppedError
                if ends is not None and time.monotonic() >= ends:
                    self.kill()
                    return None, f"took more than {timeout:g} s"
                continue
            try:
                reply = self.pipe.recv()
            except (EOFError, OSError):  # OSError: it died in the middle of its reply
                return None, self.death()
            if isinstance(reply, Said):
                reply.log()
            elif isinstance(reply, DeviceLostError):
                return None, f"lost its device ({reply})"
            elif isinstance(reply, BatchInferError):
                raise reply
            else:
                return reply, ""


def _serve(
    pipe: connection.Connection[Any, Any],
    task: Task,
    config: RunConfig,
    folder: Path | None,
    has_answered: bool,
    ceiling: int | None,
    level: int,
) -> None:
    """The child: answer what comes down the pipe until it closes."""
    settle_child([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])  # the parent was told too
    from batchinfer.engines import create_encoder, create_engine

    spare_pandas()
    line = Line(pipe)
    line.relay_log(level)
    if sys.platform == "linux":
        # Where memory runs out, this is the process that should go.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        encoder = create_encoder(config, task.spec, folder)
        engine = create_engine(config, task, folder)
        _warm_up(engine, encoder)
        line.send((engine.dtype, engine.device_kind, engine.default_budget))
        if has_answered:
            engine.vouch()
        if ceiling is not None:
            engine.stay_below(ceiling)
        while True:
            what, argument = line.recv()
            if what == "encode":
                line.send(encoder.encode(*argument))
            elif what == "answer":
                engine.watch = Stopwatch()
                answered = list(engine.stream([argument]))
                line.send((answered, engine.watch.seconds, engine.ceiling_tokens))
            elif what == "stay_below":
                engine.stay_below(argument)
                line.send(None)
            else:
                engine.vouch()
                line.send(None)
    except EOFError:
        pass
    except BatchInferError as error:
        line.send(error)
    except Exception as error:
        line.send(ModelError(f"{task.spec.name}: {reason(error)}"))
    os._exit(0)  # nothing here is worth the time, or the risk, of an orderly end


def _warm_up(engine: Engine, encoder: Encoder) -> None:
    """Answer something before any batch is timed: the first one pays for kernels and caches.

    An answer that is written token by token ends with the second, the first to be made from the cache.
    """
    task = engine.task
    if not task.takes_text:  # it has answered made-up rows when it was loaded
        return
    said = f"{task.spec.mask_token} warm"
    if task.spec.chat:
        said = json.dumps([{"role": "user", "content": said}])
    text: Any = pa.array([said], pa.large_string())
    tokens = encoder.encode(text, text if task.takes_pairs else None)
    lengths = np.diff(tokens.offsets).astype(np.int32)
    if not lengths[0]:
        return
    fields = dict(tokens.fields)
    if isinstance(task, Generation) and task.draws:
        fields[SEED] = np.zeros(lengths[0], np.int32)
    written = count(1)
    engine.stopped = lambda: next(written) >= 2
    with suppress(Exception):  # what is wrong with the model will show on the rows
        engine.answer(Batch(ChunkId(0, 0), np.zeros(1, np.int64), lengths, fields))
    engine.stopped = never


def _joined(first: Tokens, second: Tokens) -> Tokens:
    """The tokens of two runs of texts as those of one."""
    windows = None
    num_texts = len(first.truncated)
    if first.windows is not None or second.windows is not None:
        first, before = _in_windows(first)
        second, behind = _in_windows(second)
        num_texts = int(before.text[-1]) + 1
        windows = Windows(
            np.concatenate([before.text, behind.text + np.int32(num_texts)]),
            np.concatenate([before.fresh, behind.fresh]),
        )
    return Tokens(
        offsets=np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        fields=_side_by_side(first.fields, second.fields),
        truncated=np.concatenate([first.truncated, second.truncated]),
        errors={**first.errors, **{num_texts + i: why for i, why in second.errors.items()}},
        notes=_side_by_side(first.notes, second.notes),
        windows=windows,
    )


def _in_windows(tokens: Tokens) -> tuple[Tokens, Windows]:
    """Tokens with a window a text, where no text was long enough for several."""
    if tokens.windows is None:
        lengths = np.diff(tokens.offsets)
        whole = np.zeros_like(lengths)
        tokens = tokens.in_windows(whole, lengths, int(lengths.max()), None)
    assert tokens.windows is not None
    return tokens, tokens.windows


def _side_by_side(
    first: Mapping[str, npt.NDArray[Any]], second: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Arrays of both; a half whose only text was given up has none, as it has no tokens."""
    return {
        name: np.concatenate([half[name] for half in (first, second) if name in half])
        for name in first or second
    }
