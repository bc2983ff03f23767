"""Entities are those of transformers' pipeline, with every strategy, also among emoji and accents."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import pipeline
from transformers.pipelines.token_classification import AggregationStrategy

from batchinfer import RunConfig, run
from batchinfer.core import AnsweredChunk, BatchBudget
from batchinfer.engines import attention
from batchinfer.engines.models import describe, make_encoder
from batchinfer.errors import UsageError
from batchinfer.tasks import create_task
from tests.engines import made
from tests.engines.conftest import Made, ask

HEAD = "ForTokenClassification"
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
ARCHITECTURES = ["bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "electra", "albert"]
STRATEGIES = ["none", "simple", "first", "average", "max"]
TEXTS = [
    *made.texts(200, seed=21),
    "",
    "🙂 Ωmega 👩‍👩‍👧 naïve café",
    "e\u0301te\u0301 a\u0308 日本 東京 \u200d x",
    "tabs\tand\nlines  and   spaces ",
    "don't co-op (maybe) $7 E=mc2!",
]


def named(made_model: Made, architecture: str) -> Path:
    return made_model(architecture, HEAD, id2label=dict(enumerate(LABELS)),
                      label2id={name: i for i, name in enumerate(LABELS)})  # fmt: skip


def entities(folder: Path, answered: AnsweredChunk, **settings: Any) -> list[Any]:
    spec, _ = describe(str(folder), task="token-classify")
    [column] = create_task(spec, RunConfig(**settings)).decode(answered)
    assert column.type == create_task(spec).columns[0].type
    found: list[Any] = column.to_pylist()
    return found


def of_pipeline(folder: Path, texts: list[str]) -> dict[str, list[list[dict[str, Any]]]]:
    """What transformers' pipeline finds in each text, by strategy; the model is asked once."""
    pipe: Any = pipeline("token-classification", model=str(folder))
    pipe.tokenizer.model_max_length = describe(str(folder), task="token-classify")[0].max_length
    expected: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in STRATEGIES}
    for text in texts:
        outputs = []
        if text:
            inputs = pipe.preprocess(text, is_split_into_words=False)
            outputs = [pipe.forward(one) for one in inputs]
        for strategy, rows in expected.items():
            rows.append(_entities(pipe, outputs, text, strategy) if text else [])
    return expected


def _entities(pipe: Any, outputs: list[Any], text: str, strategy: str) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that its rule for words is a guess
        rows = pipe.postprocess(outputs, AggregationStrategy[strategy.upper()])
    return [
        {
            "label": row["entity" if strategy == "none" else "entity_group"],
            "score": float(row["score"]),
            "start": row["start"],
            "end": row["end"],
            "text": text[row["start"] : row["end"]],
        }
        for row in rows
    ]


def assert_same_entities(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for row, (here, there) in enumerate(zip(found, expected, strict=True)):
        bare = [{k: v for k, v in e.items() if k != "score"} for e in here]
        assert bare == [{k: v for k, v in e.items() if k != "score"} for e in there], row
        scores = [[e["score"] for e in side] for side in (here, there)]
        np.testing.assert_allclose(*scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_entities_are_those_of_the_pipeline(made_model: Made, architecture: str) -> None:
    folder = named(made_model, architecture)
    found = {}
    for strategy, expected in of_pipeline(folder, TEXTS).items():
        labels = [e["label"] for row in expected for e in row]
        assert len(set(labels)) >= 2 and len(labels) > len(TEXTS), "hardly any entity to compare"
        answered = ask(
            folder, TEXTS, task="token-classify", budget=BatchBudget(900, 40), aggregation=strategy
        )
        found[strategy] = entities(folder, answered, aggregation=strategy)
        assert_same_entities(found[strategy], expected)
    assert len({str(rows) for rows in found.values()}) == len(STRATEGIES), "strategies differ"


@pytest.mark.parametrize(
    "architecture", [kind for kind, heads in attention._HEADS.items() if "tokens" in heads]
)
def test_packed_tokens_have_the_labels_that_they_have_alone(
    made_model: Made, architecture: str
) -> None:
    folder = named(made_model, architecture)
    packed_as = {"attention": "packed", "budget": BatchBudget(900, 40)}
    alone_as = {"attention": "eager", "budget": BatchBudget(1, 1)}

    def values(**how: Any) -> Any:
        return ask(folder, TEXTS[:80], task="token-classify", **how).values

    # All scores first: should a label differ, this says in which tokens, and by how much.
    alone = values(**alone_as, aggregation="average")["scores"]
    packed = values(**packed_as, aggregation="average")["scores"]
    np.testing.assert_allclose(packed, alone, rtol=0, atol=1e-4)

    best, second = np.sort(alone, axis=1)[:, :-3:-1].T
    found = values(**packed_as)
    np.testing.assert_allclose(found["score"], best, rtol=0, atol=1e-4)
    is_clear = best - second > 2e-4  # by more than both may be off
    assert is_clear.mean() > 0.99 and len(set(alone.argmax(axis=1).tolist())) > 2
    np.testing.assert_array_equal(found["label"][is_clear], alone.argmax(axis=1)[is_clear])


def test_a_swap_of_two_tokens_fails_the_parity_check(made_model: Made) -> None:
    folder = named(made_model, "bert")
    answered = ask(folder, TEXTS[:20], task="token-classify")
    expected = entities(folder, answered)
    assert_same_entities(entities(folder, answered), expected)
    labels = answered.values["label"]
    other = int(np.flatnonzero(labels[5:] != labels[4])[0]) + 5
    labels[[4, other]] = labels[[other, 4]]
    with pytest.raises(AssertionError):
        assert_same_entities(entities(folder, answered), expected)


def test_rows_without_an_answer_are_null_and_those_without_an_entity_empty(
    made_model: Made,
) -> None:
    folder = named(made_model, "bert")
    answered = ask(folder, ["", "ba be", "ba bi"], task="token-classify")
    answered.errors[1] = "made up"  # type: ignore[index]
    found = entities(folder, answered)
    assert found[0] == [] and found[1] is None and isinstance(found[2], list)


# -- texts that are split into words already -------------------------------------------------------

WORDS = [
    *(text.split() for text in made.texts(120, seed=23)),
    ["bada", "gago", "ba", "da", "🙂", "Ωmega", "👩‍👩‍👧", "naïve"],
    ["e\u0301te\u0301", "a\u0308", "日本", "東京", "\u200d", "x"],
    ["two words", " before", "behind ", "", "don't", "co-op", "$7"],
    ["", ""],
    [],
]


def words_by_pipeline(folder: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """What transformers' pipeline finds in texts of words, by strategy.

    It moves the places that it was given, so each strategy needs its own.
    """
    pipe: Any = pipeline("token-classification", model=str(folder))
    pipe.tokenizer.model_max_length = describe(str(folder), task="token-classify")[0].max_length
    expected: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in STRATEGIES}
    for words in WORDS:
        outputs = []
        if any(words):
            inputs = pipe.preprocess(words, is_split_into_words=True, delimiter=" ")
            outputs = [pipe.forward(one) for one in inputs]
        for strategy, rows in expected.items():
            own = copy.deepcopy(outputs)
            rows.append(_entities(pipe, own, " ".join(words), strategy) if own else [])
    return expected


def words_found(folder: Path, rows: list[Any], strategy: str) -> tuple[AnsweredChunk, list[Any]]:
    answered = ask(
        folder, rows, task="token-classify", budget=BatchBudget(900, 40), aggregation=strategy
    )
    spec, _ = describe(str(folder), task="token-classify")
    task = create_task(spec, RunConfig(aggregation=strategy), answered.chunk.table.schema)
    return answered, task.decode(answered)[0].to_pylist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_words_have_the_entities_that_the_pipeline_gives_them(
    made_model: Made, architecture: str
) -> None:
    folder = named(made_model, architecture)
    joined = [" ".join(words) for words in WORDS]
    for strategy, expected in words_by_pipeline(folder).items():
        labels = [e["label"] for row in expected for e in row]
        assert len(set(labels)) >= 2 and len(labels) > len(WORDS), "hardly any entity to compare"
        answered, found = words_found(folder, WORDS, strategy)
        assert not answered.requests.errors
        assert_same_entities(found, expected)
        assert all(e["text"] == joined[i][e["start"] : e["end"]] for i in range(len(found))
                   for e in found[i])  # fmt: skip
    swapped = [expected[1], expected[0], *expected[2:]]
    with pytest.raises(AssertionError):
        assert_same_entities(found, swapped)


def test_words_are_not_joined_before_they_are_tokenized(made_model: Made) -> None:
    folder = named(made_model, "bert")
    answered, _ = words_found(
        folder, [["badago ba"], ["badago", "ba"], ["ba", "da", "go", "ba"]], "none"
    )
    tokens = [row.tolist() for row in np.split(answered.requests.fields["input_ids"],
                                               answered.requests.offsets[1:-1])]  # fmt: skip
    assert tokens[0] == tokens[1] != tokens[2]
    one, two = (words_found(folder, [words], "none")[1] for words in (["ba", "da"], ["bada"]))
    assert one != two


def test_a_word_that_is_null_is_an_error_of_its_row(made_model: Made, tmp_path: Path) -> None:
    folder = named(made_model, "roberta")
    answered, found = words_found(folder, [["ba", None], ["be", "bi"], ["ba"]], "simple")
    assert answered.requests.errors == {0: "a text in the list of column 'text' is null"}
    assert answered.requests.row.tolist() == [1, 2]
    assert [row is None for row in found] == [True, False, False]
    bad = pa.array([[b"ba"], [b"be", b"\xff"], [b"bi"]], pa.list_(pa.binary())).cast(
        pa.list_(pa.large_binary())
    )
    lists = pa.ListArray.from_arrays(
        bad.offsets, pa.Array.from_buffers(pa.large_string(), 4, bad.values.buffers())
    )
    tokens = make_encoder(folder, describe(str(folder), task="token-classify")[0]).encode(
        lists, None
    )
    assert list(tokens.errors) == [1] and "not valid UTF-8" in tokens.errors[1]
    assert np.diff(tokens.offsets).tolist() == [3, 0, 3]


def test_a_run_reads_lists_of_words(tmp_path: Path) -> None:
    rows = [{"words": ["ba", "be"]}, {"words": []}, {"words": ["x" * 50, None]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run(
        RunConfig(inputs=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "out"), engine="fake",
                  task="token-classify", text_column="words", aggregation="none",
                  max_errors="100%")
    )  # fmt: skip
    assert report.num_errors == 1
    found = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert found[2]["_error"] == "a text in the list of column 'words' is null"
    assert all(e["text"] == "ba be"[e["start"] : e["end"]] for e in found[0]["entities"])
    assert found[1]["entities"] == []


def test_a_pair_of_texts_is_refused(made_model: Made) -> None:
    spec, _ = describe(str(named(made_model, "bert")), task="token-classify")
    with pytest.raises(UsageError, match="--text-pair-column: means nothing to --task token-"):
        create_task(spec, RunConfig(text_pair_column="b"))
