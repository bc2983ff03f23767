"""RunConfig: each knob is declared once, here, and is a flag, a YAML key and an environment variable.

Precedence: flag > BATCHINFER_… variable > YAML file > default. The three sources are merged by hand
(a dictionary union) rather than by a settings library: that keeps `--help` quick, and every message
can name the flag, the variable or the line of the file that is wrong.
"""

from __future__ import annotations

import os
import reprlib
import typing
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from batchinfer.errors import UsageError, one_line
from batchinfer.hints import closest, did_you_mean, near_path, reason_of
from batchinfer.knobs import (
    CONDUCT,
    INPUT,
    MODEL,
    OUTPUT,
    SPEED,
    TASK,
    USUAL,
    ActorCount,
    AutoBool,
    AutoFloat,
    AutoInt,
    Columns,
    CountOrPercentage,
    Dedup,
    Device,
    DeviceMap,
    Devices,
    Duration,
    Encoding,
    Folder,
    Memories,
    Names,
    Paths,
    Size,
    Text,
    Types,
    Whole,
    knob,
    split_variable,
    to_seconds,
)

ENV_PREFIX = "BATCHINFER_"
#: What scripts and images call variables of their own, though it is like the name of a field.
_NOT_MEANT = frozenset({"log", "logs"})


class RunConfig(BaseModel):
    """One job: what to read, which model answers, where the answers go.

    `None` means auto: the value is chosen when the job is planned, and frozen in the plan.

    Raises UsageError from `load`, and pydantic's ValidationError (a ValueError) when built directly.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    inputs: Paths = knob((), "Files, globs, folders or addresses (s3://…)", INPUT)
    output: str = knob("", "Run folder to write", OUTPUT, flag="-o")

    model: str = knob(
        "",
        "Hub id or local folder (safetensors); of --task module a .pt2 file or package.module:factory",
        MODEL,
        flag="-m",
    )
    revision: str | None = knob(None, "Branch, tag or commit of a hub model", MODEL)
    adapter: Text | None = knob(
        None,
        "PEFT adapter (LoRA) for the model: hub id or local folder (pip install 'batchinfer[peft]')",
        MODEL,
        min_length=1,
    )
    trust_remote_code: bool = knob(
        False, "Run Python code that comes with the model; a .pt2 file is such code", MODEL
    )
    allow_pickle: bool = knob(
        False, "Load pickled weights (pytorch_model.bin) where there are no safetensors", MODEL
    )
    task: Literal[
        "auto", "classify", "embed", "token-classify", "score", "zero-shot", "fill-mask", "generate",
        "seq2seq", "module",
    ] = knob("auto", "What the model does; auto: found from the model", MODEL)  # fmt: skip
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
        "Tokens a row at most; longer rows are cut and counted (see --long) [default: the model's]",
        MODEL,
        ge=1,
        le=1 << 30,
    )
    long: Literal["truncate", "stride"] = knob(
        "truncate",
        "Texts that exceed the model: cut, or taken in overlapping windows whose answers become one",
        TASK,
    )
    stride: AutoInt = knob(
        None,
        "Tokens that neighbouring windows share [default: a quarter of a window]",
        TASK,
        ge=0,
        le=1 << 30,
    )

    top_k: AutoInt = knob(
        None,
        "classify: list the K best labels, too; score: the K best documents; fill-mask: the K best "
        "tokens [default: 5]; generate, seq2seq: draw from the K likeliest tokens",
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

    max_new_tokens: AutoInt = knob(
        None, "generate, seq2seq: tokens of an answer at most [default: the model's, else 256]", TASK,
        ge=1, le=1 << 20,
    )  # fmt: skip
    temperature: AutoFloat = knob(
        None, "generate, seq2seq: how freely tokens are drawn; 0: always the likeliest [default: as the "
        "model says]", TASK, ge=0, le=100, allow_inf_nan=False,
    )  # fmt: skip
    top_p: AutoFloat = knob(
        None, "generate, seq2seq: draw from the likeliest tokens that make up this share", TASK,
        gt=0, le=1, allow_inf_nan=False,
    )  # fmt: skip
    stop: Names = knob((), "generate, seq2seq: a text that ends an answer (repeatable)", TASK)
    seed: Whole = knob(
        0, "generate, seq2seq: what each row's own draws begin with", TASK, ge=0, le=(1 << 63) - 1
    )
    generation_config: Text = knob(
        "",
        "generate, seq2seq: further settings by transformers' names, a JSON file or the JSON itself",
        TASK,
    )
    chat: AutoBool = knob(
        None,
        "generate: put prompts through the chat template [default: where the model has one]",
        TASK,
    )
    system: Text | None = knob(None, "generate: a system message before each prompt", TASK)
    features: Columns = knob((), "module: the columns that it takes: a,b,c", TASK)

    text_column: Text = knob("text", "Column to read", INPUT, min_length=1)
    text_pair_column: Text | None = knob(None, "Second text of a pair", INPUT)
    template: Text | None = knob(
        None,
        "Jinja template that makes the text of a row's columns, in place of --text-column; @FILE: the one "
        "that a file holds",
        INPUT,
        min_length=1,
    )
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet"] = knob(
        "auto", "Input format; auto: by the file name", INPUT
    )
    encoding: Encoding = knob("utf-8", "Text encoding of JSONL and CSV", INPUT)
    delimiter: Text | None = knob(None, "CSV delimiter [default: found from the header]", INPUT)
    header: bool = knob(
        True, "Whether CSV files have a header; without: column_0, column_1, …", INPUT
    )
    types: Types = knob(
        {}, "Column types that override what was found: NAME=TYPE", INPUT, flag="--schema"
    )
    limit: AutoInt = knob(None, "Only the first N rows", INPUT, ge=1)
    max_line_bytes: Whole = knob(64 << 20, "A longer line is an error row", INPUT, ge=1 << 10)

    keep: Names | None = knob(
        None, "Columns carried through (repeatable; none: no column) [default: all]", OUTPUT
    )
    output_prefix: Text = knob("", "Prefix of the columns that the task writes", OUTPUT)
    chunk_rows: AutoInt = knob(
        None, "Rows of a chunk, hence of a shard [default: 16384, of tables 65536, fewer where rows are "
        "large]", OUTPUT,
        ge=1, le=1 << 24,
    )  # fmt: skip
    max_errors: CountOrPercentage = knob(
        "0", "Row errors (N or P%) tolerated before the exit code is 65", CONDUCT, free=True
    )

    deadline: Duration = knob(
        None, "Stop cleanly before this time is over: 45s, 30m, 2h, 1h30m", CONDUCT, free=True, gt=0
    )
    log_file: Text | None = knob(
        None,
        "Write the log here too, with times; at 10 MB it gets a number (.1), and five of those are kept",
        CONDUCT,
        free=True,
        min_length=1,
    )
    batch_timeout: Duration = knob(
        None,
        "Time a batch may take before it counts as hanging; answers in a process of its own "
        "[default: any]",
        CONDUCT,
        free=True,
        gt=0,
    )

    progress: Literal["auto", "bar", "log", "json", "none"] = knob(
        "auto",
        "How to say how far it is, on stderr; auto: a bar in a terminal, else a line every 30 s; json: all "
        "of it as JSON lines",
        CONDUCT,
        free=True,
    )
    metrics_file: Text | None = knob(
        None,
        "Also keep the figures in a Prometheus text file (NAME.prom)",
        CONDUCT,
        free=True,
        min_length=1,
    )

    device: Device = knob("auto", "auto, cpu, cuda, cuda:N, mps", SPEED, free=True)
    devices: Devices = knob(
        None,
        "Several devices of this machine, a process each: auto (every GPU), 0,1,3 or cpu:4 [default: one]",
        SPEED,
        free=True,
    )
    device_map: DeviceMap = knob(
        None,
        "For a model that no device holds: spread its layers over GPUs, the CPU's memory and disk, by "
        "accelerate: auto, balanced, sequential, or none [default: one device]",
        SPEED,
        free=True,
    )
    max_memory: Memories = knob(
        None,
        "--device-map: what weights may take on each device, 0=20GiB,cpu=60GiB; what is not named is not "
        "used, the rest goes to disk [default: what is free]",
        SPEED,
        free=True,
    )
    offload_folder: Text | None = knob(
        None,
        "--device-map: where weights go that only disk has room for; removed at the end [default: the "
        "system's temporary folder]",
        SPEED,
        free=True,
        min_length=1,
    )
    shard: Text | None = knob(
        None,
        "Answer one of N parts, beside others that share the output folder: 0/8 … 7/8, or auto (from the "
        "variables of torchrun, Slurm or Kubernetes)",
        SPEED,
        free=True,
    )
    executor: Literal["auto", "ray"] = knob(
        "auto",
        "Who answers; auto: this machine; ray: actors of a Ray cluster (pip install 'batchinfer[ray]')",
        SPEED,
        free=True,
    )
    ray_address: Text | None = knob(
        None, "The Ray cluster [default: $RAY_ADDRESS, else a Ray of this machine alone]", SPEED,
        free=True, min_length=1,
    )  # fmt: skip
    ray_actors: ActorCount = knob(
        None,
        "Actors with the model: N, or MIN:MAX, more as there is work and room [default: as many as fit]",
        SPEED,
        free=True,
    )
    ray_gpus: AutoFloat = knob(
        None, "GPUs of an actor [default: 1 where the cluster has any, none with --device cpu]", SPEED,
        free=True, ge=0, le=64, allow_inf_nan=False,
    )  # fmt: skip
    ray_cpus: AutoInt = knob(
        None, "CPUs of an actor; without a GPU, the threads that it computes with [default: 1]", SPEED,
        free=True, ge=1, le=1024,
    )  # fmt: skip
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
        "thread, 8 at most; one where a module may keep something]", SPEED, free=True, ge=1, le=256,
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
        None, "Rows of a batch at most [default: 4096, of tables by device]", SPEED, free=True, ge=1
    )
    dedup: Dedup = knob(
        "auto",
        "Rows of the same input: chunk: those of a chunk are answered once; off: each by itself; auto: "
        "chunk, but for answers that are drawn and for tables",
        SPEED,
    )
    cache: Folder | None = knob(
        None,
        "Folder where answers are kept and looked up, by this and other runs at once [default: none]",
        SPEED,
        free=True,
        min_length=1,
    )
    cache_size: Size = knob(
        10 << 30,
        "What the cache may take on disk, 500MB or 20GiB; its oldest answers make room [default: 10GiB]",
        SPEED,
        free=True,
        ge=1 << 20,
    )
    workers: AutoInt = knob(
        None, "Processes that read and tokenize ahead; 0: the main process [default: by input]", SPEED,
        free=True, ge=0, le=256,
    )  # fmt: skip

    @property
    def main_device(self) -> str:
        """The device, or the first of several; all of them are taken to be of its kind."""
        if self.devices is None or self.devices == "auto":
            return self.device
        first, _, _ = self.devices.partition(",")
        return "cpu" if first.startswith("cpu") else f"cuda:{first}"

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that a row is answered by and that must hold text."""
        if self.task == "module":
            return ()
        first = self.text_column if self.template is None else None
        named = (first, self.text_pair_column, self.labels_column)
        return tuple(name for name in named if name)

    def value_columns(self, there: Iterable[str]) -> tuple[str, ...]:
        """Further columns that a row is answered by, of any type; `there`: those that the input has.

        Raises ValueError for a template that is none.
        """
        if self.task == "module":
            return self.features
        if self.template is None:
            return ()
        from batchinfer.sandbox import template_of

        return template_of(self.template).columns(there)

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
                given[name] = split_variable(value) if several else value
        return given

    @classmethod
    def misspelt_variables(cls, environ: Mapping[str, str]) -> dict[str, str]:
        """Variables that are like one of ours and are none, with the one that is meant.

        Others that begin alike are passed over: deployments have variables of their own for what they
        call batchinfer, and Kubernetes makes some for a service of that name.
        """
        words = {
            name[len(ENV_PREFIX) :].lower(): name for name in environ if name.startswith(ENV_PREFIX)
        }
        meant = {
            name: closest(word, cls.model_fields, cutoff=0.8)
            for word, name in sorted(words.items())
            if word not in cls.model_fields and word not in _NOT_MEANT
        }
        return {name: ENV_PREFIX + word.upper() for name, word in meant.items() if word}

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
                hint = did_you_mean(key, cls.model_fields) or "; `batchinfer init` lists all keys"
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
            reason, hint = reason_of(detail, choices_of(name) if name else ())
            got = _shown(detail.get("input"))
            raise UsageError(f"{where}: {reason}, got {got}{hint}") from None


def seconds_of(flag: str, value: str) -> float:
    """The seconds that the value of a flag says. Raises UsageError where it says none, or nothing."""
    try:
        seconds = to_seconds(value)
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


def choices_of(name: str) -> tuple[str, ...]:
    """The words that a field may be, where it may only be some; otherwise the usual ones."""
    words: tuple[str, ...] = USUAL.get(name, ())
    for part in parts_of(name):
        if typing.get_origin(part) is Literal:
            words += typing.get_args(part)
    return words


def parts_of(name: str) -> list[Any]:
    """The types that a field's annotation is made of, and their origins."""
    parts, found = [RunConfig.model_fields[name].annotation], []
    while parts:
        part = parts.pop()
        found += [part, typing.get_origin(part)]
        parts += typing.get_args(part)
    return found


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
        hint = near_path(path) or "; `batchinfer init` writes one"
        raise UsageError(f"{path}: no such configuration file{hint}") from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read as a configuration file: {error.strerror}; name a YAML file"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: is not UTF-8 (byte {error.start + 1}); save it as UTF-8, or name another file"
        ) from None
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
    for key, value in node.value:
        if value.tag.endswith(":int") and ":" in value.value:  # YAML 1.1 takes 1:8 for 68
            document[key.value] = value.value
        line = key.start_mark.line + 1
        if str(key.value) in lines:
            first = lines[str(key.value)]
            raise UsageError(f"{path}:{line}: '{key.value}' stands twice, first in line {first}")
        lines[str(key.value)] = line
    return {str(key): value for key, value in document.items()}, lines


def _shown(value: Any) -> str:
    text = reprlib.repr(value)  # bounded: a few anchors in YAML can stand for a text without end
    return text if len(text) <= 60 else text[:57] + "…"
