"""The GPU path, measured: ceilings, correctness, the model alone, whole runs, and others beside it.

    python benchmarks/gpu.py --corpus gsm8k/train.jsonl self-instruct/*.jsonl --out results

One command of less than ten minutes for one GPU, without a network: models of real sizes get random
weights (seed 0), the tokenizer is trained on the corpus, whose string values are the texts. Everything
that is compared is measured in turn (A B A B), several rounds, and given as median, least and most.
A JSON with machine, versions and every figure is written under --out, after each section.

    ceilings      a bf16 matrix product and a copy on the device
    correctness   answers in bf16 against plain transformers in float32, one row at a time
    engine        tokens/s of LocalEngine, tokenized before, by length and token budget
    profile       share of the time in which a kernel runs, and which ones
    generation    tokens/s that a decoder writes: batch by batch, and continuously batched
    run           `batchinfer run`, JSONL to Parquet, beside the engine alone and all but the engine
    peers         sentence-transformers and the pipeline, default and tuned, on the same texts

MFU is useful FLOPs (2 a weight of the linear layers and token, 4 × hidden × tokens seen in each layer's
attention; no padding) a second, over the matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

import batchinfer.cli
from batchinfer.batching import make_batches
from batchinfer.core import Answers, Batch, BatchBudget, Chunk, ChunkId, Position, Requests
from batchinfer.engines import local
from batchinfer.engines.base import Engine
from batchinfer.engines.continuous import ContinuousEngine
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe, make_encoder
from batchinfer.tasks import create_task
from batchinfer.tasks.base import Task
from batchinfer.tasks.generation import Generation

#: name → configuration; the sizes of all-MiniLM-L6, BERT-base, bge-m3 (XLM-R-large) and ModernBERT-base
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm-l6": (
        "Bert",
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
         "intermediate_size": 1536, "vocab_size": 30522},
    ),
    "bert-base": ("Bert", {"vocab_size": 30522}),
    "xlm-r-large": (
        "XLMRoberta",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
         "intermediate_size": 4096, "vocab_size": 250002, "max_position_embeddings": 8194,
         "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "modernbert-base": ("ModernBert", {"vocab_size": 50368}),
}  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LENGTHS = (32, 128, 512)
BUDGETS = (8192, 16384, 32768, 65536)
#: A decoder of Llama 3.2 1B's size, whose every so many-th token ends an answer.
WRITER: dict[str, Any] = {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 8192, "vocab_size": 32768, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": None,
}  # fmt: skip
ENDS_EVERY, NEW_TOKENS, PROMPTS = 100, 256, 2048
#: Rows of a run or of a peer, so that each takes some seconds.
ROWS = {
    "minilm-l6": 400_000,
    "bert-base": 130_000,
    "xlm-r-large": 45_000,
    "modernbert-base": 90_000,
}


@dataclass
class Bench:
    """What all sections share: the texts, the models' folders, the clock and the results."""

    corpus: list[str]
    work: Path
    out: Path
    models: list[str]
    rounds: int
    deadline: float
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def ceiling(self) -> float:
        """FLOP/s of the matrix product that was measured."""
        return float(self.results.get("ceilings", {}).get("bf16_matmul_tflops", 790)) * 1e12

    def texts(self, count: int) -> list[str]:
        """So many texts, drawn from the corpus with a seed."""
        draw = random.Random(count)
        return draw.choices(self.corpus, k=count)

    def interleave(
        self, cases: dict[str, Callable[[], float]], rounds: int | None = None
    ) -> dict[str, Any]:
        """Run every case in turn, several rounds; median, least and most of what each returns."""
        found: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds or self.rounds):
            if time.monotonic() > self.deadline and all(found.values()):
                break
            for name, case in cases.items():
                found[name].append(case())
        return {name: spread(values) for name, values in found.items()}

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu.json").write_text(json.dumps(self.results, indent=1) + "\n")


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values), "least": min(values), "most": max(values),
        "rounds": len(values),
    }  # fmt: skip


def seconds_of(work: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


# What is measured --------------------------------------------------------------------------------


def read_corpus(paths: Sequence[Path]) -> list[str]:
    """Every string of every row, and each row's strings as one text: lengths are very mixed."""
    texts = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            parts = [
                value for value in json.loads(line).values() if isinstance(value, str) and value
            ]
            texts += parts
            if len(parts) > 1:
                texts.append("\n".join(parts))
    return texts


def make_tokenizer(corpus: list[str], folder: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(corpus, WordPieceTrainer(vocab_size=8192, special_tokens=SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]",
        "cls_token": "[CLS]", "sep_token": "[SEP]", "model_max_length": 512,
        "model_input_names": ["input_ids", "attention_mask"],
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make_model(name: str, folder: Path, corpus: list[str], head: str = "Model") -> Path:
    """Save a model with its tokenizer, an embedder as a sentence-transformers folder.

    Rows of plain random weights are all alike. Wider embeddings make the words count, and a
    classifier looks in the direction in which rows differ most.
    """
    folder.mkdir(parents=True)
    make_tokenizer(corpus, folder)
    prefix, settings = MODELS[name]
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    config = getattr(transformers, prefix + "Config")(
        **{"num_labels": 2, **special, "bos_token_id": 2, "eos_token_id": 3, **settings}
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = getattr(transformers, prefix + head)(config).eval()
    with torch.inference_mode():
        for key, weight in model.named_parameters():
            if "word_embeddings" in key or "tok_embeddings" in key:
                weight.normal_(std=1.0)
        if head != "Model":
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.enable_truncation(512)
            rows = [torch.tensor([e.ids]) for e in tokenizer.encode_batch(corpus[:300])]
            pooled = torch.cat([model.bert(row.cuda()).pooler_output for row in rows])
            direction = torch.linalg.svd(pooled - pooled.mean(dim=0)).Vh[0]
            model.classifier.weight.copy_(torch.stack([direction, -direction]) * 4)
            model.classifier.bias.copy_(-(model.classifier.weight @ pooled.mean(dim=0)))
    model.save_pretrained(folder)
    if head == "Model":
        (folder / "modules.json").write_text(json.dumps([
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(
                [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
            )
        ]))  # fmt: skip
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
        (folder / "1_Pooling").mkdir()
        (folder / "2_Normalize").mkdir()
        size = {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(size))
    return folder


def engine_of(folder: Path, dtype: str = "bfloat16", attention: str = "auto") -> LocalEngine:
    spec, place = describe(str(folder))
    task = create_task(spec)
    return LocalEngine(task, place, dtype=dtype, device="cuda", attention=attention)


def flops(config: Any, linear_weights: int, lengths: np.ndarray[Any, Any]) -> float:
    """Of rows of these lengths, by the formula at the top."""
    tokens = lengths.astype(np.float64)
    layers = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "local_attention", None) or np.inf
    seen = sum(
        (tokens * np.minimum(tokens, window if "sliding" in kind else np.inf)).sum()
        for kind in layers
    )
    return float(2 * linear_weights * tokens.sum() + 4 * config.hidden_size * seen)


def linear_weights(model: Any) -> int:
    """Weights of the linear layers of the encoder; the pooler sees one token a row and counts none."""
    return sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name
    )


def batches_of(
    lengths: np.ndarray[Any, Any], budget: int, vocabulary: int, rows: int = 4096
) -> list[Batch]:
    """Batches of random tokens in page-locked memory, as the loader hands them over."""
    draw = np.random.default_rng(0)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    tokens = draw.integers(5, vocabulary, int(offsets[-1]), dtype=np.int32)
    requests = Requests(
        np.arange(len(lengths), dtype=np.int32),
        lengths.astype(np.int32),
        np.zeros(len(lengths), np.bool_),
        offsets,
        {"input_ids": tokens},
    )
    planned = make_batches(ChunkId(0, 0), requests, BatchBudget(budget, rows))
    return [batch.pin_memory() for batch in planned]


def mixed_lengths(count: int) -> np.ndarray[Any, Any]:
    """Log-normal, 2 to 512 tokens, mean about 140."""
    draw = np.random.default_rng(1)
    return np.clip(np.exp(draw.normal(4.6, 0.85, count)), 2, 512).astype(np.int32)


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


# Sections ----------------------------------------------------------------------------------------


def ceilings(bench: Bench) -> dict[str, Any]:
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(1 << 32, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)

    def product() -> float:
        return 20 * 2 * size**3 / seconds_of(lambda: [a @ b for _ in range(20)]) / 1e12

    def copy() -> float:
        return (
            10
            * 2
            * len(source)
            / seconds_of(lambda: [target.copy_(source) for _ in range(10)])
            / 1e12
        )

    product(), copy()
    found = bench.interleave({"product": product, "copy": copy}, 5)
    return {
        "bf16_matmul_tflops": found["product"]["median"], "copy_tb_s": found["copy"]["median"],
        "spread": found,
    }  # fmt: skip


def correctness(bench: Bench) -> dict[str, Any]:
    """Cosines of rows, as they are and less what all rows have in common; labels of a classifier."""
    result: dict[str, Any] = {}
    texts = bench.texts(400)
    for name in [*bench.models, "bert-base-classifier"]:
        folder = bench.work / name
        expected, lengths = rows_alone(folder, texts)
        result[name] = {"rows": len(texts), "shortest": min(lengths), "longest": max(lengths)}
        for how, attention, dtype in (
            ("packed bf16", "auto", "bfloat16"),
            ("padded bf16", "sdpa", "bfloat16"),
            ("padded float32", "sdpa", "float32"),
        ):
            engine = engine_of(folder, dtype, attention)
            assert engine.is_packed == (attention == "auto"), "packed attention was not taken"
            found = answers_of(engine, folder, texts)
            result[name][how] = (
                agreement_of_labels(found, expected) if "label" in found
                else agreement_of_vectors(found["embedding"], expected)
            )  # fmt: skip
            engine.close()
        free()
    return result


def rows_alone(folder: Path, texts: list[str]) -> tuple[np.ndarray[Any, Any], list[int]]:
    """What plain transformers says in float32 to each row by itself: unit vectors, or probabilities."""
    classifies = "classifier" in folder.name
    auto: Any = (
        transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModel
    )
    model = auto.from_pretrained(folder, dtype=torch.float32).cuda().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    said, lengths = [], []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=512, return_tensors="pt").to(
                "cuda"
            )
            lengths.append(inputs["input_ids"].shape[1])
            out = model(**inputs)
            if classifies:
                said.append(out.logits[0].softmax(dim=-1))
            else:
                said.append(
                    torch.nn.functional.normalize(out.last_hidden_state[0].mean(dim=0), dim=0)
                )
    return torch.stack(said).cpu().numpy(), lengths


def requests_of(engine: LocalEngine, folder: Path, texts: list[str]) -> Requests:
    import pyarrow as pa

    chunk = Chunk(
        ChunkId(0, 0), pa.table({"text": texts}), {}, Position(), Position(), True, ""
    )  # fmt: skip
    return engine.task.encode(chunk, make_encoder(folder, engine.task.spec))


def answers_of(engine: LocalEngine, folder: Path, texts: list[str]) -> dict[str, Any]:
    requests = requests_of(engine, folder, texts)
    answers = {
        name: np.zeros((len(requests), *answer.shape), answer.dtype)
        for name, answer in engine.task.answers.items()
    }
    batches = make_batches(ChunkId(0, 0), requests, engine.default_budget)
    for batch, said in engine.stream(batches):
        assert said.error is None, said.error
        for name, value in said.values.items():
            answers[name][batch.indices] = value
    return answers


def agreement_of_vectors(found: Any, expected: Any) -> dict[str, float]:
    def least(a: Any, b: Any) -> float:
        return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())

    common = expected.mean(axis=0)
    unit = (expected - common) / np.linalg.norm(expected - common, axis=1, keepdims=True)
    return {
        "least_cosine": least(found, expected),
        "least_cosine_less_the_common_part": least(found - common, expected - common),
        "median_cosine_of_different_rows": float(np.median(unit @ unit.T)),
    }


def agreement_of_labels(found: Any, expected: Any) -> dict[str, float]:
    labels = expected.argmax(axis=1)
    return {
        "labels_agree": float((found["label"] == labels).mean()),
        "largest_score_difference": float(np.abs(found["score"] - expected.max(axis=1)).max()),
        "share_of_commoner_label": float(np.bincount(labels).max() / len(labels)),
    }


def engine(bench: Bench) -> dict[str, Any]:
    """Tokens/s and MFU of the engine alone, by length and by token budget."""
    result: dict[str, Any] = {}
    for name in bench.models:
        engine = engine_of(bench.work / name)
        padded = engine_of(bench.work / name, attention="sdpa")
        weights, config = linear_weights(engine.model), engine.model.config
        tokens = {"minilm-l6": 4 << 20, "bert-base": 1 << 20, "modernbert-base": 1 << 20}.get(
            name, 1 << 19
        )
        cases: dict[str, Callable[[], float]] = {}
        costs: dict[str, float] = {}
        for length in (*LENGTHS, "mixed"):
            rows = mixed_lengths(tokens // 140) if length == "mixed" else np.full(
                tokens // int(length), length, np.int32
            )  # fmt: skip
            for budget in BUDGETS:
                case = f"{length} tokens, budget {budget}"
                costs[case] = flops(config, weights, rows) / float(rows.sum())
                cases[case] = stream_of(engine, batches_of(rows, budget, 8000))
            case = f"{length} tokens, budget 32768, padded"
            costs[case] = costs[f"{length} tokens, budget 32768"]
            cases[case] = stream_of(padded, batches_of(rows, 32768, 8000))
        for case in cases.values():
            case()
        result[name] = bench.interleave(cases)
        for case, found in result[name].items():
            found["mfu"] = found["median"] * costs[case] / bench.ceiling
        engine.close()
        padded.close()
        del cases, engine, padded
        free()
    return result


def stream_of(engine: LocalEngine, batches: list[Batch]) -> Callable[[], float]:
    """Answers the batches; returns useful tokens a second."""
    tokens = sum(batch.num_tokens for batch in batches)

    def run() -> float:
        return tokens / seconds_of(lambda: sum(len(batch) for batch, _ in engine.stream(batches)))

    return run


def profile(bench: Bench) -> dict[str, Any]:
    """The share of the time in which a kernel or copy runs, and the kernels by time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    result: dict[str, Any] = {}
    for name in bench.models:
        engine = engine_of(bench.work / name)
        batches = batches_of(mixed_lengths(16 * 234), engine.default_budget.max_batch_tokens, 8000)
        list(engine.stream(batches))
        with profiler(activities=[ProfilerActivity.CUDA]) as trace:
            list(engine.stream(batches))
            torch.cuda.synchronize()
        file = bench.work / "trace.json"
        trace.export_chrome_trace(str(file))
        events = [
            event for event in json.loads(file.read_text())["traceEvents"]
            if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
        ]  # fmt: skip
        result[name] = busy_share(events)
        engine.close()
        free()
    return result


def generation(bench: Bench) -> dict[str, Any]:
    """Tokens/s that are written, where answers end anywhere; how many of the texts are the same."""
    folder = make_writer(bench.work / "writer", bench.corpus)
    lengths = mixed_lengths(PROMPTS)
    written: dict[str, dict[int, list[int]]] = {}
    result: dict[str, Any] = {}

    def case(name: str, **options: Any) -> Callable[[], float]:
        def work() -> float:
            spec, place = describe(
                str(folder), writing={"max_new_tokens": NEW_TOKENS, "temperature": 0}
            )
            task = create_task(spec)
            assert isinstance(task, Generation)
            assert place is not None
            engine = ContinuousEngine(task, place, dtype="bfloat16", device="cuda", **options)
            assert engine.is_continuous == ("force" in options), f"{name}: see the warnings above"
            result["flash attention"] = engine._flash or "none"
            batches = batches_of(lengths, 1 << 30, 8000, engine.default_budget.max_batch_rows)
            list(engine.stream(batches[-1:]))
            found = written[name] = {}

            def answer() -> None:
                for batch, answers in engine.stream(batches):
                    ends = np.cumsum(answers.values["count"])[:-1]
                    tokens = np.split(answers.values["tokens"], ends)
                    rows = [ids.tolist() for ids in tokens]
                    found.update(zip(batch.indices.tolist(), rows, strict=True))

            seconds = seconds_of(answer)
            engine.close()
            free()
            return sum(map(len, found.values())) / seconds

        return work

    # One model at a time: each takes most of the memory for its keys and values.
    cases = {
        "batch by batch": case("batch by batch", attention="sdpa"),
        "continuous": case("continuous", force=True),
    }
    result["tokens/s"] = bench.interleave(cases)
    ours, theirs = written["continuous"], written["batch by batch"]
    same = [(ours[row] == ids, ours[row][0] == ids[0]) for row, ids in theirs.items()]
    result["same text"], result["same first token"] = np.mean(same, axis=0).tolist()
    result["tokens of an answer"] = float(np.mean([len(ids) for ids in theirs.values()]))
    return result


def make_writer(folder: Path, corpus: list[str]) -> Path:
    """A decoder with random weights, and the corpus's tokenizer."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**WRITER)).to(torch.bfloat16)
    ends = list(range(ENDS_EVERY, WRITER["vocab_size"], ENDS_EVERY))
    model.generation_config.update(eos_token_id=ends)
    folder.mkdir()
    model.save_pretrained(folder)
    make_tokenizer(corpus, folder)
    return folder


def busy_share(events: list[dict[str, Any]]) -> dict[str, Any]:
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in events)
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    by_name: dict[str, float] = {}
    for event in events:
        by_name[event["name"][:90]] = by_name.get(event["name"][:90], 0.0) + event["dur"]
    return {
        "busy_share": busy / (end - spans[0][0]), "launches": len(events),
        "milliseconds": (end - spans[0][0]) / 1e3,
        "kernels": {
            name: round(duration / busy, 4)
            for name, duration in sorted(by_name.items(), key=lambda item: -item[1])[:14]
        },
    }  # fmt: skip


def peers(bench: Bench) -> dict[str, Any]:
    """Others on the same texts, in memory; each warm, without the time to load."""
    result: dict[str, Any] = {}
    tokenizer = Tokenizer.from_file(str(bench.work / bench.models[0] / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    for name in bench.models:
        few, many = bench.texts(1000), bench.texts(min(20_000, ROWS[name] // 2))
        cases: dict[str, Callable[[], float]] = {}
        for how, texts, batch, dtype in (
            ("default", few, 32, torch.float32),
            ("bf16, batch 32", many, 32, torch.bfloat16),
            ("bf16, batch 128", many, 128, torch.bfloat16),
            ("bf16, batch 512", many, 512, torch.bfloat16),
        ):
            case = f"sentence-transformers {how}"
            encode = sentence_transformers_case(bench.work / name, texts, batch, dtype)
            cases[case] = rate_of(encode, tokenizer, texts)
        if name == "bert-base":
            folder = bench.work / "bert-base-classifier"
            for how, texts, batch, dtype in (
                ("default", few[:300], 1, torch.float32),
                ("bf16, batch 64", few, 64, torch.bfloat16),
                ("bf16, batch 256, sorted", sorted(many, key=len), 256, torch.bfloat16),
            ):
                classify = pipeline_case(folder, texts, batch, dtype)
                cases[f"pipeline {how}"] = rate_of(classify, tokenizer, texts)
        result[name] = bench.interleave(cases, 3)
        del cases
        free()
    return result


def rate_of(work: Callable[[], Any], tokenizer: Tokenizer, texts: list[str]) -> Callable[[], float]:
    """Tokens of the texts over the seconds that the work takes."""
    tokens = sum(len(encoding) for encoding in tokenizer.encode_batch_fast(texts))
    return lambda: tokens / seconds_of(work)


def sentence_transformers_case(
    folder: Path, texts: list[str], batch: int, dtype: torch.dtype
) -> Callable[[], Any]:
    from sentence_transformers import SentenceTransformer

    options = {} if dtype == torch.float32 else {"model_kwargs": {"dtype": dtype}}
    model = SentenceTransformer(str(folder), device="cuda", **options)
    model.encode(texts[:256], batch_size=batch, show_progress_bar=False)
    return lambda: model.encode(texts, batch_size=batch, show_progress_bar=False)


def pipeline_case(
    folder: Path, texts: list[str], batch: int, dtype: torch.dtype
) -> Callable[[], Any]:
    pipe = transformers.pipeline("text-classification", model=str(folder), device=0, dtype=dtype)
    options: dict[str, Any] = {"batch_size": batch, "truncation": True, "max_length": 512}
    pipe(texts[:64], **options)
    return lambda: pipe(texts, **options)


def run(bench: Bench) -> dict[str, Any]:
    """Whole commands, beside what bounds them: the engine alone and the loader alone."""
    result: dict[str, Any] = {}
    for name in [*bench.models, "bert-base-classifier"]:
        folder = bench.work / name
        texts = bench.texts(ROWS.get(name, 130_000))
        source = bench.work / "input"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        for part in range(8):  # each file is read by one process
            rows = (json.dumps({"id": i, "text": text}) for i, text in enumerate(texts[part::8]))
            (source / f"part-{part}.jsonl").write_text("\n".join(rows) + "\n")
        engine = engine_of(folder)
        requests = requests_of(engine, folder, texts)
        tokens = int(requests.cost.sum())
        batches = [
            batch.pin_memory()
            for batch in make_batches(ChunkId(0, 0), requests, engine.default_budget)
        ]
        alone = stream_of(engine, batches)
        alone()
        seconds: list[float] = []
        job = [
            "run", str(source), "--model", str(folder), "--output", str(bench.work / "output"),
            "--chunk-rows", "4096",
        ]  # fmt: skip
        seconds: list[float] = []
        found = bench.interleave({
            "engine_alone": alone,
            "pipeline_alone": partial(whole_run, job, None),
            "run": partial(whole_run, job, seconds),
        }, min(3, bench.rounds))  # fmt: skip
        bound = min(found["engine_alone"]["median"], found["pipeline_alone"]["median"])
        result[name] = {
            **found, "rows": len(texts), "tokens": tokens, "command_seconds": spread(seconds),
            "share_of_the_smaller_bound": found["run"]["median"] / bound,
        }  # fmt: skip
        engine.close()
        del engine, batches, alone
        free()
    return result


def whole_run(job: list[str], seconds: list[float] | None) -> float:
    """A command from file to file; tokens a second from its first shard's commit to its last one's.

    Without a list for its `seconds`, the model is left out: what reading, tokenizing, moving and
    writing allow by themselves. The start (imports, weights, loader processes) is in `seconds` alone.
    """
    program = [sys.executable, str(Path(__file__).resolve()), "--without-model"]
    command = [sys.executable, "-m", "batchinfer"] if seconds is not None else program
    started = time.perf_counter()
    subprocess.run([*command, *job, "--overwrite", "--quiet"], check=True, capture_output=True)
    if seconds is not None:
        seconds.append(time.perf_counter() - started)
    folder = Path(job[job.index("--output") + 1]) / "data"
    shards = sorted(folder.glob("*.parquet"), key=lambda shard: shard.stat().st_mtime_ns)
    counts = [pq.read_table(shard, columns=["_num_tokens"])["_num_tokens"] for shard in shards]
    between = shards[-1].stat().st_mtime_ns - shards[0].stat().st_mtime_ns
    return float(sum(pc.sum(count).as_py() for count in counts[1:]) / between * 1e9)


class WithoutModel(LocalEngine):
    """Answers zeros at once, in place of the local engine."""

    def __init__(self, task: Task, folder: Path, **options: Any) -> None:
        Engine.__init__(self, task)
        self.device = torch.device("cuda")
        self.dtype, self.device_kind = "bfloat16", torch.cuda.get_device_name()
        self.default_budget = BatchBudget(32768, 4096)
        self.model = None

    def stream(self, batches: Any) -> Iterator[tuple[Batch, Answers]]:
        yield from Engine.stream(self, batches)

    def answer(self, batch: Batch) -> Answers:
        return Answers({
            name: np.zeros((len(batch), *answer.shape), answer.dtype)
            for name, answer in self.task.answers.items()
        })  # fmt: skip


SECTIONS = {
    "ceilings": ceilings, "correctness": correctness, "engine": engine, "profile": profile,
    "generation": generation, "run": run, "peers": peers,
}  # fmt: skip


def machine() -> dict[str, Any]:
    device = torch.cuda.get_device_properties(0)
    return {
        "gpu": device.name, "gpu_gib": round(device.total_memory / 2**30, 1), "cores": os.cpu_count(),
        "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "cuda": torch.version.cuda,
        "sentence_transformers": version("sentence-transformers"), "tokenizers": version("tokenizers"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=500, help="after these, nothing further is begun"
    )
    chosen = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(
            read_corpus(chosen.corpus), Path(name), chosen.out, chosen.models, chosen.rounds,
            started + chosen.seconds,
        )  # fmt: skip
        random.Random(0).shuffle(bench.corpus)
        bench.results |= {"machine": machine(), "command": sys.argv[1:], "seconds": {}}
        for model in chosen.models:
            make_model(model, bench.work / model, bench.corpus)
        MODELS["bert-base-classifier"] = MODELS["bert-base"]
        make_model(
            "bert-base-classifier", bench.work / "bert-base-classifier", bench.corpus,
            "ForSequenceClassification",
        )  # fmt: skip
        bench.results["seconds"]["make models"] = round(time.monotonic() - started, 1)
        free()
        for section in chosen.sections:
            began = time.monotonic()
            if began > bench.deadline:
                bench.results[section] = {"skipped": "out of time"}
                continue
            try:
                bench.results[section] = SECTIONS[section](bench)
            except Exception:  # what was measured so far is worth keeping
                bench.results[section] = {"failed": traceback.format_exc()[-3000:]}
            bench.results["seconds"][section] = round(time.monotonic() - began, 1)
            bench.save()
            print(f"{section}: {bench.results['seconds'][section]} s", flush=True)
            print(json.dumps(bench.results[section], indent=1)[:6000], flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--without-model"]:
        local.LocalEngine = WithoutModel  # type: ignore[misc]
        sys.argv[1:2] = []
        sys.exit(batchinfer.cli.main())
    else:
        main()
