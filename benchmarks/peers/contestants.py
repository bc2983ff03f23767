"""What each contestant does: load a model; then, as often as asked, read JSONL, answer, write Parquet.

Libraries are imported where they are used, so that a contestant's process holds its own alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.machine import usable_cores

Arrays = dict[str, npt.NDArray[Any]]
Ints = npt.NDArray[np.int64]

MAX_LENGTH = 512
#: Rows of a chunk of batchinfer, within which it sorts.
CHUNK_ROWS = 16384


class Contestant(ABC):
    """Loaded once by `__init__`; `work` is what is timed, unless it says `seconds` itself."""

    def __init__(self, model: Path, task: str, setting: dict[str, Any]) -> None:
        self.model, self.task, self.setting = model, task, setting

    @abstractmethod
    def work(self, source: Path, output: Path) -> dict[str, Any]:
        """Answer a file's rows into Parquet; returns at least `tokens`, the useful ones."""


class InMemory(Contestant):
    """Takes a list of texts; around it the plainest reading and writing there is."""

    #: Useful tokens, and those computed with padding, of the answers under way.
    tokens = computed = 0

    def work(self, source: Path, output: Path) -> dict[str, Any]:
        self.tokens = self.computed = 0
        ids, texts = read_rows(source)
        write_answers(output, ids, self.answer(texts))
        return {"tokens": self.tokens, "computed_tokens": self.computed}

    @abstractmethod
    def answer(self, texts: list[str]) -> Arrays:
        """`embedding` float32[n, d]; or `label` int[n] and `score` float32[n]."""

    def count(self, module: Any, positional: Any, inputs: dict[str, Any]) -> None:
        """A forward hook that adds up what the model sees."""
        mask = inputs.get("attention_mask")
        size = int(inputs["input_ids"].numel())
        self.computed += size
        self.tokens += size if mask is None else int(mask.sum())


def read_rows(source: Path) -> tuple[list[int], list[str]]:
    with source.open("rb") as lines:
        rows = [orjson.loads(line) for line in lines]
    return [row["id"] for row in rows], [row["text"] for row in rows]


def write_answers(output: Path, ids: Sequence[int], answers: Arrays) -> None:
    columns: dict[str, Any] = {"id": pa.array(ids)}
    for name, values in answers.items():
        column: Any = pa.array(values.reshape(-1))
        if values.ndim == 2:
            column = pa.FixedSizeListArray.from_arrays(column, values.shape[1])
        columns[name] = column
    pq.write_table(pa.table(columns), output)


# batchinfer --------------------------------------------------------------------------------------


class BatchInfer(Contestant):
    """`batchinfer.run` as it is, settings auto; the model's loading, in every run, is taken out."""

    def __init__(self, model: Path, task: str, setting: dict[str, Any]) -> None:
        super().__init__(model, task, setting)
        require_engine(setting["engine"])
        import batchinfer

        self.run = batchinfer.run

    def work(self, source: Path, output: Path) -> dict[str, Any]:
        shutil.rmtree(output, ignore_errors=True)
        started = time.perf_counter()
        report = self.run(config_of(self, source, output))
        whole = time.perf_counter() - started
        assert report.finished and report.num_errors == 0, f"{report.num_errors} rows failed"
        assert report.engine == self.setting["engine"], f"answered by {report.engine}"
        return {
            "seconds": report.seconds,
            "load_seconds": report.load_seconds,
            # planning, checks and the last word, on either side of the rows
            "around_seconds": whole - report.seconds - report.load_seconds,
            "tokens": report.num_tokens,
            "computed_tokens": self.computed(output, report.max_batch_tokens),
            "settings": {"max_batch_tokens": report.max_batch_tokens, "dtype": report.dtype},
        }

    def computed(self, output: Path, budget: int) -> int:
        """Tokens with padding, from the lengths that the shards hold: a shard is a chunk."""
        total = 0
        for shard in (output / "data").glob("*.parquet"):
            lengths = pq.read_table(shard, columns=["_num_tokens"])["_num_tokens"].to_numpy()
            batches = (lengths[rows] for rows in planned(lengths, budget))
            total += computed_tokens(self.setting["engine"], batches)
        return total


class BareEngine(Contestant):
    """batchinfer's engine fed with the same batches, tokenized before: no files, no chunks, no commits."""

    def __init__(self, model: Path, task: str, setting: dict[str, Any]) -> None:
        super().__init__(model, task, setting)
        require_engine(setting["engine"])
        from batchinfer.engines import create_encoder, create_engine, describe_model
        from batchinfer.tasks import create_task

        config = config_of(self, Path("rows.jsonl"), Path("out"))
        spec, folder = describe_model(config)
        self.answers = create_task(spec)
        self.engine = create_engine(config, self.answers, folder)
        self.encoder = create_encoder(config, spec, folder)

    @property
    def budget(self) -> Any:
        """Its own, or that of the run that it is compared with."""
        return self.engine.default_budget.override(self.setting.get("max_batch_tokens"), None)

    def work(self, source: Path, output: Path) -> dict[str, Any]:
        ids, texts = read_rows(source)
        batches = list(self.tokenized(texts))
        started = time.perf_counter()
        answered = list(self.engine.stream(batches))
        seconds = time.perf_counter() - started
        found: Arrays = {}
        for batch, said in answered:
            assert said.error is None, said.error
            for name, values in said.values.items():
                whole = found.setdefault(
                    name, np.zeros((len(ids), *values.shape[1:]), values.dtype)
                )
                whole[batch.chunk.chunk * CHUNK_ROWS + batch.indices] = values
        write_answers(output, ids, found)
        return {
            "seconds": seconds,
            "tokens": sum(batch.num_tokens for batch in batches),
            "computed_tokens": computed_tokens(
                self.setting["engine"], (batch.lengths for batch in batches)
            ),
            "settings": {"max_batch_tokens": self.budget.max_batch_tokens},
        }

    def tokenized(self, texts: list[str]) -> Iterator[Any]:
        from batchinfer.batching import make_batches
        from batchinfer.core import Chunk, ChunkId, Position

        for number, start in enumerate(range(0, len(texts), CHUNK_ROWS)):
            id = ChunkId(0, number)
            table = pa.table({"text": texts[start : start + CHUNK_ROWS]})
            chunk = Chunk(id, table, {}, Position(), Position(), True, "")
            requests = self.answers.encode(chunk, self.encoder)
            yield from make_batches(id, requests, self.budget)


def require_engine(engine: str) -> None:
    """Raises NotImplementedError where this batchinfer has no such engine, or lacks what it needs."""
    if engine == "openvino":
        import importlib.util

        if importlib.util.find_spec("batchinfer.engines.openvino") is None:
            raise NotImplementedError("this batchinfer has no openvino engine")
        if importlib.util.find_spec("openvino") is None:
            raise NotImplementedError("openvino is not installed")


def computed_tokens(engine: str, batches: Iterable[npt.NDArray[Any]]) -> int:
    """What batchinfer computes on a CPU of batches of rows of such lengths, with what it adds itself.

    The local engine fills up a packed batch, the other one pads each row to a rounded width.
    """
    if engine == "local":
        from batchinfer.engines.local import _CPU_MULTIPLE

        return sum(-(-int(lengths.sum()) // _CPU_MULTIPLE) * _CPU_MULTIPLE for lengths in batches)
    from batchinfer.core import Batch, ChunkId
    from batchinfer.engines.openvino import _Graph

    graph = _Graph(None, ("attention_mask",), 0)
    total = 0
    for lengths in batches:
        rows = np.arange(len(lengths))
        batch = Batch(ChunkId(0, 0), rows, lengths.astype(np.int32), {})
        total += graph.padded(batch, widest=MAX_LENGTH)[0].size
    return total


def config_of(contestant: Contestant, source: Path, output: Path) -> Any:
    """The job, with nothing of the caller's: no variable, no profile of an earlier tune."""
    from batchinfer import RunConfig

    job = {
        "inputs": (str(source),), "output": str(output), "model": str(contestant.model),
        "task": contestant.task, "max_length": MAX_LENGTH, "device": "cpu", "profile": "none",
    }  # fmt: skip
    return RunConfig.model_validate({**job, **contestant.setting})


# Graphs fed with sorted batches ------------------------------------------------------------------


class SortedLoop(InMemory):
    """The bare loop that batchinfer is measured by: tokenized at once, sorted, padded to the longest.

    Embeds; pooling and normalisation are in the graph. `width`: rows are padded to a multiple of it.
    """

    def __init__(self, model: Path, task: str, setting: dict[str, Any]) -> None:
        super().__init__(model, task, setting)
        from tokenizers import Tokenizer

        assert task == "embed"
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_LENGTH)
        self.size = int(json.loads((model / "config.json").read_text())["hidden_size"])

    @abstractmethod
    def infer(self, ids: Ints, mask: Ints, keep: Callable[[npt.NDArray[Any]], None]) -> None:
        """Hand the vectors float32[b, d] of a padded batch int64[b, t] to `keep`, now or later."""

    def finish(self) -> None:
        """See that every batch has been kept."""

    def answer(self, texts: list[str]) -> Arrays:
        encodings = self.tokenizer.encode_batch_fast(texts)
        tokens = [np.array(encoding.ids, np.int64) for encoding in encodings]
        lengths = np.array([len(row) for row in tokens])
        vectors = np.empty((len(texts), self.size), np.float32)
        multiple = self.setting["width"]
        for rows in planned(lengths, self.setting["budget"], multiple):
            width = width_of(int(lengths[rows[0]]), multiple)
            mask = (np.arange(width) < lengths[rows][:, None]).astype(np.int64)
            ids = np.zeros_like(mask)
            ids[mask.astype(bool)] = np.concatenate([tokens[row] for row in rows])

            def keep(found: npt.NDArray[Any], rows: Ints = rows) -> None:
                vectors[rows] = found

            self.infer(ids, mask, keep)
            self.computed += ids.size
        self.finish()
        self.tokens = int(lengths.sum())
        return {"embedding": vectors}


def planned(lengths: npt.NDArray[Any], budget: int, multiple: int = 1) -> Iterator[Ints]:
    """Rows by length, longest first, cut where rows times their width exceed the budget."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = width_of(max(1, int(lengths[order[start]])), multiple)
        count = min(4096, max(1, budget // width))
        yield order[start : start + count]
        start += count


def width_of(longest: int, multiple: int) -> int:
    """What rows are padded to: a multiple, where that adds a quarter at most, as batchinfer does it."""
    width = -(-longest // multiple) * multiple
    return width if width <= min(MAX_LENGTH, 1.25 * longest) else longest


def kept(name: str) -> Path:
    """Where a contestant keeps what it makes once: the cache folder that the contest gave it."""
    folder = Path(os.environ["XDG_CACHE_HOME"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def embedder(model: Path, attention: str) -> tuple[Any, tuple[Any, Any]]:
    """A module of plain PyTorch to trace, (ids, mask) → unit vectors in float32, and an example."""
    import torch
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(
                model, dtype=torch.float32, attn_implementation=attention
            )

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
            return torch.nn.functional.normalize(mean, dim=-1)

    ids = torch.full((2, 9), 5, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # without padding, a trace might leave the mask out
    return Embedder().eval(), (ids, mask)


class OpenVINO(SortedLoop):
    """OpenVINO on the model, traced with an `attention` of transformers.

    `streams`: one request on all cores, or one a core.
    """

    def __init__(self, model: Path, task: str, setting: dict[str, Any]) -> None:
        super().__init__(model, task, setting)
        import openvino  # type: ignore[import-untyped]

        file = kept(f"{setting['attention']}.xml")
        if not file.exists():
            module, example = embedder(model, setting["attention"])
            inputs = dict(zip(("input_ids", "attention_mask"), example, strict=True))
            graph = openvino.convert_model(module, example_input=inputs)
            openvino.save_model(graph, file, compress_to_fp16=False)
        streams = 1 if setting["streams"] == "one" else usable_cores()
        compiled = openvino.Core().compile_model(
            str(file),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if setting["dtype"] == "bfloat16" else "f32",
                "INFERENCE_NUM_THREADS": usable_cores(),
                "NUM_STREAMS": str(streams),
            },
        )
        self.request = compiled.create_infer_request() if streams == 1 else None
        self.queue = openvino.AsyncInferQueue(compiled, streams)
        self.queue.set_callback(lambda request, keep: keep(request.get_output_tensor(0).data))

    def infer(self, ids: Ints, mask: Ints, keep: Callable[[npt.NDArray[Any]], None]) -> None:
        if self.request is None:
            self.queue.start_async({0: ids, 1: mask}, keep)
        else:
            self.request.infer({0: ids, 1: mask}, share_inputs=True)
            keep(self.request.get_output_tensor(0).data)

    def finish(self) -> None:
        self.queue.wait_all()


class OnnxRuntime(SortedLoop):
    """ONNX Runtime on the exported model, every graph optimisation on."""

    def __init__(self, model: Path, task: str, setting: dict[str, Any]) -> None:
        super().__init__(model, task, setting)
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(
            str(exported(model)), options, providers=["CPUExecutionProvider"]
        )

    def infer(self, ids: Ints, mask: Ints, keep: Callable[[npt.NDArray[Any]], None]) -> None:
        keep(self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0])


def exported(model: Path) -> Path:
    """The model as ONNX, made once."""
    file = kept("model.onnx")
    if not file.exists():
        import torch

        module, example = embedder(model, "eager")
        names = ["input_ids", "attention_mask"]
        axes = {**{name: {0: "rows", 1: "tokens"} for name in names}, "embedding": {0: "rows"}}
        torch.onnx.export(
            module, example, str(file), input_names=names, output_names=["embedding"],
            dynamic_axes=axes, opset_version=17, dynamo=False,
        )  # fmt: skip
    return file


# PyTorch libraries -------------------------------------------------------------------------------


class SentenceTransformers(InMemory):
    """`SentenceTransformer.encode`, which sorts by length itself."""

    def __init__(self, model: Path, task: str, setting: dict[str, Any]) -> None:
        super().__init__(model, task, setting)
        import torch
        from sentence_transformers import SentenceTransformer

        self.library = SentenceTransformer(
            str(model), device="cpu", model_kwargs={"dtype": getattr(torch, setting["dtype"])}
        )
        assert self.library.max_seq_length == MAX_LENGTH
        # It calls the model's `forward` by name, past hooks; its own first module gets the same inputs.
        self.library[0].register_forward_pre_hook(
            lambda module, arguments: self.count(module, (), arguments[0])
        )

    def answer(self, texts: list[str]) -> Arrays:
        vectors = self.library.encode(
            texts, batch_size=self.setting["batch"], show_progress_bar=False
        )
        return {"embedding": np.asarray(vectors, dtype=np.float32)}


class Pipeline(InMemory):
    """`pipeline("text-classification")`, rows in input order."""

    def __init__(self, model: Path, task: str, setting: dict[str, Any]) -> None:
        super().__init__(model, task, setting)
        import torch
        from transformers import pipeline

        self.library: Any = pipeline(
            "text-classification",
            model=str(model),
            dtype=getattr(torch, setting["dtype"]),
            device="cpu",
        )
        self.labels: Any = self.library.model.config.label2id
        self.library.model.register_forward_pre_hook(self.count, with_kwargs=True)

    def answer(self, texts: list[str]) -> Arrays:
        found = self.library(
            texts, batch_size=self.setting["batch"], truncation=True, max_length=MAX_LENGTH
        )
        return {
            "label": np.array([self.labels[row["label"]] for row in found], np.int32),
            "score": np.array([row["score"] for row in found], np.float32),
        }


class Loop(InMemory):
    """The loop that one writes first: a DataLoader in input order, batches padded to their longest."""

    def __init__(self, model: Path, task: str, setting: dict[str, Any]) -> None:
        super().__init__(model, task, setting)
        import torch
        import transformers

        kind = "AutoModel" if task == "embed" else "AutoModelForSequenceClassification"
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
        self.library: Any = getattr(transformers, kind).from_pretrained(
            model, dtype=getattr(torch, setting["dtype"])
        )
        self.library.eval().register_forward_pre_hook(self.count, with_kwargs=True)

    def answer(self, texts: list[str]) -> Arrays:
        import torch
        from torch.utils.data import DataLoader

        found: dict[str, list[Any]] = {}
        with torch.inference_mode():
            for batch in DataLoader(texts, batch_size=self.setting["batch"]):  # type: ignore[arg-type]
                inputs = self.tokenizer(
                    batch, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
                )
                said = self.library(**inputs)
                if self.task == "embed":
                    weights = inputs["attention_mask"].unsqueeze(-1)
                    mean = (said.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)
                    answers = {"embedding": torch.nn.functional.normalize(mean, dim=-1)}
                else:
                    score, label = said.logits.float().softmax(dim=-1).max(dim=-1)
                    answers = {"label": label.int(), "score": score}
                for name, values in answers.items():
                    found.setdefault(name, []).append(values.numpy())
        return {name: np.concatenate(parts) for name, parts in found.items()}


# What the hardware allows ------------------------------------------------------------------------


class Ceilings(Contestant):
    """Not a contestant: GFLOP/s of the linear layers of one block, 4,096 tokens at a time."""

    TOKENS = 4096

    def __init__(self, model: Path, task: str, setting: dict[str, Any]) -> None:
        super().__init__(model, task, setting)
        import torch

        config = json.loads((model / "config.json").read_text())
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        shapes = [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]
        self.flops = sum(2 * self.TOKENS * a * b for a, b in shapes)
        self.cases: dict[str, Callable[[], None]] = {}
        for dtype in (torch.float32, torch.bfloat16):
            layers = [
                (torch.randn(self.TOKENS, a, dtype=dtype), torch.randn(b, a, dtype=dtype))
                for a, b in shapes
            ]
            name = str(dtype).removeprefix("torch.")
            self.cases[f"{name} linear"] = self.linear(layers)
            with contextlib.suppress(AttributeError, RuntimeError):  # not in every PyTorch
                self.cases[f"{name} prepacked"] = self.prepacked(layers)

    @staticmethod
    def linear(layers: list[tuple[Any, Any]]) -> Callable[[], None]:
        import torch

        def run() -> None:
            for x, weight in layers:
                torch.nn.functional.linear(x, weight)

        return run

    @staticmethod
    def prepacked(layers: list[tuple[Any, Any]]) -> Callable[[], None]:
        """The same through oneDNN, weights laid out before."""
        import torch

        ops = torch.ops.mkldnn
        packed = [(x, ops._reorder_linear_weight(weight, Ceilings.TOKENS)) for x, weight in layers]

        def run() -> None:
            for x, weight in packed:
                ops._linear_pointwise(x, weight, None, "none", [], "")

        return run

    def work(self, source: Path, output: Path) -> dict[str, Any]:
        import torch

        with torch.inference_mode():
            return {"gflops": {name: self.rate(case) for name, case in self.cases.items()}}

    def rate(self, case: Callable[[], None]) -> float:
        case()
        started, count = time.perf_counter(), 0
        while (seconds := time.perf_counter() - started) < 0.5:
            case()
            count += 1
        return float(self.flops * count / seconds / 1e9)


KINDS: dict[str, type[Contestant]] = {
    "batchinfer": BatchInfer,
    "engine": BareEngine,
    "openvino": OpenVINO,
    "onnxruntime": OnnxRuntime,
    "sentence-transformers": SentenceTransformers,
    "pipeline": Pipeline,
    "loop": Loop,
    "ceilings": Ceilings,
}
