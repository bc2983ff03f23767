"""The examples of docs/schedules.md and deploy/: what can be checked without their schedulers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from batchinfer.cli import app
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
EXAMPLES = ("crontab", "batchinfer.service", "github-actions.yaml", "airflow.py")
PAGE = (ROOT / "docs" / "schedules.md").read_text()


@pytest.mark.parametrize("name", [*EXAMPLES, "../docs/schedules.md"])
def test_the_examples_name_flags_that_there_are(name: str) -> None:
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    known = {flag for command in commands for one in command.params for flag in one.opts}
    text = (DEPLOY / name).read_text()
    theirs = {"--now"}  # of systemctl
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - theirs
    assert found and found <= known


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for name in ("batchinfer.service", "batchinfer.timer"):
        text = (DEPLOY / name).read_text()
        program = shutil.which("true") or "/bin/true"
        (tmp_path / name).write_text(text.replace("/srv/job/.venv/bin/batchinfer", program))
    done = subprocess.run(
        ["systemd-analyze", "verify", "batchinfer.service", "./batchinfer.timer"],
        cwd=tmp_path,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_workflow_is_one_and_takes_75_for_a_success(tmp_path: Path) -> None:
    workflow: dict[Any, Any] = yaml.safe_load((DEPLOY / "github-actions.yaml").read_text())
    assert workflow[True]["schedule"][0]["cron"].count(" ") == 4  # YAML takes `on` for true
    (step,) = [s for s in workflow["jobs"]["score"]["steps"] if s.get("name")]
    fake = tmp_path / "batchinfer"
    for code, wanted in ((0, 0), (75, 0), (65, 65), (73, 73)):
        fake.write_text(f"#!/bin/sh\nexit {code}\n")
        fake.chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]], env={**os.environ, "PATH": path}, capture_output=True
        )
        assert done.returncode == wanted


def test_the_dag_compiles(tmp_path: Path) -> None:
    compiled = subprocess.run(
        [sys.executable, "-m", "py_compile", str(DEPLOY / "airflow.py")],
        env={**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert compiled.returncode == 0, compiled.stderr


def test_every_exit_code_is_in_the_table() -> None:
    table = PAGE.split("**Exit codes.**")[1].split("**Alert")[0]
    codes = set(re.findall(r"\d+", " ".join(re.findall(r"^\| ([^|]*) \|", table, re.M))))
    assert codes == {"0", "1", "2", "65", "66", "69", "73", "74", "75", "128"}
