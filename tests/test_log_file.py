"""--log-file: what a command said, in a file, for whoever comes in the morning."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchinfer.cli import main
from batchinfer.commands import logfile
from batchinfer.commands.logfile import close_log_file
from batchinfer.engines.fake import FakeEngine
from batchinfer.writers.run_folder import require_plan
from tests.conftest import Cli

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR|DEBUG) \[\d+\] .")
SECRET = "hf_abcdefghijklmnopqrstuvwx"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": i, "text": f"row {i}"} for i in range(25)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = logging.getLogger("batchinfer")
    handlers, propagate, level = log.handlers, log.propagate, log.level
    yield
    close_log_file()
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


def call(*arguments: str) -> int:
    job = ("--engine", "fake", "--workers", "0", "--output", "out", "--no-progress")
    return main([*arguments, *(job if arguments[0] == "run" else ())])


def lines(path: str = "night.log") -> list[str]:
    found = Path(path).read_text().splitlines()
    assert all(map(LINE.match, found)), found
    return found


def test_the_log_and_the_summary_are_in_the_file_also_with_quiet(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert call("run", "rows.jsonl", "--log-file", "night.log", "--quiet") == 0
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", ""), "stderr is as quiet as it was asked to be"
    said = "\n".join(lines())
    assert "about 25 rows to answer" in said
    assert "25 rows in 1 shards, 0 with errors" in said
    assert "DEBUG" not in said
    assert call("run", "rows.jsonl", "--log-file", "night.log", "--verbose", "--resume") == 0
    assert len(lines()) > said.count("\n") + 1, "it is appended to"


def test_stderr_has_what_it_had(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("run", "rows.jsonl", "--log-file", "night.log") == 0
    assert "about 25 rows to answer" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "missing.jsonl"), 66, "no such file"),
        (("run", "rows.jsonl", "--chunk-rows", "0"), 2, "--chunk-rows"),
        (("run", "rows.jsonl", "--config", "none.yaml"), 2, "no such configuration file"),
        (("resume", "nowhere"), 2, "not a run folder"),
    ],
)
def test_the_error_that_a_command_ends_with_is_there(
    arguments: tuple[str, ...], code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--log-file", "night.log") == code
    [last] = capfd.readouterr().err.splitlines()
    assert words in last
    found = lines()[-1]
    assert found.split("] ", 1)[1] == f"{last.removeprefix('batchinfer: ')} (exit code {code})"
    assert " ERROR " in found


def test_a_bug_leaves_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError(f"a bug with {SECRET}")

    monkeypatch.setattr(FakeEngine, "stream", fail)
    assert call("run", "rows.jsonl", "--log-file", "night.log") == 1
    said = lines()
    assert any("Traceback" in line for line in said)
    assert "internal error" in said[-1]
    assert SECRET not in "".join(said)


def test_secrets_and_terminal_codes_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "correct horse battery")
    name = f"correct horse battery {SECRET}\x1b[2J.jsonl"
    assert call("run", name, "--log-file", "night.log") == 66
    said = Path("night.log").read_text()
    assert "***" in said
    assert "horse" not in said and SECRET not in said and "\x1b" not in said


def test_it_is_rotated_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "MAX_BYTES", 500)
    for _ in range(12):
        assert call("run", "rows.jsonl", "--log-file", "night.log", "--resume", "--quiet") == 0
    found = sorted(path.name for path in Path().glob("night.log*"))
    assert found == ["night.log", *(f"night.log.{n}" for n in range(1, 6))]
    for name in found:
        assert Path(name).stat().st_size <= 500
        lines(name)


def test_a_variable_and_a_key_name_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("job.yaml").write_text("inputs: [rows.jsonl]\nlog_file: by-key.log\n")
    assert call("run", "--config", "job.yaml") == 0
    monkeypatch.setenv("BATCHINFER_LOG_FILE", "by-variable.log")
    assert call("resume", "out") == 0
    assert lines("by-key.log") and lines("by-variable.log")
    assert require_plan("out").config.log_file is None, "a run folder names no file to write to"


def test_a_file_that_cannot_be_written_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("run", "rows.jsonl", "--log-file", "nowhere/night.log") == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "--log-file nowhere/night.log: cannot be written" in line
    assert not Path("out").exists()


def test_a_command_without_it_writes_to_none(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("run", "rows.jsonl", "--log-file", "night.log") == 0
    before = Path("night.log").read_bytes()
    assert call("run", "missing.jsonl") == 66
    assert Path("night.log").read_bytes() == before


def test_in_a_process_of_its_own(cli: Cli, tmp_path: Path) -> None:
    job = ("run", "rows.jsonl", "--engine", "fake", "--workers", "0", "--output", "out")
    done = cli(*job, "--log-file", "night.log", "--json")
    assert json.loads(done.stdout)["num_rows"] == 25
    assert "about 25 rows to answer" in (tmp_path / "night.log").read_text()
