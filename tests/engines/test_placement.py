"""A model that is spread over memory and disk answers as on one device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchinfer import RunConfig, resume, run
from batchinfer.engines import create_engine, describe_model
from batchinfer.errors import UsageError
from batchinfer.tasks import create_task
from batchinfer.tuning.tune import tune
from tests.conftest import ROOT, read_output

#: Less than any of the models below takes.
SPREAD: dict[str, Any] = {"device_map": "auto", "max_memory": "cpu=100KiB"}
MODELS: dict[str, dict[str, Any]] = {
    "tiny-sentiment": {"limit": 40},
    "tiny-gaps": {"limit": 20, "text_column": "text", "task": "embed"},
    "tiny-writer": {"limit": 6, "max_new_tokens": 8},
}


def job(model: str, output: Path | str = "", **settings: Any) -> RunConfig:
    chosen = {**MODELS[model], "dtype": "float32", "workers": 0, **settings}
    return RunConfig(
        inputs=(str(ROOT / "sample_data" / "reviews.jsonl"),),
        model=str(ROOT / "sample_data" / model),
        output=str(output),
        **chosen,
    )


@pytest.mark.parametrize("model", MODELS)
def test_a_spread_model_answers_as_on_one_device(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(job(model, tmp_path / "one"))
    with caplog.at_level(logging.DEBUG, "batchinfer"):
        offload = tmp_path / "offload"
        run(job(model, tmp_path / "spread", offload_folder=str(offload), **SPREAD))
    assert "MiB on disk" in caplog.text
    assert not list(offload.iterdir())
    one, spread = read_output(tmp_path / "one"), read_output(tmp_path / "spread")
    assert one.schema.names == spread.schema.names
    for name in one.schema.names:
        if name in ("predicted_score", "embedding"):
            found, expected = (np.array(t[name].to_pylist(), float) for t in (spread, one))
            np.testing.assert_allclose(found, expected, atol=1e-5)
        else:
            assert spread[name].to_pylist() == one[name].to_pylist()


@pytest.mark.parametrize("model", ["tiny-sentiment", "tiny-writer"])
def test_the_folder_for_weights_is_there_while_the_model_is(model: str, tmp_path: Path) -> None:
    config = job(model, offload_folder=str(tmp_path / "offload"), **SPREAD)
    spec, folder = describe_model(config)
    engine = create_engine(config, create_task(spec, config), folder)
    assert len(list((tmp_path / "offload").iterdir())) == 1
    assert any(weight.is_meta for weight in engine.model.parameters())  # type: ignore[attr-defined]
    assert engine.streams == 1
    engine.close()
    assert not list((tmp_path / "offload").iterdir())


def test_a_resume_may_spread_the_model(tmp_path: Path) -> None:
    run(job("tiny-sentiment", tmp_path / "out", chunk_rows=20))
    before = read_output(tmp_path / "out")
    (tmp_path / "out" / "data" / "part-000000-000001.parquet").unlink()
    resume(tmp_path / "out", **SPREAD)
    after = read_output(tmp_path / "out")
    assert after["predicted_label"].equals(before["predicted_label"])


@pytest.mark.parametrize(
    "changes", [{"device": "cpu"}, {"devices": "cpu:2"}, {"device_map": "none"}], ids=str
)
def test_a_resume_may_go_back_to_a_device(changes: dict[str, Any], tmp_path: Path) -> None:
    """What was said of a spread model is not said of one that is not."""
    run(job("tiny-sentiment", tmp_path / "out", chunk_rows=20, **SPREAD))
    before = read_output(tmp_path / "out")
    (tmp_path / "out" / "data" / "part-000000-000001.parquet").unlink()
    resume(tmp_path / "out", **changes)
    after = read_output(tmp_path / "out")
    assert after["predicted_label"].equals(before["predicted_label"])


def test_a_resume_that_spreads_the_model_leaves_the_devices(tmp_path: Path) -> None:
    run(job("tiny-sentiment", tmp_path / "out", chunk_rows=20, device="cpu"))
    (tmp_path / "out" / "data" / "part-000000-000001.parquet").unlink()
    assert resume(tmp_path / "out", **SPREAD).num_rows == 40
    (tmp_path / "out" / "data" / "part-000000-000001.parquet").unlink()
    with pytest.raises(UsageError, match="not with --compile"):
        resume(tmp_path / "out", compile=True, **SPREAD)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"device": "cpu"}, "--device cpu"),
        ({"devices": "cpu:2"}, "--devices cpu:2"),
        ({"engine": "openvino"}, "--engine openvino"),
        ({"adapter": "x"}, "--adapter"),
        ({"compile": True}, "--compile"),
        ({"streams": 2}, "--streams 2"),
        ({"profile": "x.json"}, "--profile x.json"),
        ({"max_memory": "77=1GiB"}, "GPU 77 is not available"),
        ({"device_map": None}, "--max-memory: is for --device-map"),
        ({"device_map": None, "max_memory": None, "offload_folder": "x"}, "--offload-folder: is"),
        ({"offload_folder": "/dev/null/x"}, "--offload-folder /dev/null/x: cannot be written to"),
    ],
)
def test_what_does_not_go_with_it_is_refused(settings: dict[str, Any], said: str) -> None:
    config = job("tiny-sentiment", **{**SPREAD, **settings})
    with pytest.raises(UsageError, match=said):
        spec, folder = describe_model(config)
        create_engine(config, create_task(spec, config), folder)


@pytest.mark.parametrize("memory", ["20GiB", "0=20", "0=1GiB,0=2GiB", "disk=1GiB"])
def test_memory_that_makes_no_sense_is_refused(memory: str) -> None:
    with pytest.raises(UsageError, match="--max-memory: "):
        RunConfig.load({"max_memory": memory})


def test_tune_compares_on_one_device() -> None:
    with pytest.raises(UsageError, match="--device-map"):
        tune(job("tiny-sentiment", **SPREAD))
