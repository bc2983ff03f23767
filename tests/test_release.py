"""A release: what is built installs, runs outside of the repository, and is what it says it is."""

from __future__ import annotations

import email
import email.message
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import batchinfer
from batchinfer.cli import main
from tests.conftest import ROOT, read_output

CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_version_and_the_changelog_agree() -> None:
    """What is not released stands on top, and has not the number of the newest release."""
    heads = re.findall(r"^## (.+)$", CHANGELOG, re.M)
    assert heads[0] == "Unreleased"
    releases = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) - \d{4}-\d\d-\d\d", head) for head in heads[1:]]
    assert all(releases), "after Unreleased: ## MAJOR.MINOR.PATCH - YYYY-MM-DD"
    numbers = [tuple(map(int, release.groups())) for release in releases if release]
    assert numbers == sorted(set(numbers), reverse=True), "the newest comes first"
    version = tuple(map(int, re.findall(r"\d+", batchinfer.__version__)))
    something_new = "\n- " in CHANGELOG.split("## Unreleased")[1].split("\n## ")[0]
    if numbers:
        assert version > numbers[0] if something_new else version == numbers[0]


@pytest.mark.slow
def test_the_demo_works_in_a_new_folder_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for _ in range(2):
        assert main(["demo"]) == 0
        shown = capfd.readouterr().out
        assert "negative 0." in shown and "612  " in shown and "batchinfer resume OUT" in shown
    table = read_output(tmp_path / "batchinfer-demo" / "out")
    assert (table.num_rows, table["_error"].null_count) == (1000, 999)


def test_the_demo_leaves_folders_of_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "reviews.jsonl").write_text("mine")
    assert main(["demo", "mine"]) == 2
    assert "name a new folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["reviews.jsonl"]


# -- what is built -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel that is built from it, offline."""
    pytest.importorskip("build", reason="needs build: pip install 'batchinfer[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def wheel_of(dist: Path) -> Path:
    [wheel] = dist.glob("*.whl")
    return wheel


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


@pytest.mark.slow
def test_the_index_would_take_both_files(dist: Path) -> None:
    pytest.importorskip("twine", reason="needs twine: pip install 'batchinfer[dev]'")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


@pytest.mark.slow
def test_the_wheel_says_what_it_is(dist: Path) -> None:
    metadata = metadata_of(wheel_of(dist))
    assert metadata["Version"] == batchinfer.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    with zipfile.ZipFile(wheel_of(dist)) as archive:
        names = set(archive.namelist())
    prefix = f"batchinfer-{batchinfer.__version__}.dist-info"
    assert {"batchinfer/py.typed", f"{prefix}/licenses/LICENSE"} <= names
    assert {name.split("/")[0] for name in names} == {"batchinfer", prefix}
    assert not [name for name in names if name.endswith(".pyc")]
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "batchinfer").rglob("*.py")}
    assert modules <= names


@pytest.mark.slow
def test_the_page_of_the_index_has_no_link_that_leads_nowhere(dist: Path) -> None:
    page = metadata_of(wheel_of(dist)).get_payload()
    assert isinstance(page, str)
    assert page.startswith("# batchinfer\n") and "in the source distribution" in page
    links = re.findall(r"\]\(([^)]*)\)", page) + re.findall(r' (?:src|href)="([^"]*)"', page)
    assert [link for link in links if not link.startswith("https://")] == []
    assert "docs/tasks.md has a command for each" in page


@pytest.mark.slow
def test_the_source_distribution_is_the_repository(dist: Path) -> None:
    [path] = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        "LICENSE",
        "CHANGELOG.md",
        "docs/output.md",
        "tests/test_release.py",
        "Makefile",
    ):
        assert wanted in names
    assert not [name for name in names if name.startswith((".venv", ".git/", "dist", "shared"))]


@pytest.mark.slow
def test_the_wheel_runs_outside_of_the_repository(dist: Path, tmp_path: Path) -> None:
    """In an empty environment that finds everything but batchinfer in this one's."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index",
         "--no-deps", "--no-warn-script-location", str(wheel_of(dist))],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    [site] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= {"HF_HUB_OFFLINE": "1", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.jsonl").write_text(
        json.dumps({"text": "Moving everything over from the old phone was painless."}) + "\n"
    )

    def call(*command: str) -> str:
        done = subprocess.run(
            command, cwd=work, env=environ, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = call("python", "-c", "import batchinfer; print(batchinfer.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path / "env")
    assert call("batchinfer", "--version") == f"batchinfer {batchinfer.__version__}\n"
    shown = call("batchinfer", "demo")
    assert "\n     0  we had the set lunch." in shown and "not valid JSON" in shown
    call(
        "batchinfer", "run", "mine.jsonl", "-m", "batchinfer-demo/tiny-sentiment", "-o", "out", "-q"
    )
    call("batchinfer", "export", "out", "--to", "scored.parquet")
    assert pq.read_table(work / "scored.parquet")["predicted_label"].to_pylist() == ["positive"]


# -- images ------------------------------------------------------------------------------------------

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_a_dockerfile_has_no_known_mistake(path: Path) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("needs hadolint: pip install 'batchinfer[dev]'")
    done = subprocess.run([linter, "--no-color", path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_an_image_starts_batchinfer_itself_and_not_as_root(path: Path) -> None:
    last = path.read_text().split("\nFROM ")[-1]
    base, *instructions = last.split("\n")
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", base), "pinned by its tag"
    said = [line.partition(" ")[::2] for line in instructions]
    assert ("ENTRYPOINT", '["batchinfer"]') in said  # no shell that would keep signals to itself
    users = [value for name, value in said if name == "USER"]
    assert users == ["1000"]  # a number, so that an orchestrator sees that it is not root


def test_the_files_that_an_image_is_built_from_suffice(tmp_path: Path) -> None:
    """What .dockerignore lets through has all that pip builds the package of."""
    pytest.importorskip("build", reason="needs build: pip install 'batchinfer[dev]'")
    listed = (ROOT / ".dockerignore").read_text().splitlines()
    for name in [line[1:] for line in listed if line.startswith("!")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    script = [sys.executable, "docker/requirements.py", "s3,openvino"]
    wanted = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert wanted.splitlines() == project["dependencies"] + extras["s3"] + extras["openvino"]


def test_every_extra_is_explained() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    table = page.split("| extra |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.split("\n")[2:]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == set(project["optional-dependencies"])
