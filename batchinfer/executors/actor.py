"""The model on one device of a cluster: it is told what to answer, and asked what it has to say."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Generator
from contextlib import suppress
from typing import Any

from batchinfer.attempts import Attempts
from batchinfer.caching import AnswerCache
from batchinfer.children import Said
from batchinfer.core import BatchBudget, LoadedChunk, Span
from batchinfer.engines import create_encoder, describe_model
from batchinfer.engines.base import reason
from batchinfer.errors import BatchInferError, ModelError
from batchinfer.executors.base import Job
from batchinfer.executors.inline import Inline
from batchinfer.executors.passes import Ready, Taken, answer_pass
from batchinfer.lean import spare_pandas
from batchinfer.loader import Loader
from batchinfer.prefetch import Prefetch
from batchinfer.stop import StopSignal
from batchinfer.storage import Place
from batchinfer.tokenization import Encoder
from batchinfer.writers.run_folder import RunFolder

#: How long an actor waits for something to say before it says that there is nothing, in seconds.
_HEAR_SECONDS = 2.0


class Actor:
    """What it is told is taken in order, and what it says heard, while a thread of its own answers."""

    def __init__(self, job: Job, level: int, is_isolated: bool) -> None:
        self._job, self._is_isolated = job, is_isolated
        self._stop = StopSignal()
        self._orders: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._said: queue.Queue[object] = queue.Queue()
        spare_pandas()
        own = logging.getLogger("batchinfer")
        own.handlers, own.propagate = [_Relay(self)], False
        own.setLevel(level)
        threading.Thread(target=self._serve, daemon=True).start()

    def tell(self, *order: Any) -> None:
        """Take an order: probe, begin a pass, a span, its end, or stop."""
        if order == ("stop",):
            self._stop.set()
            order = ("end",)  # it may be waiting for a span
        self._orders.put(order)

    def hear(self) -> list[object]:
        """What there is to say, once there is something or a moment has passed."""
        said = []
        with suppress(queue.Empty):
            said.append(self._said.get(timeout=_HEAR_SECONDS))
            while True:
                said.append(self._said.get_nowait())
        return said

    def send(self, message: object) -> None:
        self._said.put(message)

    def _serve(self) -> None:
        try:
            job = _with_model_here(self._job)
            inline = Inline(job, self._stop, isolated=self._is_isolated)
            encoder = inline.encoder or create_encoder(
                job.plan.config, job.plan.model, job.model_folder
            )
            self.send(Ready(inline.dtype, inline.device_kind, inline.default_budget))
            while True:
                what, *arguments = self._orders.get()
                if what == "probe":
                    self.send(inline.probe())
                elif what == "begin":
                    self._pass(job, inline, encoder, *arguments)
        except (BatchInferError, OSError) as error:
            self.send(error)
        except Exception as error:
            self.send(ModelError(f"{self._job.plan.model.name}: {reason(error)}"))

    def _pass(
        self,
        job: Job,
        inline: Inline,
        encoder: Encoder,
        path: Place,
        run_id: str,
        budget: BatchBudget,
        marks: bool,
        vouched: bool,
    ) -> None:
        """Answer the spans that come, up to the order to end."""
        folder, plan = RunFolder(path), job.plan
        attempts = folder.attempts if marks else Attempts()
        loader = Loader(
            inline.task,
            encoder,
            budget,
            plan.chunk_rows,
            plan.read_options,
            attempts,
            shares_answers=inline.task.shares_answers,
            cache=AnswerCache.of(plan.config, inline.task),
        )
        chunks: Generator[LoadedChunk] = loader.stream(self._spans(), lambda: self._stop.is_set)
        with folder.as_guest_of(run_id):
            if inline.encoder is None:  # else one child tokenizes and answers: not both at once
                chunks = Prefetch(chunks, 1).stream()
            answer_pass(self, inline, folder, budget, chunks, attempts, vouched=vouched)

    def _spans(self) -> Generator[Span]:
        while (order := self._orders.get()) != ("end",):
            self.send(Taken())
            yield order[1]


class _Relay(logging.Handler):
    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self._actor = actor

    def emit(self, record: logging.LogRecord) -> None:
        self._actor.send(Said(record.levelno, record.getMessage()))


def _with_model_here(job: Job) -> Job:
    """The job with the folder of its model on this machine, fetched where it is not there.

    Raises ModelError where it cannot be had, or is another one.
    """
    folder = job.model_folder
    if folder is None or folder.exists():
        return job
    spec, folder = describe_model(job.plan.config, job.plan.input_schema, job.plan.model.widths)
    if spec.identity != job.plan.model.identity:
        raise ModelError(
            f"{spec.name}: another version than the job was planned with on {os.uname().nodename}; name "
            "a commit with --revision"
        )
    return Job(job.plan, job.config, folder, job.ceiling_tokens)
