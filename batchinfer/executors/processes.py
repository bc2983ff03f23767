"""Several devices of one machine: a process each, which is handed a chunk when it has room for one.

    parent   loads chunks ─▶ hands them out ─▶ … ─▶ hears of shards, and of deaths
    child    receives ─▶ Inline: engine, writer behind it ─▶ commits the shard itself

A slow device holds up nobody: chunks belong to no device before one asks. Where a process dies, what it had
not begun goes to others, and what it had begun is left out of this pass: its mark stands, so the run looks
into it afterwards, in a process of its own, where a row that kills is found.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from multiprocessing import connection
from os import _exit as exit_at_once
from typing import Any

from batchinfer.attempts import Attempts
from batchinfer.children import Child, Line, Said, settle_child
from batchinfer.core import BatchBudget, ChunkId, LoadedChunk
from batchinfer.engines.base import DeviceLostError, reason
from batchinfer.errors import BatchInferError, Interrupted, ModelError
from batchinfer.executors.base import Committed, Executor, Job, Work
from batchinfer.executors.inline import Inline
from batchinfer.executors.passes import Ready, Taken, Told, answer_pass
from batchinfer.lean import spare_pandas
from batchinfer.reporting.progress import Measured, Progress
from batchinfer.sharing import Part
from batchinfer.stages import StageSeconds
from batchinfer.stop import StopSignal
from batchinfer.storage import Place
from batchinfer.writers.run_folder import RunFolder

log = logging.getLogger("batchinfer")

#: Chunks that wait in a process while it answers another. More of them would be held back from others.
AHEAD = 1
#: A device whose process dies so often, with no shard committed in between, is given up.
DEATHS_OF_A_DEVICE = 3
#: How often the parent looks whether it should stop, in seconds.
_LOOK_SECONDS = 0.2


class Processes(Executor):
    """A process with the model for each job; they differ in their device alone.

    Raises what loading the model raises, ModelError where a process dies of it, and Interrupted where a
    stop comes first.
    """

    def __init__(self, jobs: Sequence[Job], stop: StopSignal) -> None:
        self._stop = stop
        self._vouched = False
        #: Those whose process died when there was nothing more to do.
        self._absent: list[Job] = []
        self._members = [_Member(job) for job in jobs]
        try:
            while not all(member.is_ready for member in self._members):
                if stop.is_set:
                    raise Interrupted(
                        "stopped while the model was being loaded; start the same command again"
                    )
                for member, message in self._heard():
                    if isinstance(message, _Death):
                        name = jobs[0].plan.model.name
                        raise ModelError(
                            f"{name}: loading the model {message}{member.hint} ({member.device})"
                        )
        except BaseException:
            self.close()
            raise
        self.dtype = self._members[0].dtype
        kinds = dict.fromkeys(member.device_kind for member in self._members)
        self.device_kind = " + ".join(kinds)
        self.num_devices = len(jobs)
        budgets = [member.default_budget for member in self._members]
        self.default_budget = BatchBudget(
            min(budget.max_batch_tokens for budget in budgets),
            min(budget.max_batch_rows for budget in budgets),
        )

    def vouch(self) -> None:
        self._vouched = True
        for member in self._members:
            member.is_vouched = True

    def probe(self) -> BatchBudget:
        """What the first device finds; where several kinds are at work, the default."""
        first = self._members[0]
        if any(member.device_kind != first.device_kind for member in self._members):
            return self.default_budget
        first.send("probe")
        while not self._stop.is_set:
            for member, message in self._heard():
                if isinstance(message, BatchBudget):
                    return message
                if member is first and isinstance(message, _Death):
                    raise DeviceLostError(
                        f"{first.device}: its process {message} while it was probed"
                    )
        return self.default_budget

    def process(
        self,
        folder: RunFolder,
        budget: BatchBudget,
        work: Work,
        progress: Progress,
        attempts: Attempts,
    ) -> Generator[Committed]:
        with closing(work.load()) as ahead:
            yield from self._answer(folder, budget, ahead, progress, attempts)

    def _answer(
        self,
        folder: RunFolder,
        budget: BatchBudget,
        source: Iterator[LoadedChunk],
        progress: Progress,
        attempts: Attempts,
    ) -> Generator[Committed]:
        again = deque[LoadedChunk]()
        self.has_suspects = False
        self._members += map(_Member, self._absent)
        self._absent = []
        for member in self._members:
            member.stages = StageSeconds()
            member.begin(folder, budget, vouched=self._vouched)
        is_stopped = is_out = False
        while True:
            if self._stop.is_set and not is_stopped:
                is_stopped = is_out = True
                again.clear()
                for member in self._members:
                    member.send("stop")
            if again:  # of one that died when the others were told that there is no more
                for member in self._members:
                    if member.has_ended:
                        member.begin(folder, budget, vouched=self._vouched)
            while (again or not is_out) and (hungry := self._hungry()):
                chunk = again.popleft() if again else next(source, None)
                if chunk is None:
                    is_out = True
                else:
                    hungry.hand(chunk)
            if is_out and not again:
                # An engine keeps its last answers back until there are more batches, or can be none.
                for member in list(self._members):
                    if member.is_ready:
                        member.end()
                    else:  # started anew for what others have answered by now
                        self._members.remove(member)
                        self._absent.append(member.job)
                        member.close()
                if all(member.has_ended for member in self._members):
                    break
            for member, message in self._heard():
                if isinstance(message, Committed):
                    shard = message.shard
                    if shard.num_errors < shard.num_rows:
                        self.vouch()
                    yield message
                elif isinstance(message, Told):
                    message.to(progress)
                elif isinstance(message, Measured):
                    # By its device, which a process that is started again has too.
                    progress.measured(dataclasses.replace(message, device=member.device))
                elif isinstance(message, _Death):
                    again += self._replace(member, message, folder, budget, attempts)
                    if is_stopped:
                        again.clear()
        self.stages = StageSeconds.of_devices([member.stages for member in self._members])

    def _hungry(self) -> _Member | None:
        """The process with room for a chunk that has the least to do."""
        members = [member for member in self._members if member.has_room]
        return min(members, key=lambda member: len(member.open), default=None)

    def _heard(self) -> Iterator[tuple[_Member, Any]]:
        """What the processes say, once there is something or a moment has passed."""
        by_handle = {handle: member for member in self._members for handle in member.handles}
        ready = connection.wait(list(by_handle), _LOOK_SECONDS)
        for member in dict.fromkeys(by_handle[handle] for handle in ready):  # type: ignore[index]
            for message in member.messages():
                yield member, message

    def _replace(
        self,
        member: _Member,
        death: _Death,
        folder: RunFolder,
        budget: BatchBudget,
        attempts: Attempts,
    ) -> list[LoadedChunk]:
        """Start a process anew; return what others can answer of the chunks that it had."""
        member.close()
        folder.clear_behind(member.process.pid)
        marked = attempts.marked()
        free = [chunk for number, chunk in member.open.items() if number not in marked]
        num_suspects = len(member.open) - len(free)
        self.has_suspects |= num_suspects > 0
        deaths, place = member.deaths + 1, self._members.index(member)
        said = f"{member.device}: its process {death}"
        if num_suspects:
            said += f"; what it was at ({num_suspects} chunks) is looked into afterwards"
        if self._stop.is_set or deaths >= DEATHS_OF_A_DEVICE:
            del self._members[place]
            said += "; it is not started again"
        else:
            said += "; it is started again"
            self._members[place] = _Member(member.job, deaths)
            self._members[place].begin(folder, budget, vouched=self._vouched)
        log.warning(said)
        if not self._members and not self._stop.is_set:
            raise DeviceLostError(
                f"the processes of all devices died, {deaths} times each, without an answer in between: "
                "look at the driver and the memory of this machine; then `batchinfer resume`"
            )
        return free

    def close(self) -> None:
        for member in self._members:
            member.pipe.close()
        for member in self._members:
            member.close()


class _Death(str):
    """How a process died, in words."""

    __slots__ = ()


class _Member(Child):
    """The process of one device, as the parent sees it."""

    def __init__(self, job: Job, deaths: int = 0) -> None:
        self.job, self.deaths = job, deaths
        self.device = job.config.device
        #: Chunks that it was handed and that have no shard yet, and how many it has not taken up.
        self.open: dict[ChunkId, LoadedChunk] = {}
        self._waiting = 0
        self.is_ready = self.has_ended = self._is_ending = False
        #: Whether the model has answered somewhere, and whether the process knows.
        self.is_vouched = self._knows = False
        self.stages = StageSeconds()
        # It has children itself, where batches have a time limit: then it is no daemon.
        super().__init__(_serve, job, log.getEffectiveLevel(), daemon=False)
        self.handles = (self.pipe, self.process.sentinel)

    @property
    def has_room(self) -> bool:
        return self.is_ready and not self._is_ending and self._waiting < AHEAD

    def begin(self, folder: RunFolder, budget: BatchBudget, *, vouched: bool) -> None:
        """Have it answer what it is handed, until `end`."""
        self.has_ended = self._is_ending = False
        self.is_vouched = self._knows = vouched
        self.send("begin", folder.path, folder.part, budget, vouched)

    def hand(self, chunk: LoadedChunk) -> None:
        self.open[chunk.chunk.id] = chunk
        self._waiting += 1
        self.send("chunk", chunk)

    def end(self) -> None:
        """Hand out no more."""
        if not self._is_ending:
            self._is_ending = True
            self.send("end")

    def send(self, *order: Any) -> None:
        with suppress(OSError):  # that it died is heard
            self.pipe.send(order)

    def messages(self) -> Iterator[Any]:
        """What it says to others; a _Death is the last. Raises what it has raised."""
        while True:
            try:
                if not self.pipe.poll():
                    break
                message = self.pipe.recv()
            except (EOFError, OSError):  # OSError: it died in the middle of a message
                yield _Death(self.death())
                return
            if isinstance(message, Said):
                message.log()
            elif isinstance(message, Exception):
                # Where others have answered, it is not the model that fails on every row: begun anew, it
                # knows. And one that cannot be started anew is no reason to end what others do.
                is_mistaken = (
                    isinstance(message, ModelError) and self.is_vouched and not self._knows
                )
                fails_again = self.deaths and not self.is_ready
                if isinstance(message, DeviceLostError) or is_mistaken or fails_again:
                    yield _Death(f"failed ({message})")
                    return
                raise message
            elif isinstance(message, Ready):
                self.is_ready = True
                self.dtype, self.device_kind, self.default_budget = message
            elif isinstance(message, Taken):
                self._waiting -= 1
            elif isinstance(message, StageSeconds):
                self.stages, self.has_ended = self.stages + message, True
            else:
                if isinstance(message, Committed):
                    self.open.pop(message.shard.id, None)
                    self.deaths = 0
                yield message
        if not self.process.is_alive() and not self.pipe.poll():
            yield _Death(self.death())


def _serve(pipe: connection.Connection[Any, Any], job: Job, level: int) -> None:
    """The child: load the model, then answer what is handed over, pass by pass."""
    settle_child([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])  # the parent was told too
    spare_pandas()
    line, stop = Line(pipe), StopSignal()
    line.relay_log(level)
    orders: queue.Queue[tuple[Any, ...]] = queue.Queue()
    threading.Thread(target=_listen, args=(line, orders, stop), daemon=True).start()
    try:
        inline = Inline(job, stop)
        line.send(Ready(inline.dtype, inline.device_kind, inline.default_budget))
        while True:
            what, *arguments = orders.get()
            if what == "probe":
                line.send(inline.probe())
            elif what == "begin":
                _pass(line, inline, orders, *arguments)
    except (BatchInferError, OSError) as error:
        _say(line, error)
    except Exception as error:
        _say(line, ModelError(f"{job.plan.model.name}: {reason(error)}"))
    exit_at_once(0)  # nothing here is worth the time, or the risk, of an orderly end


def _listen(line: Line, orders: queue.Queue[tuple[Any, ...]], stop: StopSignal) -> None:
    """Take orders while the model answers: there is one that cannot wait."""
    try:
        while True:
            order = line.recv()
            if order == ("stop",):
                stop.set()
            else:
                orders.put(order)
    except (EOFError, OSError):
        pass
    except Exception as error:  # what cannot be unpickled: this process could only wait
        _say(line, ModelError(f"what was handed to a process could not be read: {reason(error)}"))
    exit_at_once(0)


def _say(line: Line, error: Exception) -> None:
    with suppress(OSError):  # the parent may be gone
        line.send(error)


def _pass(
    line: Line,
    inline: Inline,
    orders: queue.Queue[tuple[Any, ...]],
    path: Place,
    part: Part | None,
    budget: BatchBudget,
    vouched: bool,
) -> None:
    """Answer the chunks that come, up to the order to end."""

    def handed() -> Iterator[LoadedChunk]:
        while (order := orders.get()) != ("end",):
            line.send(Taken())
            chunk: LoadedChunk = order[1]
            yield chunk

    folder = RunFolder(path, part)
    answer_pass(line, inline, folder, budget, handed(), folder.attempts, vouched=vouched)
