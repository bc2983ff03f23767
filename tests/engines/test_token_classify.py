"""Entities are those of transformers' pipeline, with every strategy, also among emoji and accents."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import pipeline
from transformers.pipelines.token_classification import AggregationStrategy

from batchinfer import RunConfig
from batchinfer.core import AnsweredChunk, BatchBudget
from batchinfer.engines import attention
from batchinfer.engines.models import describe
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
    texts, budget = TEXTS[:80], BatchBudget(900, 40)
    packed = ask(folder, texts, task="token-classify", attention="packed", budget=budget)
    alone = ask(folder, texts, task="token-classify", attention="eager", budget=BatchBudget(1, 1))
    assert len(set(alone.values["label"].tolist())) > 2
    np.testing.assert_array_equal(packed.values["label"], alone.values["label"])
    np.testing.assert_allclose(packed.values["score"], alone.values["score"], atol=1e-4)


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
