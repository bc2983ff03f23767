"""The search for the fastest setting, with engines whose speed is known; and the command."""

from __future__ import annotations

import json
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
from batchinfer.config import RunConfig
from batchinfer.core import BatchBudget
from batchinfer.engines import create_encoder
from batchinfer.engines.base import Engine
from batchinfer.errors import ModelError, StorageError
from batchinfer.planning import make_plan
from batchinfer.profiles import Profile, Settings, Trial
from batchinfer.tuning import search as search_module
from batchinfer.tuning.accuracy import compare, probe_rows
from batchinfer.tuning.display import LiveTable, SilentTable
from batchinfer.tuning.plot import Point, check_plot_path, text_plot, write_plot
from batchinfer.tuning.result import next_command
from batchinfer.tuning.sample import sample_rows, take_sample
from batchinfer.tuning.search import Found, Search
from batchinfer.tuning.trial import Bench
from tests.conftest import ROOT, Cli
from tests.modelled import TASK, Clock, Modelled, sample_of

Rate = Callable[[int], float]
UNIFORM = [64] * 8192


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
    lengths: list[int] | None = None,
    **asked: Any,
) -> Found:
    clock = Clock()
    config = RunConfig(**{"model": "m", "engine": "local", **asked})
    resolved = config.model_copy(
        update={"dtype": "bfloat16" if config.dtype == "auto" else config.dtype}
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
    found = search_with(lambda clock, c: Modelled(clock, knee_at(512), room=1500))
    assert (found.chosen.settings.max_batch_tokens or 0) <= 1500


def test_a_precision_that_is_fast_and_wrong_is_not_chosen_and_the_table_says_why() -> None:
    found = search_with(by_dtype(bfloat16=(90_000.0, 0.1), float32=(9_000.0, 0.0)))
    assert found.chosen.dtype == "float32"
    [wrong] = [t for t in found.trials if t.dtype == "bfloat16"]
    assert "a score moved by 0.100" in wrong.verdict
    assert wrong.agreement == pytest.approx(0.9, abs=1e-4)
    assert any("bfloat16" in reason and "moved" in reason for reason in found.reasons)


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
        return Modelled(clock, hill_at(4096, top * (1.5 if config.threads == 2 else 1.0)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "num_cores", lambda: 4)
        found = search_with(create)
    assert (found.chosen.settings.attention, found.chosen.settings.threads) == ("sdpa", 2)
    assert found.chosen.settings.workers == 1
    assert 1 in {t.settings.threads for t in found.trials}


def test_more_workers_are_asked_for_where_the_device_outruns_a_tokenizer() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "num_cores", lambda: 64)
        found = search_with(
            lambda clock, c: Modelled(clock, lambda size: 3e6, budget=32768), kind="GPU"
        )
    assert found.chosen.settings.workers == 4  # 1.25 × 3 M tokens/s over 1 M


def test_a_model_is_compiled_only_where_that_pays_for_this_input() -> None:
    def create(starts: float) -> Callable[[Clock, RunConfig], Engine]:
        def load(clock: Clock, config: RunConfig) -> Engine:
            clock.now += starts if config.compile else 1.0
            return Modelled(clock, lambda size: 15_000.0 if config.compile else 10_000.0)

        return load

    # 640,000 tokens take 64 s, compiled 43.
    assert search_with(create(10.0), kind="GPU").chosen.settings.compile
    dear = search_with(create(60.0), kind="GPU")
    assert not dear.chosen.settings.compile
    assert any("not compiled" in reason for reason in dear.reasons)


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
    assert len(engines[0].sizes) == 8
    engines.clear()
    search_with(create)
    assert len(engines[0].sizes) == 8 + 32


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
    lines = text_plot(POINTS, width)
    assert "\x1b" not in "".join(lines)
    assert len(lines) == 3
    assert max(map(len, lines)) <= max(width, 34)
    assert lines[2].startswith("▸ ")
    assert "2,048" in lines[2]
    assert not lines[1].startswith("▸")


def test_bars_are_as_long_as_what_they_show() -> None:
    _, slow, fast = text_plot(POINTS, 120, ascii_only=True)
    half, whole = (re.findall("#+", line)[0] for line in (slow, fast))
    assert abs(len(half) - len(whole) / 2) <= 1


@pytest.mark.parametrize(("name", "magic"), [("plot.png", b"\x89PNG"), ("plot.SVG", b"<?xml")])
def test_the_plot_is_an_image_of_the_kind_that_its_name_says(
    name: str, magic: bytes, tmp_path: Path
) -> None:
    path = str(tmp_path / name)
    check_plot_path(path)
    write_plot(POINTS, "a model", path)
    assert (tmp_path / name).read_bytes().startswith(magic)
    with pytest.raises(StorageError, match="the plot cannot be written"):
        write_plot(POINTS, "a model", str(tmp_path / "nowhere" / name))


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


def test_the_next_command_says_what_this_one_was_told() -> None:
    flags = {"model": "./a model", "text_column": "body", "header": False, "types": ["id=int64"]}
    said = next_command(["in put.csv"], flags, None, RunConfig())
    assert said == (
        "batchinfer run 'in put.csv' -m './a model' --text-column body --no-header "
        "--schema id=int64 --output out"
    )


# -- the command -----------------------------------------------------------------------------------

REVIEWS, MODEL = ROOT / "sample_data" / "reviews.jsonl", ROOT / "sample_data" / "tiny-sentiment"


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
