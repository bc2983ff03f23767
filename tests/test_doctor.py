"""What `doctor` says of a machine and of a folder, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from batchinfer import checkup, doctor
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


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with nothing in the way, whatever the one is that the tests run on."""
    from huggingface_hub import constants

    monkeypatch.setattr(checkup, "usable_memory", lambda: 8 << 30)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkup, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(checkup, "_LITTLE_DISK", 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.version.cuda", None)
    for name in ("HF_TOKEN_PATH", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert said(tmp_path) == []
    return tmp_path


def said(folder: Path, shared_memory: Path | None = None) -> list[str]:
    return list(checkup.complaints(shared_memory or folder, folder / "gpus"))


def with_gpu(folder: Path) -> None:
    (folder / "gpus" / "0000:01:00.0").mkdir(parents=True)


def test_a_torch_for_cpus_beside_a_gpu_is_in_the_way(sound: Path) -> None:
    with_gpu(sound)
    [line] = said(sound)
    assert "a build for CPUs" in line and "install one for CUDA" in line


@pytest.mark.parametrize(
    ("has_gpu", "hidden", "words"),
    [
        (False, None, "no NVIDIA driver is there"),
        (True, "", "CUDA_VISIBLE_DEVICES is ''"),
        (True, None, "compare the driver's version"),
    ],
)
def test_a_torch_for_gpus_that_sees_none_is_in_the_way(
    has_gpu: bool, hidden: str | None, words: str, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.version.cuda", "12.8")
    if has_gpu:
        with_gpu(sound)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    [line] = said(sound)
    assert words in line
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert said(sound) == []


def test_little_memory_and_little_shared_memory_are_in_the_way(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "usable_memory", lambda: 1 << 30)
    assert "may use 1.0 GiB" in said(sound)[0]
    monkeypatch.setattr(checkup, "usable_memory", lambda: 8 << 30)
    usage = shutil.disk_usage
    monkeypatch.setattr(
        checkup.shutil,
        "disk_usage",
        lambda path: usage(path)._replace(free=65536) if path == sound / "shm" else usage(path),
    )
    (sound / "shm").mkdir()
    [line] = said(sound, sound / "shm")
    assert "has 0.1 MiB free" in line and "--workers 0" in line and "--shm-size" in line
    assert said(sound, sound / "none") == [], "not every system has it"


def test_a_cache_that_takes_nothing_is_in_the_way(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    (sound / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(sound / "file" / "hub"))
    [line] = said(sound)
    assert f"{sound / 'file'} is no folder; set HF_HOME" in line
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(sound))
    monkeypatch.setattr(checkup.os, "access", lambda path, mode: path != sound)
    lines = said(sound, sound / "none")
    assert ["set HF_HOME to a folder" in lines[0], "set XDG_CACHE_HOME to a folder" in lines[1]] == [
        True, True,
    ]  # fmt: skip


def test_variables_that_keep_the_hub_away_or_are_misspelt_are_in_the_way(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN_PATH", "/no/such/token")
    monkeypatch.setenv("BATCHINFER_MODLE", "x")
    lines = said(sound)
    assert [line.partition(" ")[0] for line in lines] == [
        "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH", "BATCHINFER_MODLE:",
    ]  # fmt: skip
    assert "only models in the local cache" in lines[0]
    assert "did you mean BATCHINFER_MODEL?" in lines[2]


def test_what_is_in_the_way_is_told_and_does_not_fail(sound: Path) -> None:
    with_gpu(sound)
    found = doctor.examine()
    assert all(f"in the way: {line}" in found.to_text() for line in found.complaints)
    assert found.exit_code == 0 and found.to_dict()["complaints"] == found.complaints
