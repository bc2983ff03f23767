"""Columns of some of a job's shards: what the distributions of its report are made of.

Shards are taken evenly over the whole job, one at a time, until enough is read: a job of sixty thousand
shards takes seconds and no more memory than one of two hundred.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchinfer.batching import plan_batches
from batchinfer.core import ERROR, NUM_TOKENS, TRUNCATED, BatchBudget
from batchinfer.errors import BatchInferError
from batchinfer.plan import Plan
from batchinfer.storage import Place
from batchinfer.writers.durable import open_regular
from batchinfer.writers.footer import KEY

Floats = npt.NDArray[np.float64]

MAX_SHARDS = 256
_MAX_ROWS = 4_000_000
#: Of answer columns, decompressed: ten shards of 16,384 vectors of 384 numbers.
_MAX_BYTES = 256 << 20
#: Different labels that are counted; those of a model are few.
_MAX_LABELS = 10_000
#: Larger ones cannot be drawn.
_MAX_NUMBER = 1e100
_MAX_NUMBERS = 4_000_000
#: Rows whose batches are planned again, also as they would be in input order.
_MAX_PLANNED = 300_000
#: Columns of a module that are looked at.
_MAX_COLUMNS = 6


@dataclass(frozen=True, slots=True)
class Question:
    """A distribution to make of a column: numbers, or labels to count.

    `top`: where numbers end that have a natural end, such as scores.
    """

    column: str
    what: str
    unit: str
    of: Callable[[pa.Array[Any]], Floats | Counter[str]]
    top: float | None = None


@dataclass
class Sample:
    """What was read. `lengths` int32[n]: tokens of rows with an answer; `truncated` of them were cut.

    `numbers` and `labels` by question. `useful`, `padded` and `in_order`: tokens of rows whose batches were
    planned again, what padded batches of the plan compute for them, and what batches of the same rows in
    input order would.
    """

    num_shards: int = 0
    num_rows: int = 0
    num_answer_rows: int = 0
    unreadable: int = 0
    truncated: int = 0
    num_planned: int = 0
    useful: int = 0
    padded: int = 0
    in_order: int = 0
    device_kind: str = ""
    budget: BatchBudget | None = None
    lengths: list[npt.NDArray[np.int32]] = field(default_factory=list)
    numbers: dict[int, list[Floats]] = field(default_factory=dict)
    labels: dict[int, Counter[str]] = field(default_factory=dict)


def spread(count: int) -> Iterator[int]:
    """The numbers below `count`, so that those of any beginning lie evenly among all."""
    bits = max(1, (count - 1).bit_length())
    for number in range(1 << bits):
        place = int(f"{number:0{bits}b}"[::-1], 2)
        if place < count:
            yield place


def questions_of(plan: Plan) -> list[Question]:
    """The distributions that tell how the answers of a job look; never of texts of the input."""
    config, prefix, spec = plan.config, plan.config.output_prefix, plan.model
    top = 1.0 if spec.activation in ("softmax", "sigmoid") else None

    def ask(column: str, what: str, unit: str, of: Any, top: float | None = None) -> Question:
        return Question(prefix + column, what, unit, of, top)

    score = ask("predicted_score", "Scores of the best answer", "score", _numbers, 1.0)
    match spec.task:
        case "classify":
            labels = ask("predicted_label", "Labels", "label", _words)
            return [labels, Question(score.column, score.what, score.unit, score.of, top)]
        case "zero-shot" if config.labels_column:  # its labels are texts of the input
            return [score]
        case "zero-shot":
            return [ask("predicted_label", "Labels", "label", _words), score]
        case "fill-mask":
            return [score]
        case "token-classify":
            return [
                ask("entities", "Entities by label", "label", lambda c: _words(_part(c, "label"))),
                ask("entities", "Entities a row", "entities", _counts),
            ]
        case "score":
            name = "scores" if "score" not in _names(plan, prefix) else "score"
            scores = ask(name, "Scores", "score", lambda c: _numbers(_part(c, "score")), top)
            return [scores]
        case "embed":
            return [ask("embedding", "Lengths of the vectors", "Euclidean norm", _norms)]
        case "generate" | "seq2seq":
            return [
                ask("num_generated_tokens", "Lengths of the answers", "tokens written", _numbers),
                ask("finish_reason", "Why answers ended", "reason", _words),
            ]
    found = []
    numbers = [one for one in spec.outputs if one.dtype != "string"]  # texts are not looked at
    for one in numbers[:_MAX_COLUMNS]:
        of = _words if one.dtype == "bool" else lambda c: _numbers(_flat(c))
        found.append(ask(one.name, f"Values of {one.name}", one.name, of))
    return found


def read_sample(plan: Plan, paths: Sequence[Place], questions: Sequence[Question]) -> Sample:
    """Read columns of some of these shards; those that cannot be read are counted."""
    sample = Sample()
    plans_batches = _is_one_request_a_row(plan)
    bytes_left = _MAX_BYTES
    for place in spread(len(paths)):
        if sample.num_shards == MAX_SHARDS or sample.num_rows >= _MAX_ROWS:
            break
        try:
            with open_regular(paths[place]) as stored:
                file = pq.ParquetFile(stored, page_checksum_verification=True)
                _note_footer(sample, file.metadata.metadata or {})
                light = file.read(columns=[NUM_TOKENS, TRUNCATED, ERROR])
                answers = None
                if questions and bytes_left > 0:
                    names = list(dict.fromkeys(question.column for question in questions))
                    answers = file.read(columns=names)
        except (pa.ArrowException, OSError, BatchInferError):
            sample.unreadable += 1
            continue
        sample.num_shards += 1
        sample.num_rows += light.num_rows
        answered = light.filter(pc.is_null(light.column(ERROR)))
        lengths = answered.column(NUM_TOKENS).to_numpy()
        sample.lengths.append(lengths)
        sample.truncated += pc.sum(answered.column(TRUNCATED)).as_py() or 0
        if plans_batches:
            _plan_again(sample, lengths)
        if answers is not None:
            bytes_left -= answers.nbytes
            sample.num_answer_rows += answers.num_rows
            _answer(sample, questions, answers)
    return sample


def _answer(sample: Sample, questions: Sequence[Question], answers: pa.Table) -> None:
    for number, question in enumerate(questions):
        column = answers.column(question.column).combine_chunks()
        found = question.of(column.drop_null())
        if isinstance(found, np.ndarray):
            numbers = sample.numbers.setdefault(number, [])
            if sum(map(len, numbers)) < _MAX_NUMBERS:
                numbers.append(found[np.abs(found) < _MAX_NUMBER][:_MAX_NUMBERS])  # no NaN either
        else:
            counts = sample.labels.setdefault(number, Counter())
            for label, count in found.items():
                if label in counts or len(counts) < _MAX_LABELS:
                    counts[label] += count


def _note_footer(sample: Sample, keys: Mapping[bytes, bytes]) -> None:
    """Keep the budget and the kind of device that a shard's footer names."""
    if sample.budget is not None:
        return
    try:
        document = json.loads(keys[KEY])
        budget = BatchBudget(document["max_batch_tokens"], document["max_batch_rows"])
        kind = document["device_kind"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return
    limits = (budget.max_batch_tokens, budget.max_batch_rows)
    if all(type(limit) is int and limit > 0 for limit in limits) and isinstance(kind, str):
        sample.budget, sample.device_kind = budget, kind


def _is_one_request_a_row(plan: Plan) -> bool:
    """Whether the tokens of a row are those of one request, so that its batches can be planned again."""
    is_listed = plan.model.task == "score" and "score" not in _names(
        plan, plan.config.output_prefix
    )
    one_pass = ("classify", "embed", "token-classify", "score", "fill-mask")
    return plan.model.task in one_pass and plan.config.long == "truncate" and not is_listed


def _plan_again(sample: Sample, lengths: npt.NDArray[np.int32]) -> None:
    """Count what the batches of a chunk compute where rows are padded to the longest of a batch."""
    if sample.budget is None or sample.num_planned >= _MAX_PLANNED:
        return
    sample.num_planned += len(lengths)
    sample.useful += int(lengths.sum())
    for indices in plan_batches(lengths, sample.budget):
        batch = lengths[indices]
        sample.padded += int(batch.max()) * len(batch)
    rows = longest = 0
    for length in lengths.tolist():
        width = max(longest, length)
        is_full = (rows + 1) * width > sample.budget.max_batch_tokens
        if rows and (is_full or rows == sample.budget.max_batch_rows):
            sample.in_order += rows * longest
            rows, width = 0, length
        rows, longest = rows + 1, width
    sample.in_order += rows * longest


def _names(plan: Plan, prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in plan.output_schema.names}


def _flat(column: Any) -> Any:
    """The innermost values of lists."""
    while pa.types.is_nested(column.type) and not pa.types.is_struct(column.type):
        column = column.flatten()
    return column


def _part(column: Any, name: str) -> Any:
    """The values in lists; of structs among them, those of one field."""
    column = _flat(column)
    return column.field(name) if pa.types.is_struct(column.type) else column


def _numbers(column: Any) -> Floats:
    found: Floats = column.drop_null().cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return found


def _counts(column: Any) -> Floats:
    return _numbers(pc.list_value_length(column))


def _norms(column: Any) -> Floats:
    width = column.type.list_size
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    norms: Floats = np.linalg.norm(values.astype(np.float32, copy=False), axis=1).astype(np.float64)
    return norms


def _words(column: Any) -> Counter[str]:
    counted: Any = pc.value_counts(_flat(column).drop_null())
    return Counter({str(one["values"]): one["counts"] for one in counted.to_pylist()})
