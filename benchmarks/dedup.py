"""What looking for duplicates costs, what it gains, and what a cache of answers costs and gains.

    python -m benchmarks.dedup -m MODEL --out benchmarks/results/dedup.json
    python -m benchmarks.dedup -m MODEL --rows 2048 --rounds 1 --entries 50000

- cost: chunks of 16,384 texts of which no two are alike: what looking takes, among texts and among tokens,
  beside what tokenizing the same chunk takes, in turn.
- gain: whole runs of `embed` (first chunk asked for to last shard durable, without loading) over inputs of
  which a share repeats another row, with `--dedup off` and `chunk` in turn.
- store: what 1,000 keys take, to be made, looked up and kept, in a cache that has --entries.
- cache: whole runs without a cache, with an empty one, and with one that has all answers, in turn.

Medians, of wall time and of CPU time, that of all threads: other work on the machine moves the first, and
the second much less. Ratios are of CPU time.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchinfer import RunConfig, run
from batchinfer.caching.keys import KEY_BYTES, keys_of
from batchinfer.caching.store import Store
from batchinfer.core import Requests
from batchinfer.duplicates import OncePerText, without_duplicates
from batchinfer.engines import create_encoder, describe_model
from batchinfer.reporting.progress import Silent
from batchinfer.reporting.report import RunReport
from batchinfer.tokenization import Encoder, Tokens, encode_requests
from benchmarks.peers.__main__ import machine, revision, save, versions
from benchmarks.pipeline import WORDS

CHUNK_ROWS = 16384
#: Words of a text, in the three sizes that looking is measured with.
LENGTHS = {"short": 8, "middle": 40, "long": 160}
SHARES = (0.0, 0.1, 0.5, 0.9)
#: Bytes of an entry: a label with its score, and a vector of MiniLM.
SIZES = {"classify": 8, "embed": 1536}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-m", "--model", required=True, help="a sentence embedder, such as MiniLM")
    parser.add_argument("--rows", type=int, default=4096, help="of a whole run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--entries", type=int, default=200_000, help="in the cache before it is measured"
    )
    parser.add_argument("--out", type=Path, help="a JSON file of the figures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = {
            "kind": "dedup",
            "machine": machine(),
            "versions": versions(),
            "revision": revision(),
            "rounds": given.rounds,
            "rows": given.rows,
            "cost": cost(given.model, given.rounds),
            "gain": gain(given.model, folder, given.rows, given.rounds),
            "store": store(folder, given.entries, given.rounds),
            "cache": cache(given.model, folder, given.rows, given.rounds),
        }
    if given.out is not None:
        save(given.out, document)
    print(json.dumps(document))


def texts_of(count: int, words: int, share: float = 0.0) -> list[str]:
    """Texts of about so many words; `share` of them say the same as another one."""
    draw = random.Random(count)
    different = max(1, round(count * (1 - share)))
    sizes = [max(1, round(words * (0.3 + 1.4 * draw.random()))) for _ in range(different)]
    texts = [f"{i} {' '.join(draw.choices(WORDS, k=size))}" for i, size in enumerate(sizes)]
    texts += draw.choices(texts, k=count - different)
    draw.shuffle(texts)
    return texts


def timed(call: Callable[..., Any], *arguments: Any) -> float:
    """Milliseconds of CPU time that a call takes."""
    started = time.process_time()
    call(*arguments)
    return 1000 * (time.process_time() - started)


@dataclass(frozen=True)
class Encoded:
    """An encoder that has the tokens already."""

    tokens: Tokens

    def encode(self, texts: pa.Array[Any], pairs: pa.Array[Any] | None) -> Tokens:
        return self.tokens


def look_for(texts: pa.Array[Any], requests: Requests) -> None:
    """Look for duplicates as a loader does, among texts that are tokenized in no time."""
    tokens = Tokens(requests.offsets, requests.fields, requests.truncated, {})
    assert OncePerText(Encoded(tokens)).encode(texts, None) is tokens
    assert without_duplicates(requests) is requests


class Clock(Silent):
    """Measures the CPU time between the first chunk asked for and the last shard."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def begin(self, *, rows_done: int, rows_expected: int) -> None:
        self.seconds -= time.process_time()

    def end(self) -> None:
        self.seconds += time.process_time()


def cost(model: str, rounds: int) -> list[dict[str, Any]]:
    config = RunConfig(model=model, task="embed")
    spec, folder = describe_model(config, pa.schema([("text", pa.string())]), {})
    encoder = create_encoder(config, spec, folder)
    return [cost_of(encoder, kind, words, rounds) for kind, words in LENGTHS.items()]


def cost_of(encoder: Encoder, kind: str, words: int, rounds: int) -> dict[str, Any]:
    texts: Any = pa.array(texts_of(CHUNK_ROWS, words), pa.large_string())
    row = np.arange(CHUNK_ROWS, dtype=np.int32)
    requests = encode_requests(encoder, row, texts, None)
    tokenize, look = [], []
    for _ in range(rounds):
        tokenize.append(timed(encode_requests, encoder, row, texts, None))
        look.append(timed(look_for, texts, requests))
    found = {
        "texts": kind,
        "tokens_a_row": round(requests.num_tokens / CHUNK_ROWS, 1),
        "tokenize_cpu_ms": round(statistics.median(tokenize), 1),
        "look_cpu_ms": round(statistics.median(look), 2),
        "share": round(statistics.median(look) / statistics.median(tokenize), 5),
    }
    print(f"cost, {kind} texts: {found}")
    return found


class Spent:
    """What the rounds of one setting took."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def run(self, config: RunConfig) -> RunReport:
        """Run a job once; its folder is removed."""
        clock = Clock()
        report = run(config, progress=clock)
        shutil.rmtree(config.output)
        self.wall.append(report.seconds)
        self.cpu.append(clock.seconds)
        return report

    def figures(self, name: str) -> dict[str, float]:
        return {
            f"{name}_seconds": round(statistics.median(self.wall), 3),
            f"{name}_cpu_seconds": round(statistics.median(self.cpu), 3),
        }

    def over(self, other: Spent) -> float:
        """The ratio of CPU times."""
        return round(statistics.median(self.cpu) / statistics.median(other.cpu), 3)


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def gain(model: str, folder: Path, rows: int, rounds: int) -> list[dict[str, Any]]:
    found = []
    for share in SHARES:
        source = write(folder / "in.jsonl", texts_of(rows, LENGTHS["middle"], share))
        spent: dict[str, Spent] = {"off": Spent(), "chunk": Spent()}
        for _ in range(rounds):
            for dedup in spent:
                config = RunConfig(
                    inputs=(source,), output=str(folder / "out"), model=model, task="embed",
                    workers=0, dedup=dedup, max_batch_tokens=4096,
                )  # fmt: skip
                report = spent[dedup].run(config)
        found.append(
            {
                "duplicates": share,
                **spent["off"].figures("off"),
                **spent["chunk"].figures("chunk"),
                "times_less_cpu": spent["off"].over(spent["chunk"]),
                "duplicate_rows": report.duplicate_rows,
            }
        )
        print(f"gain: {found[-1]}")
    return found


def store(folder: Path, entries: int, rounds: int) -> list[dict[str, Any]]:
    found = []
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 30_000, CHUNK_ROWS * 48).astype(np.int32)
    ones = np.ones(CHUNK_ROWS, np.int32)
    offsets = np.arange(CHUNK_ROWS + 1, dtype=np.int64) * 48
    requests = Requests(ones, ones * 48, ones == 0, offsets, {"input_ids": tokens})
    name = [timed(keys_of, requests, requests.asked, b"identity") for _ in range(rounds)]
    for kind, size in SIZES.items():
        opened = Store(folder / f"{kind}.sqlite", 100 << 30)
        known: list[bytes] = []
        for start in range(0, entries, CHUNK_ROWS):
            keys = [draw.bytes(KEY_BYTES) for _ in range(min(CHUNK_ROWS, entries - start))]
            opened.put({key: draw.bytes(size) for key in keys})
            known += keys
        times: dict[str, list[float]] = {"hit": [], "miss": [], "keep": []}
        for turn in range(rounds):
            some = random.Random(turn).sample(known, CHUNK_ROWS)
            fresh = {draw.bytes(KEY_BYTES): draw.bytes(size) for _ in range(CHUNK_ROWS)}
            times["hit"].append(timed(opened.get, some))
            times["miss"].append(timed(opened.get, list(fresh)))
            times["keep"].append(timed(opened.put, fresh))
        opened.close()
        medians = {what: statistics.median(spent) for what, spent in times.items()}
        medians["name"] = statistics.median(name)
        found.append(
            {
                "entries_of": kind,
                "entries": entries,
                **{
                    f"{what}_cpu_ms_a_thousand": round(1000 * spent / CHUNK_ROWS, 3)
                    for what, spent in medians.items()
                },
            }
        )
        print(f"store: {found[-1]}")
    return found


def cache(model: str, folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    source = write(folder / "in.jsonl", texts_of(rows, LENGTHS["middle"]))
    kept = folder / "kept"
    spent = {"without": Spent(), "empty": Spent(), "full": Spent()}
    for _ in range(rounds):
        shutil.rmtree(kept, ignore_errors=True)
        for state, one in spent.items():
            config = RunConfig(
                inputs=(source,), output=str(folder / "out"), model=model, task="embed", workers=0,
                max_batch_tokens=4096, cache=None if state == "without" else str(kept),
            )  # fmt: skip
            report = one.run(config)
        assert report.cached_rows == rows
    found: dict[str, float] = {}
    for state, one in spent.items():
        found |= one.figures(state)
    found["empty_over_without"] = spent["empty"].over(spent["without"])
    found["times_less_cpu_full"] = spent["without"].over(spent["full"])
    print(f"cache: {found}")
    return found


if __name__ == "__main__":
    main()
