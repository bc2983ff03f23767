"""The charts of a report that are bars and distributions; those over time are in `timeline.py`.

Each has a title, units at its axes, and a sentence that says what it shows. Colours are told apart by
colour-blind people, and never say alone what a label says, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from batchinfer.reporting.overview.drawing import (
    ACCENT,
    MUTED,
    SECOND,
    Chart,
    clean,
    fit,
    new_figure,
    short,
    styled,
    ticks,
    to_chart,
    width,
)
from batchinfer.reporting.overview.facts import Distribution, Facts, Histogram
from batchinfer.reporting.overview.timeline import memory, throughput, waiting
from batchinfer.reporting.progress import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Units that a text of a bar is high, and that there are from the left end of bars to the right.
_SMALL = 9.5
_INNER_WIDTH = 340.0


def draw(facts: Facts) -> dict[str, list[Chart]]:
    """The charts that there are figures for, by the section of the page."""
    sections: dict[str, list[Callable[[Facts], Chart | None]]] = {
        "speed": [throughput, _stages, memory, waiting],
        "input": [_lengths, _padding],
        "errors": [_errors],
        "limit": [_ceiling],
    }
    with styled():
        made = {
            section: [chart for drawer in drawers if (chart := drawer(facts)) is not None]
            for section, drawers in sections.items()
        }
        made["answers"] = [
            _distribution(number, one, facts) for number, one in enumerate(facts.answers)
        ]
    return made


# -- bars -----------------------------------------------------------------------------------------


def _bars(
    names: Sequence[str],
    values: Sequence[float],
    labels: Sequence[str],
    unit: str,
    *,
    plain: Sequence[int] = (),
) -> Figure:
    """Bars from left to right, each with its name above it and its figure behind it.

    Names stand above, not beside, so that long ones take no room from the bars. `plain`: those in a quieter
    colour.
    """
    figure, [axes] = new_figure(0.65 + 0.4 * len(names))
    places = [-float(number) for number in range(len(names))]
    colors = [MUTED if number in plain else ACCENT for number in range(len(names))]
    axes.barh(places, values, height=0.34, color=colors, align="edge")
    limit = max([*values, 0]) or 1
    # Behind the longest bar there is room for the longest figure.
    room = 1 - min(0.6, (1 + max(map(width, labels))) * _SMALL / _INNER_WIDTH)
    for place, name, value, label in zip(places, names, values, labels, strict=True):
        named = axes.text(
            0, place + 0.42, fit(name, _INNER_WIDTH / _SMALL), va="bottom", fontsize=_SMALL
        )
        figured = axes.text(
            value + limit * 0.012, place + 0.16, label, va="center", fontsize=_SMALL
        )
        for text in (named, figured):
            text.set_in_layout(False)
    axes.set_xlim(0, limit / room)
    axes.set_ylim(min(places) - 0.25, 0.95)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(unit)
    axes.grid(axis="x")
    ticks(axes.xaxis, whole=unit in ("rows", "how often", "tokens"))
    return figure


def _stages(facts: Facts) -> Chart | None:
    stages, seconds, busy = facts.work.stages, facts.work.stage_seconds, facts.work.device_busy
    if stages is None or not seconds or busy is None:
        return None
    shares = {
        "device: model": stages.forward,
        "device: copies to it and back": stages.copy,
        "waited for the first chunk": stages.wait_start,
        "waited for input": stages.wait_input,
        "waited for the writer": stages.wait_writer,
        "beside it: reading": stages.read,
        "beside it: tokenizing and batching": stages.tokenize,
        "beside it: decoding answers": stages.decode,
        "beside it: writing shards": stages.write,
    }
    if not stages.copy:  # a CPU copies nothing
        del shares["device: copies to it and back"]
    values = [100 * spent / seconds for spent in shares.values()]
    labels = [f"{value:.1f} %" for value in values]
    beside = [number for number, name in enumerate(shares) if name.startswith("beside")]
    figure = _bars(list(shares), values, labels, "share of the working time, %", plain=beside)
    workers = facts.work.workers
    where = f"{workers} process{'' if workers == 1 else 'es'}" if workers else "the main process"
    told = sum(run.stages is not None for run in facts.runs)
    some = f" (told by {told} of {len(facts.runs)} runs)" if told < len(facts.runs) else ""
    caption = (
        f"The device was busy for {100 * busy:.0f} % of {duration(seconds)}{some}. Reading and tokenizing "
        f"went on in {where}, decoding and writing in a thread; they may overlap with the device, and "
        "several processes add up to more than 100 %."
    )
    return to_chart(figure, "stages", "Where the time went", caption)


def _padding(facts: Facts) -> Chart | None:
    padding = facts.padding
    if padding is None:
        return None
    names = ["tokens of the texts", "padded batches, sorted by length", "padded, in input order"]
    values = [padding.useful, padding.padded, padding.in_order]
    labels = [short(values[0])]
    labels += [f"+{100 * (value / values[0] - 1):.1f} %" for value in values[1:]]
    figure = _bars(names, values, labels, "tokens", plain=(1, 2))
    how = "How much the runs padded is not known."
    if padding.computed is not None:
        how = f"Of what the runs computed, {100 * padding.computed:.1f} % was padding."
    return to_chart(figure, "padding", "Useful tokens, and padding", how)


def _errors(facts: Facts) -> Chart | None:
    if not facts.errors:
        return None
    values = [one.count for one in facts.errors]
    labels = [f"{value:,}" for value in values]
    figure = _bars([one.reason for one in facts.errors], values, labels, "rows")
    caption = f"{facts.num_errors:,} of {facts.num_rows:,} rows have no answer."
    if facts.num_errors_read < facts.num_errors:
        caption += f" Reasons are those of {facts.num_errors_read:,} of them."
    return to_chart(figure, "errors", "Errors by reason", caption)


def _ceiling(facts: Facts) -> Chart | None:
    ceiling = facts.ceiling
    if ceiling is None:
        return None
    values = [ceiling.measured / 1e9, ceiling.achieved / 1e9]
    names = ["a large matrix product, measured now", "the run, from first to last row"]
    if ceiling.while_busy is not None:
        names.append("the run, while the device was busy")
        values.append(ceiling.while_busy / 1e9)
    labels = [short(values[0])] + [
        f"{short(value)}: {100 * value / values[0]:.0f} %" for value in values[1:]
    ]
    figure = _bars(names, values, labels, f"GFLOP/s in {ceiling.dtype}", plain=(0,))
    caption = (
        f"Useful operations of the model's linear layers alone ({short(ceiling.flops_per_token)}FLOP a "
        f"token), against {ceiling.dtype} on {ceiling.device}. Attention and everything else take time and "
        "count nothing here."
    )
    return to_chart(figure, "limit", "How near to the hardware's limit", caption)


# -- distributions --------------------------------------------------------------------------------


def _histogram(histogram: Histogram, unit: str, rows: str) -> tuple[Figure, Axes]:
    figure, [axes] = new_figure(2.5)
    axes.stairs(histogram.counts, histogram.edges, fill=True, color=ACCENT)
    axes.set_xlabel(fit(unit, 28))
    axes.set_ylabel(rows)
    axes.set_ylim(bottom=0)
    axes.set_xlim(histogram.edges[0], histogram.edges[-1])
    axes.grid(axis="y")
    ticks(axes.yaxis)
    ticks(axes.xaxis, whole=False)
    return figure, axes


def _figures(histogram: Histogram) -> str:
    values = (histogram.median, histogram.p95, histogram.minimum, histogram.maximum)
    median, p95, low, high = map(short, values)
    return f"median {median}, 95 % at most {p95}; from {low} to {high}"


def _lengths(facts: Facts) -> Chart | None:
    lengths, limit = facts.lengths, facts.job.max_length
    if lengths is None:
        return None
    figure, axes = _histogram(lengths, "tokens a row", "rows")
    share = facts.sampled_truncated / max(1, lengths.num_values)
    if lengths.maximum >= 0.5 * limit:
        axes.set_xlim(lengths.edges[0], max(lengths.edges[-1], limit * 1.01))
        axes.axvline(limit, color=SECOND, linestyle="--", linewidth=1.4)
        axes.text(
            limit, 1.02, f"limit {limit:,}", ha="right", va="bottom", fontsize=9.5,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    cut = (
        f"{100 * share:.1f} % of rows were cut at the limit of {limit:,} tokens"
        if facts.sampled_truncated
        else f"No row was cut; the limit is {limit:,} tokens"
    )
    caption = f"{cut}. Tokens a row: {_figures(lengths)}.{_sampled(facts.sampled_rows, facts)}"
    return to_chart(figure, "lengths", "Lengths of the texts", caption)


def _sampled(rows: int, facts: Facts) -> str:
    if rows >= facts.num_rows:
        return ""
    return f" Counted in {rows:,} of {facts.num_rows:,} rows."


def _distribution(number: int, answers: Distribution, facts: Facts) -> Chart:
    name = f"answers-{number}"
    sampled = _sampled(facts.answer_rows, facts)
    if answers.histogram is not None:
        figure, _ = _histogram(answers.histogram, answers.unit, "answers")
        caption = f"{clean(answers.column, 60)}: {_figures(answers.histogram)}.{sampled}"
        return to_chart(figure, name, clean(answers.what, 80), caption)
    names, values = [word for word, _ in answers.labels], [count for _, count in answers.labels]
    if answers.num_other_labels:
        names.append(f"{answers.num_other_labels:,} others")
        values.append(answers.num_others)
    total = sum(values)
    labels = [f"{value:,} ({100 * value / total:.1f} %)" for value in values]
    plain = (len(names) - 1,) if answers.num_other_labels else ()
    figure = _bars(names, values, labels, "how often", plain=plain)
    first = clean(names[0], 60)
    caption = f"{clean(answers.column, 60)}: {first} in {100 * values[0] / total:.1f} %.{sampled}"
    return to_chart(figure, name, clean(answers.what, 80), caption)
