"""The search for the fastest setting, with engines whose speed is known; and the command."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from batchinfer import cli as cli_module
from batchinfer import run
from batchinfer.config import RunConfig
from batchinfer.core import BatchBudget
from batchinfer.engines import create_encoder
from batchinfer.engines.base import Engine
from batchinfer.errors import ModelError, StorageError
from batchinfer.planning import make_plan
from batchinfer.profiles import UNITS, Profile, ProfileKey, Settings, Trial
from batchinfer.tuning import sample as sample_module
from batchinfer.tuning import search as search_module
from batchinfer.tuning import tune as tune_module
from batchinfer.tuning.accuracy import TimeIsUp, answers_of, compare, probe_rows, reference_of
from batchinfer.tuning.display import LiveTable, SilentTable
from batchinfer.tuning.plot import (
    Point,
    check_plot_path,
    curve_of,
    sized_by,
    text_plot,
    write_plot,
)
from batchinfer.tuning.result import next_command
from batchinfer.tuning.sample import sample_rows, take_sample
from batchinfer.tuning.search import Found, Search
from batchinfer.tuning.trial import Bench
from batchinfer.tuning.tune import tune
from batchinfer.tuning.verdicts import verdict_of
from tests.conftest import ROOT, Cli
from tests.modelled import TASK, WRITING, Clock, Modelled, Writing, sample_of

log = logging.getLogger("batchinfer")

Rate = Callable[[int], float]
UNIFORM = [64] * 8192
REVIEWS, MODEL = ROOT / "sample_data" / "reviews.jsonl", ROOT / "sample_data" / "tiny-sentiment"


def knee_at(tokens: int, top: float = 20_000.0) -> Rate:
    """Faster up to a batch of so many tokens, flat behind it."""
    return lambda size: top * min(1.0, (size / tokens) ** 0.5)


def hill_at(tokens: int, top: float = 20_000.0) -> Rate:
    """As above, but slower again with every doubling behind it."""
    return lambda size: top * min((size / tokens) ** 0.5, (tokens / size) ** 0.2)


def search_with(
    create: Callable[[Clock, RunConfig], Engine],
    *,
    seconds: float = 1e6,
    kind: str = "cpu",
    usual: str = "bfloat16",
    lengths: list[int] | None = None,
    **asked: Any,
) -> Found:
    clock = Clock()
    config = RunConfig(**{"model": "m", "engine": "local", **asked})
    auto = {"engine": "local", "dtype": usual}
    resolved = config.model_copy(
        update={name: value for name, value in auto.items() if getattr(config, name) == "auto"}
    )
    bench = Bench(sample_of(lengths or UNIFORM), clock() + seconds, clock)
    return Search(
        config, resolved, kind, bench, lambda c: create(clock, c), SilentTable(), num_rows=10_000
    ).run()


def by_dtype(**rates: tuple[float, float]) -> Callable[[Clock, RunConfig], Engine]:
    """Engines of a precision: top speed, and how far their scores are off."""

    def create(clock: Clock, config: RunConfig) -> Engine:
        top, shift = rates[config.dtype]
        return Modelled(clock, hill_at(4096, top), shift=shift)

    return create


RIGHT = by_dtype(bfloat16=(20_000.0, 0.0), float32=(9_000.0, 0.0))


# -- the choice ------------------------------------------------------------------------------------


def test_the_smallest_budget_near_the_best_is_chosen() -> None:
    found = search_with(lambda clock, c: Modelled(clock, knee_at(8192)))
    assert found.chosen.settings.max_batch_tokens == 8192
    assert found.chosen.tokens_per_second == pytest.approx(20_000, rel=0.01)
    assert found.chosen.verdict == "chosen"
    assert any("smallest within 2%" in r or "the fastest" in r for r in found.reasons)


def search_among_rows(rows: int, *, other: int = 0, **asked: Any) -> Found:
    clock = Clock()
    config = RunConfig(model="m", engine="auto", task="generate", **asked)
    resolved = config.model_copy(update={"engine": "local", "dtype": "bfloat16"})
    bench = Bench(sample_of(UNIFORM), 1e6, clock, WRITING.tokens_ahead)

    def create(config: RunConfig) -> Engine:
        shift = other if config.dtype == "bfloat16" else 0
        return Writing(clock, knee_at(128), rows=rows, other=shift)

    return Search(config, resolved, "cpu", bench, create, SilentTable()).run()


@pytest.mark.parametrize("rows", [16, 512])
def test_where_answers_are_written_it_is_rows_that_are_tried(rows: int) -> None:
    found = search_among_rows(rows)
    assert found.chosen.settings.max_batch_rows == 128
    assert {t.settings.max_batch_rows for t in found.trials} >= {16, 32, 64, 128, 256, 512}
    assert {t.settings.max_batch_tokens for t in found.trials} == {1 << 20}
    assert {t.engine for t in found.trials} == {"local"}, "OpenVINO writes nothing"
    assert any(line.startswith("128 rows a batch: the ") for line in found.reasons)
    assert found.chosen.agreement == 1.0
    key = ProfileKey("cpu", "", 2, "m", "generate", 512, "auto", "auto", Settings(), {})
    profile = Profile(key, "local", "bfloat16", found.chosen.settings, found.trials, "2026-01-31")
    assert [p.size for p in curve_of(profile)] == [4 << i for i in range(9)]
    assert UNITS[sized_by(profile)] == "rows"
    given = search_among_rows(rows, max_batch_rows=8)
    assert {t.settings.max_batch_rows for t in given.trials} == {8}, "the user's are not searched"


def test_a_precision_whose_answers_begin_otherwise_is_not_chosen() -> None:
    found = search_among_rows(64, other=1)
    assert found.chosen.dtype == "float32"
    assert found.trials[0].verdict == "answers differ: 100% begin with another token"


def test_the_growth_ends_after_two_budgets_that_are_slower() -> None:
    found = search_with(RIGHT)
    tried = {t.settings.max_batch_tokens for t in found.trials}
    assert found.chosen.settings.max_batch_tokens == 4096
    assert {1024, 2048, 4096, 8192, 16384} <= tried
    assert 32768 not in tried


def test_a_sample_too_small_for_a_budget_does_not_try_it() -> None:
    found = search_with(lambda clock, c: Modelled(clock, knee_at(1 << 20)), lengths=[64] * 300)
    assert max(t.settings.max_batch_tokens or 0 for t in found.trials) <= 64 * 300 / 2


def test_memory_that_runs_out_ends_the_growth_and_is_kept_as_a_ceiling() -> None:
    found = search_with(lambda clock, c: Modelled(clock, knee_at(1 << 20), room=20_000))
    assert found.chosen.settings.max_batch_tokens == 16384
    assert found.chosen.settings.ceiling_tokens == int(32768 * 0.8)
    assert any(t.verdict == "out of memory" for t in found.trials)
    assert any("memory ran out" in reason for reason in found.reasons)


def test_a_default_budget_that_does_not_fit_is_halved_until_it_does() -> None:
    found = search_with(lambda clock, c: Modelled(clock, knee_at(1 << 20), room=1500))
    first, chosen = found.trials[0], found.chosen
    assert (first.settings.max_batch_tokens, first.verdict) == (1024, "")
    assert (chosen.settings.max_batch_tokens, chosen.verdict) == (1024, "chosen")
    # The first batch that was compared had 32 rows of 64 tokens.
    assert chosen.settings.ceiling_tokens == int(2048 * 0.8)
    [above] = [t for t in found.trials if t.settings.max_batch_tokens == 2048]
    assert above.verdict == "out of memory"


def test_memory_that_ran_out_while_answers_were_compared_is_not_forgotten() -> None:
    """A comparison of larger batches than those that are timed: nothing shows in the timing."""
    found = search_with(
        lambda clock, c: Modelled(clock, knee_at(4096), room=1800), max_batch_tokens=4096
    )
    assert found.chosen.settings.max_batch_tokens == 1024
    assert found.chosen.settings.ceiling_tokens == int(2048 * 0.8)


def test_a_faster_rival_is_tried_at_smaller_budgets_where_memory_runs_out() -> None:
    def create(clock: Clock, config: RunConfig) -> Engine:
        if config.dtype == "float32":
            return Modelled(clock, knee_at(512, 90_000.0), room=1500)
        return Modelled(clock, knee_at(512, 20_000.0))

    found = search_with(create)
    assert (found.chosen.dtype, found.chosen.settings.ceiling_tokens) == ("float32", 1638)
    assert (found.chosen.settings.max_batch_tokens or 0) <= 1024


def test_a_precision_that_is_fast_and_wrong_is_not_chosen_and_the_table_says_why() -> None:
    found = search_with(by_dtype(bfloat16=(90_000.0, 0.1), float32=(9_000.0, 0.0)))
    assert found.chosen.dtype == "float32"
    [wrong] = [t for t in found.trials if t.dtype == "bfloat16"]
    assert "a score moved by 0.100" in wrong.verdict
    assert wrong.agreement == pytest.approx(0.9, abs=1e-4)
    assert any("bfloat16" in reason and "moved" in reason for reason in found.reasons)


@pytest.mark.parametrize("task", ["classify", "module"])
def test_only_a_text_model_is_tried_in_float16_unasked(task: str) -> None:
    """Where float32 is the usual precision: of a GPU that is slow in bfloat16, and of every module."""
    create = by_dtype(float16=(20_000.0, 0.0), float32=(9_000.0, 0.0))
    found = search_with(create, kind="NVIDIA V100", usual="float32", task=task)
    assert found.chosen.dtype == ("float32" if task == "module" else "float16")
    tried = {trial.dtype for trial in found.trials}
    assert tried == ({"float32"} if task == "module" else {"float16", "float32"})


def test_where_nothing_is_right_no_profile_is_made() -> None:
    def create(clock: Clock, config: RunConfig) -> Engine:
        # The reference is the only one that attends eagerly.
        return Modelled(clock, knee_at(4096), shift=0.0 if config.attention == "eager" else 0.5)

    with pytest.raises(ModelError, match="no setting can be used.*moved"):
        search_with(create)


def test_a_candidate_that_cannot_be_loaded_does_not_end_the_search() -> None:
    def create(clock: Clock, config: RunConfig) -> Engine:
        if config.dtype == "bfloat16":
            raise ModelError("no kernels for this")
        return Modelled(clock, knee_at(4096))

    found = search_with(create)
    assert found.chosen.dtype == "float32"
    assert any("cannot run: ModelError: no kernels" in t.verdict for t in found.trials)


def test_attention_threads_and_workers_are_chosen_by_measurement() -> None:
    def create(clock: Clock, config: RunConfig) -> Engine:
        top = 20_000.0 if config.attention == "sdpa" else 15_000.0
        top *= 1.5 if config.threads == 2 else 1.0
        return Modelled(clock, hill_at(4096, top), threads=config.threads or 4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "usable_cores", lambda: 64)  # of which the engine takes four
        found = search_with(create)
    assert (found.chosen.settings.attention, found.chosen.settings.threads) == ("sdpa", 2)
    assert found.chosen.settings.workers == 1
    assert {t.settings.threads for t in found.trials} == {None, 2, 1}
    assert any("threads 2, " in line and "4 (the default): 0.67" in line for line in found.reasons)


def test_fewer_streams_are_chosen_where_they_are_faster() -> None:
    def create(clock: Clock, config: RunConfig) -> Engine:
        streams = config.streams or 8
        rate = {8: 10_000.0, 4: 12_000.0, 2: 15_000.0, 1: 9_000.0}[streams]
        return Modelled(clock, hill_at(4096, rate), threads=8, streams=streams)

    found = search_with(create)
    assert found.chosen.settings.streams == 2
    assert {t.settings.streams for t in found.trials} == {None, 4, 2, 1}
    assert any("streams 2, " in line and "8 (the default): 0.67" in line for line in found.reasons)
    assert search_with(create, max_batch_tokens=4096).chosen.settings.streams == 2
    given = search_with(create, streams=4)
    assert {t.settings.streams for t in given.trials} == {None}, "the user's are not searched"


@pytest.mark.parametrize("streams", [1, 2, 3, 8])
def test_every_stream_gets_as_many_batches_of_a_repetition(streams: int) -> None:
    clock = Clock()
    bench = Bench(sample_of(UNIFORM), 1e6, clock)
    engine = Modelled(clock, lambda size: 20_000.0, streams=streams)
    budget = BatchBudget(1024, 4096)
    bench.calibrate(engine, budget)
    assert bench.rate == pytest.approx(20_000.0)
    assert len(bench._repetition(budget, 0)) % streams == 0
    assert bench.measure(engine, budget).tokens_per_second == pytest.approx(20_000.0, rel=0.01)


def test_more_workers_are_asked_for_where_the_device_outruns_a_tokenizer() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "usable_cores", lambda: 64)
        found = search_with(
            lambda clock, c: Modelled(clock, lambda size: 3e6, budget=32768), kind="GPU"
        )
    assert found.chosen.settings.workers == 4  # 1.25 × 3 M tokens/s over 1 M


def test_a_model_is_compiled_only_where_the_user_says_so() -> None:
    def create(clock: Clock, config: RunConfig) -> Engine:
        clock.now += 10.0 if config.compile else 1.0
        return Modelled(clock, lambda size: 15_000.0 if config.compile else 10_000.0)

    found = search_with(create, kind="GPU")
    assert found.chosen.settings.compile is None
    [said] = [line for line in found.reasons if line.startswith("not compiled")]
    assert "--compile reaches 15,000 tokens/s, takes 9 s longer to start" in said
    assert "more than 270,000 tokens (this one has about 640,000)" in said
    assert search_with(create, kind="GPU", compile=True).chosen.settings.compile


def test_the_first_repetition_of_a_compiled_model_does_not_count() -> None:
    for is_cold in (True, False):
        clock = Clock()
        bench = Bench(sample_of(UNIFORM), 1e6, clock)
        bench.calibrate(Modelled(clock, lambda size: 20_000.0), BatchBudget(4096, 4096))
        first = len(bench._repetition(BatchBudget(4096, 4096), 0))
        engine = Modelled(clock, lambda size: 0.0)

        def rate(size: int, engine: Modelled = engine, first: int = first) -> float:
            return 20_000.0 if len(engine.sizes) > first else 1_000.0

        engine.rate = rate
        measured = bench.measure(engine, BatchBudget(4096, 4096), 20_000.0, is_cold=is_cold)
        assert measured.is_hopeless is not is_cold
        if is_cold:
            assert measured.tokens_per_second == pytest.approx(20_000.0)


def test_two_that_are_close_are_measured_once_more_in_turn() -> None:
    loads: list[str] = []

    def create(clock: Clock, config: RunConfig) -> Engine:
        if config.attention == "auto":
            loads.append(config.dtype)
        # Something else ran on this machine while the first one was tried.
        was_slowed = config.dtype == "bfloat16" and loads.count("bfloat16") == 1
        top = {"bfloat16": 10_000.0 if was_slowed else 20_000.0, "float32": 11_000.0}
        return Modelled(clock, hill_at(4096, top[config.dtype]))

    found = search_with(create)
    assert loads[:4] == ["bfloat16", "float32", "bfloat16", "float32"]
    assert found.chosen.dtype == "bfloat16"
    assert any(line.startswith("measured once more, in turn") for line in found.reasons)


def test_nothing_is_measured_once_more_where_one_is_clearly_faster() -> None:
    found = search_with(RIGHT)
    settings = [(t.engine, t.dtype, t.settings) for t in found.trials]
    assert len(set(settings)) == len(settings)


def test_openvino_is_no_spare_where_float32_is_what_is_tuned() -> None:
    def create(clock: Clock, config: RunConfig) -> Engine:
        clock.now += 17.0  # with the reference, more than a half of the time
        return Modelled(clock, hill_at(4096, 20_000.0 if config.engine == "local" else 40_000.0))

    found = search_with(create, seconds=60.0, engine="auto", dtype="float32")
    assert found.chosen.engine == "openvino"


def test_what_takes_nobody_knows_how_long_to_load_is_begun_early_or_not_at_all() -> None:
    def create(late: float) -> Callable[[Clock, RunConfig], Engine]:
        def load(clock: Clock, config: RunConfig) -> Engine:
            clock.now += late if config.attention == "eager" else 1.0
            return Modelled(clock, hill_at(4096))

        return load

    early = search_with(create(1.0), seconds=60.0, engine="auto")
    assert "openvino" in {t.engine for t in early.trials}
    late = search_with(create(42.0), seconds=60.0, engine="auto")
    assert "openvino in bfloat16" in late.not_tried
    assert late.chosen.engine == "local"


def test_without_a_reference_only_what_a_run_would_do_by_itself_is_chosen() -> None:
    def create(clock: Clock, config: RunConfig) -> Engine:
        if config.dtype == "float32":
            raise ModelError("too large for this device")
        return Modelled(clock, hill_at(4096))

    found = search_with(create, engine="auto")
    assert {(t.engine, t.dtype) for t in found.trials} == {("local", "bfloat16")}
    assert found.chosen.agreement is None
    assert any("could not be compared" in line and "too large" in line for line in found.reasons)


def test_what_the_user_fixed_is_not_searched() -> None:
    made: list[RunConfig] = []

    def create(clock: Clock, config: RunConfig) -> Engine:
        made.append(config)
        return Modelled(clock, hill_at(4096))

    found = search_with(
        create, dtype="float32", attention="sdpa", threads=3, max_batch_tokens=2048, workers=2
    )
    _, *candidates = made  # the first one is the reference
    assert {(c.dtype, c.attention, c.threads) for c in candidates} == {("float32", "sdpa", 3)}
    assert {t.settings.max_batch_tokens for t in found.trials} == {2048}
    assert found.chosen.settings.workers is None


def test_a_time_limit_is_honoured_and_what_was_not_reached_is_listed() -> None:
    clocks: list[Clock] = []

    def create(clock: Clock, config: RunConfig) -> Engine:
        clocks.append(clock)
        clock.now += 1.0
        return Modelled(clock, hill_at(4096))

    found = search_with(create, seconds=12.0)
    assert clocks[0].now < 14.0
    assert "budget 32,768" not in found.not_tried  # it would have been the third slower one
    assert found.not_tried
    everything = search_with(create)
    assert not everything.not_tried


def test_a_slow_reference_compares_fewer_rows() -> None:
    engines: list[Modelled] = []

    def create(clock: Clock, config: RunConfig) -> Engine:
        engines.append(Modelled(clock, lambda size: 100.0 if size == 64 else 20_000.0))
        return engines[-1]

    assert search_with(create, seconds=60.0).chosen.agreement == 1.0
    assert len(engines[0].sizes) == 15  # 0.64 s each, 15 % of a minute
    engines.clear()
    search_with(create, seconds=5.0)
    assert len(engines[0].sizes) == 4
    engines.clear()
    search_with(create)
    assert len(engines[0].sizes) == 32


def test_rows_of_all_lengths_are_compared_also_where_they_are_few() -> None:
    sample = sample_of(list(range(2, 402)))
    engine = Modelled(Clock(), lambda size: 20_000.0)
    rows, values = reference_of(engine, sample, probe_rows(sample), lambda num: num >= 4)
    lengths = sample.requests.cost[rows]
    assert lengths.tolist() == sorted(lengths, reverse=True)
    assert (len(rows), lengths.max()) == (4, 401)
    assert np.abs(np.diff(lengths)).max() < 120
    again = answers_of(engine, sample, rows, BatchBudget(4096, 4096))
    assert np.array_equal(values["score"], again["score"])


def test_a_slow_model_is_tuned_in_about_the_time_that_is_given() -> None:
    clocks: list[Clock] = []

    def create(clock: Clock, config: RunConfig) -> Engine:
        clocks.append(clock)
        return Modelled(clock, lambda size: 60.0)  # a batch of the usual size takes over a minute

    found = search_with(create, seconds=90.0)
    assert clocks[0].now < 95.0
    assert found.chosen.settings.max_batch_tokens == 256
    assert found.not_tried


def test_a_rival_that_answers_very_slowly_takes_one_batch_more_than_there_is_time() -> None:
    clocks: list[Clock] = []

    def create(clock: Clock, config: RunConfig) -> Engine:
        clocks.append(clock)
        is_reference = config.attention == "eager" and len(clocks) == 1
        rate = 20_000.0 if config.dtype == "bfloat16" or is_reference else 50.0
        return Modelled(clock, lambda size: rate)

    found = search_with(create, seconds=90.0, attention="sdpa")
    assert found.chosen.dtype == "bfloat16"
    assert clocks[0].now < 90.0 + 4096 / 50.0
    [slow] = [t for t in found.trials if t.dtype == "float32"]
    assert "time was over" in slow.verdict


def test_a_comparison_ends_where_the_time_does() -> None:
    engine = Modelled(Clock(), lambda size: 20_000.0)
    rows, budget = np.arange(32), BatchBudget(512, 4096)
    with pytest.raises(TimeIsUp):
        answers_of(engine, sample_of(UNIFORM), rows, budget, lambda: len(engine.sizes) == 2)
    assert len(engine.sizes) == 2


def test_a_setting_that_was_timed_too_few_times_replaces_none() -> None:
    clock = Clock()
    bench = Bench(sample_of(UNIFORM), 1.5, clock)
    budget = BatchBudget(4096, 4096)
    bench.calibrate(Modelled(clock, lambda size: 20_000.0), budget)
    measured = bench.measure(Modelled(clock, lambda size: 40_000.0), budget, 20_000.0)
    assert measured.is_short
    assert measured.tokens_per_second == pytest.approx(40_000.0)
    assert "time was over" in verdict_of(measured, None, is_rival=True)
    assert not verdict_of(measured, None, is_rival=False)


def test_a_hopeless_candidate_is_timed_once() -> None:
    engines: dict[str, Modelled] = {}

    def create(clock: Clock, config: RunConfig) -> Engine:
        top = 20_000.0 if config.dtype == "bfloat16" else 5_000.0
        return engines.setdefault(
            f"{config.dtype} {config.attention}", Modelled(clock, knee_at(4096, top))
        )

    found = search_with(create)
    [slow] = [t for t in found.trials if t.dtype == "float32"]
    assert slow.verdict == "below 80% of the best"
    assert len(engines["float32 auto"].sizes) < len(engines["bfloat16 sdpa"].sizes)


def test_settings_are_compared_on_the_same_rows() -> None:
    lengths = list(range(2, 502)) * 8
    clock = Clock()
    bench = Bench(sample_of(lengths), 1e6, clock)
    engine = Modelled(clock, lambda size: 20_000.0)
    bench.calibrate(engine, BatchBudget(4096, 4096))
    means = []
    for tokens in (1024, 4096, 8192):
        batches = [
            b
            for window in range(bench._windows)
            for b in bench._batches(
                BatchBudget(tokens, 4096), window, bench._windows, 0,
                bench._per_window(BatchBudget(tokens, 4096)),
            )
        ]  # fmt: skip
        means.append(sum(b.num_tokens for b in batches) / sum(map(len, batches)))
    assert max(means) < 1.15 * min(means), "a small budget must not be flattered by shorter rows"


# -- accuracy --------------------------------------------------------------------------------------


def scores(labels: list[int], values: list[float]) -> dict[str, Any]:
    return {"label": np.array(labels, np.int32), "score": np.array(values, np.float32)}


def test_a_label_that_flips_on_the_fence_is_no_error_and_one_that_flips_far_from_it_is() -> None:
    there = scores([0, 0, 1], [0.505, 0.9, 0.8])
    near = compare(TASK.spec, there, scores([1, 0, 1], [0.505, 0.9, 0.8]))
    assert not near.complaint
    far = compare(TASK.spec, there, scores([0, 1, 1], [0.505, 0.9, 0.8]))
    assert far.value == pytest.approx(0.2, abs=1e-6)
    assert "moved" in far.complaint


def test_rows_without_an_answer_are_an_error_unless_float32_has_none_either() -> None:
    there = scores([0, 0], [0.9, np.nan])
    assert not compare(TASK.spec, there, scores([0, 0], [0.9, np.nan])).complaint
    assert "without an answer" in compare(TASK.spec, there, scores([0, 0], [np.nan, 0.5])).complaint


def test_embeddings_are_held_to_their_cosine() -> None:
    there = {"embedding": np.eye(4, dtype=np.float32)}
    near = there["embedding"] + np.float32(0.01)
    far = there["embedding"] + np.float32(0.1)
    assert not compare(TASK.spec, there, {"embedding": near}).complaint
    assert "smallest cosine" in compare(TASK.spec, there, {"embedding": far}).complaint
    assert compare(TASK.spec, there, there).value == pytest.approx(1.0)


def test_rows_of_all_lengths_are_compared() -> None:
    sample = sample_of(list(range(2, 402)))
    cost = sample.requests.cost[probe_rows(sample)]
    assert (cost.max(), cost.min(), len(cost)) == (401, 2, 32)


# -- the sample ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_the_sample_comes_from_the_whole_of_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    texts = [f"{i:06d} " + "x" * 100 for i in range(50_000)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif path.suffix == ".csv":
        pa.csv.write_csv(pa.table({"text": texts}), path)
    else:
        pq.write_table(pa.table({"text": texts}), path, row_group_size=5000)
    plan, _ = make_plan(RunConfig(inputs=(str(path),), engine="fake"), is_rehearsal=True)
    chunk = sample_rows(plan, 400)
    numbers = [int(text[:6]) for text in chunk.table["text"].to_pylist()]
    assert len(set(numbers)) == len(numbers) == 400
    assert numbers[0] == 0
    assert max(numbers) > 25_000


def test_the_sample_takes_some_rows_of_several_files(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index:02d}.jsonl").write_text(json.dumps({"text": f"file {index}"}) + "\n")
    plan, _ = make_plan(RunConfig(inputs=(str(tmp_path),), engine="fake"), is_rehearsal=True)
    found = sample_rows(plan, 100).table["text"].to_pylist()
    assert len(found) == 8
    assert found[0] == "file 0"


def test_short_texts_in_wide_rows_fill_a_sample_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    wide = "x" * 3000
    path.write_text(
        "".join(json.dumps({"text": f"{i:04d}", "b": wide}) + "\n" for i in range(2000))
    )
    plan, _ = make_plan(RunConfig(inputs=(str(path),), engine="fake"), is_rehearsal=True)
    encoder = create_encoder(plan.config, plan.model, None)
    assert take_sample(plan, TASK, encoder, 1500).num_tokens == pytest.approx(1500, rel=0.1)


def test_a_sample_reads_no_more_than_so_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(1000)))
    plan, _ = make_plan(RunConfig(inputs=(str(path),), engine="fake"), is_rehearsal=True)
    monkeypatch.setattr(sample_module, "MAX_BYTES", int(200 * plan.row_bytes))
    encoder = create_encoder(plan.config, plan.model, None)
    assert len(take_sample(plan, TASK, encoder, 1_000_000).requests) == 200


def test_the_output_within_the_input_is_no_part_of_the_sample(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "in" / "out"
    source.mkdir()
    (source / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(40))
    )
    job = RunConfig(inputs=(str(source),), output=str(output), engine="fake", profile="none")
    run(job)
    assert tune(job, max_seconds=1.0).num_rows == 40


def test_a_limit_bounds_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(1000)))
    plan, _ = make_plan(RunConfig(inputs=(str(path),), engine="fake", limit=7), is_rehearsal=True)
    encoder = create_encoder(plan.config, plan.model, None)
    assert len(take_sample(plan, TASK, encoder, 10_000).requests) == 7


# -- what is shown ---------------------------------------------------------------------------------

POINTS = [Point(1024, 5_000.0, 0.2, False), Point(2048, 10_000.0, 0.4, True)]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_the_plot_fits_its_width_and_has_no_colours(width: int) -> None:
    lines = text_plot(POINTS, "tokens", width)
    assert "\x1b" not in "".join(lines)
    assert len(lines) == 3
    assert max(map(len, lines)) <= max(width, 34)
    assert lines[2].startswith("▸ ")
    assert "2,048" in lines[2]
    assert not lines[1].startswith("▸")


def test_bars_are_as_long_as_what_they_show() -> None:
    _, slow, fast = text_plot(POINTS, "tokens", 120, ascii_only=True)
    half, whole = (re.findall("#+", line)[0] for line in (slow, fast))
    assert abs(len(half) - len(whole) / 2) <= 1


@pytest.mark.parametrize(("name", "magic"), [("plot.png", b"\x89PNG"), ("plot.SVG", b"<?xml")])
def test_the_plot_is_an_image_of_the_kind_that_its_name_says(
    name: str, magic: bytes, tmp_path: Path
) -> None:
    path = str(tmp_path / name)
    check_plot_path(path)
    write_plot(POINTS, "tokens", "a model", path)
    assert (tmp_path / name).read_bytes().startswith(magic)
    with pytest.raises(StorageError, match="the plot cannot be written"):
        write_plot(POINTS, "tokens", "a model", str(tmp_path / "nowhere" / name))


def test_the_live_table_shows_verdicts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = LiveTable()
    try:
        table.trying("local in float32")
        settings = Settings(max_batch_tokens=2048)
        table.tried(Trial("local", "float32", settings, 0.0, 0.0, 0.0, None, "cannot run: [bold]"))
        table.tried(Trial("local", "bfloat16", settings, 1234.0, 0.5, 0.01, 0.9999, ""))
    finally:
        table.close()
    shown = capsys.readouterr().err
    assert "cannot run: [bold]" in shown
    assert "1,234" in shown


def test_a_line_of_the_log_stands_above_the_table_and_tears_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(log, "handlers", [handler])
    stream = handler.stream
    table = LiveTable()
    try:
        table.trying("local in float32")
        log.warning("out of [bold] memory")
    finally:
        table.close()
    assert handler.stream is stream
    before, _, after = capsys.readouterr().err.partition("out of [bold] memory")
    shown, erased, _ = before.rpartition("\x1b[2K")
    assert "local in float32" in shown
    assert erased
    assert "local in float32" in after


def test_the_next_command_says_what_this_one_was_told() -> None:
    flags = {"model": "./a model", "text_column": "body", "header": False, "types": ["id=int64"]}
    said = next_command(["in put.csv"], flags, None, RunConfig())
    assert said == (
        "batchinfer run 'in put.csv' -m './a model' --text-column body --no-header "
        "--schema id=int64 --output out"
    )
    flags = {"output": "there", "max_errors": "1%", "overwrite": True}
    said = next_command(["in.csv"], flags, None, RunConfig(output="there"))
    assert said == "batchinfer run in.csv --output there --max-errors 1% --overwrite"


@pytest.mark.parametrize(
    ("profile", "why"), [("/proc/none/p.json", "cannot be written"), (".", "is a folder")]
)
def test_a_profile_that_cannot_be_written_is_told_before_anything_is_measured(
    profile: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*arguments: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune_module, "take_sample", measure)
    job = RunConfig(inputs=(str(REVIEWS),), engine="fake", profile=profile)
    with pytest.raises(StorageError, match=why):
        tune(job, max_seconds=1.0)


def test_folders_of_the_profile_and_the_plot_are_made(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "tune", str(REVIEWS), "--engine", "fake", "--max-seconds", "1", "--profile", "a/b/p.json",
        "--plot", "c/d/plot.svg",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Profile.read(tmp_path / "a" / "b" / "p.json").trials
    assert (tmp_path / "c" / "d" / "plot.svg").exists()
    assert re.search(r"measured in \d s, kept in a/b/p.json", done.stdout)


def test_tune_can_stand_in_the_place_of_run(cli: Cli) -> None:
    """What only `run` knows is handed on to the command that comes next."""
    flags = [
        "--output", "out", "--keep", "none", "--output-prefix", "p_", "--chunk-rows", "100",
        "--max-errors", "1", "--deadline", "1h", "--batch-timeout", "1m",
    ]  # fmt: skip
    job = [str(REVIEWS), "--engine", "fake"]
    done = cli("tune", *job, *flags, "--resume", "--max-seconds", "1")
    assert done.returncode == 0, done.stderr
    command = done.stdout.splitlines()[-1].split()
    assert command[:3] == ["batchinfer", "run", str(REVIEWS)]
    assert set(command) == {"batchinfer", "run", *job, *flags, "--resume"}
    shown = cli("tune", "--help").stdout
    assert "--deadline" not in shown
    assert "--overwrite" not in shown


# -- the command -----------------------------------------------------------------------------------


def test_tuning_a_real_model_keeps_a_profile_that_run_picks_up(cli: Cli, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    job = (str(REVIEWS), "-m", str(MODEL), "--engine", "local")
    done = cli("tune", *job, "--max-seconds", "5", "--plot", "plot.svg", XDG_CACHE_HOME=cache)
    assert done.returncode == 0, done.stderr
    assert "chosen: local in" in done.stdout
    assert f"batchinfer run {REVIEWS} -m {MODEL} --engine local --output out" in done.stdout
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    [path] = (tmp_path / "cache" / "batchinfer" / "profiles").iterdir()
    profile = Profile.read(path)
    assert profile.trials
    ran = cli("run", *job, "-o", "out", "--max-errors", "1", XDG_CACHE_HOME=cache)
    assert ran.returncode == 0, ran.stderr
    assert f"settings of {profile.created[:10]} from {path}: budget" in ran.stderr
    report = json.loads((tmp_path / "out" / "_batchinfer" / "report.json").read_text())
    assert report["max_batch_tokens"] == profile.settings.max_batch_tokens


def test_json_is_one_document_alone_on_stdout(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "tune", str(REVIEWS), "--engine", "fake", "--json", "--max-seconds", "2", "--profile", "p.json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["profile"] == "p.json"
    assert (
        said["settings"]["max_batch_tokens"]
        == Profile.read(tmp_path / "p.json").settings.max_batch_tokens
    )
    assert said["sample"]["lengths"]["max"] >= said["sample"]["lengths"]["p95"] > 0
    assert said["next_command"].endswith("--profile p.json --output out")
    assert all(Trial.from_json(trial) for trial in said["trials"])


def test_quiet_says_nothing(cli: Cli) -> None:
    done = cli("tune", str(REVIEWS), "--engine", "fake", "--quiet", "--max-seconds", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["nowhere.jsonl", "--engine", "fake"], 66, "nowhere.jsonl"),
        ([str(REVIEWS)], 2, "--model"),
        ([str(REVIEWS), "--engine", "fake", "--max-seconds", "soon"], 2, "--max-seconds"),
        ([str(REVIEWS), "--engine", "fake", "--max-seconds", "0"], 2, "--max-seconds"),
        ([str(REVIEWS), "--engine", "fake", "--plot", "plot.txt"], 2, ".png or .svg"),
        ([str(REVIEWS), "--engine", "fake", "--profile", "/proc/none/p.json"], 74, "--profile"),
        ([str(REVIEWS), "--engine", "fake", "--plot", "/proc/none/plot.png"], 74, "--plot"),
        ([str(REVIEWS), "--engine", "fake", "--text-column", "txt"], 2, "'txt'"),
        (["empty.jsonl", "--engine", "fake"], 66, "no row of the sample"),
        ([str(REVIEWS), "-m", "./no-model"], 69, "no-model"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    arguments: list[str], code: int, word: str, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": null}\n')
    done = cli("tune", *arguments, "--quiet")
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    [line] = done.stderr.splitlines()
    assert word in line


def test_a_plot_without_matplotlib_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ["tune", str(REVIEWS), "--engine", "fake", "--plot", "plot.png"]
    assert cli_module.main(arguments) == 2
    assert "batchinfer[report]" in capsys.readouterr().err
