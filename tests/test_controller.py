"""The budget of a run without a profile: grown while it pays, kept below the memory, then frozen."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchinfer import RunConfig, controller, resume, run
from batchinfer.batching import make_batches
from batchinfer.controller import MemoryModel, choose_budget, probe_budget
from batchinfer.core import Batch, BatchBudget, ChunkId
from batchinfer.engines.base import Engine
from batchinfer.engines.fake import FakeEngine
from batchinfer.errors import Interrupted
from batchinfer.executors import inline
from batchinfer.planning import make_plan
from batchinfer.reporting.progress import Rates
from batchinfer.stop import StopSignal
from tests.conftest import shard_bytes
from tests.modelled import Clock, Modelled, sample_of

SAMPLE = sample_of([64] * 16384)
LONG = 10**9  # tokens of a run that is worth any probe


def batches(budget: BatchBudget, num: int) -> list[Batch]:
    found = make_batches(ChunkId(0, 0), SAMPLE.requests, budget)
    return [found[(2 * i + 1) * len(found) // (2 * num)] for i in range(num)]


def chosen(engine: Modelled, expected: int = LONG) -> int:
    return choose_budget(engine, batches, expected, clock=engine.clock).max_batch_tokens


def knee_at(tokens: int) -> Callable[[int], float]:
    return lambda size: 1e6 * min(1.0, size / tokens)


def gpu(clock: Clock, rate: Callable[[int], float], **settings: Any) -> Modelled:
    return Modelled(clock, rate, **{"budget": 4096, "device_kind": "GPU", **settings})


def test_the_budget_grows_while_throughput_does() -> None:
    assert chosen(gpu(Clock(), knee_at(32768))) == 32768
    assert chosen(gpu(Clock(), knee_at(4096))) == 4096


def test_every_stream_gets_as_many_batches_of_a_probe() -> None:
    engine = gpu(Clock(), knee_at(32768), streams=4)
    assert chosen(engine) == 32768
    at_first = [size for size in engine.sizes if size == 4096]
    assert len(at_first) == 4 + 4, "one each to warm it up, and one that is timed"


def test_a_gain_of_a_percent_is_not_worth_the_memory() -> None:
    assert chosen(gpu(Clock(), lambda size: 1e6 * (1 + size / 4e6))) == 4096


def test_the_budget_stays_below_what_memory_allows() -> None:
    memory = (1_000_000, 100, 3_100_000)  # 16,384 tokens need 2.64 MB, and 87 % are 2.70
    engine = gpu(Clock(), knee_at(1 << 20), memory=memory)
    assert chosen(engine) == 16384
    assert max(engine.sizes) <= 16384, "what cannot fit is not tried"


def test_a_line_through_the_peaks_foretells_the_memory_of_a_larger_batch() -> None:
    engine = gpu(Clock(), knee_at(4096), memory=(500, 2, 2_000_000))
    model = MemoryModel(engine)
    for budget in (2048, 4096):
        [batch] = batches(BatchBudget(budget, 4096), 1)
        engine.answer(batch)
        model.saw(budget)
    limit = (controller.MEMORY_SHARE * 2_000_000 - 500) / 2
    assert model.has_room_for(int(limit * 0.99))
    assert not model.has_room_for(int(limit * 1.01))


def test_out_of_memory_while_growing_leaves_the_budget_that_fitted() -> None:
    engine = gpu(Clock(), knee_at(1 << 20), room=20_000)
    assert chosen(engine) == 16384
    assert engine.ceiling_tokens == int(32768 * 0.8)


def test_a_default_that_does_not_fit_shrinks() -> None:
    assert chosen(gpu(Clock(), knee_at(1 << 20), room=1_500)) <= 1_500


def test_probes_take_a_hundredth_of_the_run_at_most() -> None:
    for expected in (10**6, 10**7, 10**8):
        clock = Clock()
        engine = gpu(clock, lambda size: 1e5 * (1 + size / 4096))  # it would grow for ever
        chosen(engine, expected)
        first = 4 * 4096 / 2e5  # the one that says how long the run takes
        assert clock.now <= first + controller.SHARE * expected / 2e5


def test_a_stop_ends_the_probes() -> None:
    engine = gpu(Clock(), knee_at(1 << 20))
    found = choose_budget(engine, batches, LONG, clock=engine.clock, stopped=lambda: True)
    assert found.max_batch_tokens == 4096


def test_a_stop_and_the_time_limit_are_heard_within_the_first_probe() -> None:
    engine = gpu(Clock(), knee_at(1 << 20))
    stopped = lambda: len(engine.sizes) == 1  # noqa: E731
    found = choose_budget(engine, batches, LONG, clock=engine.clock, stopped=stopped)
    assert (found.max_batch_tokens, len(engine.sizes)) == (4096, 1)
    slow = gpu(Clock(), lambda size: 50.0)  # half a batch takes 41 s
    assert chosen(slow) == 4096
    assert len(slow.sizes) == 1
    hurried = gpu(Clock(), lambda size: 1000.0)
    choose_budget(hurried, batches, LONG, max_seconds=5.0, clock=hurried.clock)
    assert hurried.clock.now < 5.0 + 4.1


# -- in a run --------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = ({"text": f"row {i} " * (1 + i % 7)} for i in range(400))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(source: Path, output: Path, **settings: Any) -> RunConfig:
    usual: dict[str, Any] = {"engine": "fake", "workers": 0, "chunk_rows": 50, "profile": "none"}
    return RunConfig(inputs=(str(source),), output=str(output), **{**usual, **settings})


def test_a_small_job_is_not_probed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = make_plan(config(source, tmp_path / "out"))
    local = plan.config.model_copy(update={"engine": "local"})
    plan = type(plan)(**{**vars(plan), "config": local})

    def no_sample(*arguments: object) -> None:
        raise AssertionError("it was probed")

    monkeypatch.setattr(controller, "_harmless", no_sample)
    engine = gpu(Clock(), knee_at(1 << 20))
    assert probe_budget(engine, plan, None, lambda: False) == engine.default_budget
    # Nor is a large one that has to end within a minute.
    hurried = local.model_copy(update={"deadline": 60.0})
    large = type(plan)(**{**vars(plan), "config": hurried, "num_rows_estimate": 10**9})
    assert probe_budget(engine, large, None, lambda: False) == engine.default_budget
    assert not engine.sizes
    monkeypatch.setattr(controller, "_harmless", lambda *arguments: SAMPLE.requests)
    large = type(plan)(**{**vars(plan), "config": local, "num_rows_estimate": 10**9})
    probe_budget(engine, large, None, lambda: False)
    assert engine.sizes


def test_probes_have_the_lengths_of_the_input_and_none_of_its_words(
    source: Path, tmp_path: Path
) -> None:
    plan, _ = make_plan(config(source, tmp_path / "out"))
    engine = gpu(Clock(), knee_at(1 << 20))
    requests = controller._harmless(plan, None, engine)
    texts = [f"row {i} " * (1 + i % 7) for i in range(400)]
    assert requests.cost.tolist() == [(len(text) + 3) // 4 + 1 for text in texts]
    assert b"row 1" not in requests.fields["input_ids"].tobytes()


def test_the_budget_is_frozen_before_the_first_shard_and_resume_repeats_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stops(Rates):
        def answered(self, num_rows: int, num_tokens: int) -> None:
            stop.set()

    budgets = iter([BatchBudget(99, 4096), BatchBudget(11, 4096)])
    asked: list[Engine] = []

    def probe(engine: Engine, *arguments: object) -> BatchBudget:
        asked.append(engine)
        return next(budgets)

    used: list[int] = []
    answer = FakeEngine.answer

    def recorded(engine: FakeEngine, batch: Batch) -> Any:
        used.append(len(batch) * batch.max_length)
        return answer(engine, batch)

    monkeypatch.setattr(inline, "probe_budget", probe)
    monkeypatch.setattr(FakeEngine, "answer", recorded)
    stop = StopSignal()
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(config(source, out), progress=Stops(), stop=stop)
    frozen = json.loads((out / "_batchinfer" / "budget-cpu.json").read_text())
    assert frozen["max_batch_tokens"] == 99
    report = resume(out)
    assert report.max_batch_tokens == 99
    assert 50 < max(used) <= 99
    assert len(asked) == 1, "what is frozen is not probed again"
    budgets = iter([BatchBudget(99, 4096)])
    run(config(source, tmp_path / "whole"))
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")


def test_a_probe_that_was_killed_is_not_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """As far as the run folder can tell."""

    asked: list[Engine] = []

    def probe(engine: Engine, *arguments: object) -> BatchBudget:
        asked.append(engine)
        raise Killed

    monkeypatch.setattr(inline, "probe_budget", probe)
    with pytest.raises(Killed):
        run(config(source, tmp_path / "out"))
    assert run(config(source, tmp_path / "out"), resume=True).max_batch_tokens == 16384
    assert len(asked) == 1
    with pytest.raises(Killed):
        run(config(source, tmp_path / "other"))
    assert resume(tmp_path / "other").finished
    with pytest.raises(Killed):  # the job begins anew
        run(config(source, tmp_path / "other"), overwrite=True)


def test_the_time_of_the_probes_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(engine: Engine, *arguments: object) -> BatchBudget:
        time.sleep(0.3)
        return engine.default_budget

    monkeypatch.setattr(inline, "probe_budget", probe)
    report = run(config(source, tmp_path / "out"))
    assert report.load_seconds >= 0.3 > report.seconds


def test_where_the_input_cannot_be_read_the_run_says_so_and_not_the_probes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = make_plan(config(source, tmp_path / "out"))
    long = dataclasses.replace(
        plan, config=plan.config.model_copy(update={"engine": "local"}), num_rows_estimate=10**9
    )
    source.unlink()
    engine = gpu(Clock(), knee_at(1 << 20))
    assert probe_budget(engine, long, None, lambda: False) == engine.default_budget
    assert not engine.sizes


def test_what_a_run_is_expected_to_take_is_counted_in_tokens_of_its_texts(
    source: Path, tmp_path: Path
) -> None:
    wide = {"text": "short", "payload": "x" * 3000}
    source.write_text("".join(json.dumps(wide) + "\n" for _ in range(400)))
    plan, _ = make_plan(config(source, tmp_path / "out"))
    local = plan.config.model_copy(update={"engine": "local"})
    engine = gpu(Clock(), knee_at(1 << 20))
    # 5 M rows of 3,000 bytes, and three tokens each.
    few = dataclasses.replace(plan, config=local, num_rows_estimate=5_000_000)
    assert probe_budget(engine, few, None, lambda: False) == engine.default_budget
    assert not engine.sizes
    many = dataclasses.replace(plan, config=local, num_rows_estimate=500_000_000)
    probe_budget(engine, many, None, lambda: False)
    assert engine.sizes


def test_a_budget_that_the_user_set_is_not_probed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(*arguments: object) -> BatchBudget:
        raise AssertionError("it was probed")

    monkeypatch.setattr(inline, "probe_budget", probe)
    assert run(config(source, tmp_path / "out", max_batch_tokens=40)).max_batch_tokens == 40
