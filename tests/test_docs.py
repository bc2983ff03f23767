"""docs/tasks.md: every command runs as it stands, and prints what the page shows."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from batchinfer.cli import app
from batchinfer.config import flag_name
from batchinfer.tasks import TASKS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
#: By heading.
SECTIONS = {
    part.split("\n", 1)[0]: part.split("\n", 1)[1]
    for part in re.split(r"^## ", PAGE, flags=re.M)[1:]
}
#: Commands, and what they print.
EXAMPLE = re.compile(r"^```sh\n(.*?)^```\n+```text\n(.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"-?\d+\.\d+")
WITH_COMMANDS = [name for name, text in SECTIONS.items() if "```sh" in text]
#: On a CPU, without a network and without the settings that a developer's machine has kept.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "BATCHINFER_PROFILE": "none",
    "OMP_NUM_THREADS": "1",  # other tests use the other cores
}
#: `batchinfer` and `python` as after an installation, but of this checkout.
PRELUDE = 'set -euo pipefail\nbatchinfer() { python -m batchinfer "$@"; }\n'


def differences(shown: str, printed: str) -> list[str]:
    """Where the two say something else.

    The page rounds decimals to two places. They may differ by one in the second: another processor adds up
    in another order, which moves a float32 score by millionths, and so may tip its rounding. Space between
    columns follows the width of the numbers.
    """
    found = []
    lines, others = shown.split("\n"), printed.split("\n")
    for line, against in zip(lines, others, strict=False):
        words = [" ".join(NUMBER.sub("#", one).split()) for one in (line, against)]
        numbers = zip(NUMBER.findall(line), NUMBER.findall(against), strict=False)
        if words[0] != words[1] or any(
            abs(float(one) - float(other)) > 0.011 for one, other in numbers
        ):
            found.append(f"shown:   {line}\nprinted: {against}")
    if len(lines) != len(others):
        found.append(f"{len(lines)} lines are shown, {len(others)} printed")
    return found


@pytest.mark.parametrize("section", WITH_COMMANDS)
def test_the_commands_of_the_page_print_what_it_shows(section: str, tmp_path: Path) -> None:
    text = SECTIONS[section]
    examples = EXAMPLE.findall(text)
    assert len(examples) == text.count("```sh"), "each block of commands is followed by its output"
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for commands, shown in examples:
        done = subprocess.run(
            ["bash", "-c", PRELUDE + commands],
            cwd=tmp_path,
            env={**os.environ, **ENVIRONMENT, "PATH": path},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        assert differences(shown.rstrip(), done.stdout.rstrip()) == []


def test_a_changed_word_or_number_is_noticed() -> None:
    shown = "a  0.50 positive\nb -0.00"
    assert differences(shown, "a 0.51 positive\nb   0.01") == []
    for printed in ("a 0.52 positive\nb 0.00", "a 0.50 negative\nb 0.00", "a 0.50 positive"):
        assert len(differences(shown, printed)) == 1


def test_every_task_has_its_section_and_its_line() -> None:
    table = PAGE.split("## ")[0]
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


def test_the_page_names_flags_that_there_are() -> None:
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    parameters = [parameter for command in commands for parameter in command.params]
    known = {name for one in parameters for name in (*one.opts, *one.secondary_opts)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= known


@pytest.mark.parametrize("path", ["README.md", "docs/tasks.md"])
def test_links_lead_somewhere(path: str) -> None:
    file = ROOT / path
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        place, _, anchor = target.partition("#")
        if place.startswith("http"):
            continue
        linked = (file.parent / place).resolve() if place else file
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
            assert anchor in slugs, target
