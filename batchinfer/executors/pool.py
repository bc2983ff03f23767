"""The actors of a run on a cluster: which piece of the input each has, and what follows where one dies.

Whose cluster it is, the module does not know: `Crew` starts actors, and hears what they say.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection
from typing import Any, NamedTuple, Protocol

from batchinfer.attempts import Attempts
from batchinfer.children import Line
from batchinfer.core import BatchBudget, ChunkId, Span, shard_name, without_chunks
from batchinfer.engines.base import DeviceLostError
from batchinfer.errors import JobMismatchError, ModelError
from batchinfer.executors.base import Committed
from batchinfer.executors.cluster import Ended, Grown
from batchinfer.executors.passes import Ready, Taken
from batchinfer.plan import Plan
from batchinfer.prefetch import Prefetch
from batchinfer.readers import cut_span
from batchinfer.stages import StageSeconds
from batchinfer.storage import Place, RemotePath
from batchinfer.writers.footer import FooterError, read_footer
from batchinfer.writers.run_folder import RunFolder

log = logging.getLogger("batchinfer")

#: Pieces that wait in an actor while it reads another.
AHEAD = 1
#: Pieces that are cut before anybody asks for them.
CUT_AHEAD = 64
#: Chunks of a piece at most, and about how many pieces an actor should get at least.
MAX_PIECE, PIECES_AN_ACTOR = 16, 8
#: An actor that dies so often, with no shard in between, is given up; a chunk at which so many died is left
#: out, and looked into afterwards. The first death at a chunk may be anybody's: a machine was taken away.
DEATHS_OF_AN_ACTOR, DEATHS_OF_A_CHUNK = 3, 2
#: How often the pool looks for orders, and after how long it says that it waits for room, in seconds.
_LOOK_SECONDS, _PATIENCE_SECONDS = 0.2, 20.0


class Death(str):
    """How an actor died, in words."""

    __slots__ = ()


class Hand(Protocol):
    """One actor."""

    def tell(self, *order: Any) -> None: ...
    def close(self) -> None: ...


class Crew(Protocol):
    """Starts actors on a cluster: at least, and at most, so many; `str` says what each of them needs."""

    least: int
    most: int

    def start(self) -> Hand: ...

    def hear(self, hands: Sequence[Hand], seconds: float) -> list[tuple[Hand, list[Any] | Death]]:
        """What some of them say, once one has said something or had nothing to say, or time is over."""

    def require_cluster(self) -> None:
        """Raise Interrupted where no machine is left."""


class _Piece(NamedTuple):
    """A span that an actor was handed, and the chunks of its segment that have a shard since."""

    span: Span
    done: set[int]

    @property
    def left(self) -> Iterator[Span]:
        return without_chunks(self.span, self.done)


class _Member:
    """One actor, as the driver sees it."""

    def __init__(self, hand: Hand, deaths: int = 0) -> None:
        self.actor = hand
        self.deaths = deaths
        #: What it was handed and has chunks without a shard, and how much of it has not been taken up.
        self.pieces: list[_Piece] = []
        self.waiting = 0
        self.is_placed = self.is_ready = self.has_ended = self.is_ending = False
        #: Whether it knows that the model has answered somewhere.
        self.knows = False
        self.stages = StageSeconds()

    @property
    def has_room(self) -> bool:
        return self.is_ready and not self.is_ending and self.waiting < AHEAD

    def hand(self, piece: Span) -> None:
        self.pieces.append(_Piece(piece, set()))
        self.waiting += 1
        self.actor.tell("span", piece)

    def end(self) -> None:
        """Hand out no more."""
        if not self.is_ending:
            self.is_ending = True
            self.actor.tell("end")

    def committed(self, id: ChunkId) -> None:
        self.deaths = 0
        for piece in self.pieces:
            if piece.span.segment.index == id.segment:
                piece.done.add(id.chunk)
        self.pieces = [piece for piece in self.pieces if any(piece.left)]

    def left(self) -> list[Span]:
        """What it was handed and has not answered."""
        return [span for piece in self.pieces for span in piece.left]


class Pool:
    """The actors of a run."""

    def __init__(
        self,
        pipe: connection.Connection[Any, Any],
        line: Line,
        plan: Plan,
        crew: Crew,
        *,
        is_isolated: bool,
    ) -> None:
        self._pipe, self._line, self._plan, self._crew = pipe, line, plan, crew
        self._is_isolated = is_isolated
        self._members: list[_Member] = []
        self._ask_for(1 if is_isolated else crew.least)
        #: How a member is told to begin, while there is a pass.
        self._begin: tuple[Any, ...] = ()
        self._vouched = self._is_stopped = False
        self._num_actors = 0
        self._deaths: Counter[ChunkId] = Counter()

    def wait_until_ready(self) -> None:
        """Wait for the first actor. Raises ModelError where it dies, and EOFError."""
        since, has_said = time.monotonic(), False
        while True:
            for member, message in self._heard():
                if isinstance(message, Ready):
                    self._line.send(message)
                    return
                if not isinstance(message, Death):
                    self._line.send(message)
                    continue
                self._members.remove(member)
                deaths = member.deaths + 1
                if deaths < DEATHS_OF_AN_ACTOR:
                    log.warning(f"an actor {message}; another is started")
                    self._members.append(_Member(self._crew.start(), deaths))
                elif not self._members:
                    raise ModelError(f"{self._plan.model.name}: an actor {message}")
            is_placed = any(member.is_placed for member in self._members)
            if not (is_placed or has_said) and time.monotonic() > since + _PATIENCE_SECONDS:
                has_said = True
                log.warning(f"waiting for room on the Ray cluster: an actor needs {self._crew}")
            if self._pipe.poll():  # nothing is ordered before: the parent has gone
                self._pipe.recv()

    def probe(self) -> None:
        """Have an actor find the batch budget."""
        first = next(member for member in self._members if member.is_ready)
        first.actor.tell("probe")
        is_stopped = False
        while True:
            if not is_stopped and self._pipe.poll():  # a stop: nothing else is ordered meanwhile
                self._pipe.recv()
                is_stopped = True
                first.actor.tell("stop")
            for member, message in self._heard():
                if isinstance(message, BatchBudget):
                    self._line.send(message)
                    return
                if member is first and isinstance(message, Death):
                    raise DeviceLostError(f"an actor {message} while it was probed")
                if isinstance(message, Death):
                    self._members.remove(member)

    def answer(
        self,
        path: Place,
        run_id: str,
        budget: BatchBudget,
        spans: Sequence[Span],
        marks: bool,
        vouched: bool,
    ) -> None:
        """Have spans answered, up to a stop. Raises DeviceLostError where actors die without end."""
        folder = RunFolder(path)
        attempts = folder.attempts if marks else Attempts()
        self._begin = ("begin", path, run_id, budget, marks)
        self._vouched |= vouched
        self._ask_for(1)
        for member in self._members:
            member.stages = StageSeconds()
            self._begin_with(member)
        self._suspects, self._is_stopped = 0, False
        pieces, again = Prefetch(self._cut(spans), CUT_AHEAD), deque[Span]()
        following: Span | None = None
        retired = list[StageSeconds]()
        try:
            while True:
                if self._pipe.poll() and self._pipe.recv() == ("stop",):
                    self._is_stopped = True
                    pieces.close()
                    following = None
                    again.clear()
                    for member in self._members:
                        member.actor.tell("stop")
                        member.is_ending = True
                for member in self._members:
                    if (again or following) and member.has_ended:
                        self._begin_with(member)
                while True:
                    following = following or (again.popleft() if again else pieces.poll())
                    hungry = self._hungry()
                    if following is None or hungry is None:
                        break
                    hungry.hand(following)
                    following = None
                if following is not None:
                    self._grow()
                elif pieces.is_out:
                    retired += self._end_those_without_work()
                    if all(member.has_ended for member in self._members):
                        break
                for member, message in self._heard():
                    if isinstance(message, Death):
                        left = self._replace(member, message, folder, attempts)
                        again += [] if self._is_stopped else left
                    elif not isinstance(message, (Taken, Ready, StageSeconds)):
                        self._line.send(message)
        finally:
            pieces.close()
        all_stages = [*retired, *(member.stages for member in self._members)]
        self._begin = ()
        self._line.send(Ended(StageSeconds.of_devices(all_stages), self._suspects > 0))

    def _cut(self, spans: Sequence[Span]) -> Generator[Span]:
        """The spans in pieces: few chunks each, so that all actors are done at about the same time."""
        plan, most = self._plan, self._crew.most
        total = sum(span.segment.size for span in spans) or 1
        expected = plan.num_rows_estimate // plan.chunk_rows + 1
        for span in spans:
            size = max(1, min(MAX_PIECE, expected // (PIECES_AN_ACTOR * most)))
            if self._is_isolated:
                size = 1
            elif any(file.compression for file in span.segment.files):
                # Each piece is decompressed from the file's beginning: no more of them than actors.
                size = max(size, -(-expected * span.segment.size // (total * most)))
            yield from cut_span(span, plan.chunk_rows, plan.read_options, size)

    def _hungry(self) -> _Member | None:
        """The actor with room for a piece that has the least to do."""
        members = [member for member in self._members if member.has_room]
        return min(members, key=lambda member: len(member.pieces), default=None)

    def _grow(self) -> None:
        """Ask for further actors where there is work and all have enough; some at a time."""
        coming = sum(not member.is_ready for member in self._members)
        room = self._crew.most - len(self._members)
        if room > 0 and coming == 0:
            self._ask_for(len(self._members) + min(room, len(self._members)))

    def _ask_for(self, count: int) -> None:
        """Have so many actors, once the cluster has room for them."""
        while len(self._members) < count:
            self._members.append(_Member(self._crew.start()))

    def _begin_with(self, member: _Member) -> None:
        if member.is_ready and self._begin:
            member.has_ended = member.is_ending = False
            member.knows = self._vouched
            member.actor.tell(*self._begin, self._vouched)

    def _end_those_without_work(self) -> list[StageSeconds]:
        """Tell all that there is no more; give back those that are done while others are not."""
        # An engine keeps its last answers back until there are more batches, or can be none.
        retired = []
        for member in list(self._members):
            if member.is_ready:
                member.end()
            else:  # it comes too late
                self._members.remove(member)
                member.actor.close()
            if member.has_ended and len(self._members) > 1:
                retired.append(member.stages)
                self._members.remove(member)
                member.actor.close()
        return retired

    def _heard(self) -> Iterator[tuple[_Member, Any]]:
        """What the actors say, once there is something or a moment has passed. Raises what they raised."""
        by_hand = {id(member.actor): member for member in self._members}
        said = self._crew.hear([member.actor for member in self._members], _LOOK_SECONDS)
        if not said and not any(member.is_ready for member in self._members):
            self._crew.require_cluster()
        for hand, messages in said:
            member = by_hand[id(hand)]
            if isinstance(messages, Death):
                yield member, messages
            else:
                member.is_placed = True
                yield from self._messages_of(member, messages)

    def _messages_of(
        self, member: _Member, messages: Sequence[Any]
    ) -> Iterator[tuple[_Member, Any]]:
        for message in messages:
            if isinstance(message, Exception):
                # Where others have answered, it is not the model that fails on every row: begun anew, an
                # actor knows. And one that cannot be started anew is no reason to end what others do.
                is_mistaken = isinstance(message, ModelError) and self._vouched and not member.knows
                fails_again = bool(self._num_actors) and not member.is_ready
                if isinstance(message, DeviceLostError) or is_mistaken or fails_again:
                    yield member, Death(f"failed ({message})")
                    return
                raise message
            if isinstance(message, Ready):
                member.is_ready = True
                ready = sum(member.is_ready for member in self._members)
                if ready > self._num_actors:
                    self._num_actors = ready
                    self._line.send(Grown(ready))
                self._begin_with(member)
            elif isinstance(message, Taken):
                member.waiting -= 1
            elif isinstance(message, StageSeconds):
                member.stages, member.has_ended = member.stages + message, True
            elif isinstance(message, Committed):
                shard = message.shard
                member.committed(shard.id)
                self._vouched |= shard.num_errors < shard.num_rows
            yield member, message

    def _replace(
        self, member: _Member, death: Death, folder: RunFolder, attempts: Attempts
    ) -> list[Span]:
        """Start an actor anew; return what others can answer of what it had."""
        member.actor.close()
        self._members.remove(member)
        for committed in _committed_unheard(folder, member.left(), self._plan):
            member.committed(committed.shard.id)
            self._line.send(committed)
        # What actors mark on other machines is not seen here where the folder lies in a store: there, all
        # that an actor had may be what it died of.
        marked = None if isinstance(folder.path, RemotePath) else attempts.marked()
        again: list[Span] = []
        suspects = 0
        for span in member.left():
            assert span.stop is not None
            ids = {ChunkId(span.segment.index, n) for n in range(span.begin, span.stop)}
            if marked is not None:
                ids &= marked
            self._deaths.update(ids)
            left_out = {id for id in ids if self._deaths[id] >= DEATHS_OF_A_CHUNK}
            suspects += len(left_out)
            for id in ids - left_out:
                attempts.end(id)
            for id in left_out:
                attempts.begin(id)
            again += without_chunks(span, {id.chunk for id in left_out})
        self._suspects += suspects
        deaths = member.deaths + 1
        said = f"an actor {death}"
        if suspects:
            said += f"; what it was at ({suspects} chunks) is looked into afterwards"
        self._crew.require_cluster()
        if self._is_stopped or deaths >= DEATHS_OF_AN_ACTOR:
            said += "; it is not started again"
        else:
            said += "; another is started"
            self._members.append(_Member(self._crew.start(), deaths))
        log.warning(said)
        if not self._members and not self._is_stopped:
            raise DeviceLostError(
                f"actors died {DEATHS_OF_AN_ACTOR} times each, without an answer in between: look at "
                "their logs and the memory of the cluster's machines; then `batchinfer resume`"
            )
        return again

    def close(self) -> None:
        for member in self._members:
            member.actor.close()


def _committed_unheard(folder: RunFolder, spans: Sequence[Span], plan: Plan) -> Iterator[Committed]:
    """The shards of an actor that died before it could tell of them. Raises JobMismatchError."""
    for span in spans:
        if span.rows is not None or span.stop is None:  # those shards stood before
            continue
        for number in range(span.begin, span.stop):
            path = folder.data / shard_name(ChunkId(span.segment.index, number))
            with suppress(FileNotFoundError, FooterError):
                shard, found = read_footer(path)
                if found != plan.id_of(span.segment.index):
                    raise JobMismatchError(
                        f"{path}: another job has committed this shard; name another --output"
                    )
                yield Committed(shard, shard.num_rows, shard.num_tokens)
