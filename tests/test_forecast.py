"""What a run will take, said before it begins; and held against what came."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchinfer import cli as cli_module
from batchinfer import resume, run
from batchinfer.batching import make_batches
from batchinfer.config import RunConfig
from batchinfer.core import Answers, Batch, BatchBudget, ChunkId, Segment, Span
from batchinfer.errors import Interrupted, JobMismatchError, UsageError
from batchinfer.forecasting.forecast import forecast
from batchinfer.forecasting.kept import ForecastKey
from batchinfer.forecasting.pipeline import (
    Beside,
    ChunkCost,
    chunk_costs,
    chunk_rows_of,
    course,
    padding_in_order,
)
from batchinfer.forecasting.result import Lengths
from batchinfer.forecasting.speed import LengthClass, Speed, measure
from batchinfer.planning import make_plan
from batchinfer.writers.run_folder import RunFolder, load_plan
from tests.conftest import ROOT, shard_bytes
from tests.modelled import TASK, WRITING, Clock, Modelled, Writing, sample_of

REVIEWS = ROOT / "sample_data" / "reviews.jsonl"
COUNTS = ("num_rows", "num_tokens", "num_batches", "num_shards")


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def job(tmp_path: Path, **settings: Any) -> RunConfig:
    given = {
        "inputs": (str(REVIEWS),),
        "engine": "fake",
        "output": str(tmp_path / "out"),
        **settings,
    }
    return RunConfig(**given)


# -- beside the run --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chunk_rows": 300},
        {"limit": 250},
        {"max_length": 20, "long": "stride", "stride": 5},
        {"task": "generate"},
        {"task": "zero-shot", "labels": ("good", "bad", "neither")},
        {"task": "module", "features": ("id", "text"), "keep": ("id",)},
        {"devices": "cpu:2", "chunk_rows": 300},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_what_is_predicted_is_what_comes(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = job(tmp_path, **settings)
    found = forecast(config, max_seconds=2.0)
    assert found.action == "begin"
    assert not (tmp_path / "out").exists(), "nothing is written"
    report = run(config)
    assert report.forecast is not None
    predicted, actual = report.forecast["predicted"], report.forecast["actual"]
    for name in ("num_rows", "num_tokens", "num_shards"):
        assert predicted[name] == actual[name] == getattr(found, name), name
    off = 0.2 if "chunk_rows" in settings else 0  # each chunk has rows of its own
    assert predicted["num_batches"] == pytest.approx(actual["num_batches"], rel=off)
    assert predicted["num_bytes"] == pytest.approx(actual["num_bytes"], rel=0.1)
    assert found.truncated_share == report.num_truncated / report.num_rows
    assert found.error_share == report.num_errors / report.num_rows
    state = tmp_path / "out" / "_batchinfer"
    assert json.loads((state / "forecast.json").read_text())["num_rows"] == found.num_rows
    assert json.loads((state / "report.json").read_text())["forecast"] == report.forecast
    assert f"took {actual['seconds']:.1f} s (" in report.to_text()


def test_rows_of_a_large_file_are_counted_by_a_sample(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    texts = [draw.bytes(8 + i % 120).hex() for i in range(20_000)]
    lines = [json.dumps({"text": text, "id": i}) for i, text in enumerate(texts)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    config = job(tmp_path, inputs=(str(tmp_path / "in.jsonl"),), chunk_rows=4096)
    found = forecast(config, max_seconds=2.0)
    assert found.rows_sampled < 10_000
    report = run(config)
    assert report.forecast is not None
    for name, actual in report.forecast["actual"].items():
        if name != "seconds":
            assert report.forecast["predicted"][name] == pytest.approx(actual, rel=0.05), name


def test_a_run_without_a_forecast_says_nothing(tmp_path: Path) -> None:
    forecast(job(tmp_path, limit=10), max_seconds=1.0)  # of another job
    report = run(job(tmp_path))
    assert report.forecast is None and "predicted" not in report.to_text()
    assert not (tmp_path / "out" / "_batchinfer" / "forecast.json").exists()


def test_a_forecast_changes_nothing_of_the_answers(tmp_path: Path) -> None:
    run(job(tmp_path, output=str(tmp_path / "plain")))
    forecast(job(tmp_path), max_seconds=1.0)
    assert run(job(tmp_path)).forecast is not None
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "plain")
    one, two = load_plan(tmp_path / "out"), load_plan(tmp_path / "plain")
    assert one is not None and two is not None and one.id == two.id


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', '{"format": 2}', "\0"])
def test_a_damaged_forecast_is_passed_over(tmp_path: Path, content: str) -> None:
    config = job(tmp_path)
    forecast(config, max_seconds=1.0)
    [kept] = (tmp_path / "cache" / "batchinfer" / "forecasts").iterdir()
    kept.write_text(content)
    report = run(config)
    assert report.finished and report.forecast is None


def test_a_forecast_of_other_settings_is_another(tmp_path: Path) -> None:
    plan, _ = make_plan(job(tmp_path))
    other, _ = make_plan(job(tmp_path, max_batch_tokens=100))
    assert plan.id == other.id
    paths = {ForecastKey(p, "", done).path for p in (plan, other) for done in (0, 100)}
    assert len(paths) == 4
    lasting, _ = make_plan(job(tmp_path, max_errors="5", deadline="1h"))
    assert ForecastKey(lasting, "", 0).path == ForecastKey(plan, "", 0).path


def test_a_cache_that_takes_no_file_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert forecast(job(tmp_path), max_seconds=1.0).num_rows == 1000
    assert run(job(tmp_path)).finished


# -- what the folder holds -------------------------------------------------------------------------


def half_done(tmp_path: Path) -> RunConfig:
    """Of four shards, the second and the last are missing."""
    config = job(tmp_path, chunk_rows=300)
    run(config)
    data = tmp_path / "out" / "data"
    for name in ("_SUCCESS", "part-000000-000001.parquet", "part-000000-000003.parquet"):
        (data / name).unlink()
    return config


def test_of_a_half_done_folder_it_is_what_is_left(tmp_path: Path) -> None:
    config = half_done(tmp_path)
    before = shard_bytes(tmp_path / "out")
    found = forecast(config, max_seconds=1.0)
    assert (found.action, found.rows_done, found.num_rows, found.num_shards) == (
        "resume",
        600,
        400,
        2,
    )
    assert shard_bytes(tmp_path / "out") == before
    report = resume(config.output)
    assert report.forecast is not None
    assert report.forecast["actual"]["num_rows"] == found.num_rows
    assert report.forecast["actual"]["num_shards"] == found.num_shards
    assert report.forecast["actual"]["num_batches"] == found.num_batches


def test_of_a_finished_folder_nothing_is_left(tmp_path: Path) -> None:
    config = job(tmp_path)
    run(config)
    found = forecast(config)
    assert (found.action, found.num_rows, found.rows_done) == ("nothing", 0, 1000)
    assert "nothing of it is left to do" in found.to_text()


def test_where_a_run_would_refuse_so_does_the_plan(tmp_path: Path) -> None:
    run(job(tmp_path))
    with pytest.raises(JobMismatchError, match="holds another job: limit was None, now 5"):
        forecast(job(tmp_path, limit=5))
    assert forecast(job(tmp_path, limit=5), overwrite=True, max_seconds=1.0).action == "replace"
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("")
    with pytest.raises(JobMismatchError, match="holds other files"):
        forecast(job(tmp_path, output=str(other)))
    with RunFolder(tmp_path / "out"), pytest.raises(Interrupted, match="plan it when it is done"):
        forecast(job(tmp_path))
    with pytest.raises(UsageError, match="--executor ray"):
        forecast(job(tmp_path, executor="ray"))


def test_parts_are_planned_each_for_itself(tmp_path: Path) -> None:
    parts = [
        forecast(job(tmp_path, chunk_rows=100, shard=f"{i}/3"), max_seconds=1.0) for i in range(3)
    ]
    assert [part.num_shards for part in parts] == [3, 3, 4]
    assert [part.part for part in parts] == ["0/3", "1/3", "2/3"]
    spare = forecast(job(tmp_path, limit=10, shard="1/3"))
    assert spare.num_shards == 0 and spare.to_text().endswith("rows        none")
    report = run(job(tmp_path, chunk_rows=100, shard="1/3"))
    assert (
        report.forecast is not None and report.forecast["actual"]["num_rows"] == parts[1].num_rows
    )


def test_rows_that_cannot_be_answered_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": 1}\n' * 20 + '{"text": "a"\n')
    config = job(tmp_path, inputs=(str(tmp_path / "in.jsonl"),), types={"text": "string"})
    found = forecast(config, max_seconds=1.0)
    assert (found.num_rows, found.error_share, found.num_tokens) == (21, 1.0, 0)
    assert "100.0% without an answer" in found.to_text()
    (tmp_path / "none.jsonl").write_text("")
    nothing = forecast(job(tmp_path, inputs=(str(tmp_path / "none.jsonl"),)), max_seconds=1.0)
    assert nothing.num_rows == 0


# -- the commands ----------------------------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli_module.main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_plan_and_dry_run_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = [str(REVIEWS), "--engine", "fake", "-o", str(tmp_path / "out"), "--max-seconds", "1"]
    price = ["--price-per-hour", "3.6"]
    code, out, err = call(capsys, "plan", *job, *price, "--json")
    assert (code, err) == (0, "")
    planned = json.loads(out)
    # Seconds are rounded to milliseconds.
    assert planned["cost"] == pytest.approx(planned["seconds"]["total"] / 1000, abs=6e-7)
    assert planned["cost_per_million_rows"] == pytest.approx(planned["cost"] * 1000)
    code, out, _ = call(capsys, "run", *job, *price, "--dry-run", "--json")
    dry = json.loads(out)
    assert code == 0 and set(dry) == set(planned)
    assert {name: dry[name] for name in COUNTS} == {name: planned[name] for name in COUNTS}
    assert not (tmp_path / "out").exists()
    code, out, _ = call(capsys, "plan", *job, *price)
    assert f"{tmp_path}/out: new: `run` begins there" in out
    assert "cost " in out and f"batchinfer run {REVIEWS} --output {tmp_path}/out" in out
    assert "padding     65.2% in padded batches cut in input order" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--price-per-hour", "1"], "--price-per-hour: only with --dry-run"),
        (["run", "--max-seconds", "1"], "--max-seconds: only with --dry-run"),
        (["plan", "--price-per-hour", "-1"], "--price-per-hour: should be a number"),
        (["plan", "--price-per-hour", "x"], "--price-per-hour: should be a number"),
        (["plan", "--max-seconds", "0"], "--max-seconds: should be more than 0"),
    ],
)
def test_what_is_no_price_or_time_is_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *arguments, str(REVIEWS), "--engine", "fake")
    assert (code, out) == (2, "") and said in err


def test_the_histogram_has_no_more_than_eight_bars_and_can_be_ascii() -> None:
    lengths = Lengths.of(np.array([3] * 60 + [40] * 50 + [500], np.int32))
    assert (lengths.p50, lengths.max) == (3, 500)
    assert sum(one.share for one in lengths.histogram) == pytest.approx(1, abs=1e-3)
    assert len(lengths.histogram) <= 8
    last = lengths.histogram[-1]
    assert (last.above, last.up_to, last.share) == (40, 500, 0.009)
    assert Lengths.of(np.array([1, 1], np.int32)).histogram[0].share == 1.0


def test_ascii_and_answers_in_the_text(tmp_path: Path) -> None:
    found = forecast(job(tmp_path, task="generate", devices="cpu:2"), max_seconds=1.0)
    assert found.written is not None and found.written.max <= 8
    text = found.to_text(ascii_only=True)
    assert text.isascii() and "####" in text and "2 x cpu" in text and "answers     of " in text
    module = job(tmp_path, task="module", features=("id", "text"))
    said = forecast(module, max_seconds=1.0).to_text()
    assert "padding" not in said and "p50" not in said


# -- how long batches take -------------------------------------------------------------------------


class ByLength(Modelled):
    """A batch takes 0.2 s, and 0.1 ms a token, more where rows are long; the first one a second more."""

    def __init__(self, clock: Clock, *, cold: int = 0) -> None:
        super().__init__(clock, lambda size: 1e12)
        self.cold = cold

    def answer(self, batch: Batch) -> Answers:
        self.clock.now += self.seconds(batch.num_tokens, len(batch))
        if self.cold:
            self.cold -= 1
            self.clock.now += 1.0
        return super().answer(batch)

    @staticmethod
    def seconds(tokens: float, rows: int) -> float:
        return 0.2 + 1e-4 * tokens * (1 + tokens / rows / 100)


def batches_of(lengths: list[int], budget: int, ahead: int = 0) -> list[Batch]:
    limits = BatchBudget(budget, 4096)
    return make_batches(ChunkId(0, 0), sample_of(lengths).requests, limits, ahead)


LENGTHS = [8 + i % 250 for i in range(30_000)]


def test_batches_are_timed_by_the_length_of_their_rows() -> None:
    clock = Clock()
    batches = batches_of(LENGTHS, 4096)
    speed = measure(ByLength(clock), batches, 600.0, clock)
    assert speed is not None and speed.is_whole
    shapes = [(batch.num_tokens, len(batch)) for batch in batches]
    everything = sum(ByLength.seconds(*shape) for shape in shapes)
    assert sum(speed.seconds(*shape) for shape in shapes) == pytest.approx(everything, rel=0.01)
    assert clock.now < 200, "a few of them, not all: 1,300 s"
    for length in (60, 120, 200):
        rows = 4096 // length
        expected = ByLength.seconds(rows * length, rows)
        assert speed.seconds(rows * length, rows) == pytest.approx(expected, rel=0.05), length
    few = ByLength.seconds(5 * 120, 5)
    assert speed.seconds(5 * 120, 5) == pytest.approx(few, rel=0.25), "a rest is no whole batch"
    assert speed.fixed == pytest.approx(0.2, rel=0.3)
    assert speed.cold == pytest.approx(0, abs=0.2)


def test_what_the_first_batches_take_longer_counts_once() -> None:
    clock = Clock()
    speed = measure(ByLength(clock, cold=1), batches_of(LENGTHS, 4096), 600.0, clock)
    assert speed is not None
    assert speed.cold == pytest.approx(1.0, rel=0.1)
    assert speed.seconds(4080, 34) == pytest.approx(ByLength.seconds(4080, 34), rel=0.05)


class Slow(Writing):
    """A second for each batch, and a tenth of one for each row."""

    def answer(self, batch: Batch) -> Answers:
        self.clock.now += 1.0 + 0.1 * len(batch)
        return super().answer(batch)


def test_of_a_slow_model_the_time_follows_from_small_batches() -> None:
    clock = Clock()
    batches = batches_of([32] * 512, 1 << 20, WRITING.tokens_ahead)
    engine = Slow(clock, lambda rows: 1e12, rows=512)
    speed = measure(engine, batches, 30.0, clock)
    assert speed is not None and not speed.is_whole and speed.by_rows
    assert clock.now < 60
    assert speed.seconds(32 * 512, 512) == pytest.approx(1.0 + 51.2, rel=0.05)


def test_without_time_for_a_batch_there_is_no_speed() -> None:
    clock = Clock()
    stopped = Slow(clock, lambda rows: 1e12, rows=4)
    stopped.stream = lambda batches: iter(())  # type: ignore[assignment,method-assign,return-value]
    assert measure(stopped, batches_of([32] * 4, 1 << 20), 1.0, clock) is None
    assert TASK.tokens_ahead == 0


# -- how chunks follow one another -----------------------------------------------------------------

NOTHING = Beside(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, loaders=0, cores=0)
CHUNK = ChunkCost(rows=100, tokens=1000.0, batches=4, padded=1010.0, forward=10.0)


def with_costs(**costs: float) -> Beside:
    return dataclasses.replace(NOTHING, **costs)  # type: ignore[arg-type]


def test_a_run_is_as_long_as_its_slowest_part() -> None:
    five = [CHUNK] * 5
    assert course(five, NOTHING, 1).seconds == pytest.approx(50)
    in_turn = course(five, with_costs(start=1.0, load=0.05), 1)
    assert in_turn.seconds == pytest.approx(1 + 5 * (5 + 10))
    ahead = course(five, with_costs(start=1.0, load=0.05, loaders=1), 1)
    assert (ahead.seconds, ahead.bottleneck) == (pytest.approx(1 + 5 + 50), "device")
    starved = course(five, with_costs(load=0.2, loaders=1), 1)
    assert (starved.seconds, starved.bottleneck) == (pytest.approx(5 * 20 + 10), "input")
    assert course(five, with_costs(load=0.2, loaders=2), 1).seconds < starved.seconds
    slow_disk = course(five, with_costs(write=0.3), 1)
    assert (slow_disk.seconds, slow_disk.bottleneck) == (pytest.approx(10 + 5 * 30), "writer")
    assert slow_disk.waited_for_writer == pytest.approx(10 + 5 * 30 - 50)
    assert course(five, with_costs(write=0.05), 1).seconds == pytest.approx(50 + 5)


def test_devices_share_chunks_and_a_cpu_its_cores() -> None:
    five = [CHUNK] * 5
    assert course(five, NOTHING, 2).seconds == pytest.approx(30), "three chunks, beside two"
    assert course(five, NOTHING, 9).seconds == pytest.approx(10), "a chunk is of one device"
    busy = course(five, with_costs(write=0.01, write_core=0.01, cores=2), 1)
    assert busy.seconds == pytest.approx(50 + 4 * 0.5 + 1), "the last one is written alone"
    ahead = course(five, with_costs(load_core=0.01, loaders=1, cores=2), 1)
    assert ahead.seconds == pytest.approx(50 + 4 * 0.5)


def test_the_rows_of_chunks_follow_from_what_is_left() -> None:
    whole, limited = Segment(0, ()), Segment(1, (), max_rows=250)
    from batchinfer.core import InputFile, Position

    file = InputFile("/a", "a", "jsonl", "", 100, 0)
    whole = dataclasses.replace(whole, files=(file,))
    limited = dataclasses.replace(limited, files=(file,))
    spans = [
        Span(whole, 2, Position(), 4),
        Span(whole, 6, Position(), None),
        Span(limited, 0, Position(), None),
    ]
    assert chunk_rows_of(spans, [whole, limited], 2 * 750, 100) == [
        *(100, 100),
        *(100, 50),
        *(100, 100, 50),
    ]


def test_padding_by_the_same_budget() -> None:
    cost = np.array([10, 1, 10, 1, 10, 1], np.int32)
    assert padding_in_order(cost, BatchBudget(20, 100)) == pytest.approx(1 - 33 / 60)
    assert padding_in_order(cost, BatchBudget(60, 100)) == pytest.approx(1 - 33 / 60)
    assert padding_in_order(np.array([5, 5], np.int32), BatchBudget(5, 1)) == 0.0
    speed = Speed((LengthClass(1.0, 10.0, 1.0),), 0.0, by_rows=False)
    [found] = chunk_costs([6], cost, 1.0, BatchBudget(30, 100), 0, speed)
    assert (found.batches, found.tokens, found.padded) == (2, 33.0, 33.0)
    assert found.forward == pytest.approx(3.3)


def test_of_many_sizes_of_chunks_some_stand_for_others() -> None:
    cost = np.arange(1, 101, dtype=np.int32)
    speed = Speed((LengthClass(50.0, 10.0, 1.0),), 0.0, by_rows=False)
    sizes = list(range(1000, 1400))
    rough = chunk_costs(sizes, cost, 1.0, BatchBudget(500, 100), 0, speed)
    exact = chunk_costs(sizes[:60], cost, 1.0, BatchBudget(500, 100), 0, speed)
    assert [one.rows for one in rough] == sizes
    for one, other in zip(rough[:60], exact, strict=True):
        assert one.tokens == pytest.approx(other.tokens, rel=0.02)
        assert one.forward == pytest.approx(other.forward, rel=0.02)
