"""README.md and docs/: every command runs as it stands and prints what the page shows, or is at least one.

What each fence means is said in tests/pages.py.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from batchinfer.cli import app
from batchinfer.config import RunConfig, flag_name
from batchinfer.errors import UsageError
from batchinfer.tasks import TASKS
from tests.conftest import ROOT
from tests.pages import LANGUAGES, Block, blocks_of, commands_of, differences
from tests.warm import Warm

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
#: Only their links are tested, and what they say in passing.
OTHERS = ("CONTRIBUTING.md", "deploy/README.md", "benchmarks/results/README.md")
BLOCKS = {path: blocks_of(page) for path, page in PAGES.items()}
RUN = [path for path, blocks in BLOCKS.items() if any(b.language == "sh" for b in blocks)]
#: On a CPU, without a network, without the settings that a developer's machine has kept, and in float32,
#: which all CPUs have, where a command does not say.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "BATCHINFER_PROFILE": "none",
    "BATCHINFER_DTYPE": "float32",
    "OMP_NUM_THREADS": "1",  # other tests use the other cores
    "COLUMNS": "100",
    "TZ": "UTC",
}

TASKS_PAGE = PAGES["docs/tasks.md"]
#: By heading.
SECTIONS = {
    part.split("\n", 1)[0]: part.split("\n", 1)[1]
    for part in re.split(r"^## ", TASKS_PAGE, flags=re.M)[1:]
}


def of_language(*languages: str) -> list[Any]:
    """All blocks of some languages, each named by its page and line."""
    return [
        pytest.param(block, id=f"{path}:{block.line}")
        for path, blocks in BLOCKS.items()
        for block in blocks
        if block.language in languages
    ]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    started = Warm(tmp_path_factory.mktemp("warm"), {**os.environ, **ENVIRONMENT})
    yield started
    started.close()


@pytest.mark.parametrize("path", RUN)
def test_the_commands_of_a_page_print_what_it_shows(path: str, tmp_path: Path, warm: Warm) -> None:
    for folder in ("sample_data", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    environ = {**os.environ, **ENVIRONMENT, "PATH": f"{warm.bin}{os.pathsep}{os.environ['PATH']}"}
    wrong = []
    for block in BLOCKS[path]:
        if block.language == "sh":
            command = ["bash", "-c", "set -euo pipefail\n" + block.text]
        elif block.language == "python" and block.prints is not None:
            command = ["python", "-c", block.text]
        else:
            continue
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{path}:{block.line}: {done.stdout}{done.stderr}"
        found = differences(block.prints or "", done.stdout)
        wrong += [f"{path}:{block.line}\n{one}" for one in found]
    assert not wrong, "\n".join(wrong)


def parse(arguments: list[str]) -> None:
    """See that the command line takes these arguments, by its parser and RunConfig, and do nothing."""
    root = typer.main.get_command(app)
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    command = root.commands.get(name)  # type: ignore[attr-defined]
    if command is None:
        if name == "--version":
            return
        raise UsageError(f"no such command: {name}")
    try:
        given = command.make_context(name, list(rest)).params
    except typer.Exit:  # --help
        return
    except typer.TyperException as error:
        raise UsageError(error.format_message()) from None
    knobs = {
        one.name
        for one in command.params
        if one.name in RunConfig.model_fields
        and (one.help or "").startswith(RunConfig.model_fields[one.name].description or "-")
    }
    flags = {name: value for name, value in given.items() if name in knobs and value}
    RunConfig.load({n: v if n != "inputs" else tuple(v) for n, v in flags.items()}, environ={})


@pytest.mark.parametrize("block", of_language("console"))
def test_commands_that_no_test_can_run_are_accepted_by_the_parser(block: Block) -> None:
    for arguments in commands_of(block.text):
        parse(arguments)


@pytest.mark.parametrize("path", PAGES)
def test_a_command_in_a_sentence_is_one(path: str) -> None:
    prose = re.sub(r"^ *```.*?^ *```$", "", PAGES[path], flags=re.M | re.S)
    for span in re.findall(r"`(batchinfer [^`]+)`", prose):
        for arguments in commands_of(" ".join(span.split())):
            parse(arguments if len(arguments) > 1 else [*arguments, "--help"])


@pytest.mark.parametrize("block", of_language("yaml"))
def test_a_job_in_yaml_is_accepted(block: Block, tmp_path: Path) -> None:
    if not set(yaml.safe_load(block.text) or {}) & set(RunConfig.model_fields):
        return  # a manifest of somebody else's
    (tmp_path / "job.yaml").write_text(block.text, encoding="utf-8")
    RunConfig.load({}, tmp_path / "job.yaml", environ={})


@pytest.mark.parametrize("block", of_language("python"))
def test_python_compiles_and_imports_what_there_is(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("batchinfer"):
            module = importlib.import_module(node.module or "")
            assert [one.name for one in node.names if not hasattr(module, one.name)] == []


@pytest.mark.parametrize("path", PAGES)
def test_every_fence_says_what_it_is(path: str) -> None:
    for block in BLOCKS[path]:
        assert block.language in LANGUAGES, f"{path}:{block.line}"
        if not block.language:
            commands = re.findall(r"^(?:\$ )?(?:batchinfer|python|make|pip) .*", block.text, re.M)
            assert not commands, f"{path}:{block.line}: a drawing with commands"


def test_a_changed_word_or_number_is_noticed() -> None:
    shown = "a  0.50 positive\nb -0.00"
    assert differences(shown, "a 0.51 positive\nb   0.01") == []
    for printed in ("a 0.52 positive\nb 0.00", "a 0.50 negative\nb 0.00", "a 0.50 positive"):
        assert len(differences(shown, printed)) == 1
    assert len(differences("12 rows", "13 rows")) == 1


def test_an_ellipsis_is_one_number_and_no_more() -> None:
    shown = "… rows in … s"
    for printed in ("1,000 rows in 0.3 s", "7 rows in 12 s", "… rows in … s"):
        assert differences(shown, printed) == []
    for printed in ("no rows in 3 s", "3 s", "1 2 rows in 3 s", " rows in 3 s", "3 rows in 3 min"):
        assert len(differences(shown, printed)) == 1
    assert len(differences("…", "one line\nand another")) == 2


def test_blocks_know_what_they_print() -> None:
    page = "```sh\na\n```\n\n```text\nb\n```\n\n```sh\nc\n```\nWords.\n```text\nd\n```\n"
    assert blocks_of(page) == [
        Block("sh", "a\n", 1, prints="b\n"), Block("sh", "c\n", 9), Block("text", "d\n", 13),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("batchinfer run 'a b' \\\n  -m X   # why\n", [["run", "a b", "-m", "X"]]),
        ("$ batchinfer status out\nbatchinfer: 3 rows\n", [["status", "out"]]),
        ("$ batchinfer run a \\\n> -m b\nKilled\n", [["run", "a", "-m", "b"]]),
        ("$ batchinfer run a \\\n  -m b\nKilled\n$ ls\n", [["run", "a", "-m", "b"]]),
        ("A_B=1 batchinfer doctor > log 2>&1 && ls | batchinfer run -", [["doctor"], ["run", "-"]]),
        ("torchrun --n 8 -m batchinfer run a\nsrun batchinfer status o", [["run", "a"], ["status", "o"]]),
        ("pip install batchinfer\ncd batchinfer", []),
    ],
)  # fmt: skip
def test_commands_are_found(text: str, commands: list[list[str]]) -> None:
    assert list(commands_of(text)) == commands


@pytest.mark.parametrize(
    "command",
    ["run a --modle b", "run a --streams many", "resume out --task embed", "go", "run a --dtype int3"],
)  # fmt: skip
def test_a_command_that_is_none_is_noticed(command: str) -> None:
    with pytest.raises(UsageError):
        parse(command.split())


WITH_COMMANDS = [name for name, text in SECTIONS.items() if "```sh" in text]


def test_every_task_has_its_section_and_its_line() -> None:
    table = TASKS_PAGE.split("## ")[0]
    listed = re.findall(r"^\| \[([a-z0-9-]+)\]\(#([a-z0-9-]+)\)", table, re.M)
    assert listed == [(name, name) for name in WITH_COMMANDS if name in TASKS]
    assert {name for name, _ in listed} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_every_knob_of_a_task_stands_in_the_table_of_its_section(name: str) -> None:
    shared = {"seq2seq": "generate"}
    text = SECTIONS[shared.get(name, name)] + SECTIONS["Texts that exceed the model"]
    rows = "".join(re.findall(r"^\| (`--[^|]*)\|", text, re.M))
    module = importlib.import_module(f"batchinfer.tasks.{name.replace('-', '_')}")
    knobs = getattr(module, TASKS[name]).knobs
    missing = [knob for knob in knobs if f"`{flag_name(knob)}`" not in rows]
    assert not missing


def test_the_page_of_tasks_names_flags_that_there_are() -> None:
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    parameters = [parameter for command in commands for parameter in command.params]
    known = {name for one in parameters for name in (*one.opts, *one.secondary_opts)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TASKS_PAGE)) <= known


def slugs_of(page: str) -> set[str]:
    """The anchors that its headings have on GitHub."""
    text = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("path", [*PAGES, *OTHERS])
def test_links_lead_somewhere(path: str) -> None:
    file = ROOT / path
    text = file.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(
        r' (?:src|href)="([^"]+)"', text
    ):
        place, _, anchor = target.partition("#")
        if place.startswith("http"):
            continue
        linked = (file.parent / place).resolve() if place else file
        assert linked.exists(), target
        if anchor:
            assert anchor in slugs_of(linked.read_text(encoding="utf-8")), target


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d+\. \[[^\]]+\]\(([a-z-]+\.md)\)", index, re.M)
    there = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(listed) == sorted(there)
