"""The same promise with a real model, loader processes and kills at random moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.soak import soak

pytestmark = pytest.mark.faults


def test_a_real_run_killed_at_random_moments_ends_in_the_same_bytes(tmp_path: Path) -> None:
    job = [
        str(ROOT / "sample_data" / "reviews.jsonl"),
        "--model", str(ROOT / "sample_data" / "tiny-sentiment"),
        "--chunk-rows", "20", "--max-batch-tokens", "256", "--workers", "1", "--max-errors", "1",
    ]  # fmt: skip
    result = soak(job, tmp_path, kills=4, longest_wait=9.0, seed=1)
    assert result["rows"] == 1000
    assert result["kills"] == 4
