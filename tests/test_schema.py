"""The schema for editors: current, and of one mind with RunConfig about what a configuration may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from batchinfer.cli import main
from batchinfer.config import RunConfig
from batchinfer.errors import UsageError
from batchinfer.schema import json_schema
from tests.conftest import ROOT

SCHEMA = json_schema()
JUDGE = jsonschema.Draft202012Validator(SCHEMA)
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

GOOD = (
    "inputs: a.jsonl", "inputs: [a.jsonl, 'b*.csv']", "output: out", "model: org/name", "task: auto",
    "max_length: auto", "max_length: 128", "max_length: null", "temperature: 0.5", "temperature: auto",
    "normalize: true", "normalize: auto", "keep: id", "keep: [id, name]", "keep: []", "keep: null",
    "types: {id: int64}", "types: id=int64", "types: [id=int64, 'when=timestamp[us, tz=UTC]']",
    "labels: [a, b]", "features: a,b,c", "stop: ['\\n']", "seed: 0", "header: false", "compile: true",
    "max_errors: 0", "max_errors: 1%", "max_errors: 0.7%", "max_errors: 100%", "max_errors: '12'",
    "deadline: 45s", "deadline: 1h30m", "deadline: 90", "deadline: 1.5", "deadline: none",
    "batch_timeout: 1d", "device: cuda:1", "device: mps", "devices: auto", "devices: 2",
    "devices: [0, 1]", "devices: cpu:4", "devices: none", "device_map: balanced", "device_map: none",
    "max_memory: 0=20GiB,cpu=60GiB", "max_memory: {0: 20GiB, cpu: 60GiB}", "ray_actors: 4",
    "ray_actors: '2:16'", "ray_actors: auto", "ray_gpus: 0.5", "ray_cpus: 2", "workers: 0",
    "encoding: latin-1", "chunk_rows: 1024",
    "cache_size: 10GiB", "cache_size: 1048576", "dedup: off",
    "top_p: 1", "shard: 0/8", "profile: none",
)  # fmt: skip
BAD = (
    "ouptut: out", "max-length: 3", "Model: x", "task: sentiment", "dtype: bf16", "engine: vllm",
    "format: json", "attention: flash", "long: both", "pooling: max", "max_length: 0",
    "max_length: 1.5", "max_length: many", "max_length: 2000000000", "temperature: -1",
    "temperature: 101", "top_p: 0", "top_p: 2", "normalize: 7", "keep: 3", "keep: {a: 1}",
    "inputs: 5", "inputs: {a: b}", "model: 3", "output: null", "types: 5", "types: [id]",
    "types: id", "labels: 1", "seed: -1", "seed: auto", "seed: true", "threads: true", "workers: -1",
    "workers: 257", "ray_gpus: false", "header: 7", "header: [true]", "trust_remote_code: maybe",
    "max_errors: lots", "max_errors: -1", "max_errors: 101%", "max_errors: 1.5", "max_errors: [1]",
    "deadline: soon", "deadline: 0", "deadline: 0s", "deadline: 1m1h", "deadline: -5s",
    "batch_timeout: h", "device: gpu", "device: 'cuda:'", "device: cuda:x", "devices: cuda:0",
    "devices: cpu:0", "devices: true", "devices: [a]", "device_map: everywhere", "max_memory: 20GiB",
    "max_memory: {disk: 20GiB}", "max_memory: {cpu: lots}", "ray_actors: 0", "ray_actors: 2-4",
    "text_column: ''", "text_column: null", "profile: ''", "chunk_rows: 0",
    "cache_size: 10 elephants", "cache_size: -1", "dedup: perhaps",
    "max_line_bytes: 10",
)  # fmt: skip


def document(text: str) -> Any:
    """What YAML says, as an editor has it: keys are texts."""
    return json.loads(json.dumps(yaml.safe_load(text)))


def is_taken(text: str, folder: Path) -> bool:
    path = folder / "job.yaml"
    path.write_text(text + "\n")
    try:
        RunConfig.load({}, path, {})
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("text", GOOD)
def test_what_a_job_may_say_passes_both(text: str, tmp_path: Path) -> None:
    assert is_taken(text, tmp_path)
    JUDGE.validate(document(text))


@pytest.mark.parametrize("text", BAD)
def test_what_a_job_may_not_say_is_refused_by_both_at_the_same_key(
    text: str, tmp_path: Path
) -> None:
    assert not is_taken(text, tmp_path)
    [error] = JUDGE.iter_errors(document(text))
    key = text.partition(":")[0]
    if error.validator == "additionalProperties":
        assert key not in RunConfig.model_fields
    else:
        assert error.path[0] == key


def test_every_setting_of_an_odd_type_is_tried() -> None:
    odd = {name for name, one in SCHEMA["properties"].items() if "pattern" in str(one)}
    assert len(odd) > 6
    for table in (GOOD, BAD):
        assert odd <= {text.partition(":")[0] for text in table}


def test_the_schema_in_the_repository_is_current() -> None:
    kept = (ROOT / "configs" / "schema.json").read_text(encoding="utf-8")
    assert json.loads(kept) == SCHEMA, "batchinfer schema > configs/schema.json"


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_every_key_is_described_with_its_flag_and_its_words() -> None:
    JUDGE.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]) == set(RunConfig.model_fields)
    for name, one in SCHEMA["properties"].items():
        assert (RunConfig.model_fields[name].description or "-") in one["description"]
        assert not {"title", "panel", "flag", "free"} & set(one), "nothing of the command line's"
    properties = SCHEMA["properties"]
    assert "(--schema)" in properties["types"]["description"]
    assert (
        "token-classify" in properties["task"]["enum"] and properties["task"]["default"] == "auto"
    )
    assert properties["seed"]["default"] == 0 and properties["header"]["default"] is True
    assert {"type": "integer", "minimum": 1, "maximum": 1 << 30} in properties["max_length"][
        "anyOf"
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_of_the_repository_name_the_schema_and_fulfil_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").split("\n")[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).is_file(), first
    JUDGE.validate(document(path.read_text(encoding="utf-8")))
