"""The benchmark's arithmetic, its judgement of answers, and that documents say what was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.config import RunConfig
from batchinfer.core import ModelSpec
from batchinfer.profiles import Profile, Settings, key_of
from benchmarks import sweep, tables
from benchmarks.peers import contest, figures
from benchmarks.peers.__main__ import parse
from benchmarks.peers.contest import Contest, Rival, read_answers
from benchmarks.peers.contestants import KINDS, computed_tokens, planned, width_of
from benchmarks.peers.entries import CEILINGS, CORE, ENTRIES, REFERENCE, Entry, chosen
from benchmarks.peers.material import STRETCH, read_corpus, stretches, write_rows
from benchmarks.peers.search import FailedError, Setting, search

MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}


def result(*seconds: float, tokens: int = 1000, **others: Any) -> dict[str, Any]:
    """What a contestant's rounds leave."""
    rounds = [{"seconds": one, "others_share": 0.01} for one in seconds]
    speeds = [tokens / one for one in seconds]
    return {
        "tokens": tokens, "rows": 10, "setting": {"dtype": "bfloat16"}, "rounds": rounds,
        "padding": 0.01, "start_seconds": 1.0, "check": {"smallest_cosine": 0.99999},
        "tokens_per_second": figures.spread(speeds), **others,
    }  # fmt: skip


def run_of(made: str, **contestants: dict[str, Any]) -> dict[str, Any]:
    """A run of one section, as the benchmark saves it."""
    names = {name.replace("_", " "): found for name, found in contestants.items()}
    section = {
        "task": "embed", "rows": 10, "rows_of_slow": 10, "tokens": 1000, "least_tokens": 5,
        "most_tokens": 512, "mean_tokens": 100.0, "flops_per_token": 23.4e6, "contestants": names,
        "gflops": {"bfloat16 linear": figures.spread([900.0])},
        "ratios": figures.ratios("embed", names),
    }  # fmt: skip
    return {
        "kind": "peers", "made": made, "revision": "0123456789abcdef", "versions": {"torch": "2.13.0"},
        "machine": {"cpu": "Some CPU", "cores": 2, "flags": ["avx2", "amx_bf16"], "memory_gib": 23.5,
                    "python": "3.11.7"},
        "options": {"corpus": ["test.jsonl"], "seed": 0}, "sections": {"minilm embed": section},
    }  # fmt: skip


def test_the_documents_say_what_was_measured() -> None:
    for path, text in tables.wanted().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} differs from benchmarks/results: make tables"
        )


def test_a_ratio_is_of_medians_and_beside_it_the_median_of_rounds() -> None:
    ours, theirs = [10.0, 20.0, 60.0], [10.0, 5.0, 20.0]
    found = figures.ratio(ours, theirs)
    assert found == {"by_medians": 2.0, "by_rounds": 3.0, "least": 1.0, "most": 4.0}


def test_rounds_that_one_did_not_run_are_left_out_of_the_median_of_rounds() -> None:
    found = figures.ratio([10.0, 10.0, 10.0], [5.0])
    assert found is not None
    assert (found["by_rounds"], found["most"]) == (2.0, 2.0)


def test_contestants_of_different_rows_are_compared_by_tokens() -> None:
    found = figures.ratios("embed", {
        "batchinfer bf16": result(2.0, 2.0, 2.0, tokens=4000),
        "naive loop": result(10.0, 10.0, 10.0, tokens=1000),
    })  # fmt: skip
    assert [(one["by_medians"], one["goal"], one["reached"]) for one in found] == [
        (20.0, 10.0, True)
    ]


def test_who_failed_has_no_ratio_whatever_its_rounds_were() -> None:
    failed = result(0.1, failed="wrong answers")
    assert figures.ratios("embed", {"batchinfer bf16": failed, "naive loop": result(1.0)}) == []


def test_every_comparison_is_between_contestants_of_its_task() -> None:
    for pair in figures.COMPARISONS:
        names = {entry.name for entry in ENTRIES[pair.task]}
        assert {pair.ours, pair.theirs} <= names
    for entry in [REFERENCE, CEILINGS, *ENTRIES["embed"], *ENTRIES["classify"]]:
        assert entry.kind in KINDS
        assert all(setting["dtype"] in figures.BOUNDS for setting in entry.settings)
        for setting in entry.settings:
            assert all(setting[name] in values for name, values in entry.choices.items())


def test_contestants_are_chosen_by_pattern() -> None:
    assert [entry.name for entry in chosen("embed", ["openvino*"])] == [
        "openvino bf16",
        "openvino float32",
    ]


def test_core_stands_for_those_that_most_goals_are_about() -> None:
    assert [entry.name for entry in chosen("embed", ["core"])] == list(CORE)
    both = [entry.name for entry in chosen("embed", ["core", "naive*"])]
    assert both == [*CORE, "naive loop"]


def test_everyone_answers_3000_rows_or_more_unless_told_otherwise() -> None:
    options = parse(["--corpus", "a.jsonl", "--out", "b.json"])
    assert (options.rows, options.slow_rows) == (4000, 3000)


def test_a_search_goes_on_until_no_coordinate_is_quicker() -> None:
    """Width 16 pays only with the larger budget, which comes after it: one pass would miss it."""

    def attempt(setting: Setting) -> float:
        asked.append(setting)
        return {(1, 4): 9.0, (16, 4): 12.0, (1, 8): 6.0, (16, 8): 3.0}[
            setting["width"], setting["budget"]
        ]

    asked: list[Setting] = []
    trials = search([{"width": 1, "budget": 4}], {"width": (1, 16), "budget": (4, 8)}, attempt)
    best = min(trials, key=lambda trial: trial.seconds)
    assert best.to_json() == {"setting": {"width": 16, "budget": 8}, "seconds": 3.0}
    assert len(asked) == 4


def test_settings_that_are_close_are_tried_once_more_and_not_a_third_time() -> None:
    times = {1: [2.0, 1.9], 8: [2.1, 1.0], 16: [3.0]}
    trials = search(
        [{"batch": size} for size in times],
        {"batch": tuple(times)},
        lambda setting: times[setting["batch"]].pop(0),
    )
    assert [trial.seconds for trial in trials] == [1.9, 1.0, 3.0]
    assert times == {1: [], 8: [], 16: []}


def test_a_setting_that_fails_is_none_and_the_reason_is_kept() -> None:
    def attempt(setting: Setting) -> float:
        if setting["streams"] == 1:
            raise FailedError("no such stream")
        return 1.0

    failed, right = search([{"streams": 1}], {"streams": (1, 2)}, attempt)
    assert failed.to_json() == {"setting": {"streams": 1}, "failed": "no such stream"}
    assert right.seconds == 1.0


@pytest.mark.parametrize(
    ("check", "dtype", "is_wrong"),
    [
        ({"smallest_cosine": 0.99995}, "float32", False),
        ({"smallest_cosine": 0.9998}, "float32", True),
        ({"smallest_cosine": 0.9998}, "bfloat16", False),
        ({"smallest_cosine": math.nan}, "bfloat16", True),
        ({"labels_agree": 0.98, "largest_score_difference": 0.1}, "bfloat16", False),
        ({"labels_agree": 0.98, "largest_score_difference": 0.1}, "float32", True),
    ],
)
def test_wrong_answers_are_told_from_rounded_ones(
    check: dict[str, float], dtype: str, is_wrong: bool
) -> None:
    assert bool(figures.what_is_wrong(check, dtype)) == is_wrong


def test_agreement_is_that_of_the_worst_row() -> None:
    expected = {"embedding": np.eye(3, dtype=np.float32)}
    found = {"embedding": np.array([[2, 0, 0], [0, 1, 0], [0, 1, 1]], np.float32)}
    assert figures.agreement(found, expected)["smallest_cosine"] == pytest.approx(0.5**0.5)


def test_scores_are_compared_where_labels_agree() -> None:
    expected = {"label": np.array([0, 1]), "score": np.array([0.9, 0.6])}
    found = {"label": np.array([0, 0]), "score": np.array([0.8, 0.1])}
    agreement = figures.agreement(found, expected)
    assert agreement["labels_agree"] == 0.5
    assert agreement["largest_score_difference"] == pytest.approx(0.1)


def test_a_token_of_minilm_costs_what_its_layers_do() -> None:
    alone = figures.flops_per_token(MINILM, np.array([1]))
    assert alone == 2 * 6 * (4 * 384**2 + 2 * 384 * 1536) + 4 * 6 * 384
    # of two rows, the tokens of the longer one see more, and there are more of them
    assert figures.flops_per_token(MINILM, np.array([100, 300])) - alone == pytest.approx(
        4 * 6 * 384 * (250 - 1)
    )


def test_the_ceiling_is_the_quickest_way_in_that_precision() -> None:
    gflops = {
        name: figures.spread([value])
        for name, value in {"float32 linear": 200.0, "float32 prepacked": 450.0, "bfloat16": 900.0}.items()
    }  # fmt: skip
    assert figures.ceiling(gflops, "float32") == 450.0
    assert figures.ceiling({}, "float32") is None


def test_the_corpus_has_every_string_and_every_rows_strings_as_one(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    row = {"id": "task_1", "ask": "What is the sum?", "instances": [{"output": "It is\u2028four."}]}
    first.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    second.write_text(json.dumps({"ask": "What is the sum?", "more": "None of these."}) + "\n")
    corpus = read_corpus([first, second], seed=0)
    assert dict(zip(corpus.texts, corpus.is_from_first, strict=True)) == {
        "What is the sum?": True,
        "It is\u2028four.": True,
        "What is the sum?\nIt is\u2028four.": True,
        "None of these.": False,
        "What is the sum?\nNone of these.": False,
    }
    assert read_corpus([first, second], seed=0) == corpus
    written = write_rows(tmp_path / "rows.jsonl", corpus.texts, range(2))
    assert [json.loads(line)["text"] for line in written.read_bytes().splitlines()] == corpus.texts[
        :2
    ]


def test_settings_are_tried_on_neighbours_in_length_of_all_lengths() -> None:
    counts = np.random.default_rng(0).permutation(np.arange(5, 1005))
    rows = stretches(counts, 4)
    assert len(set(rows)) == 4 * STRETCH
    found = counts[rows].reshape(4, STRETCH)
    assert (np.ptp(found, axis=1) == STRETCH - 1).all()
    assert found.max() > 800
    assert found.min() < 200
    assert sorted(stretches(counts[:100], 4)) == list(range(100))


def test_sorted_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 512, 300)
    batches = list(planned(lengths, 2048))
    assert sorted(np.concatenate(batches)) == list(range(300))
    assert all(len(rows) * lengths[rows].max() <= 2048 for rows in batches)


def test_rounded_widths_are_within_the_budget_and_no_longer_than_rows_may_be() -> None:
    lengths = np.random.default_rng(0).integers(1, 513, 300)
    batches = list(planned(lengths, 2048, 16))
    assert sorted(np.concatenate(batches)) == list(range(300))
    assert all(len(rows) * width_of(int(lengths[rows].max()), 16) <= 2048 for rows in batches)
    assert [width_of(n, 16) for n in (5, 33, 60, 64, 509)] == [5, 33, 64, 64, 512]


def test_peers_may_round_widths_as_batchinfers_own_engine_does() -> None:
    for longest in range(1, 513):
        rows = np.array([longest, 1])
        assert computed_tokens("openvino", [rows]) == 2 * width_of(longest, 16)


def test_a_packed_batch_computes_its_tokens_and_what_fills_it_up() -> None:
    rows = np.array([50, 10, 3])
    assert computed_tokens("local", [rows, np.array([64])]) == 64 + 64
    assert computed_tokens("local", [np.array([512] * 7)]) == 512 * 7


def test_others_have_their_share_of_all_cores_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert contest.share_of_others(seconds=32.0, wall_seconds=10.0) == 0.05
    assert contest.share_of_others(seconds=-1.0, wall_seconds=10.0) == 0.0


def test_nothing_that_the_user_or_another_has_kept_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []

    def spawn(*arguments: Any, env: dict[str, str], **others: Any) -> Any:
        seen.append(env)

    monkeypatch.setattr("subprocess.Popen", spawn)
    rivals = [
        Rival(Entry(name, "loop", [{"dtype": "float32"}]), tmp_path, "embed", tmp_path, 1.0)
        for name in ("one", "other")
    ]
    for rival in rivals:
        rival.cache.mkdir(parents=True)
        (rival.cache / "kept").touch()
        rival.forget()
        rival.spawn()
    folders = [Path(env["XDG_CACHE_HOME"]) for env in seen]
    assert len(set(folders)) == 2
    assert all(path.is_relative_to(tmp_path) and not path.exists() for path in folders)


def write_vectors(path: Path, ids: list[int], vectors: Any) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    pq.write_table(pa.table({"id": ids, "embedding": column}), path)


def test_rows_that_are_missing_or_not_in_order_are_no_answer(tmp_path: Path) -> None:
    vectors = np.eye(3, dtype=np.float32)
    write_vectors(tmp_path / "a", [0, 1, 2], vectors)
    assert (read_answers(tmp_path / "a", 3, 2)["embedding"] == vectors[:2]).all()
    for name, ids, count in (("b", [0, 2, 1], 3), ("c", [0, 1, 2], 4)):
        write_vectors(tmp_path / name, ids, vectors)
        with pytest.raises(FailedError, match="rows"):
            read_answers(tmp_path / name, count, 2)


def judged(tmp_path: Path, vectors: Any, tokens: int) -> Rival:
    """A contestant whose answers to three rows of ten tokens were judged."""
    entry = Entry("one", "loop", [{"dtype": "float32"}])
    rival = Rival(entry, tmp_path, "embed", tmp_path, 1.0, result={"setting": {"dtype": "float32"}})
    contest = Contest(
        "m embed", "embed", tmp_path, [""] * 3, {}, 3, 3, tmp_path, few_float32=False, patience=1.0
    )  # fmt: skip
    contest.tokens = {"check": 10}
    contest.expected = {"embedding": np.eye(3, dtype=np.float32)}
    write_vectors(rival.output, [0, 1, 2], vectors)
    contest.judge(rival, {"tokens": tokens, "computed_tokens": 15}, "check")
    return rival


def test_right_answers_are_kept_with_how_right_they_are(tmp_path: Path) -> None:
    rival = judged(tmp_path, np.eye(3, dtype=np.float32), 10)
    assert rival.result["check"] == {"smallest_cosine": 1.0}
    assert rival.result["padding"] == 0.5


def test_who_answers_wrong_or_sees_other_tokens_is_out(tmp_path: Path) -> None:
    swapped = np.eye(3, dtype=np.float32)[[1, 0, 2]]
    with pytest.raises(FailedError, match="smallest cosine 0, below"):
        judged(tmp_path, swapped, 10)
    with pytest.raises(FailedError, match="saw 9 tokens of 10"):
        judged(tmp_path, np.eye(3, dtype=np.float32), 9)


def written(folder: Path, **runs: dict[str, Any]) -> list[tables.Machine]:
    for name, run in runs.items():
        (folder / f"{name}.json").write_text(json.dumps(run))
    return tables.load(folder)


def test_tables_show_speeds_ratios_and_goals(tmp_path: Path) -> None:
    run = run_of(
        "2026-01-01", batchinfer_bf16=result(1.0, 2.0, 4.0), naive_loop=result(10.0, 20.0, 40.0)
    )
    machines = written(tmp_path, run=run)
    docs, readme = "\n".join(tables.in_docs(machines)), "\n".join(tables.in_readme(machines))
    assert "| batchinfer bf16 | dtype bfloat16 | 500 | 250-1,000 | 10 |" in docs
    assert "| **10 ×** | 10 × | 10-10 | 10 ×, met |" in docs
    assert "| DataLoader in input order, float32, batch 32 | 10 × |" in readme
    assert "2 cores of Some CPU with amx_bf16, 24 GiB" in readme


def test_who_has_no_time_is_named_with_the_reason(tmp_path: Path) -> None:
    run = run_of(
        "2026-01-01", batchinfer_bf16=result(1.0), naive_loop=result(1.0, failed="it fell over")
    )
    docs = "\n".join(tables.in_docs(written(tmp_path, run=run)))
    assert "- naive loop has no time: it fell over" in docs
    assert "| naive loop |  | – |" in docs


def test_of_two_runs_on_one_kind_of_machine_the_later_counts(tmp_path: Path) -> None:
    slow, quick = (result(seconds) for seconds in (100.0, 1.0))
    later = run_of("2026-02-01", batchinfer_bf16=quick)
    machines = written(tmp_path, a=later, b=run_of("2026-01-01", batchinfer_bf16=slow))
    docs = "\n".join(tables.in_docs(machines))
    assert "1,000" in docs
    assert "| 10 | 10-10 |" not in docs


def test_of_two_runs_of_a_day_the_later_counts_whatever_their_names(tmp_path: Path) -> None:
    slow, quick = (result(seconds) for seconds in (100.0, 1.0))
    later = run_of("2026-02-01T15:00:00Z", batchinfer_bf16=quick)
    earlier = run_of("2026-02-01T09:00:00Z", batchinfer_bf16=slow)
    docs = "\n".join(tables.in_docs(written(tmp_path, a=later, b=earlier)))
    assert "| 1,000 |" in docs
    assert "| 10 | 10-10 |" not in docs


def test_a_comparison_that_has_another_name_by_now_is_left_out(tmp_path: Path) -> None:
    run = run_of("2026-01-01", batchinfer_bf16=result(1.0), naive_loop=result(10.0))
    ratios = run["sections"]["minilm embed"]["ratios"]
    ratios.append({**ratios[0], "theirs": "an old name"})
    docs = "\n".join(tables.in_docs(written(tmp_path, run=run)))
    assert docs.count("| **10 ×** |") == 1


@pytest.mark.parametrize("engine", ["local", "openvino"])
def test_what_tune_leaves_open_is_a_point_of_the_sweep(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    spec = ModelSpec(name="m", identity="", architecture="BertModel", task="embed", max_length=512)
    profile = Profile(
        key=key_of(RunConfig(inputs=("a",), model="m"), spec, "cpu"),
        engine=engine,
        dtype="bfloat16",
        settings=Settings(max_batch_tokens=4096),
        trials=(),
        created="2026-01-31T12:00:00Z",
    )
    assert sweep.setting_of(profile) in sweep.settings()


def test_without_results_the_readme_says_nothing_and_the_docs_say_so(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"kind": "gpu"}')
    assert tables.in_readme(tables.load(tmp_path)) == []
    assert tables.in_docs(tables.load(tmp_path)) == [tables.NOT_YET]


def test_a_block_is_written_between_its_markers_and_nowhere_else() -> None:
    text = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    new = f"before\n{tables.BEGIN}\nnew\n{tables.END}\nafter\n"
    assert tables.filled(text, ["new"]) == new
    assert tables.filled(new, ["new"]) == new
    with pytest.raises(ValueError, match="no <!-- benchmarks -->"):
        tables.filled("no markers", [])
