"""`init`: what it writes loads, explains every setting, and runs."""

from __future__ import annotations

import io
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from batchinfer.cli import main
from batchinfer.commands import begin
from batchinfer.config import RunConfig, knob_of
from batchinfer.knobs import TASK
from batchinfer.scaffold import SCHEMA_FILE, STARTERS, configuration, look_at
from batchinfer.schema import json_schema
from batchinfer.tasks import TASKS
from tests.conftest import ROOT, read_output

SAMPLES = ROOT / "sample_data"
#: What each task reads in the samples, and what is found in it.
SEEN = {
    "classify": ("reviews.csv", {"text_column": "text"}),
    "embed": ("reviews.parquet", {"text_column": "text"}),
    "score": ("searches.jsonl", {"text_column": "query", "text_pair_column": "documents"}),
    "generate": ("searches.jsonl", {"text_column": "query"}),
    "module": (
        "loans.parquet",
        {"features": ("age", "income", "debt", "late_payments", "months_employed")},
    ),
}


def loaded(text: str, folder: Path) -> RunConfig:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return RunConfig.load({}, path, {})


def test_every_task_has_a_starter() -> None:
    assert set(STARTERS) == set(TASKS)


@pytest.mark.parametrize("task", STARTERS)
def test_what_is_written_loads_and_names_every_setting_that_the_task_has(
    task: str, tmp_path: Path
) -> None:
    text = configuration(task, "job.yaml")
    config = loaded(text, tmp_path)
    assert (config.task, config.output) == (task, "out/job")
    assert config.inputs and config.model
    named = set(re.findall(r"^(?:# )?([a-z_]+):(?= |$)", text, re.M)) - {task}
    general = {name for name in RunConfig.model_fields if knob_of(name)["panel"] != TASK}
    if task == "module":
        general -= {"text_column"} - named
    assert general <= named
    assert named <= set(RunConfig.model_fields)
    jsonschema.validate(yaml.safe_load(text), json_schema())


@pytest.mark.parametrize("task", STARTERS)
def test_a_setting_whose_mark_is_taken_away_is_what_it_was(task: str, tmp_path: Path) -> None:
    text = configuration(task, "job.yaml")
    lines = [
        line.removeprefix("# ") if re.match(r"# [a-z_]+:( .*)?  # ", line) else line
        for line in text.split("\n")
    ]
    assert len([line for line in lines if not line.startswith("#")]) > 30
    everything = loaded("\n".join(lines), tmp_path)
    assert everything == loaded(text, tmp_path)
    jsonschema.validate(yaml.safe_load("\n".join(lines)), json_schema())


@pytest.mark.parametrize("task", SEEN)
def test_the_columns_of_an_input_are_found_and_filled_in(task: str, tmp_path: Path) -> None:
    name, wanted = SEEN[task]
    config = loaded(configuration(task, "x.yaml", inputs=[str(SAMPLES / name)]), tmp_path)
    assert {key: getattr(config, key) for key in wanted} == wanted


def test_columns_are_guessed_by_name_and_else_by_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"key": "a1", "note": "a much longer text", "n": 1, "labels": ["x", "y"]}\n')
    assert look_at([str(path)], "classify").guessed == {"text_column": "note"}
    assert look_at([str(path)], "zero-shot").guessed == {
        "text_column": "note", "labels_column": "labels",
    }  # fmt: skip
    config = loaded(configuration("zero-shot", "x.yaml", inputs=[str(path)]), tmp_path)
    assert (config.labels, config.labels_column) == ((), "labels")
    table = tmp_path / "table.csv"
    table.write_text("id,age,city,label\n1,30,Ulm,1\n2,40.5,Bonn,0\n")
    assert look_at([str(table)], "module").guessed == {
        "features": ("age",), "types": {"age": "float64"},
    }  # fmt: skip


def test_it_writes_a_file_that_runs_and_never_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(SAMPLES / "reviews.csv")
    assert main(["init", "classify", source, "-m", str(SAMPLES / "tiny-sentiment")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].strip() == "batchinfer run --config classify.yaml"
    assert (
        main([*said[-1].split()[1:], "--engine", "fake", "--limit", "5", "--workers", "0", "-q"])
        == 0
    )
    assert read_output(tmp_path / "out" / "classify").num_rows == 5
    before = Path("classify.yaml").read_text()
    assert main(["init", "embed", "-o", "classify.yaml"]) == 2
    assert Path("classify.yaml").read_text() == before
    assert main(["init", "embed", "-o", "classify.yaml", "--force"]) == 0
    assert "task: embed" in Path("classify.yaml").read_text()
    assert "look at inputs and model" in capsys.readouterr().out


def test_it_names_the_schema_where_that_lies_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "score", "-o", "-"]) == 0
    assert "yaml-language-server" not in capsys.readouterr().out
    (tmp_path / SCHEMA_FILE).write_text("{}")
    assert main(["init", "score"]) == 0
    first = Path("score.yaml").read_text().split("\n")[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA_FILE}"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_it_asks_one_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(begin, "is_terminal", lambda stream: True)
    monkeypatch.setattr("sys.stdin", Terminal("embed\n"))
    assert main(["init"]) == 0
    assert "one vector for each text" in capsys.readouterr().err
    assert "task: embed" in Path("embed.yaml").read_text()
