"""What `batchinfer tune` found out, kept where `run` finds it: a JSON file for each kind of job.

A profile is keyed by what its figures depend on, the flags that held the search among it. Its name in
the user's cache is a digest of the key without versions and cores, so that one found there under other
versions is known to be stale.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from batchinfer import __version__, checked
from batchinfer.config import RunConfig
from batchinfer.core import BatchBudget, ModelSpec
from batchinfer.errors import StorageError, UsageError, one_line
from batchinfer.machine import cache_folder, cpu_name, usable_cores, write_whole

log = logging.getLogger("batchinfer")

FORMAT = 1
#: A profile of a few hundred trials has some 50 kB; what is larger is none.
_MAX_BYTES = 4 << 20
_ATTENTIONS = ("auto", "packed", "sdpa", "eager")
_ENGINES = ("local", "openvino", "fake")
_DTYPES = ("float32", "bfloat16", "float16")


#: The settings that say how large a batch is, and in what.
Size = Literal["max_batch_tokens", "max_batch_rows"]
UNITS: Mapping[Size, str] = {"max_batch_tokens": "tokens", "max_batch_rows": "rows"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is run on one kind of device; None: not decided.

    `max_batch_tokens` and `max_batch_rows` are a batch's budget. `ceiling_tokens`: batches above it ran
    out of memory, and are split before they are tried. `workers` read and tokenize ahead.
    """

    attention: str | None = None
    compile: bool | None = None
    threads: int | None = None
    streams: int | None = None
    max_batch_tokens: int | None = None
    max_batch_rows: int | None = None
    workers: int | None = None
    ceiling_tokens: int | None = None

    @classmethod
    def decided_by(cls, config: RunConfig) -> Settings:
        """Those that the user decided."""
        return cls(
            attention=None if config.attention == "auto" else config.attention,
            compile=config.compile or None,
            threads=config.threads,
            streams=config.streams,
            max_batch_tokens=config.max_batch_tokens,
            max_batch_rows=config.max_batch_rows,
            workers=config.workers,
        )

    def left_open_by(self, config: RunConfig) -> Settings:
        """These settings without those that the user decided."""
        decided = dataclasses.asdict(Settings.decided_by(config))
        names = [name for name, value in decided.items() if value is not None]
        return dataclasses.replace(self, **dict.fromkeys(names))

    def fill(self, config: RunConfig) -> RunConfig:
        """The configuration to create an engine with: what is decided here is put into it."""
        names = ("attention", "compile", "threads", "streams")
        found = {name: getattr(self, name) for name in names}
        return config.model_copy(update={n: v for n, v in found.items() if v is not None})

    def budget(self, usual: BatchBudget) -> BatchBudget:
        """The batch budget, where it is decided; for the rest the usual one."""
        return usual.override(self.max_batch_tokens, self.max_batch_rows)

    def to_text(self) -> str:
        """What is decided, in a few words."""
        parts = []
        if self.max_batch_tokens is not None:
            parts.append(f"budget {self.max_batch_tokens:,} tokens")
        if self.max_batch_rows is not None:
            parts.append(f"at most {self.max_batch_rows:,} rows")
        if self.attention is not None:
            parts.append(f"attention {self.attention}")
        if self.compile:
            parts.append("compiled")
        if self.threads is not None:
            parts.append(f"{self.threads:,} thread{'s' if self.threads > 1 else ''}")
        if self.streams is not None:
            parts.append(f"{self.streams:,} stream{'s' if self.streams > 1 else ''}")
        if self.workers is not None:
            parts.append(f"{self.workers:,} worker{'' if self.workers == 1 else 's'}")
        return ", ".join(parts) or "nothing decided"

    @classmethod
    def from_json(cls, document: object) -> Settings:
        """Read settings back. Raises ValueError, TypeError or KeyError for what was never written."""
        values = checked.mapping(document, "settings")
        if unknown := set(values) - {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(f"settings: unknown '{min(unknown)}'")
        compiles = values.get("compile")
        checked.require(
            compiles is None or type(compiles) is bool, "settings compile: no truth value"
        )
        return cls(
            attention=checked.optional_word(values, "attention", _ATTENTIONS),
            compile=compiles,
            threads=checked.optional_count(values, "threads", 1, 1024),
            streams=checked.optional_count(values, "streams", 1, 256),
            max_batch_tokens=checked.optional_count(values, "max_batch_tokens", 1),
            max_batch_rows=checked.optional_count(values, "max_batch_rows", 1),
            workers=checked.optional_count(values, "workers", 0, 256),
            ceiling_tokens=checked.optional_count(values, "ceiling_tokens", 1),
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting as it was measured.

    `tokens_per_second` counts useful tokens, without padding; `latency` is of one full batch, in
    seconds; `spread` is how far the repetitions lie apart, as a share of their median. `agreement` with
    float32, one row at a time: the smallest cosine of embeddings, or one minus the largest movement of
    a score; None where it was not compared. `verdict` says in a few words what was made of it.
    """

    engine: str
    dtype: str
    settings: Settings
    tokens_per_second: float
    latency: float
    spread: float
    agreement: float | None
    verdict: str

    @classmethod
    def from_json(cls, document: object) -> Trial:
        """Read a trial back. Raises ValueError, TypeError or KeyError for what was never written."""
        values = checked.mapping(document, "trial")
        agreement = values["agreement"]
        return cls(
            engine=checked.word(values["engine"], "engine", _ENGINES),
            dtype=checked.word(values["dtype"], "dtype", _DTYPES),
            settings=Settings.from_json(values["settings"]),
            tokens_per_second=checked.number(values["tokens_per_second"], "tokens_per_second"),
            latency=checked.number(values["latency"], "latency"),
            spread=checked.number(values["spread"], "spread"),
            agreement=None
            if agreement is None
            else checked.number(agreement, "agreement", least=-1e9),
            verdict=checked.text(values["verdict"], "verdict"),
        )


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """What a profile's figures depend on.

    `cpu` names the CPU where it computes, and `cores` are its own; "" and 0 for an accelerator. `engine`
    and `dtype` are those that were asked for, auto or explicit, and `given` are the settings that were:
    they hold a search to what others would not choose. `versions` of what computes, by name.
    """

    device_kind: str
    cpu: str
    cores: int
    model: str
    task: str
    max_length: int
    engine: str
    dtype: str
    given: Settings
    versions: Mapping[str, str]

    @property
    def path(self) -> Path:
        """Where the profile of such a job is kept in the user's cache. Raises UsageError: it has none."""
        lasting = dataclasses.asdict(self)
        del lasting["versions"], lasting["cores"]
        digest = hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:24]
        try:
            return cache_folder() / "profiles" / f"{digest}.json"
        except RuntimeError:
            raise UsageError(
                "no folder for profiles: there is neither a home folder nor XDG_CACHE_HOME; name a file "
                "with --profile"
            ) from None

    def differences(self, now: ProfileKey) -> list[str]:
        """Where the present differs from what a profile was made for, in words.

        Engine, precision and settings that were given are not compared: what counts is whether the job
        runs the chosen ones.
        """
        found = []
        for name in ("device_kind", "cpu", "cores", "max_length"):
            there, here = getattr(self, name), getattr(now, name)
            if there != here:
                shown = f"was {there or 'none'}, now {here or 'none'}"
                found.append(f"{name.replace('_', ' ')} {shown}")
        for name in sorted({*self.versions, *now.versions}):
            then, today = self.versions.get(name, ""), now.versions.get(name, "")
            if then != today:
                found.append(f"{name} was {then or 'not there'}, now {today or 'not there'}")
        return found

    @classmethod
    def from_json(cls, document: object) -> ProfileKey:
        """Read a key back. Raises ValueError, TypeError or KeyError for what was never written."""
        values = checked.mapping(document, "key")
        versions = checked.mapping(values["versions"], "versions")
        return cls(
            device_kind=checked.text(values["device_kind"], "device_kind"),
            cpu=checked.text(values["cpu"], "cpu"),
            cores=checked.count(values["cores"], "cores"),
            model=checked.text(values["model"], "model"),
            task=checked.text(values["task"], "task"),
            max_length=checked.count(values["max_length"], "max_length", 1),
            engine=checked.word(values["engine"], "engine", ("auto", *_ENGINES)),
            dtype=checked.word(values["dtype"], "dtype", ("auto", *_DTYPES)),
            given=Settings.from_json(values["given"]),
            versions={
                name: checked.text(value, f"version of {name}") for name, value in versions.items()
            },
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """The choice that `tune` made for one kind of job, and what it measured; `created` in UTC."""

    key: ProfileKey
    engine: str
    dtype: str
    settings: Settings
    trials: tuple[Trial, ...]
    created: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def write(self, path: Path) -> None:
        """Write the profile whole or not at all. Raises StorageError."""
        try:
            write_whole(path, json.dumps(self.to_dict(), indent=1) + "\n")
        except OSError as error:
            raise StorageError(
                f"the profile cannot be written: {error.strerror}",
                file=str(path),
                advice="name another with --profile",
            ) from None

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read a profile back. Raises UsageError where it is none, FileNotFoundError where none is."""
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
            checked.require(len(content) <= _MAX_BYTES, "too large")
            values = checked.mapping(json.loads(content), "profile")
            written = values["format"]
            checked.require(written == FORMAT, f"format {written}, this version reads {FORMAT}")
            trials = values["trials"]
            checked.require(type(trials) is list, "trials: no list")
            return cls(
                key=ProfileKey.from_json(values["key"]),
                engine=checked.word(values["engine"], "engine", _ENGINES),
                dtype=checked.word(values["dtype"], "dtype", _DTYPES),
                settings=Settings.from_json(values["settings"]),
                trials=tuple(map(Trial.from_json, trials)),
                created=checked.time(values["created"], "created"),
            )
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unusable(path, error.strerror or one_line(error)) from None
        except KeyError as error:
            raise _unusable(path, f"{error} is missing") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise _unusable(path, one_line(error, 100)) from None


@dataclass(frozen=True, slots=True)
class Tuned:
    """The settings that a job runs with, frozen in its plan; they hold for one kind of device.

    `path` and `created` say where they came from.
    """

    device_kind: str
    engine: str
    dtype: str
    settings: Settings
    path: str
    created: str

    def to_text(self) -> str:
        """What a run says when it uses them."""
        return (
            f"{self.engine} in {self.dtype}, settings of {self.created[:10]} from {self.path}: "
            f"{self.settings.to_text()}"
        )

    @classmethod
    def from_json(cls, document: object) -> Tuned:
        """Read them back. Raises ValueError, TypeError or KeyError for what was never written."""
        values = checked.mapping(document, "tuned")
        return cls(
            device_kind=checked.text(values["device_kind"], "device_kind"),
            engine=checked.word(values["engine"], "engine", _ENGINES),
            dtype=checked.word(values["dtype"], "dtype", _DTYPES),
            settings=Settings.from_json(values["settings"]),
            path=checked.text(values["path"], "path"),
            created=checked.time(values["created"], "created"),
        )


def key_of(asked: RunConfig, spec: ModelSpec, device_kind: str) -> ProfileKey:
    """The key of a job: `asked` is its configuration with every auto as the user left it."""
    is_cpu = device_kind == "cpu"
    return ProfileKey(
        device_kind=device_kind,
        cpu=cpu_name() if is_cpu else "",
        cores=usable_cores() if is_cpu else 0,
        model=spec.identity,
        task=spec.task,
        max_length=spec.max_length,
        engine=asked.engine,
        dtype=asked.dtype,
        # How many processes load ahead changes nothing of what the others were measured with.
        given=dataclasses.replace(Settings.decided_by(asked), workers=None),
        versions=_versions(),
    )


def kept_profile(key: ProfileKey) -> Profile | None:
    """The profile of such a job in the user's cache, where there is one and it is not stale.

    The log says what keeps one from being used.
    """
    try:
        path = key.path
    except UsageError as error:
        log.debug(one_line(error))
        return None
    try:
        profile = Profile.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UsageError as error:
        log.warning(f"{error}; it is not used: run `batchinfer tune` again")
        return None
    if (profile.key.model, profile.key.task) != (key.model, key.task):
        log.warning(f"{path}: is not the profile of this model; it is not used")
        return None
    if found := profile.key.differences(key):
        log.warning(
            f"the profile of {profile.created[:10]} is stale and not used ({'; '.join(found)}): run "
            "`batchinfer tune` again"
        )
        return None
    return profile


def named_profile(path: str, spec: ModelSpec) -> Profile:
    """The profile in a file. Raises UsageError where it is none, or of another model or task."""
    try:
        profile = Profile.read(Path(path))
    except FileNotFoundError:
        raise UsageError(
            f"--profile {path}: no such file; `batchinfer tune … --profile {path}` makes it"
        ) from None
    wanted = {"model": spec.identity, "task": spec.task}
    for name, here in wanted.items():
        there = getattr(profile.key, name)
        if there != here:
            raise UsageError(
                f"--profile {path}: of another {name} ({there[:24]}, the job's is {here[:24]}); name "
                "another, or none"
            )
    return profile


@functools.cache
def _versions() -> Mapping[str, str]:
    """Of what computes the answers; asked of the installation, without importing anything."""
    versions = {"batchinfer": __version__, "python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("torch", "transformers", "openvino"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    return versions


def _unusable(path: Path, why: str) -> UsageError:
    return UsageError(f"no profile of batchinfer ({why})", file=str(path))
