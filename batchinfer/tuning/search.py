"""The search for the fastest setting whose answers are right: one coordinate after the other.

Engine and precision first, then attention, the batch budget and threads: what changes the speed by
factors before what changes it by percents, so that a time limit costs little. What the user fixed is
not searched.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from batchinfer.config import RunConfig
from batchinfer.engines.base import Engine
from batchinfer.errors import ModelError
from batchinfer.machine import usable_cores
from batchinfer.profiles import UNITS, Settings, Size, Trial
from batchinfer.tuning.lab import Lab, Listener
from batchinfer.tuning.trial import Bench
from batchinfer.tuning.verdicts import (
    NEAR,
    OUT_OF_MEMORY,
    against,
    is_faster,
    is_of,
    is_right,
    rate_at,
    short_of,
    size_of,
    value_of,
)

FIRST_TOKENS = {"cpu": 1024, "mps": 1024}
FIRST_TOKENS_OF_GPU = 4096
#: No budget is tried above this: a GPU's launches are long enough well below.
LAST_TOKENS = 1 << 20
#: Where answers are written, a step takes one token of each row, so rows are what a batch is measured by.
FIRST_ROWS, LAST_ROWS = 4, 1 << 10
#: Budgets that are slower than the best, one after the other, before the growth ends.
PATIENCE = 2
#: Engines are tried one after the other, while a machine's clock and its other work change: two within
#: this share of each other are measured once more, in turn.
CLOSE = 0.15
MAX_WORKERS = 16
#: Loaders should be ahead of the device by this factor.
LOADER_MARGIN = 1.25


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
        self.bench, self.num_rows = bench, num_rows
        self.lab = Lab(asked, resolved, bench, create, listener)
        self.not_tried: list[str] = []
        self.reasons: list[str] = []

    @property
    def is_on_cpu(self) -> bool:
        return self.device_kind == "cpu"

    @property
    def sized_by(self) -> Size:
        """The setting that is a batch's size: what its throughput and its memory go by."""
        return "max_batch_rows" if self.bench.tokens_ahead else "max_batch_tokens"

    @property
    def is_of_text(self) -> bool:
        """Whether a transformers model answers; a module has neither attention nor other engines."""
        return self.resolved.task != "module"

    def run(self) -> Found:
        """Search until the best is found or time is up."""
        try:
            if why := self.lab.take_reference():
                self.reasons.append(
                    f"answers could not be compared with float32, so engine and precision are those of "
                    f"a run without a profile: {why}"
                )
            best = self._choose_engine()
            best = self._choose_attention(best)
            best = self._choose_budget(best)
            best = self._choose_threads(best)
            best = self._choose_streams(best)
            self._look_at_compilation(best)
        finally:
            self.lab.close()
        workers = self._workers(best)
        ceilings = [t.settings.ceiling_tokens for t in self.lab.trials if is_of(t, best)]
        ceiling = min((c for c in ceilings if c is not None), default=None)
        settings = dataclasses.replace(best.settings, workers=workers, ceiling_tokens=ceiling)
        chosen = dataclasses.replace(best, settings=settings, verdict="chosen")
        trials = tuple(
            dataclasses.replace(t, verdict="chosen") if t is best else t for t in self.lab.trials
        )
        return Found(chosen, trials, tuple(self.reasons), tuple(self.not_tried))

    # -- the coordinates -------------------------------------------------------------------------

    def _choose_engine(self) -> Trial:
        """A shoot-out of engines and precisions at their usual budgets."""
        best: Trial | None = None
        rivals: list[Trial] = []
        for engine, dtype in self._engines():
            settings = Settings(
                attention=self._given_attention(), compile=self.asked.compile or None
            )
            name = f"{engine} in {dtype}"
            if best is not None and not self._is_worth_trying(engine, dtype, best):
                self.not_tried.append(name)
                continue
            trial = self.lab.try_(engine, dtype, settings, name, best)
            if trial is not None and is_right(trial):
                rivals.append(trial)
                best = trial if is_faster(trial, best) else best
        if best is None:
            verdicts = "; ".join(f"{t.engine} in {t.dtype}: {t.verdict}" for t in self.lab.trials)
            raise ModelError(
                f"{self.resolved.model or 'fake'}: no setting can be used ({verdicts})"
            )
        others = [t for t in self.lab.trials if t is not best]
        shown = f"{best.engine} in {best.dtype}, {best.tokens_per_second:,.0f} tokens/s"
        self.reasons.append("; ".join([shown, *(against(t, best) for t in others)]))
        return self._run_off(best, [t for t in rivals if t is not best])

    def _is_worth_trying(self, engine: str, dtype: str, best: Trial) -> bool:
        # Behind a lower precision whose answers hold, float32 is good to know and slower.
        is_spare = dtype == "float32" and best.dtype != "float32" and self.bench.is_half_over
        return not is_spare and self.lab.has_time_for(engine, best)

    def _run_off(self, best: Trial, rivals: Sequence[Trial]) -> Trial:
        """Measure the best and one that is close behind once more, in turn (A B A B); the faster one."""
        near = [t for t in rivals if t.tokens_per_second >= (1 - CLOSE) * best.tokens_per_second]
        if not near:
            return best
        rival = max(near, key=lambda t: t.tokens_per_second)
        pair = sorted((best, rival), key=self.lab.trials.index)
        if not self.lab.has_time(rival, loads=True, times=2):
            self.not_tried.append(
                f"{best.engine} in {best.dtype} and {rival.engine} in {rival.dtype} once more"
            )
            return best
        again = []
        for trial in pair:
            repeated = self.lab.repeat(trial, f"{trial.engine} in {trial.dtype} once more")
            if repeated is None:
                return best
            again.append(repeated)
        one, other = (
            first.tokens_per_second + second.tokens_per_second
            for first, second in zip(pair, again, strict=True)
        )
        winner, loser = again if one * (1 + NEAR) >= other else again[::-1]
        self.reasons.append(
            f"measured once more, in turn: {winner.engine} in {winner.dtype}, "
            f"{winner.tokens_per_second:,.0f} tokens/s; {against(loser, winner)}"
        )
        return winner

    def _choose_attention(self, best: Trial) -> Trial:
        if self.asked.attention != "auto" or best.engine != "local" or not self.is_of_text:
            return best
        rivals = []
        for attention in ("sdpa", "eager") if self.is_on_cpu else ("sdpa",):
            name = f"attention {attention}"
            if not self.lab.has_time(best, loads=True):
                self.not_tried.append(name)
                continue
            settings = dataclasses.replace(best.settings, attention=attention)
            trial = self.lab.try_(best.engine, best.dtype, settings, name, best)
            if trial is not None:
                rivals.append(trial)
        return self._settle("attention", best, rivals)

    def _choose_budget(self, best: Trial) -> Trial:
        """Double the budget up to the knee, or to where memory ends; then look at smaller ones."""
        if getattr(self.asked, self.sized_by) is not None:
            return best
        usual = size_of(best, self.sized_by)
        larger = [size for size in self._budgets() if size > usual]
        smaller = [size for size in self._budgets() if size < usual]
        curve, worse, top = [best], 0, best.tokens_per_second
        for size in larger:
            trial = self._try_budget(size, best)
            if trial is None or trial.verdict == OUT_OF_MEMORY:
                break
            worse = worse + 1 if trial.tokens_per_second < top else 0
            if is_right(trial):
                curve.append(trial)
                top = max(top, trial.tokens_per_second)
            if worse >= PATIENCE:
                break
        for size in reversed(smaller):
            trial = self._try_budget(size, best)
            if trial is None:
                break
            if is_right(trial):
                curve.append(trial)
                top = max(top, trial.tokens_per_second)
        enough = [t for t in curve if t.tokens_per_second >= (1 - NEAR) * top]
        knee = min(enough, key=lambda t: size_of(t, self.sized_by))
        fastest = max(curve, key=lambda t: t.tokens_per_second)
        shown = f"{size_of(knee, self.sized_by):,} {UNITS[self.sized_by]} a batch: "
        if len(curve) == 1:
            shown += "no other budget was tried to the end"
        elif knee is fastest:
            shown += "the fastest"
        else:
            shown += (
                f"the smallest within {NEAR:.0%} of the best ({rate_at(fastest, self.sized_by)})"
            )
        if any(t.settings.ceiling_tokens for t in self.lab.trials if is_of(t, best)):
            shown += "; memory ran out above"
        self.reasons.append(shown)
        return knee

    def _try_budget(self, size: int, best: Trial) -> Trial | None:
        name = f"{size:,} {UNITS[self.sized_by]} a batch"
        change: dict[str, Any] = {self.sized_by: size}
        settings = dataclasses.replace(best.settings, **change)
        if not self.lab.has_time(best, settings):
            self.not_tried.append(name)
            return None
        return self.lab.try_(best.engine, best.dtype, settings, name, best, compares=False)

    def _choose_threads(self, best: Trial) -> Trial:
        """As many as the engine has by itself, or fewer: too many slow each other down."""
        if not self.is_on_cpu or self.asked.threads is not None:
            return best
        return self._choose_fewer("threads", best, self.lab.threads[best])

    def _choose_streams(self, best: Trial) -> Trial:
        """As many batches at a time as the engine answers by itself, or fewer."""
        if self.asked.streams is not None:
            return best
        return self._choose_fewer("streams", best, self.lab.streams[best])

    def _choose_fewer(self, what: str, best: Trial, usual: int) -> Trial:
        """The usual number, a half of it, a quarter, for as long as it helps."""
        rivals, number = [], usual // 2
        while number >= 1:
            name = f"{number} {what[:-1] if number == 1 else what}"
            if not self.lab.has_time(best, loads=True):
                self.not_tried.append(name)
                break
            changes: dict[str, Any] = {what: number}
            settings = dataclasses.replace(best.settings, **changes)
            trial = self.lab.try_(best.engine, best.dtype, settings, name, best, compares=False)
            if trial is None:
                break
            rivals.append(trial)
            if trial.tokens_per_second < best.tokens_per_second:
                break
            number //= 2
        return self._settle(what, best, rivals, usual)

    def _look_at_compilation(self, best: Trial) -> None:
        """Say what `--compile` would bring on CUDA.

        It is not chosen: whether it pays depends on how long an input is, and a profile is for inputs
        of any length.
        """
        if self.is_on_cpu or self.device_kind == "mps" or self.asked.compile:
            return
        if best.engine != "local" or self.bench.tokens_ahead:
            return
        if not self.lab.has_time(best, loads=True):
            self.not_tried.append("compiled")
            return
        settings = dataclasses.replace(best.settings, compile=True)
        trial = self.lab.try_(best.engine, best.dtype, settings, "compiled", best)
        if trial is None or not is_right(trial) or not is_faster(trial, best):
            return
        cost = max(0.0, self.lab.load_seconds[trial] - self.lab.load_seconds[best])
        saved = 1 / best.tokens_per_second - 1 / trial.tokens_per_second
        here = int(self.num_rows * self.bench.sample.lengths["mean"])
        self.reasons.append(
            f"not compiled, as that was not asked for: --compile reaches "
            f"{trial.tokens_per_second:,.0f} tokens/s, takes {cost:,.0f} s longer to start, and pays for "
            f"inputs of more than {int(cost / saved):,} tokens (this one has about {here:,})"
        )

    def _workers(self, best: Trial) -> int | None:
        """Processes that read and tokenize, by arithmetic."""
        if self.asked.workers is not None or best.engine == "fake":
            return None
        rate = self.bench.sample.tokens_per_second
        wanted = math.ceil(LOADER_MARGIN * best.tokens_per_second / max(1.0, rate))
        workers = max(1, min(wanted, MAX_WORKERS, usable_cores() - 1))
        self.reasons.append(
            f"{workers} worker{'s' if workers > 1 else ''}: a process tokenizes {rate:,.0f} tokens/s"
        )
        return workers

    # -- what there is to try --------------------------------------------------------------------

    def _engines(self) -> Iterator[tuple[str, str]]:
        """Engines and precisions, likely ones first; without a reference, those of any run."""
        dtypes, engines = [self.resolved.dtype], [self.resolved.engine]
        if self.lab.reference is None or self.resolved.engine == "fake":
            yield engines[0], dtypes[0]
            return
        if self.asked.dtype == "auto":
            is_on_gpu = self.device_kind not in ("cpu", "mps")
            # A GPU that is slow in bfloat16; a module's usual precision is float32 wherever it runs.
            if is_on_gpu and self.is_of_text and self.resolved.dtype == "float32":
                dtypes.insert(0, "float16")
            if "float32" not in dtypes:
                dtypes.append("float32")
        if self.asked.engine == "auto":
            engines = ["local"]
            has_openvino = importlib.util.find_spec("openvino") is not None
            if self.is_on_cpu and has_openvino and self.is_of_text and not self.bench.tokens_ahead:
                engines.append("openvino")
        for dtype in dtypes:
            for engine in engines:
                yield engine, dtype

    def _budgets(self) -> Iterator[int]:
        if self.sized_by == "max_batch_rows":
            rows = FIRST_ROWS
            while rows <= min(LAST_ROWS, len(self.bench.sample.order) // 2):
                yield rows
                rows *= 2
            return
        tokens = FIRST_TOKENS.get(self.device_kind, FIRST_TOKENS_OF_GPU)
        # Of a larger one, the sample could not fill two batches a stream.
        while tokens <= min(LAST_TOKENS, self.bench.sample.num_tokens // (2 * self.bench.streams)):
            yield tokens
            tokens *= 2

    def _given_attention(self) -> str | None:
        return None if self.asked.attention == "auto" else self.asked.attention

    def _settle(self, what: str, best: Trial, rivals: Sequence[Trial], usual: int = 0) -> Trial:
        """The best of these; another than the one that stands has to be clearly faster."""
        winner = best
        for rival in rivals:
            if is_right(rival) and is_faster(rival, winner):
                winner = rival

        def value(trial: Trial) -> str:
            return value_of(what, trial, usual)

        others = [t for t in (best, *rivals) if t is not winner]
        if others:
            shown = f"{what} {value(winner)}, {winner.tokens_per_second:,.0f} tokens/s"
            lines = (f"{value(t)}: {short_of(t, winner)}" for t in others)
            self.reasons.append("; ".join([shown, *lines]))
        return winner
