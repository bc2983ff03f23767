"""The sample data is what it says: the same reviews three times, and a model with an honest card."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.conftest import ROOT

SAMPLES = ROOT / "sample_data"
MODEL = SAMPLES / "tiny-sentiment"
COLUMNS = ["id", "product", "text", "sentiment"]


def test_the_three_files_hold_the_same_reviews_but_for_the_broken_one() -> None:
    lines = (SAMPLES / "reviews.jsonl").read_bytes().split(b"\n")[:-1]
    with (SAMPLES / "reviews.csv").open(encoding="utf-8", newline="") as file:
        header, *records = csv.reader(file)
    table = pq.read_table(SAMPLES / "reviews.parquet").to_pylist()
    assert len(lines) == len(records) == len(table) == 1000
    assert header == COLUMNS
    broken = []
    for index, (line, record, row) in enumerate(zip(lines, records, table, strict=True)):
        try:
            review = orjson.loads(line)
        except orjson.JSONDecodeError:
            broken.append(index)
            assert len(record) < len(COLUMNS)
            assert row["text"] is None
            continue
        assert review == row
        assert record == ["" if review[name] is None else str(review[name]) for name in COLUMNS]
    assert len(broken) == 1


def test_the_script_makes_the_committed_files(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "make_sample_reviews.py"
    subprocess.run([sys.executable, str(script), "--output", str(tmp_path)], check=True)
    for name in ("reviews.jsonl", "reviews.csv", "reviews.parquet"):
        assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes(), name


def test_the_model_is_small_and_holds_no_pickle() -> None:
    files = list(MODEL.iterdir())
    assert sum(file.stat().st_size for file in files) <= 3 << 20
    assert {file.suffix for file in files} == {".json", ".safetensors", ".md"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_model_card_states_the_accuracy_that_the_model_has() -> None:
    stated = re.search(
        r"`sample_data/reviews.csv` \| .*\((\d+) of (\d+)\)", (MODEL / "README.md").read_text()
    )
    assert stated
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, use_safetensors=True).eval()
    with (SAMPLES / "reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["sentiment"]]
    right = 0
    with torch.inference_mode():
        for row in rows:
            encoded = tokenizer(row["text"], truncation=True, return_tensors="pt")
            label = model(**encoded).logits.argmax().item()
            right += model.config.id2label[label] == row["sentiment"]
    # A CPU may round otherwise than the one it was trained on: a review on the fence may fall.
    assert abs(right - int(stated[1])) <= 2
    assert len(rows) == int(stated[2])
