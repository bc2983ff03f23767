"""The sample data: three formats, one content, and a model that does what its card says."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample_data"
MODEL = SAMPLES / "tiny-sentiment"
#: Those that scripts/make_sample_models.py trains.
SMALL_MODELS = [
    "tiny-entailment",
    "tiny-entities",
    "tiny-gaps",
    "tiny-reranker",
    "tiny-translator",
    "tiny-writer",
]
COLUMNS = ["id", "product", "text", "sentiment"]
BROKEN_INDEX = 612


def jsonl_rows() -> list[dict[str, Any] | None]:
    # Split at LF only: one text holds U+2028, which str.splitlines() would take for a line end.
    lines = (SAMPLES / "reviews.jsonl").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    rows: list[dict[str, Any] | None] = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            rows.append(None)
    return rows


def csv_rows() -> list[dict[str, Any] | None]:
    with (SAMPLES / "reviews.csv").open(encoding="utf-8", newline="") as file:
        header, *body = csv.reader(file)
    assert header == COLUMNS
    return [
        {
            "id": int(fields[0]),
            "product": fields[1],
            "text": fields[2],
            "sentiment": fields[3] or None,
        }
        if len(fields) == len(COLUMNS)
        else None
        for fields in body
    ]


def parquet_rows() -> list[dict[str, Any] | None]:
    rows = pq.read_table(SAMPLES / "reviews.parquet").to_pylist()
    return [None if row["text"] is None else row for row in rows]


def test_the_three_formats_hold_the_same_records() -> None:
    from_jsonl, from_csv, from_parquet = jsonl_rows(), csv_rows(), parquet_rows()
    assert len(from_jsonl) == len(from_csv) == len(from_parquet) == 1000
    assert from_jsonl == from_csv == from_parquet
    assert [index for index, row in enumerate(from_jsonl) if row is None] == [BROKEN_INDEX]
    good = [row for row in from_jsonl if row is not None]
    assert [row["id"] for row in good] == [n for n in range(1, 1001) if n != BROKEN_INDEX + 1]
    assert {row["sentiment"] for row in good} == {"positive", "negative", None}
    # No review is there twice.
    assert len({row["text"] for row in good}) == len(good)


def test_file_details() -> None:
    raw = (SAMPLES / "reviews.csv").read_bytes()
    assert b"\r" not in raw
    assert not raw.startswith(b"\xef\xbb\xbf")
    file = pq.ParquetFile(SAMPLES / "reviews.parquet")
    assert file.schema_arrow.names == COLUMNS
    assert file.schema_arrow.types == [pa.int64(), pa.string(), pa.string(), pa.string()]
    group = file.metadata.row_group(0)
    assert {group.column(index).compression for index in range(4)} == {"ZSTD"}


def test_the_awkward_rows_are_there() -> None:
    texts = {row["text"] for row in jsonl_rows() if row is not None}
    assert {"", "N/A", "k", "00420", "=SUM(1,1)"} <= texts
    assert any(text and not text.strip() for text in texts)
    assert 20_000 <= max(map(len, texts)) < 20_200
    for needle in ("\u2028", "\n", "\t", '"', "https://", "<b>", "\u200d", "\u0301"):
        assert any(needle in text for text in texts), repr(needle)
    for script in ("\u4e00-\u9fff", "\u0600-\u06ff", "\u0e00-\u0e7f", "\u0900-\u097f"):
        assert any(re.search(f"[{script}]", text) for text in texts), script
    for script in ("\u0400-\u04ff", "\u3040-\u309f", "\U0001f300-\U0001faff"):
        assert any(re.search(f"[{script}]", text) for text in texts), script


def test_the_script_writes_the_committed_files(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "make_sample_reviews.py"
    subprocess.run([sys.executable, str(script), "--output", str(tmp_path)], check=True)
    for name in ("reviews.jsonl", "reviews.csv"):
        assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes(), name
    fresh, committed = tmp_path / "reviews.parquet", SAMPLES / "reviews.parquet"
    assert pq.read_table(fresh).equals(pq.read_table(committed))
    # Each version of Arrow signs its files, so only the version that wrote the committed file can
    # be held to every byte of it.
    writers = {pq.ParquetFile(path).metadata.created_by for path in (fresh, committed)}
    if len(writers) == 1:
        assert fresh.read_bytes() == committed.read_bytes()


def test_the_model_folder_is_small_and_safe() -> None:
    files = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert set(files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= 3_000_000


def test_the_model_card_states_the_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(1)  # two threads stall each other where tests run side by side
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    card = (MODEL / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"reviews\.csv`[^(]*?([\d.]+) % \((\d+) of (\d+)\)", card)
    assert stated, "the card gives the accuracy on the sample reviews"

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, use_safetensors=True).eval()
    assert tokenizer.model_max_length == 128
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    rows = [row for row in jsonl_rows() if row is not None and row["sentiment"]]
    # Texts of similar length together: less padding, and the answers do not depend on it.
    rows.sort(key=lambda row: len(row["text"]))
    right = 0
    with torch.inference_mode():
        for start in range(0, len(rows), 64):
            batch = rows[start : start + 64]
            texts = [row["text"] for row in batch]
            inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            for row, label in zip(batch, model(**inputs).logits.argmax(-1).tolist(), strict=True):
                right += model.config.id2label[label] == row["sentiment"]
    accuracy, correct, total = stated.groups()
    # Another CPU rounds otherwise: a review or two on the fence may fall to the other side.
    assert abs(right - int(correct)) <= 2
    assert len(rows) == int(total)
    assert f"{100 * right / len(rows):.1f}" == accuracy


def test_the_script_writes_the_committed_searches(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "sample_text.py"
    subprocess.run([sys.executable, str(script), "--output", str(tmp_path)], check=True)
    written = (tmp_path / "searches.jsonl").read_bytes()
    assert written == (SAMPLES / "searches.jsonl").read_bytes()


def test_the_small_models_are_small_and_all_there() -> None:
    folders = sorted(path.name for path in SAMPLES.glob("tiny-*"))
    assert folders == sorted([*SMALL_MODELS, "tiny-sentiment"])
    sizes = [
        sum(path.stat().st_size for path in (SAMPLES / name).iterdir()) for name in SMALL_MODELS
    ]
    assert max(sizes) < 500_000
    assert sum(sizes) < 2_500_000


def test_a_model_that_nobody_can_train_is_told_before_one_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_sample_models

    trained: list[str] = []
    monkeypatch.setattr(make_sample_models, "make", lambda recipe, _: trained.append(recipe.name))
    monkeypatch.setattr(sys, "argv", ["make_sample_models.py", SMALL_MODELS[0], "tiny-nothing"])
    with pytest.raises(SystemExit, match="2"):
        make_sample_models.main()
    assert "error: tiny-nothing: no such model; there are: tiny-" in capsys.readouterr().err
    assert not trained
    monkeypatch.setattr(sys, "argv", ["make_sample_models.py", SMALL_MODELS[0]])
    make_sample_models.main()
    assert trained == [SMALL_MODELS[0]]


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_small_model_does_what_its_card_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import torch

    torch.set_num_threads(1)  # two threads stall each other where tests run side by side
    import make_sample_models
    import transformers

    folder = SAMPLES / name
    card = (folder / "README.md").read_text(encoding="utf-8")
    stated = {
        what: (int(right), int(total))
        for what, right, total in re.findall(r"^\| (.+) \| .+ % \((\d+) of (\d+)\) \|$", card, re.M)
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    [architecture] = transformers.AutoConfig.from_pretrained(folder).architectures
    model = getattr(transformers, architecture).from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32
    )
    scores = make_sample_models.RECIPES[name].scores(model.eval(), tokenizer)
    assert stated.keys() == scores.keys()
    for what, score in scores.items():
        # Another CPU rounds otherwise: a few on the fence may fall to the other side.
        assert abs(score.right - stated[what][0]) <= 4, what
        assert abs(score.total - stated[what][1]) <= 4, what
