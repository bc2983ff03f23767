"""The run folder: its lock, its plan, and which chunks have a shard.

    OUT/data/         shards and, when every row is durable, an empty _SUCCESS; nothing else
    OUT/_batchinfer/  plan.json (the frozen job), plan-000001.json … (what incremental runs added to it),
                      lock, holder.json, tmp/, quarantine/, budget-….json, report.json, forecast.json; of a
                      run that answers a part, these with its name; index/; events-<run id>.jsonl

The state of a job is the listing of data/ and the footers of its shards. Everything else may be
deleted, but for its plan.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow.compute as pc

from batchinfer.attempts import Attempts, is_mark
from batchinfer.core import (
    ERROR,
    BatchBudget,
    ChunkId,
    Segment,
    Shard,
    Span,
    parse_shard_name,
    pending_spans,
    shard_name,
)
from batchinfer.errors import Interrupted, JobMismatchError, StorageError, UsageError
from batchinfer.hints import near_path
from batchinfer.increments import increment_name, is_increment
from batchinfer.increments import to_json as increment_to_json
from batchinfer.increments import with_json as with_increment
from batchinfer.plan import Plan
from batchinfer.readers import OffsetIndex
from batchinfer.sharing import Part, Share
from batchinfer.storage import Place, RemotePath, list_names, place_of_output
from batchinfer.writers.durable import (
    make_directory,
    move,
    open_regular,
    publish,
    replace,
    sync_directory,
)
from batchinfer.writers.fence import await_guests, forget_guests, guest_of, is_guest
from batchinfer.writers.footer import FooterError, read_columns, read_footer, read_footers
from batchinfer.writers.footer import read_pages as read_all_pages
from batchinfer.writers.holders import (
    HELD,
    MOST_HOLDERS,
    Name,
    describe_holder,
    holders_of,
    identity,
    is_locked,
    local_state,
)
from batchinfer.writers.journal import is_journal
from batchinfer.writers.presence import Presence
from batchinfer.writers.shard_table import ShardTable

log = logging.getLogger("batchinfer")

SUCCESS = "_SUCCESS"
_UNFINISHED = ".inprogress"


class RunFolder:
    """A run folder held under its lock; use it as a context manager.

    The lock is exclusive. Runs that answer a `part` share it, and each has a folder of its own for what is
    under way. They may add shards and the last `_SUCCESS`, all created if absent; whatever else changes in
    the folder is for a run that has it alone. Raises Interrupted (75) where another live process is in the
    way.
    """

    def __init__(self, path: Name, part: Part | None = None) -> None:
        self.path = place_of_output(path)
        self.part = part
        self.data = self.path / "data"
        self.state = self.path / "_batchinfer"
        self.local = local_state(self.path)
        self.temporary = self.local / "tmp" / (part.name if part else "")
        began = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")[:-3]  # names sort as runs began
        self.run_id = f"{began}Z-{os.getpid()}-{secrets.token_hex(3)}"
        self.attempts = Attempts(self.temporary)
        self._locks: list[int] = []
        #: In a store: this holder's word, beside those of others.
        self._presence: Presence | None = None

    # -- opening ---------------------------------------------------------------------------------

    def __enter__(self) -> RunFolder:
        self._refuse_links()
        tmp = self.local / "tmp"
        folders = (self.path, self.state, self.data, self.local, tmp, self.temporary)
        for directory in dict.fromkeys(folders):
            make_directory(directory)
        self._acquire()
        try:
            if isinstance(self.path, RemotePath):
                (self.path / "_batchinfer" / f"probe-{self.run_id}").require_exclusive_create()
            else:
                # Whoever made these may have been killed before the names were durable.
                for directory in (self.path.resolve().parent, self.path, self.state, self.data):
                    sync_directory(directory)
            self._clean_temporary()
            self._announce()
            await_guests(self.local / "tmp")
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            (self._own / "holder.json").unlink(missing_ok=True)
            if self._presence is not None:
                self._presence.withdraw()
            forget_guests(self.temporary)
        self._release()

    @property
    def _own(self) -> Path:
        """Where this holder says who it is."""
        return self.local if self.part is None else self.temporary

    @contextmanager
    def as_guest_of(self, run_id: str) -> Iterator[None]:
        """Add shards for a run on another machine that holds the folder, while it does.

        A store has no locks: there, who outlives the run adds shards all the same, each once. Raises
        StorageError where the folder cannot be seen, and Interrupted where it is another's.
        """
        if isinstance(self.path, RemotePath):
            make_directory(self.temporary)
            yield
            return
        with guest_of(self.local, run_id, secrets.token_hex(8)):
            yield

    def _refuse_links(self) -> None:
        """Nothing is written but below the folder that was named: a folder may be a stranger's."""
        own = [self.local / name for name in ("tmp", "lock", "index")]
        for path in (self.state, self.data, self.state / "quarantine", *own, self.temporary):
            if isinstance(path, Path) and path.is_symlink():
                raise JobMismatchError(
                    f"{path}: a link, which may lead out of the run folder; put what it points to in "
                    "its place"
                )

    def _acquire(self) -> None:
        """Take the lock; of a part, together with others, and another one that is the part's alone."""
        # lockf, not flock: an flock stays held by a forked child after its parent was killed. But any
        # close of the file by this process drops an lockf, so nothing else here may open it: `HELD`
        # says which folders this process holds.
        folder = identity(self.path)
        wanted = [(self.local / "lock", fcntl.LOCK_EX)]
        if self.part is not None:
            wanted = [
                (self.local / "lock", fcntl.LOCK_SH),
                (self.temporary / "lock", fcntl.LOCK_EX),
            ]
        try:
            if folder not in HELD and all(self._lock(path, kind) for path, kind in wanted):
                HELD.add(folder)
                return
        except OSError:
            self._unlock()
            raise
        self._unlock()
        until = time.monotonic() + 1.0  # a holder says who it is a moment after it holds the lock
        while not holders_of(self.path) and time.monotonic() < until:
            time.sleep(0.02)
        raise Interrupted(
            f"{self.path}: another batchinfer is at work here ({describe_holder(self.path)}), and this "
            f"one has done nothing; wait for it, or watch it with `batchinfer status {self.path}`"
        )

    def _lock(self, path: Path, kind: int) -> bool:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return False
        self._locks.append(descriptor)
        return True

    def _unlock(self) -> None:
        while self._locks:
            os.close(self._locks.pop())

    def _release(self) -> None:
        HELD.discard(identity(self.path))
        self._unlock()

    def _announce(self) -> None:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "run_id": self.run_id}
        content = json.dumps(holder).encode()
        replace(self._temporary_of("holder"), self._own / "holder.json", content)
        if isinstance(self.state, RemotePath):
            self._presence = Presence(self.state, self.local, self.run_id)
            if self.part is None:  # the lock says that no other holder of this machine is alive
                self._presence.forget_killed()
            if others := self._presence.others():
                log.warning(
                    f"{self.path}: {', '.join(sorted(others.values())[:MOST_HOLDERS])} began here and did "
                    "not end; each row is answered once all the same"
                )
            self._presence.announce()

    def require_alone(self) -> None:
        """See that nobody on another machine may be at work here. Raises Interrupted."""
        if self._presence is not None and (others := self._presence.others()):
            place, who = min(others.items())
            raise Interrupted(
                f"{self.path}: {who} may be at work here, and shards are to be changed; when it is not, "
                f"delete {place} and start this again"
            )

    def _clean_temporary(self) -> None:
        """Remove what killed runs left behind; the lock says that none of them is alive.

        The marks of what they were at stay: `suspects` reads them; and the answers of open chunks. Who has
        the folder alone also takes over those of parts.
        """
        parts = [] if self.part is not None else self.temporary.glob("part-*-of-*")
        for folder in parts:
            if folder.is_dir() and not folder.is_symlink():
                for leftover in folder.iterdir():
                    if is_mark(leftover.name) or is_journal(leftover.name):
                        os.replace(leftover, self.temporary / leftover.name)
                    elif leftover.is_symlink() or not leftover.is_dir():
                        leftover.unlink()
                with suppress(OSError):  # a folder in it is none of ours
                    folder.rmdir()
        for leftover in self.temporary.iterdir():
            is_ours = is_mark(leftover.name) or is_journal(leftover.name)
            is_lock = is_guest(leftover.name) or (self.part is not None and leftover.name == "lock")
            kept = leftover.is_dir() or ((is_ours or is_lock) and leftover.is_file())
            if leftover.is_symlink() or not kept:  # a link would be written through
                leftover.unlink()

    def _clear_journals(self) -> None:
        for leftover in self.temporary.iterdir():
            if is_journal(leftover.name):
                leftover.unlink()

    # -- the plan --------------------------------------------------------------------------------

    @property
    def plan_path(self) -> Place:
        return self.state / "plan.json"

    def join(self, plan: Plan) -> Plan:
        """Give the folder this job, unless it has one; return the one that it has."""
        publish(self._temporary_of("plan"), self.plan_path, plan.to_json())
        return require_plan(self.path)

    def begin(self, plan: Plan) -> Plan:
        """Give the folder this job, in place of the one that it may have; return it.

        Shards of another job go before its plan: killed in between, the folder is the old job,
        unfinished.
        """
        self.attempts.clear()  # of the other job
        self._clear_journals()
        if has_plan(self.path):
            self._remove_shards()
            replace(self._temporary_of("plan"), self.plan_path, plan.to_json())
            return plan
        return self.join(plan)

    def extend(self, plan: Plan) -> None:
        """Add the last increment of a plan to the job, which has the others; `_SUCCESS` is taken back.

        Created if absent: raises Interrupted where another run has added something meanwhile, which it can
        where no lock reaches.
        """
        self.require_alone()
        path = self.state / increment_name(len(plan.increments))
        publish(self._temporary_of("plan"), path, increment_to_json(plan))
        if require_plan(self.path).ids != plan.ids:
            raise Interrupted(
                f"{path}: another run has added to this job at the same moment; start this again"
            )

    def _remove_shards(self) -> None:
        self.require_alone()
        names = list_names(self.data)
        for name in names:
            if parse_shard_name(name) is None:
                self._refuse_stranger(name)
        self.retract_success()
        for name in filter(parse_shard_name, names):
            (self.data / name).unlink()
        sync_directory(self.data)
        names = list_names(self.state)
        for name in names:
            if name.startswith(("budget-", "forecast")) and name.endswith(".json"):
                (self.state / name).unlink()
        # The last one first, each durably: what is left is always a job as it once was.
        for name in sorted(filter(is_increment, names), reverse=True):
            (self.state / name).unlink()
            sync_directory(self.state)
        sync_directory(self.state)

    def index_of(self, plan: Plan) -> OffsetIndex:
        """Where it is kept which rows stand where in the inputs of a job."""
        return OffsetIndex(self.local / "index", plan.id)

    # -- shards ----------------------------------------------------------------------------------

    def shards(
        self, plan: Plan, share: Share | None = None, *, read_pages: bool = False
    ) -> ShardTable:
        """Return the committed shards by chunk, reading every footer and, if asked, every page.

        Of a part's share, only those that it takes to know what is left of it.

        A shard that cannot be read moves to quarantine/ and counts as missing; a part may not do that, and
        raises StorageError. Raises JobMismatchError for a shard of another job or a file that is no shard:
        never guess.
        """
        shards = ShardTable(self.data)
        damaged: list[str] = []
        there: list[ChunkId] = []
        for name in list_names(self.data):
            if (chunk := parse_shard_name(name)) is None:
                self._refuse_stranger(name)
            else:
                there.append(chunk)
        there.sort()
        needed = list(there if share is None else share.needed(there))
        names = list(map(shard_name, needed))
        footers = read_footers(self.data, names)
        for chunk, name, found in zip(needed, names, footers, strict=True):
            try:
                if isinstance(found, Exception):
                    raise found
                shard, plan_id = found
                if read_pages:
                    read_all_pages(self.data / name)
            except FooterError:
                damaged.append(name)
                continue
            is_ours = plan_id == plan.id_of(chunk.segment) and shard.id == chunk
            if not is_ours or chunk.segment >= len(plan.segments):
                raise JobMismatchError(
                    f"{self.data / name}: belongs to another job; move it away, or start anew with "
                    "another --output"
                )
            shards.add(shard)
        if damaged and self.part is not None:
            raise StorageError(
                f"{self.data / damaged[0]}: damaged; `batchinfer resume {self.path}`, without --shard, "
                "sets it aside and makes it again"
            )
        if damaged:
            self._quarantine(damaged)
        return shards

    def is_complete(self, plan: Plan) -> bool:
        """Whether every chunk has a shard, by the listing and the footer of each segment's last one."""
        found: dict[int, list[int]] = {}
        for chunk in filter(None, map(parse_shard_name, list_names(self.data))):
            found.setdefault(chunk.segment, []).append(chunk.chunk)
        for segment in plan.segments:
            numbers = found.get(segment.index, [])
            if not numbers or len(numbers) != max(numbers) + 1:
                return False
            last = shard_name(ChunkId(segment.index, max(numbers)))
            try:
                if not read_footer(self.data / last)[0].ends_segment:
                    return False
            except FooterError:
                return False
        return True

    def pending(self, plan: Plan, shards: Mapping[ChunkId, Shard]) -> list[Span]:
        """The chunks that have no shard yet."""
        return list(pending_spans(plan.segments, shards))

    def failed(self, shards: Mapping[ChunkId, Shard]) -> dict[ChunkId, tuple[int, ...]]:
        """The rows that have errors, by chunk and counted in it. Raises StorageError."""
        failed = {}
        for chunk in sorted(shards):
            if shards[chunk].num_errors:
                errors = read_columns(self.data / shard_name(chunk), [ERROR])[ERROR]
                failed[chunk] = tuple(np.flatnonzero(pc.is_valid(errors).to_numpy()).tolist())
        return failed

    def suspects(self, spans: Sequence[Span]) -> list[Span]:
        """The spans up to the last chunk in each that was under way when a run died without a word.

        Marks of chunks that are not to be answered now are removed.
        """
        marked = self.attempts.marked()
        suspected = []
        for span in spans:
            chunks = [
                chunk
                for segment, chunk in marked
                if segment == span.segment.index
                and chunk >= span.first
                and (span.stop is None or chunk < span.stop)
                and (span.rows is None or chunk in span.rows)
            ]
            marked -= {ChunkId(span.segment.index, chunk) for chunk in chunks}
            if chunks:
                suspected.append(dataclasses.replace(span, stop=max(chunks) + 1))
        for chunk in marked:
            self.attempts.end(chunk)
        return suspected

    def commit(self, name: str, content: memoryview) -> bool:
        """Publish a shard under its final name; False: the same chunk was committed already.

        Raises StorageError where a damaged file has that name.
        """
        if publish(self._temporary_of(name), self.data / name, content):
            return True
        try:
            read_footer(self.data / name)
        except FooterError as error:
            raise StorageError(f"{error}; `batchinfer resume` sets it aside") from None
        return False

    def replace(self, name: str, content: memoryview) -> None:
        """Put a shard in the place of the one that stands; `_SUCCESS` must have been taken back."""
        self.require_alone()
        replace(self._temporary_of(name), self.data / name, content)

    def _temporary_of(self, name: str) -> Path:
        # Of this run alone: to write into another's would change what that one has linked already.
        return self.temporary / f"{name}.{self.run_id}{_UNFINISHED}"

    def clear_behind(self, pid: int | None) -> None:
        """Remove the temporary files of a child that died."""
        for name in os.listdir(self.temporary):
            writer = name.removesuffix(_UNFINISHED).rpartition(".")[2].split("-")
            if name.endswith(_UNFINISHED) and writer[1:2] == [str(pid)]:
                (self.temporary / name).unlink(missing_ok=True)

    def _quarantine(self, names: list[str]) -> None:
        self.require_alone()
        self.retract_success()
        quarantine = self.state / "quarantine"
        make_directory(quarantine)
        for name in names:
            move(self.data / name, quarantine / f"{name}.{self.run_id}")
        sync_directory(quarantine)
        sync_directory(self.data)

    def _refuse_stranger(self, name: str) -> None:
        """Only shards and _SUCCESS live in data/; hidden files are the file system's own."""
        if name != SUCCESS and not name.startswith("."):
            raise JobMismatchError(
                f"{self.data / name}: not written by batchinfer; move it out of the run folder"
            )

    # -- the end ---------------------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        return (self.data / SUCCESS).exists()

    def finish(self, shards: Mapping[ChunkId, Shard]) -> None:
        """Write _SUCCESS; the caller has seen that no chunk is pending.

        Checks the listing of data/, and that each shard begins where the one in front of it ends. Raises
        StorageError.
        """
        # A run died after its commit, before it took the mark away.
        self.attempts.clear()
        self._clear_journals()
        if self.is_finished:
            return
        names = set(filter(parse_shard_name, list_names(self.data)))
        expected = set(map(shard_name, shards))
        for name in sorted(expected - names):
            raise StorageError(f"{self.data / name}: vanished under way; run `batchinfer resume`")
        for name in sorted(names - expected):
            raise JobMismatchError(
                f"{self.data / name}: stands for a part of the input that the job does not have; move it "
                "out of the run folder"
            )
        for before, after in pairwise(sorted(shards)):
            joins = before.segment != after.segment or shards[before].next == shards[after].start
            if not joins:
                raise StorageError(
                    f"{shards[after].path}: does not begin where {shard_name(before)} ends; delete it, "
                    f"and {self.local / 'index'}, then `batchinfer resume {self.path}`"
                )
        publish(self._temporary_of("success"), self.data / SUCCESS, b"")

    def retract_success(self) -> None:
        """Take _SUCCESS back, durably, before anything that it vouches for changes."""
        if self.is_finished:
            (self.data / SUCCESS).unlink(missing_ok=True)
            sync_directory(self.data)

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Replace report.json."""
        content = json.dumps(report, indent=1).encode()
        name = "report.json" if self.part is None else f"report-{self.part.name}.json"
        replace(self._temporary_of("report"), self.state / name, content)

    def keep_forecast(self, forecast: Mapping[str, Any]) -> None:
        """Leave forecast.json, what this job was expected to take when it began; the first one stays."""
        name = "forecast.json" if self.part is None else f"forecast-{self.part.name}.json"
        content = json.dumps(forecast, indent=1).encode()
        publish(self._temporary_of("forecast"), self.state / name, content)

    # -- the budget ------------------------------------------------------------------------------

    def freeze_budget(self, device_kind: str, budget: BatchBudget) -> BatchBudget:
        """The batch budget of this kind of device: the first one that was frozen stays.

        A resume that batches as the first run did writes the same bytes.
        """
        path = self._budget_path(device_kind)
        content = {
            "max_batch_tokens": budget.max_batch_tokens,
            "max_batch_rows": budget.max_batch_rows,
        }
        publish(self._temporary_of("budget"), path, json.dumps(content).encode())
        return self._read_budget(path)

    def frozen_budget(self, device_kind: str) -> BatchBudget | None:
        """The batch budget of this kind of device, or None where none was frozen."""
        try:
            return self._read_budget(self._budget_path(device_kind))
        except FileNotFoundError:
            return None

    def _budget_path(self, device_kind: str) -> Place:
        slug = re.sub(r"[^a-z0-9]+", "-", device_kind.lower()).strip("-")
        return self.state / f"budget-{slug}.json"

    def _read_budget(self, path: Place) -> BatchBudget:
        with open_regular(path) as file:
            stored = file.read()
        try:
            frozen = BatchBudget(**json.loads(stored))
        except (ValueError, TypeError, RecursionError):
            frozen = BatchBudget(0, 0)
        if not all(type(limit) is int and limit > 0 for limit in dataclasses.astuple(frozen)):
            raise StorageError(f"{path}: damaged; delete it, then `batchinfer resume`")
        return frozen


def has_plan(path: Name) -> bool:
    """Whether a folder is a run folder."""
    return (place_of_output(path) / "_batchinfer" / "plan.json").exists()


def load_plan(path: Name) -> Plan | None:
    """The plan of a run folder, or None where there is none."""
    state = place_of_output(path) / "_batchinfer"
    content = _read_if_there(state / "plan.json")
    if content is None:
        return None
    plan = Plan.from_json(content, str(state / "plan.json"))
    while True:
        place = state / increment_name(len(plan.increments) + 1)
        content = _read_if_there(place)
        if content is None:
            return plan
        plan = with_increment(plan, content, str(place))


def _read_if_there(place: Place) -> bytes | None:
    try:
        with open_regular(place) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def require_plan(path: Name) -> Plan:
    """The plan of a run folder.

    Raises UsageError where the folder is none, and Interrupted where a run is about to give it one.
    """
    plan = load_plan(path)
    if plan is None:
        place = place_of_output(path)
        if identity(place) not in HELD and is_locked(path):
            raise Interrupted(
                f"{path}: a run is beginning here ({describe_holder(path)}); it loads its model first; "
                "look again in a moment"
            )
        if isinstance(place, Path) and (place / "_batchinfer").is_dir():
            raise UsageError(
                f"{path}: the run that was begun here ended before it had a plan; start it again with "
                "`batchinfer run`"
            )
        raise UsageError(
            f"{path}: not a run folder of batchinfer (it has no _batchinfer/plan.json); "
            + _advice_on(place)
        )
    return plan


def _advice_on(place: Place) -> str:
    """What to do about a place that is no run folder: another one may be near."""
    if isinstance(place, Path):
        if has_plan(folder := place.absolute().parent):
            return f"did you mean {folder}, in which it lies?"
        if not place.exists():
            hint = near_path(place).removeprefix("; ")
            return hint or "nothing is there: check the path"
        inner = [entry for entry in sorted(place.iterdir())[:100] if has_plan(entry)] if (
            place.is_dir()
        ) else []  # fmt: skip
        if inner:
            return f"did you mean {inner[0]}?"
    return f"`batchinfer run INPUT -m MODEL -o {place}` begins one, in a new or empty folder"


def list_shards(path: Name) -> Iterator[Shard]:
    """The committed shards, read without the lock; damaged ones are left out."""
    data = place_of_output(path) / "data"
    with suppress(FileNotFoundError, NotADirectoryError):
        names = sorted(filter(parse_shard_name, list_names(data)))
        for found in read_footers(data, names):
            if isinstance(found, tuple):
                yield found[0]
            elif not isinstance(found, FooterError | FileNotFoundError):
                raise found


def describe_segment(segment: Segment) -> str:
    """A segment as people see it."""
    first = segment.files[0].source
    return first if len(segment.files) == 1 else f"{first} and {len(segment.files) - 1} more"
