"""One declaration gives flag, YAML key and environment variable; errors name where."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchinfer.config import RunConfig
from batchinfer.errors import UsageError


def yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def test_flags_win_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = yaml(tmp_path, "max_length: 1\nworkers: 1\ndtype: float32\n")
    environ = {"BATCHINFER_MAX_LENGTH": "2", "BATCHINFER_WORKERS": "2"}
    config = RunConfig.load({"max_length": "3"}, path, environ)
    assert (config.max_length, config.workers, config.dtype) == (3, 2, "float32")
    assert config.text_column == "text"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dtype: float32\nmodle: x\n", "job.yaml:2: unknown key 'modle'; did you mean 'model'?"),
        ("\n\nmax_batch_tokens: 0\n", "job.yaml:3: max_batch_tokens"),
        ("- a\n- b\n", "job.yaml:1: should be a mapping"),
        ("a: [1\n", "job.yaml:2: not valid YAML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+$") as caught:
        RunConfig.load({}, yaml(tmp_path, text), {})
    assert message in str(caught.value)


def test_a_mistake_elsewhere_is_named_with_its_flag_or_variable() -> None:
    with pytest.raises(UsageError, match="^--max-batch-tokens: .*got '0'"):
        RunConfig.load({"max_batch_tokens": "0"}, None, {})
    with pytest.raises(UsageError, match="^--schema: 'x' should be written NAME=TYPE"):
        RunConfig.load({"types": ["x"]}, None, {})
    with pytest.raises(UsageError, match="^BATCHINFER_DTYPE: "):
        RunConfig.load({}, None, {"BATCHINFER_DTYPE": "int3"})


@pytest.mark.parametrize("name", ["labels", "stop", "keep", "features"])
def test_what_ends_up_in_files_is_text(name: str) -> None:
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")  # as the shell passes it
    for given in (["b", odd], odd):
        with pytest.raises(UsageError, match=f"^--{name}: is not valid UTF-8, got 'caf.udce9'"):
            RunConfig.load({name: given}, None, {})
    assert RunConfig.load({"inputs": [odd]}, None, {}).inputs == (odd,), "paths may be any bytes"


def test_lists_have_commas_in_the_environment_only() -> None:
    environ = {"BATCHINFER_KEEP": "a, b", "BATCHINFER_TYPES": "x=int64,t=timestamp[us, tz=UTC]"}
    config = RunConfig.load({"inputs": ("x,y.jsonl",)}, None, environ)
    assert config.inputs == ("x,y.jsonl",)
    assert config.keep == ("a", "b")
    assert config.types == {"x": "int64", "t": "timestamp[us, tz=UTC]"}
    assert RunConfig.load({"keep": ["a,b"], "types": ["y=string"]}, None, {}).keep == ("a,b",)


@pytest.mark.parametrize(
    "text", ["types: 5", "types:", "yes: 1", "null: 1", "keep: {a: 1}", "model: 3"]
)
def test_odd_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"job.yaml:1: "):
        RunConfig.load({}, yaml(tmp_path, text), {})


def test_auto_stands_for_a_choice_made_later(tmp_path: Path) -> None:
    config = RunConfig.load({"workers": "auto"}, yaml(tmp_path, "max_length: auto\n"), {})
    assert config.workers is None
    assert config.max_length is None


@pytest.mark.parametrize(
    ("allowed", "rows", "expected"), [("5", 100, 5), ("1%", 250, 2), ("0.7%", 1000, 7), (3, 9, 3)]
)
def test_row_errors_are_allowed_by_number_or_share(
    allowed: str | int, rows: int, expected: int
) -> None:
    assert RunConfig.load({"max_errors": allowed}, None, {}).error_allowance(rows) == expected


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("45s", 45),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1d", 86400),
        ("90", 90),
        (90, 90),
    ],
)
def test_times_are_written_as_people_do(given: str | int, seconds: float) -> None:
    assert RunConfig.load({"deadline": given}, None, {}).deadline == seconds


def test_no_time_is_written_none() -> None:
    assert RunConfig.load({"batch_timeout": "none"}, None, {}).batch_timeout is None


@pytest.mark.parametrize("given", ["", "2x", "h", "-5s", "0", "1m1h", "soon"])
def test_what_is_no_time_is_told(given: str) -> None:
    with pytest.raises(UsageError, match="--deadline"):
        RunConfig.load({"deadline": given}, None, {})


def test_a_configuration_survives_its_own_json() -> None:
    config = RunConfig(
        inputs=("a", "b"), output="out", keep=(), types={"x": "int64"}, max_errors="2%"
    )
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
