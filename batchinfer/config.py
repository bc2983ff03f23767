"""RunConfig: each knob is declared once, here, and is a flag, a YAML key and an environment variable.

Precedence: flag > BATCHINFER_… variable > YAML file > default. The three sources are merged by hand
(a dictionary union) rather than by a settings library: that keeps `--help` quick, and every message
can name the flag, the variable or the line of the file that is wrong.
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
import reprlib
import typing
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from batchinfer.errors import UsageError, one_line

ENV_PREFIX = "BATCHINFER_"

#: Panels of `run --help`, in this order.
MODEL, TASK, INPUT, OUTPUT, SPEED, CONDUCT = "Model", "Task", "Input", "Output", "Speed", "Conduct"


def knob(
    default: Any, description: str, panel: str, *, flag: str = "", free: bool = False, **limits: Any
) -> Any:
    """Declare one field: its default, its help text, its panel in the help.

    `free` knobs say how a job is run, not what it answers: they may change at `resume`.
    """
    extra: dict[str, Any] = {"panel": panel, "flag": flag, "free": free}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def _listed(value: Any) -> Any:
    """A single value stands for a list of one; names may hold commas."""
    return [value] if isinstance(value, str) else value


def _assignments(value: Any) -> Any:
    """Mappings may be written NAME=TYPE, one or several."""
    if isinstance(value, Mapping):
        return value
    parts = _listed(value)
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise ValueError("should be a mapping of names to types")
    pairs = [part.partition("=") for part in parts]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"'{wrong[0]}' should be written NAME=TYPE")
    return {name: type_name for name, _, type_name in pairs}


def _split_variable(value: str) -> list[str]:
    """An environment variable holds a list as `a,b`; commas within brackets separate nothing."""
    return [part.strip() for part in re.split(r",(?![^\[(]*[\])])", value) if part.strip()]


def _known_encoding(value: str) -> str:
    """The one name of an encoding, whichever of its names was given."""
    try:
        name = codecs.lookup(value).name
    except LookupError:
        name = ""
    if not name or name in ("idna", "punycode"):  # those are of host names
        raise ValueError("is no text encoding that Python knows")
    return name


def _unicode(value: str) -> str:
    """A name that ends up in a file's columns; what the shell passes may be any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid UTF-8") from None
    return value


def _auto_is_none(value: Any) -> Any:
    return None if value == "auto" else value


_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


def _seconds(value: Any) -> Any:
    """Seconds from 90, 45s, 30m, 2h, 1h30m, 1d; None from none."""
    if not isinstance(value, str):
        return value
    if value == "none":
        return None
    found = _DURATION.fullmatch(value.strip())
    if not found or not any(found.groups()):
        raise ValueError("should be a time such as 45s, 30m, 2h or 1h30m")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _count_or_percentage(value: Any) -> str:
    is_simple = isinstance(value, (str, int, float))  # what else YAML makes may be endless as text
    if not is_simple or not re.fullmatch(r"\d{1,18}|\d{1,3}(\.\d{1,18})?%", str(value)):
        raise ValueError("should be a whole number or a percentage such as 1%")
    return str(value)


Text = Annotated[str, AfterValidator(_unicode)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Types = Annotated[dict[Text, Text], BeforeValidator(_assignments)]
AutoInt = Annotated[int | None, BeforeValidator(_auto_is_none)]
AutoBool = Annotated[bool | None, BeforeValidator(_auto_is_none)]
Duration = Annotated[float | None, BeforeValidator(_seconds)]
CountOrPercentage = Annotated[str, BeforeValidator(_count_or_percentage)]


class RunConfig(BaseModel):
    """One job: what to read, which model answers, where the answers go.

    `None` means auto: the value is chosen when the job is planned, and frozen in the plan.

    Raises UsageError from `load`, and pydantic's ValidationError (a ValueError) when built directly.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    inputs: Names = knob((), "Files, globs or folders", INPUT)
    output: str = knob("", "Run folder to write", OUTPUT, flag="-o")

    model: str = knob("", "Hub id or local folder (safetensors)", MODEL, flag="-m")
    revision: str | None = knob(None, "Branch, tag or commit of a hub model", MODEL)
    trust_remote_code: bool = knob(False, "Run Python code that comes with the model", MODEL)
    allow_pickle: bool = knob(
        False, "Load pickled weights (pytorch_model.bin) where there are no safetensors", MODEL
    )
    task: Literal["auto", "classify", "embed", "token-classify", "score", "zero-shot"] = knob(
        "auto", "What the model does; auto: found from the model", MODEL
    )
    engine: Literal["auto", "local", "openvino", "fake"] = knob(
        "auto",
        "local: transformers; openvino: the same model exported (pip install 'batchinfer[openvino]'); "
        "fake: no model, a deterministic answer from the text",
        MODEL,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto", "Precision of the weights; auto: bfloat16 where the hardware is fast in it", MODEL
    )
    max_length: AutoInt = knob(
        None,
        "Tokens a row at most; longer rows are cut and counted [default: the model's]",
        MODEL,
        ge=1,
        le=1 << 30,
    )

    top_k: AutoInt = knob(
        None,
        "classify: list the K best labels, too; score: the K best documents",
        TASK,
        ge=1,
        le=1 << 20,
    )
    all_scores: bool = knob(False, "classify: list every label with its score, too", TASK)
    pooling: Literal["auto", "mean", "cls", "last"] = knob(
        "auto", "embed: how a row's states become a vector; auto: as the model says", TASK
    )
    normalize: AutoBool = knob(
        None, "embed: vectors of length one [default: as the model says]", TASK
    )
    prompt: Text | None = knob(
        None, "embed: what is put before each text [default: as the model says]", TASK
    )
    truncate_dim: AutoInt = knob(None, "embed: keep the first N dimensions only", TASK, ge=1)
    embedding_dtype: Literal["float32", "float16"] = knob(
        "float32", "embed: precision of the vectors that are written", TASK
    )
    aggregation: Literal["none", "simple", "first", "average", "max"] = knob(
        "simple", "token-classify: how tokens become entities, as in transformers' pipeline", TASK
    )

    labels: Names = knob((), "zero-shot: what texts may be (repeatable)", TASK)
    labels_column: Text | None = knob(
        None, "zero-shot: a column with a list of labels for each row", TASK, min_length=1
    )
    hypothesis: Text = knob(
        "This example is {}.", "zero-shot: the sentence that a label, in place of {}, makes", TASK
    )
    multi_label: bool = knob(False, "zero-shot: each label for itself; several may hold", TASK)

    text_column: Text = knob("text", "Column to read", INPUT, min_length=1)
    text_pair_column: Text | None = knob(None, "Second text of a pair", INPUT)
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet"] = knob(
        "auto", "Input format; auto: by the file name", INPUT
    )
    encoding: Annotated[str, AfterValidator(_known_encoding)] = knob(
        "utf-8", "Text encoding of JSONL and CSV", INPUT
    )
    delimiter: Text | None = knob(None, "CSV delimiter [default: found from the header]", INPUT)
    header: bool = knob(
        True, "Whether CSV files have a header; without: column_0, column_1, …", INPUT
    )
    types: Types = knob(
        {}, "Column types that override what was found: NAME=TYPE", INPUT, flag="--schema"
    )
    limit: AutoInt = knob(None, "Only the first N rows", INPUT, ge=1)
    max_line_bytes: int = knob(64 << 20, "A longer line is an error row", INPUT, ge=1 << 10)

    keep: Names | None = knob(
        None, "Columns carried through (repeatable; none: no column) [default: all]", OUTPUT
    )
    output_prefix: Text = knob("", "Prefix of the columns that the task writes", OUTPUT)
    chunk_rows: AutoInt = knob(
        None, "Rows of a chunk, hence of a shard [default: 16384, fewer where rows are large]", OUTPUT,
        ge=1, le=1 << 24,
    )  # fmt: skip
    max_errors: CountOrPercentage = knob(
        "0", "Row errors (N or P%) tolerated before the exit code is 65", CONDUCT, free=True
    )

    deadline: Duration = knob(
        None, "Stop cleanly before this time is over: 45s, 30m, 2h, 1h30m", CONDUCT, free=True, gt=0
    )
    batch_timeout: Duration = knob(
        None,
        "Time a batch may take before it counts as hanging; answers in a process of its own "
        "[default: any]",
        CONDUCT,
        free=True,
        gt=0,
    )

    device: str = knob("auto", "auto, cpu, cuda, cuda:N, mps", SPEED, free=True)
    attention: Literal["auto", "packed", "sdpa", "eager"] = knob(
        "auto",
        "How the model attends; auto: packed, without padding, where the architecture allows it",
        SPEED,
        free=True,
    )
    compile: bool = knob(
        False, "Compile the model with torch.compile (CUDA; slow to start)", SPEED, free=True
    )
    threads: AutoInt = knob(
        None, "CPU threads that the model computes with [default: every core]", SPEED, free=True,
        ge=1, le=1024,
    )  # fmt: skip
    streams: AutoInt = knob(
        None, "Batches that a CPU answers at a time, each on its share of the threads [default: one a "
        "thread, 8 at most]", SPEED, free=True, ge=1, le=256,
    )  # fmt: skip
    profile: Text = knob(
        "auto",
        "Settings found by `batchinfer tune`: auto (those kept for this device and model), none, or "
        "a file",
        SPEED,
        free=True,
        min_length=1,
    )
    max_batch_tokens: AutoInt = knob(
        None,
        "Tokens of a batch at most, counted with padding [default: by device]",
        SPEED,
        free=True,
        ge=1,
    )
    max_batch_rows: AutoInt = knob(
        None, "Rows of a batch at most [default: 4096]", SPEED, free=True, ge=1
    )
    workers: AutoInt = knob(
        None, "Processes that read and tokenize ahead; 0: the main process [default: by input]", SPEED,
        free=True, ge=0, le=256,
    )  # fmt: skip

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that a row is answered by."""
        named = (self.text_column, self.text_pair_column, self.labels_column)
        return tuple(name for name in named if name)

    def error_allowance(self, num_rows: int) -> int:
        """How many error rows of `num_rows` are tolerated."""
        if self.max_errors.endswith("%"):
            return int(Fraction(self.max_errors[:-1]) * num_rows / 100)  # 0.7 % of 1,000 is 7
        return int(self.max_errors)

    @classmethod
    def variables(cls, environ: Mapping[str, str]) -> dict[str, Any]:
        """What the environment says, by field."""
        given: dict[str, Any] = {}
        for name in cls.model_fields:
            value = environ.get(ENV_PREFIX + name.upper())
            if value is not None:
                several = {tuple, dict} & set(parts_of(name))
                given[name] = _split_variable(value) if several else value
        return given

    @classmethod
    def load(
        cls,
        flags: Mapping[str, Any],
        config_file: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> RunConfig:
        """Merge flags, environment and YAML file.

        Raises UsageError whose one line names the flag, the variable, or the file and line.
        """
        environ = os.environ if environ is None else environ
        document, lines = read_yaml(Path(config_file)) if config_file else ({}, {})
        for key in document:
            if key not in cls.model_fields:
                where = f"{config_file}:{lines.get(key, 1)}"
                hint = did_you_mean(key, cls.model_fields)
                raise UsageError(f"{where}: unknown key '{key}'{hint}")
        variables = cls.variables(environ)
        try:
            return cls.model_validate({**document, **variables, **flags})
        except ValidationError as error:
            detail = error.errors()[0]
            name = str(detail["loc"][0]) if detail["loc"] else ""
            if name in flags:
                where = flag_name(name)
            elif name in variables:
                where = ENV_PREFIX + name.upper()
            else:
                where = f"{config_file}:{lines.get(name, 1)}: {name}"
            reason = detail["msg"].removeprefix("Value error, ")
            raise UsageError(f"{where}: {reason}, got {_shown(detail.get('input'))}") from None


def seconds_of(flag: str, value: str) -> float:
    """The seconds that the value of a flag says. Raises UsageError where it says none, or nothing."""
    try:
        seconds = _seconds(value)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}, got {_shown(value)}") from None
    if not seconds or seconds <= 0:
        raise UsageError(f"{flag}: should be more than 0, got {_shown(value)}")
    return float(seconds)


def flag_name(name: str) -> str:
    """The command-line flag of a field."""
    flag = str(knob_of(name)["flag"])
    return flag if flag.startswith("--") else "--" + name.replace("_", "-")


def knob_of(name: str) -> dict[str, Any]:
    """What `knob` recorded of a field."""
    return typing.cast("dict[str, Any]", RunConfig.model_fields[name].json_schema_extra)


def parts_of(name: str) -> list[Any]:
    """The types that a field's annotation is made of, and their origins."""
    parts, found = [RunConfig.model_fields[name].annotation], []
    while parts:
        part = parts.pop()
        found += [part, typing.get_origin(part)]
        parts += typing.get_args(part)
    return found


def did_you_mean(word: str, choices: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return a YAML file's mapping and the 1-based line of each key.

    Raises UsageError with file and line where it is not readable as a mapping.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)  # no tag makes it build anything but plain values
    except FileNotFoundError:
        raise UsageError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {one_line(error)}") from None
    except RecursionError:
        raise UsageError(f"{path}: not valid YAML: nested too deeply") from None
    except (ValueError, AttributeError) as error:  # a date of month 13, an !!int that is none
        reason = one_line(error, 100)
        raise UsageError(f"{path}: not valid YAML: a value cannot be read: {reason}") from None
    if document is None:
        return {}, {}
    if not isinstance(document, dict) or not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}:1: should be a mapping of keys to values")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if str(key.value) in lines:
            first = lines[str(key.value)]
            raise UsageError(f"{path}:{line}: '{key.value}' stands twice, first in line {first}")
        lines[str(key.value)] = line
    return {str(key): value for key, value in document.items()}, lines


def _shown(value: Any) -> str:
    text = reprlib.repr(value)  # bounded: a few anchors in YAML can stand for a text without end
    return text if len(text) <= 60 else text[:57] + "…"
