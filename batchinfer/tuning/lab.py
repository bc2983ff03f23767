"""Where settings are tried: one model loaded at a time, its answers compared, its speed measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from batchinfer.config import RunConfig
from batchinfer.core import BatchBudget
from batchinfer.engines.base import Engine, reason
from batchinfer.profiles import Settings, Trial
from batchinfer.tuning.accuracy import (
    Agreement,
    Values,
    answers_of,
    compare,
    probe_rows,
    reference_of,
)
from batchinfer.tuning.trial import Bench, Measured
from batchinfer.tuning.verdicts import verdict_of

#: Below this, neither memory that runs out nor time is a matter of the budget.
LEAST_TOKENS = 256
#: The reference is answered for this share of the time, but at least for a few rows; and measuring one
#: setting at its usual budget may take this share.
REFERENCE_SHARE, MIN_ROWS = 0.15, 4
TRIAL_SHARE = 0.25
#: More rows than any batch has.
_ANY_ROWS = 1 << 20
#: A model that an engine has not loaded yet may take as long as it likes (it may be exported first): it
#: is only begun while this share of the time is left.
UNKNOWN_SHARE = 1 / 3


class Listener(Protocol):
    """Told of a search as it goes on."""

    def trying(self, what: str) -> None: ...
    def tried(self, trial: Trial) -> None: ...


class Lab:
    """Tries settings of a job on one device.

    `asked` is the job's configuration with every auto as the user left it, `resolved` that with autos
    resolved. `create` loads an engine.
    """

    def __init__(
        self,
        asked: RunConfig,
        resolved: RunConfig,
        bench: Bench,
        create: Callable[[RunConfig], Engine],
        listener: Listener,
    ) -> None:
        self.asked, self.resolved = asked, resolved
        self.bench, self.create, self.listener = bench, create, listener
        self.rows = probe_rows(bench.sample)
        self.reference: Values | None = None
        self.trials: list[Trial] = []
        self.load_seconds: dict[Trial, float] = {}
        #: The threads that a trial's engine computed with, and the batches that it answered at a time.
        self.threads: dict[Trial, int] = {}
        self.streams: dict[Trial, int] = {}
        self._engine: Engine | None = None
        self._loaded: RunConfig | None = None
        self._loading = 0.0

    def take_reference(self) -> str:
        """Answer rows in float32, one at a time, with the model's own attention.

        Returns why there is no reference: "" where there is one.
        """
        self.listener.trying("float32, one row at a time, to compare answers with")
        engine = "fake" if self.resolved.engine == "fake" else "local"
        config = self._config(engine, "float32", Settings(attention="eager", compile=False))
        try:
            opened = self._open(config)
            began = self.bench.clock()

            def is_enough(num_rows: int) -> bool:
                taken = self.bench.clock() - began
                is_long = taken > REFERENCE_SHARE * self.bench.seconds
                return self.bench.is_half_over or (is_long and num_rows >= MIN_ROWS)

            self.rows, self.reference = reference_of(
                opened, self.bench.sample, self.rows, is_enough
            )
        except Exception as error:  # the model may be too large for float32
            self.close()
            return reason(error)
        return ""

    def has_time(
        self,
        best: Trial,
        settings: Settings | None = None,
        *,
        loads: bool = False,
        times: int = 1,
    ) -> bool:
        """Whether so many more trials fit into the time that is left, if they are as fast as the best.

        `settings`: where their batches are of another size.
        """
        budget = (settings or best.settings).budget(BatchBudget(1, _ANY_ROWS))
        needed = self.bench.seconds_for(budget, best.tokens_per_second)
        if loads:  # its answers are compared, too
            compared = int(self.bench.sample.requests.cost[self.rows].sum())
            needed += self.load_seconds.get(best, 0.0)
            needed += compared / max(1.0, best.tokens_per_second)
        return times * needed <= self.bench.seconds_left

    def has_time_for(self, engine: str, best: Trial) -> bool:
        """Whether there is time to load an engine and try it; what it takes to load may be unknown."""
        is_known = any(trial.engine == engine for trial in self.load_seconds)
        is_early = self.bench.seconds_left > UNKNOWN_SHARE * self.bench.seconds
        return (is_known or is_early) and self.has_time(best, loads=True)

    def try_(
        self,
        engine: str,
        dtype: str,
        settings: Settings,
        name: str,
        best: Trial | None,
        *,
        compares: bool = True,
    ) -> Trial | None:
        """Measure one setting; None where it cannot run.

        `compares`: its answers are new, and it is tried at smaller budgets where memory runs out.
        """
        self.listener.trying(name)
        settings = dataclasses.replace(settings, ceiling_tokens=None)
        agreement: Agreement | None = None
        config = self._config(engine, dtype, settings)
        try:
            opened = self._open(config)
            budget = self._budget(opened, settings)
            if compares and self.reference is not None:
                # The first one has no other to fall back on: it gets the time that it takes.
                found = answers_of(
                    opened,
                    self.bench.sample,
                    self.rows,
                    budget,
                    lambda: best is not None and self.bench.seconds_left < 0,
                )
                agreement = compare(opened.task.spec, self.reference, found)
            rate = best.tokens_per_second if best else 0.0
            measured = self.bench.measure(opened, budget, rate, is_cold=config.compile)
            while compares and measured.ran_out and budget.max_batch_tokens > LEAST_TOKENS:
                budget = _half(budget, opened)
                measured = self.bench.measure(opened, budget, rate, is_cold=config.compile)
        except Exception as error:  # one candidate of several: whatever it raises, the others go on
            self.close()
            why = f"cannot run: {reason(error)}"
            self._note(Trial(engine, dtype, settings, 0.0, 0.0, 0.0, None, why))
            return None
        settings = dataclasses.replace(
            settings,
            max_batch_tokens=budget.max_batch_tokens,
            max_batch_rows=budget.max_batch_rows if opened.task.tokens_ahead else None,
            ceiling_tokens=opened.ceiling_tokens,
        )
        # Neither budget nor threads change more than the last bits: what was compared holds.
        inherited = best.agreement if best is not None else None
        trial = _trial(
            engine,
            dtype,
            settings,
            measured,
            inherited if agreement is None else round(agreement.value, 6),
            verdict_of(measured, agreement, is_rival=best is not None),
        )
        self._keep(trial, opened)
        return trial

    def repeat(self, trial: Trial, name: str) -> Trial | None:
        """Load and measure a setting once more; None where it does not work this time."""
        self.listener.trying(name)
        try:
            opened = self._open(self._config(trial.engine, trial.dtype, trial.settings))
            budget = self._budget(opened, trial.settings)
            measured = self.bench.measure(opened, budget)
        except Exception:
            self.close()
            return None
        if measured.is_short or measured.ran_out:
            return None
        again = _trial(
            trial.engine, trial.dtype, trial.settings, measured, trial.agreement, trial.verdict
        )
        self._keep(again, opened)
        return again

    def close(self) -> None:
        """Give the device back."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._loaded = None

    def _keep(self, trial: Trial, engine: Engine) -> None:
        self.load_seconds[trial] = self._loading
        self.threads[trial], self.streams[trial] = engine.threads or 1, engine.streams
        self._note(trial)

    def _note(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.listener.tried(trial)

    def _config(self, engine: str, dtype: str, settings: Settings) -> RunConfig:
        own = self.asked
        return self.resolved.model_copy(
            update={
                "engine": engine,
                "dtype": dtype,
                "attention": settings.attention or own.attention,
                "threads": settings.threads or own.threads,
                "streams": settings.streams or own.streams,
                "compile": own.compile if settings.compile is None else settings.compile,
            }
        )

    def _budget(self, engine: Engine, settings: Settings) -> BatchBudget:
        """What is to be tried; what the user fixed; what the engine has without either.

        The last one is halved where measuring it would take too much of the time.
        """
        usual = engine.default_budget.override(
            self.asked.max_batch_tokens, self.asked.max_batch_rows
        )
        budget = settings.budget(usual)
        if not self.bench.rate:
            self.bench.calibrate(engine, budget)
        if self.asked.max_batch_tokens is None and settings.max_batch_tokens is None:
            most = TRIAL_SHARE * self.bench.seconds
            while (
                budget.max_batch_tokens > LEAST_TOKENS
                and self.bench.seconds_for(budget, self.bench.rate) > most
            ):
                budget = _half(budget, engine)
        return budget

    def _open(self, config: RunConfig) -> Engine:
        """The engine of a configuration; the one before is closed, as two may not fit."""
        if self._engine is None or self._loaded != config:
            self.close()
            started = self.bench.clock()
            self._engine = self.create(config)
            self._loading, self._loaded = self.bench.clock() - started, config
        return self._engine


def _half(budget: BatchBudget, engine: Engine) -> BatchBudget:
    """Half of a budget; where answers are written, of its rows, too, which are what it is measured by."""
    rows = budget.max_batch_rows
    if engine.task.tokens_ahead:
        rows = max(1, rows // 2)
    return BatchBudget(budget.max_batch_tokens // 2, rows)


def _trial(
    engine: str,
    dtype: str,
    settings: Settings,
    measured: Measured,
    agreement: float | None,
    verdict: str,
) -> Trial:
    return Trial(
        engine=engine,
        dtype=dtype,
        settings=settings,
        tokens_per_second=round(measured.tokens_per_second, 1),
        latency=round(measured.latency, 6),
        spread=round(measured.spread, 4),
        agreement=agreement,
        verdict=verdict,
    )
