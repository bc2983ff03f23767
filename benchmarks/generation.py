"""Generation on a CPU: batchinfer beside `generate` in input order, at its best batch size.

    python -m benchmarks.generation --corpus gsm8k/test.jsonl self-instruct/*.jsonl --out NAME.json

File to file, useful tokens a second being those that were generated, timed after the model is loaded.
Each contestant has a fresh process in each round, in turn. The model is a Llama of SmolLM-135M's size
with random weights: none of its answers ends early, so all write as many tokens. How often both write the
same first token is shown; token for token they are compared in float32, by the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.__main__ import machine, revision, save, versions
from benchmarks.peers.contest import ENVIRONMENT, ROOT
from benchmarks.peers.material import read_corpus, write_rows

BATCHES = (1, 4, 8, 16, 32)
#: Rows of a contestant's warm-up.
WARM_ROWS = 4
VOCABULARY = 16384


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.child:
        answer(json.loads(options.child))
        return
    with tempfile.TemporaryDirectory() as name:
        record = measure(options, Path(name))
    save(options.out, record)
    for one, seconds in record["seconds"].items():
        speed = record["generated_tokens"] / statistics.median(seconds)
        print(f"{one}: {statistics.median(seconds):.2f} s, {speed:,.0f} tokens/s")
    for theirs, ratio in record["ratios"].items():
        print(f"batchinfer over {theirs}: {ratio:.2f}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--corpus", type=Path, nargs="+", default=[], help="JSONL files")
    parser.add_argument("--out", type=Path, default=Path("generation.json"))
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--search-rows", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-words", type=int, default=300, help="leave longer texts out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    found = read_corpus(options.corpus, seed=0).texts
    texts = [text for text in found if len(text.split()) <= options.max_words][: options.rows]
    model = make_model(work / "model", found)
    source = write_rows(work / "rows.jsonl", texts, range(len(texts)))
    few = write_rows(work / "few.jsonl", texts, range(options.search_rows))
    warm = write_rows(work / "warm.jsonl", texts, range(WARM_ROWS))

    def ask(kind: str, batch: int, rows: Path) -> dict[str, Any]:
        job = {
            "kind": kind, "batch": batch, "source": str(rows), "warm": str(warm), "model": str(model),
            "output": str(work / "out"), "dtype": options.dtype, "new_tokens": options.new_tokens,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.generation", "--child", json.dumps(job)], cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, "XDG_CACHE_HOME": str(work / "cache")},
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        reply: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return reply

    tried = {batch: ask("in order", batch, few)["seconds"] for batch in BATCHES}
    best = min(tried, key=lambda batch: tried[batch])
    print(f"generate in input order, seconds by batch size: {tried}", flush=True)
    contestants = {
        "batchinfer": ("batchinfer", 0),
        f"generate in input order, batches of {best}": ("in order", best),
        f"generate, sorted by length, batches of {best}": ("sorted", best),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    first: dict[str, list[str]] = {}
    for number in range(options.rounds):
        for name, (kind, batch) in contestants.items():
            reply = ask(kind, batch, source)
            seconds[name].append(reply["seconds"])
            first[name] = reply["texts"]
            print(f"round {number + 1}, {name}: {reply['seconds']:.2f} s", flush=True)
    ours, *others = contestants
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "kind": "generation", "made": time.strftime("%Y-%m-%d"), "revision": revision(),
        "machine": machine(), "versions": versions(), "rows": len(texts), "dtype": options.dtype,
        "new_tokens": options.new_tokens, "generated_tokens": len(texts) * options.new_tokens,
        "tried": tried, "seconds": seconds,
        "ratios": {name: median[name] / median[ours] for name in others},
        "same_beginning": {name: agreement(first[ours], first[name]) for name in others},
    }  # fmt: skip


def agreement(ours: list[str], theirs: list[str]) -> float:
    """The share of rows whose answers begin alike: the first two characters."""
    same = [a[:2] == b[:2] for a, b in zip(ours, theirs, strict=True)]
    return sum(same) / len(same)


def make_model(folder: Path, texts: Sequence[str]) -> Path:
    """A decoder of SmolLM-135M's size with random weights, and a tokenizer made of the corpus."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


def answer(job: dict[str, Any]) -> None:
    """A contestant: load, answer a few rows, then all of them; print what it took."""
    work = batchinfer if job["kind"] == "batchinfer" else generate
    seconds, texts = work(job)
    print(json.dumps({"seconds": seconds, "texts": texts}), flush=True)


def batchinfer(job: dict[str, Any]) -> tuple[float, list[str]]:
    import pyarrow.parquet as pq

    from batchinfer import RunConfig, run

    for source in (job["warm"], job["source"]):
        shutil.rmtree(job["output"], ignore_errors=True)
        report = run(
            RunConfig(
                inputs=(source,), output=job["output"], model=job["model"], task="generate",
                dtype=job["dtype"], temperature=0, max_new_tokens=job["new_tokens"], device="cpu",
                profile="none",
            )
        )  # fmt: skip
        assert report.finished and report.num_errors == 0
    table = pq.read_table(Path(job["output"]) / "data")
    assert set(table["num_generated_tokens"].to_pylist()) == {job["new_tokens"]}
    return report.seconds, table["generated_text"].to_pylist()


def generate(job: dict[str, Any]) -> tuple[float, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, job["dtype"])
    ).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    texts: list[str] = []
    for source in (job["warm"], job["source"]):
        started = time.perf_counter()
        prompts = [json.loads(line)["text"] for line in Path(source).read_bytes().splitlines()]
        order = list(range(len(prompts)))
        if job["kind"] == "sorted":
            order.sort(key=lambda row: -len(tokenizer(prompts[row])["input_ids"]))
        texts = [""] * len(prompts)
        for begin in range(0, len(prompts), job["batch"]):
            rows = order[begin : begin + job["batch"]]
            inputs = tokenizer(
                [prompts[row] for row in rows], padding=True, return_tensors="pt",
                return_token_type_ids=False,
            )  # fmt: skip
            with torch.inference_mode():
                tokens = model.generate(**inputs, max_new_tokens=job["new_tokens"], do_sample=False)
            fresh = tokens[:, inputs["input_ids"].shape[1] :]
            written = tokenizer.batch_decode(fresh, skip_special_tokens=True)
            for row, text in zip(rows, written, strict=True):
                texts[row] = text
        pq.write_table(pa.table({"generated_text": texts}), Path(job["output"] + ".parquet"))
        seconds = time.perf_counter() - started
    return seconds, texts


if __name__ == "__main__":
    main()
