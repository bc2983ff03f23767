"""Answers of whole runs against plain transformers, one row at a time, at BERT-base size.

    python benchmarks/parity.py train.jsonl --text-column question --work-folder parity

Makes a seeded BERT-base-sized classifier (random weights, spread until rows differ) with a WordPiece
vocabulary of the input's own words, asks transformers about each row alone in float32, and holds
`batchinfer run` against it: classify and embed, float32 and bfloat16. The precondition is checked first:
different rows have a cosine below 0.5 in the median and no label is more than 70 %. Swapping two rows
must be seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.dataset as ds
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

Floats = npt.NDArray[np.float32]


def make_model(folder: Path, texts: list[str]) -> None:
    """Save a classifier of BERT-base's size, two labels, seed 0."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts, WordPieceTrainer(vocab_size=8192, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), num_labels=2)
    model = BertForSequenceClassification(config).eval()
    with torch.inference_mode():
        # Rows of plain random weights are all alike (cosine 0.98). Wider embeddings make the texts
        # count; taking the common part out of the last bias leaves what tells rows apart.
        model.bert.embeddings.word_embeddings.weight.normal_(std=1.0)
        inputs = [
            torch.tensor([e.ids])
            for e in tokenizer.encode_batch(texts[:: max(1, len(texts) // 200)])
        ]
        states = [model.bert(ids).last_hidden_state[0] for ids in inputs]
        last = model.bert.encoder.layer[-1].output.LayerNorm
        last.bias -= torch.stack([s.mean(dim=0) for s in states]).mean(dim=0)
        # The head looks where rows differ most. A random direction would see mostly rounding, and
        # agreement in bfloat16 would say how noisy the head is, not how right the run.
        pooled = torch.cat([model.bert(ids).pooler_output for ids in inputs])
        direction = torch.linalg.svd(pooled - pooled.mean(dim=0)).Vh[0]
        model.classifier.weight.copy_(torch.stack([direction, -direction]) * 4)
        model.classifier.bias.copy_(-(model.classifier.weight @ pooled.mean(dim=0)))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": "[PAD]",
                "unk_token": "[UNK]",
                "cls_token": "[CLS]",
                "sep_token": "[SEP]",
                "model_max_length": 512,
            }
        )
    )


def reference(folder: Path, texts: list[str]) -> dict[str, Floats]:
    """Labels, scores and mean-pooled vectors by transformers in float32, one row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scores, vectors = [], []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)["input_ids"]
            out = model(ids, output_hidden_states=True)
            scores.append(out.logits.softmax(dim=-1)[0].numpy())
            vectors.append(out.hidden_states[-1][0].mean(dim=0).numpy())
    return {"scores": np.stack(scores), "vectors": np.stack(vectors)}


def answers(source: Path, model: Path, output: Path, task: str, dtype: str, column: str) -> Any:
    """A whole `batchinfer run`; returns its rows in order and the seconds it took."""
    command = [
        sys.executable, "-m", "batchinfer", "run", str(source), "-m", str(model), "-o", str(output),
        "--task", task, "--dtype", dtype, "--text-column", column, "--overwrite", "--quiet", "--json",
    ]  # fmt: skip
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return ds.dataset(output / "data", format="parquet").to_table(), report


def cosine(a: Floats, b: Floats) -> Floats:
    """The cosine of each row of a with the same row of b."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    result: Floats = (a * b).sum(axis=1) / norms
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--work-folder", type=Path, default=Path("parity"))
    parser.add_argument("--limit", type=int)
    settings = parser.parse_args()
    lines = settings.source.read_bytes().split(b"\n")
    texts = [json.loads(line)[settings.text_column] for line in lines if line.strip()]
    work = settings.work_folder
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "model" / "config.json").exists():
        make_model(work / "model", texts)
    if not (work / "reference.npz").exists():
        started = time.perf_counter()
        np.savez(work / "reference.npz", **reference(work / "model", texts))
        print(f"reference: {len(texts)} rows alone in {time.perf_counter() - started:.0f} s")
    wanted = np.load(work / "reference.npz")
    labels, vectors = wanted["scores"].argmax(axis=1), wanted["vectors"]
    shares = np.bincount(labels) / len(labels)
    others = cosine(vectors, np.roll(vectors, 1, axis=0))
    print(f"{len(texts)} rows; label shares {shares.round(3)}; cosine of different rows: median "
          f"{np.median(others):.3f}")  # fmt: skip
    assert shares.max() <= 0.7, "one label has nearly all rows: parity would be trivial"
    assert np.median(others) < 0.5, "rows are alike: parity would be trivial"

    for dtype in ("float32", "bfloat16"):
        table, report = answers(
            settings.source, work / "model", work / "out", "classify", dtype, settings.text_column
        )
        assert table[settings.text_column].to_pylist() == texts, "rows are not in order"
        got = np.array(
            [int(label.removeprefix("LABEL_")) for label in table["predicted_label"].to_pylist()]
        )
        score = table["predicted_score"].to_numpy()
        difference = np.abs(score - wanted["scores"].max(axis=1)).max()
        print(f"classify {dtype}: labels agree {(got == labels).mean():.4%}, largest score difference "
              f"{difference:.2e}, {report['tokens_per_second']:,.0f} tokens/s")  # fmt: skip
        swapped = score.copy()
        swapped[[0, 1]] = swapped[[1, 0]]
        if dtype == "float32":
            assert np.abs(swapped - wanted["scores"].max(axis=1)).max() > 1e-4, "a swap goes unseen"
        table, report = answers(
            settings.source, work / "model", work / "out", "embed", dtype, settings.text_column
        )
        found = np.stack(table["embedding"].to_numpy())
        same = cosine(found, vectors)
        print(
            f"embed {dtype}: smallest cosine {same.min():.7f}, {report['tokens_per_second']:,.0f} tokens/s"
        )
        found[[0, 1]] = found[[1, 0]]
        assert cosine(found, vectors).min() < 0.999, "a swap goes unseen"


if __name__ == "__main__":
    main()
