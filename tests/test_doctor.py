"""What `doctor` says of a machine and of a folder, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from batchinfer import doctor
from batchinfer.machine import usable_cores
from tests.conftest import Cli


def test_it_names_versions_devices_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "gcsfs" else name)
    found = doctor.examine()
    assert found.exit_code == 0 and found.folder is None
    text = found.to_text()
    assert f"torch {found.versions['torch']}" in text
    assert f"may use: {usable_cores()}" in text
    assert found.devices[-1].name == "cpu" and found.devices[-1].memory > 1 << 28
    missing = [line for line in text.splitlines() if line.startswith("not installed")]
    assert missing == ["not installed: gcsfs, for gs:// (pip install 'batchinfer[gs]')"]


def test_a_folder_is_made_to_refuse_a_name_and_left_as_it_was(cli: Cli, tmp_path: Path) -> None:
    done = cli("doctor", "deep/below/out", "--json")
    assert done.returncode == 0, done.stderr
    folder = json.loads(done.stdout)["folder"]
    assert (folder["problem"], folder["state"]) == ("", "no run was begun there")
    assert folder["free_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_is_told_as_one(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n')
    assert cli("run", "in.jsonl", "--engine", "fake", "-o", "out").returncode == 0
    before = sorted(tmp_path.rglob("*"))
    done = cli("doctor", "out")
    assert "a run was begun there: batchinfer status out" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_take_a_job_ends_with_74(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli("doctor", "file/out")
    assert done.returncode == 74
    assert "cannot take a job" in done.stdout and "not a folder" in done.stdout


def test_a_file_system_that_creates_over_what_is_there_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forgetful(temporary: Path, final: Path, content: bytes) -> bool:
        final.write_bytes(content)
        return True

    monkeypatch.setattr(doctor, "publish", forgetful)
    found = doctor.examine(os.fspath(tmp_path))
    assert found.exit_code == 74 and found.folder is not None
    assert "creates a name that is taken" in found.folder.problem
    assert list(tmp_path.iterdir()) == []
