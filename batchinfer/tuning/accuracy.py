"""Whether a setting answers as the model does in float32, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchinfer.core import Batch, BatchBudget, ChunkId, ModelSpec
from batchinfer.engines.base import Engine
from batchinfer.tuning.sample import Sample

#: Rows that are compared, of all lengths; one at a time in float32 they take a second or two.
NUM_ROWS = 32
#: bfloat16 moves embeddings of all-MiniLM-L6-v2 to a cosine of 0.9999, normalising in it to 0.996, int8
#: to 0.985-0.996: this keeps the first and none of the others.
MIN_COSINE = 0.999
#: What bfloat16 does to softmax scores is below 0.01; a reader who rounds to percent sees twice that.
MAX_MOVEMENT = 0.02
#: Among 200 rows one may stand on the fence between two labels; more of them may not.
MAX_FLIPS = 0.005
#: Of a whole vocabulary, two tokens are often near ties: bfloat16 may choose another first one this often.
MAX_OTHER_WORDS = 0.2

_CHUNK = ChunkId(0, 0)
Values = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near answers are to those of float32 (1: the same), and in words why that is not near enough.

    `value`: the smallest cosine of embeddings, one minus the largest movement of a score, or the share of
    answers that are written and begin alike.
    """

    value: float
    complaint: str = ""


def probe_rows(sample: Sample) -> npt.NDArray[np.int64]:
    """The requests that are compared: of all lengths, the longest and the shortest among them."""
    num = min(NUM_ROWS, len(sample.order))
    return sample.order[np.linspace(0, len(sample.order) - 1, num).round().astype(np.int64)]


class TimeIsUp(Exception):
    """Answers would take longer than there is time for."""


def reference_of(
    engine: Engine,
    sample: Sample,
    rows: npt.NDArray[np.int64],
    is_enough: Callable[[int], bool],
) -> tuple[npt.NDArray[np.int64], Values]:
    """Answers to these requests, one at a time, until `is_enough`, which is told how many there are.

    Returns the requests that were answered, in their order, and the answers. Whenever that ends, they
    are of all lengths.
    """
    width = len(rows).bit_length()
    places = sorted(range(len(rows)), key=lambda place: f"{place:0{width}b}"[::-1])
    found: dict[int, dict[str, npt.NDArray[Any]]] = {}
    for place in places:
        found[place] = answers_of(engine, sample, rows[place : place + 1], BatchBudget(1, 1))
        if is_enough(len(found)):
            break
    answered = sorted(found)
    names = found[answered[0]]
    values = {name: np.concatenate([found[place][name] for place in answered]) for name in names}
    return rows[answered], values


def answers_of(
    engine: Engine,
    sample: Sample,
    rows: npt.NDArray[np.int64],
    budget: BatchBudget,
    is_over: Callable[[], bool] = lambda: False,
) -> dict[str, npt.NDArray[Any]]:
    """An engine's answers to these requests, in their order; rows that fail are NaN, their labels -1.

    Of an answer with items of its own number, it is the first that counts: what a text begins with decides
    what follows. `is_over` is asked before every batch; where it says so, raises TimeIsUp.
    """
    values, before = {}, {}
    for name, field in engine.task.answers.items():
        filling = np.nan if np.issubdtype(field.dtype, np.floating) else -1
        counts = sample.requests.counts(field.unit)[rows].astype(np.int64)
        values[name] = np.full((int(counts.sum()), *field.shape), filling, dtype=field.dtype)
        before[name] = np.cumsum(counts) - counts

    def feed() -> Iterator[Batch]:
        for batch in cut(sample, rows, budget, engine.task.tokens_ahead):
            if is_over():
                raise TimeIsUp("there was no time left to compare its answers")
            yield batch

    for batch, answers in engine.stream(feed()):
        if answers.error is None:
            for name, found in answers.values.items():
                field = engine.task.answers[name]
                if field.counted_by:
                    counts = answers.values[field.counted_by].astype(np.int64)
                    starts = (np.cumsum(counts) - counts)[counts > 0]
                    first = np.full((len(counts), *found.shape[1:]), -1, found.dtype)
                    first[counts > 0] = found[starts]
                    found = first
                if field.unit == "request":  # of a batch that comes back in parts, in any order
                    values[name][batch.indices] = found
                else:  # halves of a batch at most: its rows follow one another
                    start = int(before[name][batch.indices[0]])
                    values[name][start : start + len(found)] = found
    return values


def cut(
    sample: Sample, rows: npt.NDArray[np.int64], budget: BatchBudget, tokens_ahead: int = 0
) -> list[Batch]:
    """Batches of these requests, in this order; `indices` count in `rows`."""
    requests, batches, start = sample.requests, [], 0
    while start < len(rows):
        longest = max(1, int(requests.cost[rows[start]]) + tokens_ahead)
        num = min(budget.max_batch_rows, max(1, budget.max_batch_tokens // longest))
        chosen = rows[start : start + num]
        batches.append(
            Batch(
                chunk=_CHUNK,
                indices=np.arange(start, start + len(chosen), dtype=np.int64),
                lengths=requests.cost[chosen],
                fields=requests.select(chosen),
            )
        )
        start += num
    return batches


def compare(spec: ModelSpec, reference: Values, found: Values) -> Agreement:
    """How near answers are to the reference's."""
    if spec.task == "module":
        return _compare_tensors(reference, found)
    if "tokens" in reference:
        return _compare_beginnings(reference["tokens"], found["tokens"])
    if "embedding" in reference:
        return _compare_vectors(reference["embedding"], found["embedding"])
    if "logits" in reference:  # for and against a label
        reference, found = (_best(_softmax(values["logits"])) for values in (reference, found))
    elif "token" in reference:
        reference, found = _best_tokens(reference, found)
    elif "scores" in reference:  # of every label
        reference, found = _best(reference["scores"]), _best(found["scores"])
    elif "label" not in reference:  # a score alone
        reference, found = (
            {"label": np.zeros(len(values["score"]), np.int32), **values}
            for values in (reference, found)
        )
    elif reference["score"].ndim > 1:  # of several labels, the best one first
        reference, found = _first(reference), _first(found)
    return _compare_labels(spec.activation, reference, found)


def _compare_beginnings(reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> Agreement:
    """By the share of answers that begin with the same token."""
    if (found[reference >= 0] < 0).any():
        return Agreement(0.0, "rows without an answer that float32 answers")
    alike = float((found == reference).mean()) if len(reference) else 1.0
    complaint = "" if alike >= 1 - MAX_OTHER_WORDS else f"{1 - alike:.0%} begin with another token"
    return Agreement(alike, complaint)


def _compare_tensors(reference: Values, found: Values) -> Agreement:
    """By the largest movement of a number, on the scale of its column; integers are the same or not."""
    largest, worst = 0.0, ""
    for name, values in reference.items():
        there, here = values.astype(np.float64), found[name].astype(np.float64)
        known = np.isfinite(there)
        if not np.isfinite(here[known]).all():
            return Agreement(0.0, "rows without an answer that float32 answers")
        there, here = there[known], here[known]
        if values.dtype.kind == "f":
            scale = max(1.0, float(np.abs(there).max(initial=0.0)))
            moved = float(np.abs(there - here).max(initial=0.0)) / scale
        else:
            moved = float((there != here).mean()) if len(there) else 0.0
        if moved > largest:
            largest, worst = moved, name
    complaint = ""
    if largest > MAX_MOVEMENT:
        complaint = f"'{worst}' moved by {largest:.3f}, more than {MAX_MOVEMENT}"
    return Agreement(1.0 - largest, complaint)


def _softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    powers: npt.NDArray[Any] = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def _best(scores: npt.NDArray[Any]) -> Values:
    return {"label": scores.argmax(axis=1), "score": scores.max(axis=1)}


def _best_tokens(reference: Values, found: Values) -> tuple[Values, Values]:
    """The reference's best token in both, with its score: the best two of a vocabulary are often near ties.

    One that is not among the best that were found has at most the last one's score, and what they leave.
    """
    best, scores = reference["token"][:, :1], found["score"]
    most = np.minimum(scores[:, -1], 1.0 - scores.sum(axis=1))
    is_best = found["token"] == best
    score = np.where(is_best.any(axis=1), (scores * is_best).sum(axis=1), most)
    label = np.zeros(len(best), np.int32)
    return {"label": label, "score": reference["score"][:, 0]}, {"label": label, "score": score}


def _first(values: Values) -> Values:
    return {name: array[:, 0] for name, array in values.items()}


def _compare_vectors(reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> Agreement:
    there, here = reference.astype(np.float64), found.astype(np.float64)
    if (~np.isfinite(here).all(axis=1) & np.isfinite(there).all(axis=1)).any():
        return Agreement(-1.0, "rows without an answer that float32 answers")
    answered = np.isfinite(there).all(axis=1) & np.isfinite(here).all(axis=1)
    there, here = there[answered], here[answered]
    norms = np.linalg.norm(there, axis=1) * np.linalg.norm(here, axis=1)
    cosines = np.where(norms > 0, (there * here).sum(axis=1) / np.where(norms > 0, norms, 1.0), 0.0)
    cosines[(there == here).all(axis=1)] = 1.0  # two zero vectors are the same
    smallest = float(cosines.min(initial=1.0))
    complaint = ""
    if smallest < MIN_COSINE:
        complaint = f"smallest cosine {smallest:.4f}, below {MIN_COSINE}"
    return Agreement(min(1.0, smallest), complaint)


def _compare_labels(activation: str, reference: Values, found: Values) -> Agreement:
    there, here = reference["score"].astype(np.float64), found["score"].astype(np.float64)
    known = np.isfinite(there)
    if (~np.isfinite(here[known])).any():
        return Agreement(0.0, "rows without an answer that float32 answers")
    there, here = there[known], here[known]
    moved = np.abs(there - here)
    if activation == "none":  # a regression's values have a scale of their own
        moved = moved / max(1.0, float(np.abs(there).max(initial=0.0)))
    flipped = reference["label"][known] != found["label"][known]
    # Only the best score is known. Where another label has `here`, softmax leaves the reference's label
    # at most the rest: so far at least it has moved. A near tie moves little, a wrong answer much.
    rest = np.minimum(here, 1.0 - here) if activation == "softmax" else here
    moved = np.where(flipped, np.maximum(moved, there - rest), moved)
    largest, flips = float(moved.max(initial=0.0)), int(flipped.sum())
    complaint = ""
    if largest > MAX_MOVEMENT:
        complaint = f"a score moved by {largest:.3f}, more than {MAX_MOVEMENT}"
    elif flips > max(1.0, MAX_FLIPS * len(there)):
        complaint = f"{flips} of {len(there)} labels differ"
    return Agreement(1.0 - largest, complaint)
