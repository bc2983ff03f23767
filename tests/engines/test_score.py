"""Scores of pairs are CrossEncoder's, and zero-shot labels those of transformers' pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import pipeline

from batchinfer import RunConfig, controller, resume, run
from batchinfer.batching import make_batches
from batchinfer.core import Answers, Batch, BatchBudget, Chunk, ChunkId, LoadedChunk, Position
from batchinfer.engines import fake
from batchinfer.engines.fake import FakeEngine
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe, make_encoder
from batchinfer.errors import ModelError, UsageError
from batchinfer.gathering import Gathering
from batchinfer.planning import make_plan
from batchinfer.tasks import create_task
from batchinfer.tuning.accuracy import compare
from tests.engines import made
from tests.engines.conftest import Made

HEAD = "ForSequenceClassification"
ARCHITECTURES = ["bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "electra"]
QUERIES, TEXTS = made.texts(200, seed=31, longest=30), made.texts(200, seed=32)
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}


def answers(
    folder: Path,
    task: str,
    table: dict[str, Any],
    errors: dict[int, str] | None = None,
    **settings: Any,
) -> list[pa.Array[Any]]:
    """The task's columns, by the way that a run goes with one chunk."""
    config = RunConfig(**settings)
    spec, place = describe(str(folder), task=task, pairs=True)
    rows = pa.table(table)
    chosen = create_task(spec, config, rows.schema)
    chunk = Chunk(ChunkId(0, 0), rows, errors or {}, Position(), Position(), True, "")
    requests = chosen.encode(chunk, make_encoder(place, spec))
    engine = LocalEngine(chosen, place, dtype="float32", device="cpu")
    batches = make_batches(chunk.id, requests, BatchBudget(900, 40))
    gathering = Gathering.of(LoadedChunk(chunk, requests, batches), chosen.answers)
    for batch, found in engine.stream(batches):
        gathering.add(batch, found)
    engine.close()
    columns = chosen.decode(gathering.result())
    assert [c.type for c in columns] == [field.type for field in chosen.columns]
    assert {len(c) for c in columns} == {rows.num_rows}
    return columns


def of_cross_encoder(folder: Path, pairs: list[tuple[str, str]]) -> Any:
    library = pytest.importorskip("sentence_transformers", reason="not installed")
    model = library.CrossEncoder(str(folder), device="cpu")
    model.max_seq_length = describe(str(folder), task="score", pairs=True)[0].max_length
    return np.array([model.predict([pair], batch_size=1)[0] for pair in pairs])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_a_cross_encoder(made_model: Made, architecture: str) -> None:
    folder = made_model(architecture, HEAD, num_labels=1)
    expected = of_cross_encoder(folder, list(zip(QUERIES, TEXTS, strict=True)))
    assert expected.std() > 0.1, "the model answers the same to every pair"
    [score] = answers(
        folder, "score", {"q": QUERIES, "d": TEXTS}, text_column="q", text_pair_column="d"
    )
    np.testing.assert_allclose(score.to_numpy(), expected, rtol=0, atol=1e-4)


def test_a_list_of_documents_gives_a_list_of_scores(made_model: Made) -> None:
    folder = made_model("bert", HEAD, num_labels=1)
    documents = [TEXTS[i : i + i % 5] for i in range(40)]  # some rows have none
    documents[7] = [TEXTS[0], None, TEXTS[1]]  # type: ignore[list-item]
    table = {"q": QUERIES[:40], "d": pa.array(documents, pa.list_(pa.string()))}
    settings = {"text_column": "q", "text_pair_column": "d"}
    [found] = answers(folder, "score", table, {3: "made up"}, **settings)
    rows = found.to_pylist()
    assert rows[3] is None and rows[7] is None
    for i, row in enumerate(rows):
        if row is None:
            continue
        assert len(row) == len(documents[i])
        if row:
            alone = {"q": [QUERIES[i]] * len(row), "d": documents[i]}
            [expected] = answers(folder, "score", alone, **settings)
            np.testing.assert_allclose(row, expected.to_numpy(), atol=1e-5)
    [best] = answers(folder, "score", table, {3: "made up"}, top_k=2, **settings)
    for row, kept in zip(rows, best.to_pylist(), strict=True):
        if row is None:
            assert kept is None
            continue
        order = sorted(range(len(row)), key=lambda index: -row[index])[:2]
        assert [one["index"] for one in kept] == order
        np.testing.assert_allclose(
            [one["score"] for one in kept], [row[i] for i in order], atol=1e-6
        )


def test_what_cannot_be_scored_is_said_in_one_line(made_model: Made) -> None:
    one, two = (made_model("bert", HEAD, num_labels=n) for n in (1, 2))
    spec = describe(str(one), task="score", pairs=True)[0]
    with pytest.raises(UsageError, match="needs two columns: --text-column"):
        create_task(spec)
    with pytest.raises(ModelError, match="2 labels, so its scores are no single number"):
        create_task(describe(str(two), task="score")[0], RunConfig(text_pair_column="d"))
    texts = pa.schema([("text", pa.string()), ("d", pa.string())])
    with pytest.raises(UsageError, match="--top-k 3: column 'd' holds one document a row"):
        create_task(spec, RunConfig(text_pair_column="d", top_k=3), texts)
    lists = pa.schema([("text", pa.list_(pa.string()))])
    with pytest.raises(UsageError, match="'text' holds list.*--task score takes one text a row"):
        create_task(spec, RunConfig(text_pair_column="d"), lists)


# -- zero-shot -------------------------------------------------------------------------------------

LABELS = ("bada", "go fi", "naïve", "東京")


def nli(made_model: Made, architecture: str) -> Path:
    return made_model(
        architecture, HEAD, id2label=NLI, label2id={name: i for i, name in NLI.items()}
    )


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_labels_are_those_of_the_zero_shot_pipeline(
    made_model: Made, architecture: str, multi_label: bool
) -> None:
    folder, texts = nli(made_model, architecture), TEXTS[:100]
    pipe: Any = pipeline("zero-shot-classification", model=str(folder))
    pipe.tokenizer.model_max_length = describe(str(folder), task="zero-shot")[0].max_length
    best, score, names, scores = answers(
        folder, "zero-shot", {"text": texts}, labels=LABELS, multi_label=multi_label,
        hypothesis="It is {}!",
    )  # fmt: skip
    firsts = set()
    for row, text in enumerate(texts):
        expected = pipe(
            text, list(LABELS), multi_label=multi_label, hypothesis_template="It is {}!"
        )
        assert names[row].as_py() == expected["labels"]
        np.testing.assert_allclose(scores[row].as_py(), expected["scores"], rtol=0, atol=1e-4)
        assert (best[row].as_py(), score[row].as_py()) == (
            names[row].as_py()[0],
            scores[row].as_py()[0],
        )
        firsts.add(best[row].as_py())
    assert len(firsts) > 1, "one label is always right"


def test_labels_may_stand_in_a_column(made_model: Made) -> None:
    folder = nli(made_model, "bert")
    labels: list[Any] = [["bada", "go"], ["naïve"], [], ["go", None], ["fi", "ba", "go"]]
    table = {"text": TEXTS[:5], "labels": pa.array(labels, pa.list_(pa.string()))}
    best, score, names, scores = (
        c.to_pylist() for c in answers(folder, "zero-shot", table, labels_column="labels")
    )
    assert [None if n is None else sorted(n) for n in names] == [
        ["bada", "go"], ["naïve"], [], None, ["ba", "fi", "go"]
    ]  # fmt: skip
    assert best[2] is None and score[2] is None and best[3] is None
    assert sum(scores[0]) == pytest.approx(1.0) and sum(scores[4]) == pytest.approx(1.0)
    for row in (0, 1, 4):
        alone = answers(folder, "zero-shot", {"text": [TEXTS[row]]}, labels=tuple(labels[row]))
        assert alone[2].to_pylist()[0] == names[row]
        np.testing.assert_allclose(alone[3].to_pylist()[0], scores[row], atol=1e-5)


def test_a_text_that_is_too_long_gives_way_to_its_hypothesis(made_model: Made) -> None:
    folder, text = nli(made_model, "bert"), " ".join(TEXTS[:20])
    names = [
        answers(folder, "zero-shot", {"text": [text]}, labels=labels)[2].to_pylist()[0]
        for labels in (LABELS, LABELS[::-1])
    ]
    assert names[0] == names[1], "labels at the end of a cut text would all be the same"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "needs labels: --labels for all rows, or --labels-column"),
        ({"labels": ["a"], "labels_column": "l"}, "one of the two"),
        ({"labels": ["a"], "hypothesis": "no gap"}, "--hypothesis: should hold {} once"),
        ({"labels_column": "text"}, "--labels-column text: should hold lists of texts"),
        ({"labels": ["a"], "pooling": "cls"}, "--pooling: means nothing to --task zero-shot"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    made_model: Made, settings: dict[str, Any], why: str
) -> None:
    spec = describe(str(nli(made_model, "bert")), task="zero-shot")[0]
    with pytest.raises(UsageError, match=why.replace("{}", r"\{\}")):
        create_task(spec, RunConfig(**settings), pa.schema([("text", pa.string())]))


# -- beside the answers ----------------------------------------------------------------------------


def job(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> RunConfig:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunConfig(
        inputs=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "out"), engine="fake",
        chunk_rows=4, **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"task": "zero-shot", "labels_column": "list"},
        {"task": "zero-shot", "labels": ("a", "b")},
        {"task": "score", "text_pair_column": "list"},
        {"task": "token-classify"},
    ],
)
def test_rows_that_failed_are_tried_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    rows = [{"text": f"row {i}", "list": ["x", f"y{i}"]} for i in range(6)]
    chosen = job(tmp_path, rows, **settings)
    run(chosen.model_copy(update={"output": str(tmp_path / "whole")}))
    whole = pq.read_table(tmp_path / "whole" / "data").to_pylist()
    answer = FakeEngine.answer

    def fail(engine: FakeEngine, batch: Batch) -> Answers:
        if (
            batch.fields["input_ids"] == int.from_bytes(b"row ", "little")
        ).sum() and 2 in batch.indices:
            raise RuntimeError("ill")
        return answer(engine, batch)

    monkeypatch.setattr(FakeEngine, "answer", fail)
    run(chosen)
    broken = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert 0 < sum(row["_error"] is not None for row in broken) < 6
    monkeypatch.setattr(FakeEngine, "answer", answer)
    resume(chosen.output, retry_errors=True)
    assert pq.read_table(tmp_path / "out" / "data").to_pylist() == whole


def test_probes_of_a_budget_may_meet_lists(tmp_path: Path) -> None:
    rows = [{"text": "q" * i, "list": ["x" * i] * (i % 3)} for i in range(1, 30)]
    plan, _ = make_plan(job(tmp_path, rows, task="score", text_pair_column="list"))
    engine = FakeEngine(create_task(plan.model, plan.config, plan.input_schema))
    requests = controller._harmless(plan, None, engine)
    assert len(requests) == sum(len(row["list"]) for row in rows)


def test_lists_of_fixed_size_are_lists(tmp_path: Path) -> None:
    pairs = pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2))
    pq.write_table(pa.table({"text": ["q", "r"], "list": pairs}), tmp_path / "in.parquet")
    report = run(
        RunConfig(
            inputs=(str(tmp_path / "in.parquet"),), output=str(tmp_path / "out"), engine="fake",
            task="score", text_pair_column="list",
        )
    )  # fmt: skip
    assert report.num_errors == 0
    scores = pq.read_table(tmp_path / "out" / "data")["scores"].to_pylist()
    assert [len(row) for row in scores] == [2, 2]


@pytest.mark.parametrize(
    ("right", "moved"),
    [
        ({"logits": [[0.0, 3.0], [2.0, 0.0]]}, {"logits": [[3.0, 0.0], [2.0, 0.0]]}),
        ({"score": [0.9, 0.1]}, {"score": [0.5, 0.1]}),
        ({"scores": [[0.9, 0.1], [0.2, 0.8]]}, {"scores": [[0.1, 0.9], [0.2, 0.8]]}),
    ],
)
def test_tune_compares_the_answers_of_every_task(right: Any, moved: Any) -> None:
    spec = fake.describe("classify", None)
    there, here = ({k: np.array(v) for k, v in one.items()} for one in (right, moved))
    assert compare(spec, there, there).complaint == ""
    assert "a score moved by" in compare(spec, there, here).complaint


def test_openvino_answers_pairs_and_keeps_settings_apart(
    made_model: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("batchinfer.engines.openvino", reason="not there")
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = nli(made_model, "bert")
    spec, place = describe(str(folder), task="zero-shot", pairs=True)
    task = create_task(spec, RunConfig(labels=LABELS))
    chunk = Chunk(
        ChunkId(0, 0), pa.table({"text": TEXTS[:20]}), {}, Position(), Position(), True, ""
    )
    requests = task.encode(chunk, make_encoder(place, spec))
    assert requests.fields["token_type_ids"].any()
    found = []
    for kind in (openvino.OpenVinoEngine, LocalEngine):
        engine = kind(task, place, dtype="float32", device="cpu")
        logits = np.zeros((len(requests), 2), np.float32)
        for batch, answer in engine.stream(
            iter(make_batches(chunk.id, requests, BatchBudget(900, 40)))
        ):
            logits[batch.indices] = answer.values["logits"]
        found.append(logits)
        engine.close()
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)

    spec, _ = describe(str(made_model("bert")), task="embed")
    facts = [
        openvino._facts(create_task(spec, RunConfig(**settings)), False)
        for settings in (
            {},
            {"pooling": "cls"},
            {"truncate_dim": 8},
            {"normalize": True},
            {"prompt": "a"},
        )
    ]
    assert facts[0] == facts[4] and all(facts[0] != other for other in facts[1:4])
