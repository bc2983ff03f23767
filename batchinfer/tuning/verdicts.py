"""What is made of a trial: whether it may be chosen, and how it stands beside the best, in words."""

from __future__ import annotations

from batchinfer.profiles import Size, Trial
from batchinfer.tuning.accuracy import Agreement
from batchinfer.tuning.trial import HOPELESS, Measured

#: A setting replaces a simpler one where it is faster by this share; of the budgets, the smallest
#: within it of the best is chosen: less memory, and shorter waits.
NEAR = 0.02
OUT_OF_MEMORY = "out of memory"


def verdict_of(measured: Measured, agreement: Agreement | None, *, is_rival: bool) -> str:
    """What keeps a setting from being chosen, in a few words; "" where nothing does.

    `is_rival`: there is another one that may be chosen.
    """
    if agreement is not None and agreement.complaint:
        return f"answers differ: {agreement.complaint}"
    if measured.ran_out:
        return OUT_OF_MEMORY
    if measured.is_hopeless:
        return f"below {HOPELESS:.0%} of the best"
    if measured.is_short and is_rival:
        return "time was over before it was timed often enough"
    return ""


def is_right(trial: Trial) -> bool:
    """Whether a trial may be chosen: its answers hold, and its batches fitted."""
    return not trial.verdict


def is_faster(trial: Trial, best: Trial | None) -> bool:
    """Whether a trial is clearly faster; every one is faster than none."""
    return best is None or trial.tokens_per_second > (1 + NEAR) * best.tokens_per_second


def is_of(trial: Trial, best: Trial) -> bool:
    """Whether both need the same memory for a batch."""
    a, b = trial.settings, best.settings
    return (trial.engine, trial.dtype, a.attention, a.compile) == (
        best.engine,
        best.dtype,
        b.attention,
        b.compile,
    )


def against(trial: Trial, best: Trial) -> str:
    """An engine and precision beside the best."""
    return f"{trial.engine} in {trial.dtype}: {short_of(trial, best)}"


def short_of(trial: Trial, best: Trial) -> str:
    """How fast a trial is beside the best, and what else speaks against it."""
    if not trial.tokens_per_second:
        return trial.verdict
    share = f"{trial.tokens_per_second / best.tokens_per_second:.2f} × that"
    return share if is_right(trial) else f"{share}, {trial.verdict}"


def size_of(trial: Trial, sized_by: Size) -> int:
    """How large a trial's batches are, in tokens or rows; 0: not decided."""
    return int(getattr(trial.settings, sized_by) or 0)


def rate_at(trial: Trial, sized_by: Size) -> str:
    """A batch's size and its rate."""
    return f"{size_of(trial, sized_by):,}: {trial.tokens_per_second:,.0f} tokens/s"


def value_of(what: str, trial: Trial, usual: int) -> str:
    """A trial's place on one coordinate: attention, threads or streams."""
    value = getattr(trial.settings, what)
    if what == "attention":
        return value or "auto"
    return f"{usual} (the default)" if value is None else str(value)
