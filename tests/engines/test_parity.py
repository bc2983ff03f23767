"""The answers are those of plain transformers, one row at a time, on every supported architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from batchinfer.core import BatchBudget
from batchinfer.engines.models import describe
from tests.engines import made
from tests.engines.conftest import REPOSITORY, Made, ask, columns

ARCHITECTURES = list(made.ARCHITECTURES)
HEAD = "ForSequenceClassification"
TEXTS = [*made.texts(118, seed=3), "", " a  b "]

Floats = npt.NDArray[np.float32]


def one_by_one(model: Any, folder: Path, rows: list[Any]) -> Any:
    """Each row through the tokenizer and the model as their documentation says."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    limit = describe(str(folder), task=task_of(model))[0].max_length
    for row in rows:
        pair = row if isinstance(row, tuple) else (row,)
        inputs = tokenizer(*pair, truncation=True, max_length=limit, return_tensors="pt")
        if "token_type_ids" in inputs and "DistilBert" in type(model).__name__:
            del inputs["token_type_ids"]  # its tokenizer is BERT's, its forward takes none
        if not inputs["input_ids"].numel():
            yield None
            continue
        with torch.inference_mode():
            yield model(**inputs)


def task_of(model: Any) -> str:
    return "classify" if type(model).__name__.endswith(HEAD) else "embed"


def reference_vectors(folder: Path, rows: list[str]) -> Floats:
    model = AutoModel.from_pretrained(folder).eval()
    states = (out.last_hidden_state[0].mean(dim=0) for out in one_by_one(model, folder, rows))
    return torch.stack(list(states)).numpy()


def reference_probabilities(folder: Path, rows: list[Any]) -> Floats:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    logits = [out.logits[0] for out in one_by_one(model, folder, rows)]
    return torch.stack(logits).softmax(dim=-1).numpy()


def cosine(a: Floats, b: Floats) -> Floats:
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return (a * b).sum(axis=-1)


def assert_rows_differ(vectors: Floats, share: float = 0.95) -> None:
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(len(unit), k=1)]
    assert np.quantile(pairs, share) < 0.5, "the model answers nearly the same to every row"


def assert_labels_differ(labels: npt.NDArray[Any]) -> None:
    assert np.bincount(labels).max() <= 0.7 * len(labels), "one label is nearly always right"


def assert_same_vectors(found: Floats, expected: Floats, least: float = 0.99999) -> None:
    assert cosine(found, expected).min() > least


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_embeddings_are_those_of_transformers_one_row_at_a_time(
    made_model: Made, architecture: str
) -> None:
    folder = made_model(architecture)
    rows = [row for row in TEXTS if row] if architecture == "gpt2" else TEXTS
    expected = reference_vectors(folder, rows)
    assert_rows_differ(expected)
    answered = ask(folder, rows, task="embed")
    assert answered.requests.truncated.any() and not answered.requests.truncated.all()
    assert_same_vectors(answered.values["embedding"], expected)


def test_a_swap_of_two_rows_fails_the_parity_check(made_model: Made) -> None:
    folder = made_model("bert")
    expected = reference_vectors(folder, TEXTS)
    found = ask(folder, TEXTS, task="embed").values["embedding"]
    found[[3, 4]] = found[[4, 3]]
    with pytest.raises(AssertionError):
        assert_same_vectors(found, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_labels_and_scores_are_those_of_transformers_one_row_at_a_time(
    made_model: Made, architecture: str
) -> None:
    folder = made_model(architecture, HEAD, num_labels=3)
    rows = [row for row in TEXTS if row] if architecture == "gpt2" else TEXTS
    expected = reference_probabilities(folder, rows)
    assert_labels_differ(expected.argmax(axis=1))
    found = ask(folder, rows).values
    np.testing.assert_array_equal(found["label"], expected.argmax(axis=1))
    np.testing.assert_allclose(found["score"], expected.max(axis=1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_pairs_are_those_of_transformers_one_row_at_a_time(
    made_model: Made, architecture: str
) -> None:
    folder = made_model(architecture, HEAD, num_labels=3)
    firsts, seconds = made.texts(60, seed=5), made.texts(60, seed=6)
    expected = reference_probabilities(folder, list(zip(firsts, seconds, strict=True)))
    assert_labels_differ(expected.argmax(axis=1))
    found = ask(folder, firsts, seconds).values
    np.testing.assert_array_equal(found["label"], expected.argmax(axis=1))
    np.testing.assert_allclose(found["score"], expected.max(axis=1), rtol=0, atol=1e-4)
    alone = ask(folder, firsts).values["score"]
    assert np.abs(alone - found["score"]).max() > 0.01, "the second text makes no difference"


@pytest.mark.parametrize(
    "config",
    [
        {"num_labels": 3},
        {"num_labels": 1},
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        {"num_labels": 1, "problem_type": "regression"},
        {"num_labels": 2, "problem_type": "single_label_classification"},
        {"num_labels": 2, "id2label": {"0": "refund", "1": "praise"}},
    ],
    ids=lambda config: "-".join(map(str, config.values()))[:40],
)
def test_classifiers_follow_the_rules_of_the_pipeline(
    made_model: Made, config: dict[str, Any]
) -> None:
    folder = made_model("bert", HEAD, **config)
    rows = TEXTS[:40]
    pipe = pipeline("text-classification", model=str(folder), device="cpu", dtype=torch.float32)
    expected = [pipe(row, truncation=True, max_length=128) for row in rows]
    scores = np.array([answer[0]["score"] for answer in expected])
    assert scores.std() > 0.01, "the model scores every row alike"
    labels, found = columns(folder, ask(folder, rows))
    assert labels == [answer[0]["label"] for answer in expected]
    np.testing.assert_allclose(found, scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "budget", [BatchBudget(1, 1), BatchBudget(300, 7), BatchBudget(10**6, 10**4)]
)
def test_the_budget_does_not_change_the_answers(made_model: Made, budget: BatchBudget) -> None:
    folder = made_model("modernbert")
    expected = ask(folder, TEXTS, task="embed").values["embedding"]
    found = ask(folder, TEXTS, task="embed", budget=budget).values["embedding"]
    assert_same_vectors(found, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations_agree(made_model: Made, attention: str) -> None:
    folder = made_model("roberta")
    expected = reference_vectors(folder, TEXTS)
    found = ask(folder, TEXTS, task="embed", attention=attention).values["embedding"]
    assert_same_vectors(found, expected)


@pytest.mark.parametrize(("pooling", "place"), [("cls", 0), ("lasttoken", -1)])
def test_other_poolings_take_the_first_or_the_last_token(
    made_model: Made, tmp_path: Path, pooling: str, place: int
) -> None:
    from tests.engines.test_models import as_sentence_transformer

    folder = as_sentence_transformer(made_model("roberta"), tmp_path, pooling)
    model = AutoModel.from_pretrained(folder).eval()
    outputs = one_by_one(model, folder, TEXTS)
    states = torch.stack([out.last_hidden_state[0, place] for out in outputs])
    assert_same_vectors(ask(folder, TEXTS).values["embedding"], states.numpy())


@pytest.fixture(scope="module")
def vectors(minilm: Path, questions: list[str]) -> Floats:
    """MiniLM's embeddings of the questions, by our engine in float32."""
    return ask(minilm, questions, budget=BatchBudget(2048, 64)).values["embedding"]


def test_minilm_is_that_of_sentence_transformers(
    minilm: Path, questions: list[str], vectors: Floats
) -> None:
    library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    expected = library.SentenceTransformer(str(minilm), device="cpu").encode(
        questions, batch_size=8, show_progress_bar=False
    )
    assert_rows_differ(expected, share=0.75)  # the texts are all of one kind
    assert_same_vectors(vectors, expected)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_minilm_in_bfloat16_stays_close(
    minilm: Path, questions: list[str], vectors: Floats
) -> None:
    found = ask(minilm, questions, dtype="bfloat16").values["embedding"]
    assert found.dtype == np.float32
    assert_same_vectors(found, vectors, least=0.999)


def test_a_classifier_in_bfloat16_gives_the_same_labels() -> None:
    folder = REPOSITORY / "sample_data" / "tiny-sentiment"
    if not (folder / "config.json").exists():
        pytest.skip("sample_data/tiny-sentiment is not there")
    import csv

    with (REPOSITORY / "sample_data" / "reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = [row["text"] for row in csv.DictReader(file)][:400]
    expected = ask(folder, rows).values["label"]
    assert_labels_differ(expected)
    found = ask(folder, rows, dtype="bfloat16").values["label"]
    assert (found == expected).mean() > 0.99
