"""What a tune found, for people and for programs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchinfer.config import RunConfig, flag_name, knob_of
from batchinfer.profiles import UNITS, Profile, Trial
from batchinfer.reporting.progress import duration
from batchinfer.tuning.plot import curve_of, milliseconds, sized_by, text_plot


@dataclass(frozen=True, slots=True)
class TuneReport:
    """The profile, where it was written (nowhere: empty), and why it is what it is.

    `lengths`: tokens a row of the sample of `num_rows` rows. `num_tokens_estimate` of the whole input.
    `not_tried`: what the time did not suffice for. `next_command`: what to type next.
    """

    profile: Profile
    path: str
    model: str
    num_rows: int
    lengths: Mapping[str, float]
    num_tokens_estimate: int
    reasons: tuple[str, ...]
    not_tried: tuple[str, ...]
    seconds: float
    next_command: str = ""

    @property
    def chosen(self) -> Trial:
        """The trial of the setting that was chosen."""
        return next(t for t in self.profile.trials if t.verdict == "chosen")

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {
            **self.profile.to_dict(),
            "profile": self.path,
            "tokens_per_second": self.chosen.tokens_per_second,
            "latency": self.chosen.latency,
            "sample": {"num_rows": self.num_rows, "lengths": dict(self.lengths)},
            "num_tokens_estimate": self.num_tokens_estimate,
            "reasons": list(self.reasons),
            "not_tried": list(self.not_tried),
            "seconds": round(self.seconds, 1),
            "next_command": self.next_command,
        }

    def to_text(self, width: int = 80, *, ascii_only: bool = False) -> str:
        """The choice with its reasons, the plot, and what to type next."""
        chosen, profile = self.chosen, self.profile
        lengths = ", ".join(f"{name} {value:,g}" for name, value in self.lengths.items())
        lines = [
            f"{profile.key.task} by {self.model} on {profile.key.device_kind}; tokens of a row: {lengths} "
            f"({self.num_rows:,} rows of the input)",
            "",
            *text_plot(curve_of(profile), UNITS[sized_by(profile)], width, ascii_only=ascii_only),
            "",
            f"chosen: {profile.engine} in {profile.dtype}, {profile.settings.to_text()}",
            *(f"  - {reason}" for reason in self.reasons),
        ]
        if chosen.agreement is not None:
            beside = _agreement(profile.key.task, chosen.agreement)
            lines.append(f"  - beside float32, one row at a time: {beside}")
        if self.not_tried:
            lines.append(f"  - not tried, for lack of time: {', '.join(self.not_tried)}")
        needed = self.num_tokens_estimate / max(1.0, chosen.tokens_per_second)
        lines += [
            f"{chosen.tokens_per_second:,.0f} tokens/s, {milliseconds(chosen.latency)} a batch: about "
            f"{duration(needed)} for this input",
            f"measured in {duration(self.seconds)}, "
            + (f"kept in {self.path}" if self.path else "kept nowhere (--profile none)"),
        ]
        if self.next_command:
            lines += ["", "next:", f"  {self.next_command}"]
        return "\n".join(lines)


def _agreement(task: str, value: float) -> str:
    if task == "embed":
        return f"smallest cosine {value:.6f}"
    if task in ("generate", "seq2seq"):
        return f"{value:.0%} of the answers begin with the same token"
    return f"largest movement of a score {1 - value:.6f}"


TABLE_HEAD = ("setting", "tokens/s", "a batch", "spread", "agreement", "")


def row_of(trial: Trial) -> tuple[str, ...]:
    """A trial as a row of the table, in the order of TABLE_HEAD."""
    named = f"{trial.engine} {trial.dtype}, {trial.settings.to_text()}"
    agreement = "" if trial.agreement is None else f"{trial.agreement:.5f}"
    if not trial.tokens_per_second:
        return (named, "", "", "", "", trial.verdict)
    return (
        named,
        f"{trial.tokens_per_second:,.0f}",
        milliseconds(trial.latency),
        f"{trial.spread:.1%}",
        agreement,
        trial.verdict,
    )


def next_command(
    inputs: Sequence[str], flags: Mapping[str, Any], config_file: str | None, config: RunConfig
) -> str:
    """The `batchinfer run` that uses the profile: the flags that `tune` was given, and an output."""
    words = ["batchinfer", "run", *inputs]
    if config_file:
        words += ["--config", config_file]
    for name, value in flags.items():
        is_knob = name in RunConfig.model_fields
        flag = flag_name(name) if is_knob else f"--{name}"
        if name == "model":
            flag = knob_of(name)["flag"]
        if value is True:
            words.append(flag)
        elif value is False:
            words.append(f"--no-{flag[2:]}")
        else:
            for item in value if isinstance(value, (list, tuple)) else [value]:
                words += [flag, str(item)]
    if not config.output:
        words += ["--output", "out"]
    return shlex.join(words)
