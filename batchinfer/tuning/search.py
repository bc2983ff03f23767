"""The search for the fastest setting whose answers are right: one coordinate after the other.

Engine and precision first, then attention, the batch budget, threads and compilation: what changes the
speed by factors before what changes it by percents, so that a time limit costs little. What the user
fixed is not searched.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from batchinfer.config import RunConfig
from batchinfer.core import BatchBudget
from batchinfer.engines.base import Engine, reason
from batchinfer.errors import ModelError
from batchinfer.profiles import Settings, Trial, num_cores
from batchinfer.tuning.accuracy import Agreement, Values, answers_of, compare, probe_rows
from batchinfer.tuning.trial import Bench, Measured
from batchinfer.tuning.verdicts import (
    NEAR,
    against,
    is_faster,
    is_of,
    is_right,
    rate_at,
    short_of,
    value_of,
    verdict_of,
)

log = logging.getLogger("batchinfer")

FIRST_TOKENS = {"cpu": 1024, "mps": 1024}
FIRST_TOKENS_OF_GPU = 4096
#: No budget is tried above this: a GPU's launches are long enough well below.
LAST_TOKENS = 1 << 20
#: Below this, memory that runs out is no matter of the budget.
LEAST_TOKENS = 256
#: Comparing may take this share of the time; where it would take more, one row in so many must do.
REFERENCE_SHARE, FEW = 0.2, 4
#: Budgets that are slower than the best, one after the other, before the growth ends.
PATIENCE = 2
MAX_WORKERS = 16
#: Loaders should be ahead of the device by this factor.
LOADER_MARGIN = 1.25


class Listener(Protocol):
    """Told of a search as it goes on."""

    def trying(self, what: str) -> None: ...
    def tried(self, trial: Trial) -> None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """What a search ended with: the choice as it was measured, all trials, and what was not reached.

    `chosen` has the workers and the ceiling in its settings, too. `reasons` is for people.
    """

    chosen: Trial
    trials: tuple[Trial, ...]
    reasons: tuple[str, ...]
    not_tried: tuple[str, ...]


class Search:
    """Tries settings on one device, at most one model loaded at a time.

    `asked` is the job's configuration with every auto as the user left it, `resolved` that with autos
    resolved. `create` loads an engine. Raises ModelError where no setting works.
    """

    def __init__(
        self,
        asked: RunConfig,
        resolved: RunConfig,
        device_kind: str,
        bench: Bench,
        create: Callable[[RunConfig], Engine],
        listener: Listener,
        num_rows: int = 0,
    ) -> None:
        self.asked, self.resolved, self.device_kind = asked, resolved, device_kind
        self.bench, self.create, self.listener = bench, create, listener
        self.num_rows = num_rows
        self.rows = probe_rows(bench.sample)
        self.reference: Values | None = None
        self.trials: list[Trial] = []
        self.not_tried: list[str] = []
        self.reasons: list[str] = []
        self.load_seconds: dict[Trial, float] = {}
        self._engine: Engine | None = None
        self._loaded: RunConfig | None = None
        self._loading = 0.0
        self._is_calibrated = False

    @property
    def is_on_cpu(self) -> bool:
        return self.device_kind == "cpu"

    def run(self) -> Found:
        """Search until the best is found or time is up."""
        try:
            self._take_reference()
            best = self._choose_engine()
            best = self._choose_attention(best)
            best = self._choose_budget(best)
            best = self._choose_threads(best)
            best = self._choose_compilation(best)
        finally:
            self.close()
        workers = self._workers(best)
        ceilings = [t.settings.ceiling_tokens for t in self.trials if is_of(t, best)]
        ceiling = min((c for c in ceilings if c is not None), default=None)
        settings = dataclasses.replace(best.settings, workers=workers, ceiling_tokens=ceiling)
        chosen = dataclasses.replace(best, settings=settings, verdict="chosen")
        trials = tuple(
            dataclasses.replace(t, verdict="chosen") if t is best else t for t in self.trials
        )
        return Found(chosen, trials, tuple(self.reasons), tuple(self.not_tried))

    def close(self) -> None:
        """Give the device back."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._loaded = None

    # -- the coordinates -------------------------------------------------------------------------

    def _take_reference(self) -> None:
        """Answer a few rows in float32, one at a time, with the model's own attention."""
        self.listener.trying("float32, one row at a time, to compare answers with")
        engine = "fake" if self.resolved.engine == "fake" else "local"
        config = self._config(engine, "float32", Settings(attention="eager", compile=False))
        began, alone = self.bench.clock(), BatchBudget(1, 1)
        try:
            opened = self._open(config)
            few = self.rows[::FEW]
            self.reference = answers_of(opened, self.bench.sample, few, alone)
            taken = self.bench.clock() - began
            if FEW * taken > REFERENCE_SHARE * self.bench.seconds:
                self.rows = few
            else:
                self.reference = answers_of(opened, self.bench.sample, self.rows, alone)
        except (
            Exception
        ) as error:  # the model may be too large for float32; without it nothing is held
            self.close()
            self.reasons.append(f"answers were not compared with float32: {reason(error)}")

    def _choose_engine(self) -> Trial:
        """A shoot-out of engines and precisions at their usual budgets."""
        best: Trial | None = None
        for engine, dtype in self._engines():
            settings = Settings(
                attention=self._given_attention(), compile=self.asked.compile or None
            )
            name = f"{engine} in {dtype}"
            # Behind a lower precision whose answers hold, float32 is good to know and slower.
            is_spare = dtype == "float32" and self.bench.is_half_over
            if best is not None and (is_spare or not self._has_time(best, loads=True)):
                self.not_tried.append(name)
                continue
            trial = self._try(engine, dtype, settings, name, best)
            if trial is not None and is_right(trial) and is_faster(trial, best):
                best = trial
        if best is None:
            verdicts = "; ".join(f"{t.engine} in {t.dtype}: {t.verdict}" for t in self.trials)
            raise ModelError(
                f"{self.resolved.model or 'fake'}: no setting can be used ({verdicts})"
            )
        rivals = [t for t in self.trials if t is not best]
        shown = f"{best.engine} in {best.dtype}, {best.tokens_per_second:,.0f} tokens/s"
        self.reasons.append("; ".join([shown, *(against(t, best) for t in rivals)]))
        return best

    def _choose_attention(self, best: Trial) -> Trial:
        if self.asked.attention != "auto" or best.engine != "local":
            return best
        rivals = []
        for attention in ("sdpa", "eager") if self.is_on_cpu else ("sdpa",):
            name = f"attention {attention}"
            if not self._has_time(best, loads=True):
                self.not_tried.append(name)
                continue
            settings = dataclasses.replace(best.settings, attention=attention)
            if (trial := self._try(best.engine, best.dtype, settings, name, best)) is not None:
                rivals.append(trial)
        return self._settle("attention", best, rivals)

    def _choose_budget(self, best: Trial) -> Trial:
        """Double the budget up to the knee, or to where memory ends; then look at smaller ones."""
        if self.asked.max_batch_tokens is not None:
            return best
        usual = best.settings.max_batch_tokens or 0
        larger = [tokens for tokens in self._budgets() if tokens > usual]
        smaller = [tokens for tokens in self._budgets() if tokens < usual]
        curve, worse, top = [best], 0, best.tokens_per_second
        for tokens in larger:
            trial = self._try_budget(tokens, best)
            if trial is None or trial.settings.ceiling_tokens is not None:
                break
            curve.append(trial)
            worse = worse + 1 if trial.tokens_per_second < top else 0
            top = max(top, trial.tokens_per_second)
            if worse >= PATIENCE:
                break
        for tokens in reversed(smaller):
            trial = self._try_budget(tokens, best)
            if trial is None:
                break
            curve.append(trial)
            top = max(top, trial.tokens_per_second)
        enough = [t for t in curve if t.tokens_per_second >= (1 - NEAR) * top]
        knee = min(enough, key=lambda t: t.settings.max_batch_tokens or 0)
        fastest = max(curve, key=lambda t: t.tokens_per_second)
        shown = f"{knee.settings.max_batch_tokens:,} tokens a batch: "
        if len(curve) == 1:
            shown += "the usual budget; no other was tried"
        elif knee is fastest:
            shown += "the fastest"
        else:
            shown += f"the smallest within {NEAR:.0%} of the best ({rate_at(fastest)})"
        if any(t.settings.ceiling_tokens for t in self.trials if is_of(t, best)):
            shown += "; memory ran out above"
        self.reasons.append(shown)
        return knee

    def _try_budget(self, tokens: int, best: Trial) -> Trial | None:
        name = f"budget {tokens:,}"
        if not self._has_time(best, tokens=tokens):
            self.not_tried.append(name)
            return None
        settings = dataclasses.replace(best.settings, max_batch_tokens=tokens)
        return self._try(best.engine, best.dtype, settings, name, best, compares=False)

    def _choose_threads(self, best: Trial) -> Trial:
        """All cores, a half, a quarter: more threads than memory can feed slow each other down."""
        if not self.is_on_cpu or self.asked.threads is not None or best.engine == "fake":
            return best
        rivals, threads = [], num_cores() // 2
        while threads >= 1:
            name = f"{threads} thread{'s' if threads > 1 else ''}"
            if not self._has_time(best, loads=True):
                self.not_tried.append(name)
                break
            settings = dataclasses.replace(best.settings, threads=threads)
            trial = self._try(best.engine, best.dtype, settings, name, best, compares=False)
            if trial is None:
                break
            rivals.append(trial)
            if trial.tokens_per_second < best.tokens_per_second:
                break
            threads //= 2
        return self._settle("threads", best, rivals)

    def _choose_compilation(self, best: Trial) -> Trial:
        """On CUDA, where it saves more of the run than it takes."""
        if self.is_on_cpu or self.device_kind == "mps" or self.asked.compile:
            return best
        if best.engine != "local":
            return best
        if not self._has_time(best, loads=True):
            self.not_tried.append("compiled")
            return best
        settings = dataclasses.replace(best.settings, compile=True)
        trial = self._try(best.engine, best.dtype, settings, "compiled", best)
        if trial is None:
            return best
        tokens = self.num_rows * self.bench.sample.lengths["mean"]
        saved = tokens / best.tokens_per_second - tokens / max(1.0, trial.tokens_per_second)
        cost = self.load_seconds.get(trial, 0.0) - self.load_seconds.get(best, 0.0)
        if saved <= cost:
            self.reasons.append(
                f"not compiled: it takes {cost:,.0f} s to start and saves {max(0.0, saved):,.0f} s of "
                "this input"
            )
            return best
        return self._settle("compilation", best, [trial])

    def _workers(self, best: Trial) -> int | None:
        """Processes that read and tokenize, by arithmetic."""
        if self.asked.workers is not None or best.engine == "fake":
            return None
        rate = self.bench.sample.tokens_per_second
        wanted = math.ceil(LOADER_MARGIN * best.tokens_per_second / max(1.0, rate))
        workers = max(1, min(wanted, MAX_WORKERS, max(1, num_cores() - 1)))
        self.reasons.append(
            f"{workers} worker{'s' if workers > 1 else ''}: a process tokenizes {rate:,.0f} tokens/s"
        )
        return workers

    # -- what there is to try --------------------------------------------------------------------

    def _engines(self) -> Iterator[tuple[str, str]]:
        """Engines and precisions, likely ones first."""
        if self.resolved.engine == "fake":
            yield "fake", "float32"
            return
        dtypes = [self.resolved.dtype]
        if self.asked.dtype == "auto":
            if self.device_kind not in ("cpu", "mps") and self.resolved.dtype == "float32":
                dtypes.insert(0, "float16")  # a GPU that is slow in bfloat16
            if "float32" not in dtypes:
                dtypes.append("float32")
        engines = [self.resolved.engine]
        if self.asked.engine == "auto":
            engines = ["local"]
            if self.is_on_cpu and importlib.util.find_spec("openvino") is not None:
                engines.append("openvino")
        for dtype in dtypes:
            for engine in engines:
                yield engine, dtype

    def _budgets(self) -> Iterator[int]:
        tokens = FIRST_TOKENS.get(self.device_kind, FIRST_TOKENS_OF_GPU)
        # Of a larger one, the sample could not fill two batches.
        while tokens <= min(LAST_TOKENS, self.bench.sample.num_tokens // 2):
            yield tokens
            tokens *= 2

    def _given_attention(self) -> str | None:
        return None if self.asked.attention == "auto" else self.asked.attention

    # -- one trial -------------------------------------------------------------------------------

    def _has_time(self, best: Trial, *, loads: bool = False, tokens: int = 0) -> bool:
        """Whether another trial fits into the time that is left, if it is about as fast as the best."""
        budget = BatchBudget(tokens or best.settings.max_batch_tokens or 1, 1)
        needed = self.bench.seconds_for(budget, best.tokens_per_second)
        if loads:
            needed += self.load_seconds.get(best, 0.0)
        return needed <= self.bench.seconds_left

    def _try(
        self,
        engine: str,
        dtype: str,
        settings: Settings,
        name: str,
        best: Trial | None,
        *,
        compares: bool = True,
    ) -> Trial | None:
        """Measure one setting, at a smaller budget where memory runs out; None where it cannot run."""
        self.listener.trying(name)
        agreement: Agreement | None = None
        try:
            opened = self._open(self._config(engine, dtype, settings))
            budget = self._budget(opened, settings)
            if compares and self.reference is not None:
                found = answers_of(opened, self.bench.sample, self.rows, budget)
                agreement = compare(opened.task.spec, self.reference, found)
            measured = self._measure(opened, budget, best)
            while measured.ran_out and best is None and budget.max_batch_tokens > LEAST_TOKENS:
                budget = BatchBudget(budget.max_batch_tokens // 2, budget.max_batch_rows)
                measured = self._measure(opened, budget, best)
        except Exception as error:  # one candidate of several: whatever it raises, the others go on
            self.close()
            self._note(
                Trial(engine, dtype, settings, 0.0, 0.0, 0.0, None, f"cannot run: {reason(error)}")
            )
            return None
        settings = dataclasses.replace(
            settings,
            max_batch_tokens=budget.max_batch_tokens,
            ceiling_tokens=opened.ceiling_tokens if measured.ran_out else None,
        )
        trial = Trial(
            engine=engine,
            dtype=dtype,
            settings=settings,
            tokens_per_second=round(measured.tokens_per_second, 1),
            latency=round(measured.latency, 6),
            spread=round(measured.spread, 4),
            agreement=_inherited(best) if agreement is None else round(agreement.value, 6),
            verdict=verdict_of(measured, agreement),
        )
        self._note(trial)
        self.load_seconds[trial] = self._loading
        return trial

    def _measure(self, engine: Engine, budget: BatchBudget, best: Trial | None) -> Measured:
        if not self._is_calibrated:
            self.bench.calibrate(engine, budget)
            self._is_calibrated = True
        return self.bench.measure(engine, budget, best.tokens_per_second if best else 0.0)

    def _note(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.listener.tried(trial)

    def _settle(self, what: str, best: Trial, rivals: Sequence[Trial]) -> Trial:
        """The best of these; another than the one that stands has to be clearly faster."""
        winner = best
        for rival in rivals:
            if is_right(rival) and is_faster(rival, winner):
                winner = rival
        others = [t for t in (best, *rivals) if t is not winner]
        if others:
            shown = f"{what} {value_of(what, winner)}, {winner.tokens_per_second:,.0f} tokens/s"
            lines = (f"{value_of(what, t)}: {short_of(t, winner)}" for t in others)
            self.reasons.append("; ".join([shown, *lines]))
        return winner

    def _config(self, engine: str, dtype: str, settings: Settings) -> RunConfig:
        own = self.asked
        return self.resolved.model_copy(
            update={
                "engine": engine,
                "dtype": dtype,
                "attention": settings.attention or own.attention,
                "threads": settings.threads or own.threads,
                "compile": own.compile if settings.compile is None else settings.compile,
            }
        )

    def _budget(self, engine: Engine, settings: Settings) -> BatchBudget:
        """What is to be tried; what the user fixed; what the engine has without either."""
        usual = engine.default_budget.override(
            self.asked.max_batch_tokens, self.asked.max_batch_rows
        )
        return settings.budget(usual)

    def _open(self, config: RunConfig) -> Engine:
        """The engine of a configuration; the one before is closed, as two may not fit."""
        if self._engine is None or self._loaded != config:
            self.close()
            started = self.bench.clock()
            self._engine = self.create(config)
            self._loading, self._loaded = self.bench.clock() - started, config
        return self._engine


def _inherited(best: Trial | None) -> float | None:
    """Neither budget nor threads change more than the last bits: what they were compared with holds."""
    return best.agreement if best is not None else None
