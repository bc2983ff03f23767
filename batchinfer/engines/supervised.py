"""An engine in a process of its own, for rows that kill the process which answers them.

The chunks that were under way when a run died without a word are answered here, in the batches that
were planned for them. Where the child dies, its parent lives to see it: the batch is halved, as one
that raises is, and a row that has killed two children alone is the row. Nothing else is ever marked.
The same goes for a batch that takes longer than the time allowed (`--batch-timeout`).

The parent imports no torch, and holds no model.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing import connection, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer.children import settle_child
from batchinfer.core import Answers, Batch
from batchinfer.engines.base import DeviceLostError, Engine, reason
from batchinfer.errors import BatchInferError, ModelError
from batchinfer.lean import spare_pandas
from batchinfer.tasks.base import Task
from batchinfer.tokenization import Tokens

if TYPE_CHECKING:
    from batchinfer.config import RunConfig

log = logging.getLogger("batchinfer")

#: A row that kills this many processes alone, one after the other, is given up.
DEATHS_OF_A_ROW = 2


class SupervisedEngine(Engine):
    """The engine of a job, in a child process that may die.

    `timeout`: seconds that a batch may take before its child is killed; None: any time. Raises what
    creating the engine raises, and ModelError where the child dies while the model is loaded.
    """

    def __init__(
        self, task: Task, config: RunConfig, folder: Path | None, timeout: float | None = None
    ) -> None:
        super().__init__(task)
        self._job = (task, config, folder)
        self._timeout = timeout
        self._child: _Child | None = None
        self._has_seen_death = False
        ready = self._living_child().ready
        self.dtype, self.device_kind, self.default_budget = ready

    def answer(self, batch: Batch) -> Answers:
        """Answer a batch of at least one request, in the child."""
        raise NotImplementedError("stream() asks the child, which halves what fails there")

    def stream(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Answers]]:
        """Answer every request of every batch; a row that kills its process comes back with an error."""
        for batch in batches:
            pending = [batch]
            while pending:
                part = pending.pop()
                reply, death = self._ask("answer", part, alone=len(part) <= 1)
                if not death:
                    self._has_answered = True
                    yield from reply
                elif len(part) <= 1:
                    yield part, Answers({}, error=f"this row alone {death}, twice")
                else:
                    pending += reversed(part.halves())

    def encode(self, texts: pa.Array[Any], pairs: pa.Array[Any] | None) -> Tokens:
        """Encode texts in the child, too: a tokenizer can die of a row as a model can."""
        reply, death = self._ask("encode", (texts, pairs), alone=len(texts) <= 1)
        if not death:
            tokens: Tokens = reply
            return tokens
        if len(texts) <= 1:
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
        self._ask("vouch", None, alone=False)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _ask(self, what: str, argument: Any, *, alone: bool) -> tuple[Any, str]:
        """What the child answers, or how it died; a single row is asked until it killed two."""
        death = ""
        for _ in range(DEATHS_OF_A_ROW if alone else 1):
            reply, death = self._living_child().ask(what, argument, self._timeout)
            if not death:
                return reply, ""
            self.close()
            level = logging.DEBUG if self._has_seen_death else logging.WARNING
            log.log(level, f"a batch {death}; it is halved until the row is found")
            self._has_seen_death = True
        return None, death

    def _living_child(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._job, self._has_answered)
        return self._child


class _Child:
    """A process with the model, and the pipe to it."""

    def __init__(self, job: tuple[Task, RunConfig, Path | None], has_answered: bool) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, *job, has_answered), daemon=True
        )
        self._process.start()
        theirs.close()  # the child's end is the child's alone: its death is the end of the file
        self.ready, death = self._receive(None)
        if death:
            raise ModelError(f"{job[0].spec.name}: the process that loads the model {death}")

    def ask(self, what: str, argument: Any, timeout: float | None) -> tuple[Any, str]:
        """The reply, or in words how the child died. Raises what the child's engine raises."""
        try:
            self._pipe.send((what, argument))
        except (BrokenPipeError, ConnectionResetError):
            return None, self._death()
        return self._receive(timeout)

    def close(self) -> None:
        """End the process; at the end of its work it does so by itself when the pipe closes."""
        self._pipe.close()
        self._process.join(1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self, timeout: float | None) -> tuple[Any, str]:
        if not connection.wait([self._pipe, self._process.sentinel], timeout):
            self._process.kill()
            self._process.join()
            return None, f"kept a batch for more than {timeout:g} s"
        try:
            reply = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            return None, self._death()
        if isinstance(reply, DeviceLostError):
            return None, f"lost its device ({reply})"
        if isinstance(reply, BatchInferError):
            raise reply
        return reply, ""

    def _death(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0:
            return f"killed its process ({signal.Signals(-code).name})"
        return f"ended its process (exit code {code})"


def _serve(
    pipe: connection.Connection[Any, Any],
    task: Task,
    config: RunConfig,
    folder: Path | None,
    has_answered: bool,
) -> None:
    """The child: answer what comes down the pipe until it closes."""
    from batchinfer.engines import create_encoder, create_engine

    spare_pandas()
    settle_child([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])  # the parent was told too
    if sys.platform == "linux":
        # Where memory runs out, this is the process that should go.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        encoder = create_encoder(config, task.spec, folder)
        engine = create_engine(config, task, folder)
        pipe.send((engine.dtype, engine.device_kind, engine.default_budget))
        if has_answered:
            engine.vouch()
        while True:
            what, argument = pipe.recv()
            if what == "encode":
                pipe.send(encoder.encode(*argument))
            elif what == "answer":
                pipe.send(list(engine.stream([argument])))
            else:
                engine.vouch()
                pipe.send(None)
    except EOFError:
        pass
    except BatchInferError as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(ModelError(f"{task.spec.name}: {reason(error)}"))
    os._exit(0)  # nothing here is worth the time, or the risk, of an orderly end


def _joined(first: Tokens, second: Tokens) -> Tokens:
    """The tokens of two runs of texts as those of one."""
    names = first.fields or second.fields
    nothing = np.zeros(0, np.int32)
    shift = len(first.truncated)
    return Tokens(
        offsets=np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        fields={
            name: np.concatenate(
                [first.fields.get(name, nothing), second.fields.get(name, nothing)]
            )
            for name in names
        },
        truncated=np.concatenate([first.truncated, second.truncated]),
        errors={**first.errors, **{shift + i: why for i, why in second.errors.items()}},
    )
