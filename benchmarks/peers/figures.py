"""From rounds to figures: medians, ratios, agreement, shares of the ceiling. Arithmetic alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

#: Answers below these are wrong, not rounded: the smallest cosine, and the share of equal labels. Rounding
#: to bfloat16 costs libraries that pool or normalise in it 0.996, and labels near the border flip.
BOUNDS = {
    "float32": {"smallest_cosine": 0.9999, "labels_agree": 0.995},
    "bfloat16": {"smallest_cosine": 0.99, "labels_agree": 0.97},
}


@dataclass(frozen=True)
class Comparison:
    """Whose speed over whose, and what the project wants of it; None: shown, not aimed at."""

    task: str
    ours: str
    theirs: str
    label: str
    goal: float | None = None


COMPARISONS = (
    Comparison("embed", "batchinfer openvino bf16", "openvino bf16",
               "OpenVINO bf16 in a bare loop, by `--engine openvino`", 1.0),
    Comparison("embed", "batchinfer bf16", "openvino bf16",
               "OpenVINO bf16 in a bare loop, by `--engine local`", 0.95),
    Comparison("embed", "batchinfer bf16", "onnxruntime float32",
               "ONNX Runtime float32 in a bare loop", 1.7),
    Comparison("embed", "batchinfer float32", "onnxruntime float32",
               "ONNX Runtime float32, both in float32", 1.0),
    Comparison("embed", "batchinfer float32", "openvino float32",
               "OpenVINO float32, both in float32"),
    Comparison("embed", "batchinfer bf16", "sentence-transformers default",
               "sentence-transformers, default", 4.5),
    Comparison("embed", "batchinfer bf16", "sentence-transformers best",
               "sentence-transformers, best setting found", 1.5),
    Comparison("embed", "batchinfer bf16", "naive loop",
               "DataLoader in input order, float32, batch 32", 10.0),
    Comparison("embed", "batchinfer bf16", "engine bf16",
               "its own engine alone, batches in memory", 0.95),
    Comparison("embed", "batchinfer openvino bf16", "engine openvino bf16",
               "its own OpenVINO engine alone", 0.95),
    Comparison("classify", "batchinfer bf16", "pipeline float32",
               "transformers pipeline, best batch size, float32", 6.5),
    Comparison("classify", "batchinfer bf16", "pipeline bf16",
               "transformers pipeline, best batch size, bf16", 3.0),
)  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def speeds(result: Mapping[str, Any]) -> list[float]:
    """Useful tokens a second of each round; none for who failed or answered wrong."""
    if "failed" in result:
        return []
    return [result["tokens"] / one["seconds"] for one in result.get("rounds", [])]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any] | None:
    """How many times as fast: by the medians, and by the median over rounds that both ran."""
    if not ours or not theirs:
        return None
    rounds = [a / b for a, b in zip(ours, theirs, strict=False)]
    return {
        "by_medians": statistics.median(ours) / statistics.median(theirs),
        "by_rounds": statistics.median(rounds),
        "least": min(rounds),
        "most": max(rounds),
    }


def ratios(task: str, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons that this task's results allow."""
    found = []
    for pair in COMPARISONS:
        if pair.task == task and pair.ours in results and pair.theirs in results:
            times = ratio(speeds(results[pair.ours]), speeds(results[pair.theirs]))
            if times is not None:
                found.append({
                    "ours": pair.ours, "theirs": pair.theirs, **times, "goal": pair.goal,
                    "reached": None if pair.goal is None else times["by_medians"] >= pair.goal,
                })  # fmt: skip
    return found


def agreement(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """Of rows against the same rows alone: the smallest cosine, or labels and scores."""
    if "embedding" in expected:
        a, b = found["embedding"], expected["embedding"]
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return {"smallest_cosine": float(((a * b).sum(axis=1) / norms).min())}
    equal = found["label"] == expected["label"]
    return {
        "labels_agree": float(equal.mean()),
        "largest_score_difference": float(np.abs(found["score"] - expected["score"])[equal].max(initial=0)),
    }  # fmt: skip


def what_is_wrong(check: Mapping[str, float], dtype: str) -> str:
    """Why answers of this agreement are none; "" where they are right."""
    for name, bound in BOUNDS[dtype].items():
        value = check.get(name, 1.0)
        if not value >= bound:  # a NaN is wrong too
            return f"wrong answers: {name.replace('_', ' ')} {value:.6g}, below {bound:g}"
    return ""


def linear_weights(config: Mapping[str, Any]) -> int:
    """Weights of the linear layers of a BERT-like encoder; head and pooler see one token a row."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return int(config["num_hidden_layers"] * (4 * hidden * hidden + 2 * hidden * inner))


def flops_per_token(config: Mapping[str, Any], lengths: Ints) -> float:
    """2 a weight, and 4 × hidden × the row's length in each layer's attention; the mean over tokens."""
    seen = float((lengths.astype(np.float64) ** 2).sum() / lengths.sum())
    attention = float(4 * config["num_hidden_layers"] * config["hidden_size"] * seen)
    return 2.0 * linear_weights(config) + attention


def ceiling(gflops: Mapping[str, Mapping[str, float]], dtype: str) -> float | None:
    """GFLOP/s of the quickest way to multiply in a precision; None where it was not measured."""
    return max((v["median"] for name, v in gflops.items() if name.startswith(dtype)), default=None)
