"""The model in this process, and a writer's thread behind it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain, islice

from batchinfer.attempts import Attempts
from batchinfer.caching import AnswerCache
from batchinfer.controller import probe_budget
from batchinfer.core import AnsweredChunk, BatchBudget, LoadedChunk
from batchinfer.engines import create_engine, prepare_to_decode
from batchinfer.engines.base import Engine
from batchinfer.engines.supervised import SupervisedEngine
from batchinfer.executors.base import Committed, Executor, Job, Work
from batchinfer.gathering import NO_JOURNAL, answer, write_behind
from batchinfer.reporting.progress import Progress
from batchinfer.stages import Stopwatch
from batchinfer.stop import StopSignal
from batchinfer.writers.journal import Journal
from batchinfer.writers.run_folder import RunFolder
from batchinfer.writers.shard import ShardWriter


class Inline(Executor):
    """One engine; `isolated`, or where batches have a time limit, in a child that may die."""

    def __init__(self, job: Job, stop: StopSignal, *, isolated: bool = False) -> None:
        self._job, self._stop = job, stop
        self.task = job.create_task()
        self.engine: Engine
        config = job.config
        if isolated or config.batch_timeout is not None:
            child = SupervisedEngine(
                self.task,
                config,
                job.model_folder,
                timeout=config.batch_timeout,
                stopped=lambda: stop.out_of_time,
            )
            self.engine = child
            self.encoder = child if isolated else None
        else:
            self.engine = create_engine(config, self.task, job.model_folder)
        if job.ceiling_tokens is not None:
            self.engine.stay_below(job.ceiling_tokens)
        self.dtype, self.device_kind = self.engine.dtype, self.engine.device_kind
        self.threads = self.engine.threads
        self.default_budget, self.pins_memory = self.engine.default_budget, self.engine.pins_memory

    def vouch(self) -> None:
        self.engine.vouch()

    def probe(self) -> BatchBudget:
        if isinstance(self.engine, SupervisedEngine):  # it is asked for one batch at a time
            return self.default_budget
        return probe_budget(
            self.engine, self._job.plan, self._job.model_folder, lambda: self._stop.is_set
        )

    def process(
        self,
        folder: RunFolder,
        budget: BatchBudget,
        work: Work,
        progress: Progress,
        attempts: Attempts,
    ) -> Generator[Committed]:
        with closing(work.load()) as ahead:
            yield from self.answer(folder, budget, ahead, progress, attempts)

    def answer(
        self,
        folder: RunFolder,
        budget: BatchBudget,
        chunks: Iterable[LoadedChunk],
        progress: Progress,
        attempts: Attempts,
    ) -> Generator[Committed]:
        """Yield the shards of chunks that are loaded already, as `process` does."""
        plan, task, engine = self._job.plan, self.task, self.engine
        prepare_to_decode(task, plan.config, self._job.model_folder)
        writer = ShardWriter(folder, plan, task, budget, engine.dtype, engine.device_kind)
        writes = task.tokens_ahead > 0  # only those answers take longer than reading them back
        journal = Journal(folder.temporary, plan.id, task.answers) if writes else NO_JOURNAL
        watch = engine.watch = Stopwatch()
        cache = AnswerCache.of(plan.config, task)

        def commit(answered: AnsweredChunk) -> Committed:
            shard, spared = writer.commit(answered), answered.spared
            if cache is not None:
                with writer.watch.measure("write"):
                    cache.keep(answered)
            return Committed(
                shard,
                new_rows=answered.num_rows - spared.recalled_rows,
                new_tokens=answered.requests.num_tokens - spared.num_tokens,
                duplicate_rows=spared.duplicate_rows,
                cached_rows=spared.cached_rows,
            )

        begun = _begun(iter(chunks), attempts, watch)
        try:
            with closing(answer(begun, engine, progress, self._stop, journal)) as done:
                for committed in write_behind(commit, done, watch):
                    folder.attempts.end(committed.shard.id)
                    journal.end(committed.shard.id)
                    yield committed
        finally:
            if cache is not None:
                cache.close()
        self.stages = watch.seconds + writer.watch.seconds

    def close(self) -> None:
        self.engine.close()


def _begun(
    chunks: Iterator[LoadedChunk], attempts: Attempts, watch: Stopwatch
) -> Iterator[LoadedChunk]:
    """The chunks, each marked as it goes to the device."""
    first, others = watch.each("wait_start", islice(chunks, 1)), watch.each("wait_input", chunks)
    for loaded in chain(first, others):
        watch.add(loaded.seconds)
        attempts.begin(loaded.chunk.id)
        yield loaded
