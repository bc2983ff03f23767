"""A sample of the fault suite, all mutants, and the figures that are published."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.faults

#: Cases of each sweep, spread over scenarios and points; the same ones each time.
SAMPLE = {
    "kill": 108,
    "double kill": 27,
    "full disk": 54,
    "I/O error": 63,
    "race": 27,
    "power cut": 72,
}


def suite(json_file: Path, *arguments: str) -> dict[str, Any]:
    """What the suite found; it says itself whether all was well."""
    command = [sys.executable, "-m", "tests.faults.suite", "--jobs", "1", "--json", str(json_file)]
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(json_file.read_text())
    return found


@pytest.mark.parametrize("sweep", SAMPLE)
def test_whatever_happens_every_row_stands_once_in_the_end(sweep: str, tmp_path: Path) -> None:
    size = SAMPLE[sweep]
    results = suite(tmp_path / "found.json", "--sweep", sweep, "--sample", str(size))["results"]
    assert len(results) >= size * 2 // 3  # some scenarios have fewer cases than their part
    assert len({result["scenario"] for result in results}) == 13
    assert not [result for result in results if result["failure"]]


def test_every_broken_protocol_is_caught(tmp_path: Path) -> None:
    caught = suite(tmp_path / "found.json", "--mutants", "--quick")["mutants"]
    assert len(caught) >= 20
    for one in caught:
        assert any(hunt["failures"] for hunt in one["hunts"]), one["mutant"]


def test_the_published_figures_agree() -> None:
    sentence = re.compile(r"([\d,]+) injected faults, 0 rows lost, 0 duplicated")
    report = (ROOT / "docs" / "faults.md").read_text()
    readme = " ".join((ROOT / "README.md").read_text().split())
    (counted,) = sentence.findall(report)
    assert sentence.findall(readme) == [counted]
    within, from_outside = map(int, re.findall(r"Each of these (\d+) mutants", report))
    assert re.findall(r"(\d+) deliberately broken protocols", readme) == [
        str(within + from_outside)
    ]
