"""The choice of `batchinfer tune` against an exhaustive sweep of the same settings.

    python benchmarks/sweep.py sample_data/reviews.jsonl --model sample_data/tiny-sentiment --out sweep.json

Every combination of engine, precision, attention, threads, streams and budget answers the whole input,
tokenized before. Those that then come near the quickest do so again, in turn (A B C A B C), several rounds.
What is compared are medians: the setting that tune chose, over the best setting whose answers hold by
tune's own measure. Both come from the same rounds, so that the clock of one does not flatter the other.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchinfer.batching import make_batches
from batchinfer.config import RunConfig
from batchinfer.core import Batch, BatchBudget, ChunkId
from batchinfer.engines import create_encoder, create_engine
from batchinfer.engines.base import Engine
from batchinfer.errors import BatchInferError
from batchinfer.machine import usable_cores
from batchinfer.planning import make_plan
from batchinfer.profiles import Profile
from batchinfer.tasks import create_task
from batchinfer.tuning.accuracy import answers_of, compare, probe_rows
from batchinfer.tuning.sample import take_sample
from batchinfer.tuning.tune import tune

BUDGETS = (1024, 2048, 4096, 8192, 16384)
#: Settings below this share of the quickest one's rate, when each had its first turn, are not near it.
NEAR = 0.6


@dataclass(frozen=True)
class Setting:
    """One point of the sweep."""

    engine: str
    dtype: str
    attention: str
    threads: int
    #: None: as many as the engine takes by itself.
    streams: int | None
    tokens: int

    @property
    def loaded(self) -> tuple[str, str, str, int, int | None]:
        """What takes a model of its own."""
        return self.engine, self.dtype, self.attention, self.threads, self.streams


def settings() -> list[Setting]:
    """All of them; an attention is of the local engine alone, where auto is packed if the model can be."""
    cores = usable_cores()
    shares: list[tuple[int, int | None]] = [(cores, None)]
    if cores > 1:
        shares += [(cores, 1), (cores // 2, None)]
    kinds = [("local", attention) for attention in ("auto", "sdpa", "eager")]
    if importlib.util.find_spec("openvino"):
        kinds.append(("openvino", "auto"))
    return [
        Setting(engine, dtype, attention, threads, streams, tokens)
        for (engine, attention), dtype, (threads, streams), tokens in itertools.product(
            kinds, ("bfloat16", "float32"), shares, BUDGETS
        )
        # Rows that are padded are answered one batch at a time anyway.
        if not (streams == 1 and attention in ("sdpa", "eager"))
    ]


def setting_of(profile: Profile) -> Setting:
    """What tune chose, as a point of the sweep."""
    settings = profile.settings
    assert settings.max_batch_tokens is not None, "tune always decides the batch budget"
    return Setting(
        profile.engine,
        profile.dtype,
        settings.attention or "auto",
        settings.threads or usable_cores(),
        settings.streams,
        settings.max_batch_tokens,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("input")
    parser.add_argument("--model", required=True)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of the input, at most")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    config = RunConfig(
        inputs=(given.input,), model=given.model, text_column=given.text_column, profile="none"
    )
    began = time.perf_counter()
    report = tune(config)
    seconds = time.perf_counter() - began
    best = report.profile
    print(f"tune took {seconds:.0f} s: {best.engine} {best.dtype} {best.settings}", file=sys.stderr)

    plan, folder = make_plan(config.model_copy(update={"keep": ("none",)}), is_rehearsal=True)
    task = create_task(plan.model, plan.config)
    sample = take_sample(plan, task, create_encoder(plan.config, plan.model, folder), given.tokens)
    chosen = setting_of(best)

    def load(setting: Setting) -> Engine:
        update = {
            "engine": setting.engine, "dtype": setting.dtype, "attention": setting.attention,
            "threads": setting.threads, "streams": setting.streams,
        }  # fmt: skip
        return create_engine(plan.config.model_copy(update=update), task, folder)

    def cut(tokens: int) -> list[Batch]:
        return make_batches(ChunkId(0, 0), sample.requests, BatchBudget(tokens, 4096))

    rows = probe_rows(sample)
    reference = answers_of(
        load(Setting("local", "float32", "eager", usable_cores(), None, 1)),
        sample,
        rows,
        BatchBudget(1, 1),
    )
    points = settings()
    if chosen not in points:
        points.append(chosen)
    batches = {tokens: cut(tokens) for tokens in {point.tokens for point in points}}
    tokens = sum(batch.num_tokens for batch in batches[points[0].tokens])
    rates: dict[Setting, list[float]] = {}
    wrong: dict[Setting, str] = {}
    near = points
    for turn in range(given.rounds + 1):  # the first, of all, is a warm-up
        first: dict[Setting, float] = {}
        for _, group in itertools.groupby(near, key=lambda point: point.loaded):
            members = list(group)
            try:
                engine = load(members[0])
                if not turn:
                    found = answers_of(engine, sample, rows, BatchBudget(4096, 4096))
                    complaint = compare(task.spec, reference, found).complaint
                    wrong |= dict.fromkeys(members, complaint) if complaint else {}
            except BatchInferError as error:
                wrong |= dict.fromkeys(members, str(error))
                continue
            for point in members:
                started = time.perf_counter()
                for _ in engine.stream(batches[point.tokens]):
                    pass
                rate = tokens / (time.perf_counter() - started)
                if turn:
                    rates[point].append(rate)
                else:
                    first[point] = rate
            engine.close()
        if not turn:
            quickest = max(rate for point, rate in first.items() if point not in wrong)
            near = [p for p, rate in first.items() if p == chosen or rate >= NEAR * quickest]
            rates = {point: [] for point in near}
    medians = {point: statistics.median(found) for point, found in rates.items()}
    right = {point: rate for point, rate in medians.items() if point not in wrong}
    fastest = max(right, key=lambda point: right[point])
    result: dict[str, Any] = {
        "input": Path(given.input).name, "model": plan.model.name, "tokens": tokens,
        "rounds": given.rounds, "tune_seconds": round(seconds, 1),
        "chosen": shown(chosen, medians), "fastest": shown(fastest, medians),
        "chosen_over_fastest": round(medians[chosen] / medians[fastest], 4),
        "settings": len(points),
        "near": [
            {**shown(point, medians), "wrong": wrong.get(point, "")} for point in sorted(
                medians, key=lambda point: -medians[point])
        ],
    }  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "near"}, indent=1))
    return 0


def shown(point: Setting, medians: dict[Setting, float]) -> dict[str, Any]:
    return {**vars(point), "tokens_per_second": round(medians[point])}


if __name__ == "__main__":
    raise SystemExit(main())
