"""The house itself: imports point one way, everything is documented, what the documents say works."""

from __future__ import annotations

import ast
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchinfer
from batchinfer.config import RunConfig, flag_name, knob_of
from batchinfer.errors import BatchInferError
from batchinfer.knobs import TASK
from tests.conftest import ROOT, Cli, read_output

PACKAGE = ROOT / "batchinfer"
README = (ROOT / "README.md").read_text()
TASKS_PAGE = (ROOT / "docs" / "tasks.md").read_text()

#: Each layer imports from those before it, and from its own.
LAYERS = (
    (
        "errors",
        "hints",
        "lean",
        "children",
        "stages",
        "stop",
        "checked",
        "machine",
        "prefetch",
        "storage",
    ),
    ("core", "knobs", "config", "schema", "filters", "methods", "sandbox", "template"),
    ("attempts", "sharing"),
    ("readers", "batching", "profiles"),
    ("plan", "increments", "windows", "tokenization", "detokenization", "duplicates"),
    ("tasks",),
    ("engines", "reporting", "writers", "caching"),
    ("loader", "gathering"),
    ("dataloader",),
    ("inputs", "growth", "worker", "executors", "planning", "controller", "tuning", "forecasting"),
    ("runner", "api", "verification"),
    ("auditing", "checkup", "doctor", "exporting", "scaffold"),
    ("options",),
    ("commands",),
    ("cli",),
    ("__init__", "__main__"),
)


def imports_of(path: Path, *, lazily: bool = True) -> Iterator[str]:
    """The modules that a file imports; without `lazily`, only those at its top."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazily else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_imports_point_one_way() -> None:
    height = {room: level for level, layer in enumerate(LAYERS) for room in layer}
    wrong = []
    for path in modules():
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in imports_of(path):
            if module.split(".")[0] != "batchinfer" or module == "batchinfer":
                continue
            if height[room_of(module)] > height[room] and room != "__init__":
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_the_layers_are_drawn_as_they_are() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawing = page.split("## Layers")[1].split("```")[1].strip()
    drawn = [tuple(line.split("  ")[0].split(", ")) for line in drawing.splitlines()]
    assert drawn == list(LAYERS[:-1])


@pytest.mark.parametrize(
    ("heavy", "homes"),
    [
        (
            "torch",
            {
                "attention.py",
                "bound.py",
                "canary.py",
                "continuous.py",
                "cpu.py",
                "dataloader.py",
                "devices.py",
                "generation.py",
                "grouped.py",
                "kv_cache.py",
                "local.py",
                "manager.py",
                "programs.py",
                "sampling.py",
                "tabular.py",
                "torch_engine.py",
                "weights.py",
            },
        ),
        ("transformers", {"generation.py", "kv_cache.py", "sampling.py"}),
        ("jinja2", {"filters.py", "methods.py", "sandbox.py"}),
        ("pandas", set()),
        ("rich", set()),
    ],
)
def test_heavy_libraries_are_imported_at_the_top_of_few_modules(
    heavy: str, homes: set[str]
) -> None:
    found = {
        path.name
        for path in modules()
        if any(name.split(".")[0] == heavy for name in imports_of(path, lazily=False))
    }
    assert found <= homes


def test_ray_is_imported_in_one_module() -> None:
    found = [
        path.name
        for path in modules()
        if any(name.split(".")[0] == "ray" for name in imports_of(path))
    ]
    assert found == ["ray.py"]


def test_every_flag_is_documented_and_has_help() -> None:
    for name, field in RunConfig.model_fields.items():
        assert field.description, name
        if name != "inputs":
            flag = "--no-header" if name == "header" else flag_name(name)
            page = TASKS_PAGE if knob_of(name)["panel"] == TASK else README
            rows = [line for line in page.splitlines() if line.startswith("| `-")]
            assert any(f"`{flag}`" in row.split("|")[1] for row in rows), f"{flag}: in no table"


def test_what_resume_may_change_is_documented() -> None:
    paragraph = README.split("`resume OUT` needs none of them.")[1].split("\n\n")[0]
    free = {flag_name(name) for name in RunConfig.model_fields if knob_of(name)["free"]}
    assert set(re.findall(r"`(--[a-z-]+)`", paragraph)) == free


def test_every_exit_code_is_documented() -> None:
    codes = {kind.exit_code for kind in [BatchInferError, *BatchInferError.__subclasses__()]}
    table = README.split("## Exit codes")[1].split("##")[0]
    assert codes | {0, 65} == {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}


def test_the_tree_in_the_readme_is_the_tree() -> None:
    tree = README.split("## The code")[1].split("```")[1]
    named = set(re.findall(r"\b([a-z_]+\.py|[a-z_]+/)", tree))
    for name in named:
        assert list(ROOT.glob(f"**/{name.rstrip('/')}")), f"{name} is not there"
    for path in PACKAGE.iterdir():
        name = path.name + "/" if path.is_dir() else path.name
        if name not in ("__pycache__/", "__main__.py", "py.typed"):
            assert name in named, f"{name} is not in the README's tree"


def test_dependencies_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=;\[ ]", line)[0].lower() for line in wanted}
    pins = dict(
        line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
    )
    assert pins["torch"] == "2.13.0"
    assert {name.replace("_", "-") for name in names} <= {name.replace("_", "-") for name in pins}


def test_the_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", batchinfer.__version__)
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]


def test_public_names_are_there() -> None:
    for name in batchinfer.__all__:
        assert getattr(batchinfer, name) is not None
    with pytest.raises(AttributeError):
        batchinfer.nonsense  # noqa: B018


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_runs_on_the_sample_data(path: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    done = cli("run", "--config", f"configs/{path.name}", "--workers", "0")
    assert done.returncode == 0, done.stderr
    rows = 60 if "searches.jsonl" in path.read_text() else 1000
    assert read_output(tmp_path / "out" / path.stem).num_rows == rows
