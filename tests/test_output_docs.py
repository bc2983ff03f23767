"""docs/output.md: its tables are what runs leave. Its commands are run by tests/test_docs.py."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer import run
from batchinfer.core import BOOKKEEPING
from batchinfer.exporting import files
from batchinfer.exporting.texts import has_no_text
from batchinfer.tasks import TASKS
from tests.conftest import ROOT, read_output
from tests.test_run import config, rows, write_jsonl

PAGE = (ROOT / "docs" / "output.md").read_text(encoding="utf-8")


def table_of(header: str) -> dict[str, list[str]]:
    """The cells of the table that has such a header, by its first column."""
    body = PAGE.split(f"\n| {header}")[1].split("\n\n")[0].split("\n")[2:]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in body]
    return {first: rest for first, *rest in cells}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    run(config(write_jsonl(tmp_path / "in.jsonl", rows()), tmp_path / "out"))
    return tmp_path / "out"


def test_the_columns_of_every_run_have_the_types_and_the_order_of_the_page(output: Path) -> None:
    columns = table_of("column | type")
    ours = {
        name: cells[0]
        for key, cells in columns.items()
        for name in re.findall(r"`(\w+)`", key)
        if name.startswith("_")
    }
    schema = read_output(output).schema
    assert list(ours) == list(BOOKKEEPING) == [name for name in schema.names if name[0] == "_"]
    assert {name: str(schema.field(name).type) for name in ours} == ours
    assert schema.names[:2] == ["_source", "_row"] and schema.names[-4:] == list(ours)[2:]


def test_every_task_has_a_line_with_its_columns(output: Path) -> None:
    lines = table_of("task | columns")
    assert {name.strip() for key in lines for name in key.split(",")} == set(TASKS)
    schema = read_output(output).schema
    [said] = lines["classify"]
    for name in ("predicted_label", "predicted_score"):
        kind = {pa.string(): "string", pa.float32(): "float32"}[schema.field(name).type]
        assert f"`{name}` {kind}" in said


def test_every_key_of_the_footer_is_explained(output: Path) -> None:
    keys = [key for cell in table_of("key | meaning") for key in re.findall(r"`(\w+)`", cell)]
    shard = next((output / "data").iterdir())
    if shard.name == "_SUCCESS":
        shard = output / "data" / "part-000000-000000.parquet"
    assert keys == list(json.loads(pq.read_metadata(shard).metadata[b"batchinfer"]))


def test_the_flags_of_export_have_the_defaults_of_the_page() -> None:
    flags = {key: cells[0] for key, cells in table_of("flag | default").items()}
    assert flags["`--row-group-size`"] == str(files.ROW_GROUP_ROWS)
    assert all(f"{codec}" in table_of("flag | default")["`--codec`"][1] for codec in files.CODECS)


def test_types_without_a_text_are_those_of_the_page() -> None:
    kinds = {"duration": pa.duration("s"), "map": pa.map_(pa.string(), pa.string())}
    refused = next(key for key, cells in table_of("type | JSONL").items() if "refused" in cells[0])
    assert refused == ", ".join([*kinds, "union"])
    assert all(map(has_no_text, kinds.values()))


@pytest.fixture
def spark_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("pyspark", reason="needs pyspark: pip install 'batchinfer[spark]'")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java 17 or newer on the PATH")
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    yield
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    if session is not None:
        session.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("spark_home")
@pytest.mark.filterwarnings("ignore")  # pyspark's own, of pandas and of sockets
def test_spark_reads_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "in.jsonl", [*rows(), {"id": 1, "text": None}])
    run(config("in.jsonl", Path("out/labels")))
    code = PAGE.split("## Spark")[1].split("```python\n")[1].split("```")[0]
    exec(compile(code, "docs/output.md", "exec"), {})
    shown = dict(re.findall(r"^\| *(\w+)\| *(\d+)\|$", capfd.readouterr().out, re.M))
    labels = read_output(Path("out/labels"))["predicted_label"].to_pylist()
    assert shown == {name: str(labels.count(name)) for name in ("negative", "positive")}
