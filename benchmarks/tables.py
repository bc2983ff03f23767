"""The tables of docs/performance.md and of the README, made from benchmarks/results/*.json.

    python -m benchmarks.tables            writes them between their markers
    python -m benchmarks.tables --check    changes nothing; exits with 1 where they differ

Of two runs on machines of one kind, the later one of a model and task counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.figures import COMPARISONS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
#: What the models are called here.
TITLES = {"minilm": "all-MiniLM-L6-v2", "bert-base": "BERT-base"}
NOT_YET = "Nothing has been measured yet; `make bench-peers` does it."


@dataclass(frozen=True)
class Machine:
    """What was measured on one kind of machine: section name → (run, section), and the runs."""

    title: str
    sections: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]

    @property
    def runs(self) -> list[Mapping[str, Any]]:
        """The runs that count, each once."""
        return list({id(run): run for run, _ in self.sections.values()}.values())


def load(folder: Path = RESULTS) -> list[Machine]:
    """The committed runs by machine; files of other kinds are left alone."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    by_machine: dict[str, dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for run in sorted((run for run in runs if run.get("kind") == "peers"), key=made):
        sections = by_machine.setdefault(title_of(run["machine"]), {})
        sections |= {name: (run, section) for name, section in run["sections"].items()}
    return [Machine(title, sections) for title, sections in by_machine.items()]


def made(run: Mapping[str, Any]) -> str:
    return str(run["made"])


def title_of(machine: Mapping[str, Any]) -> str:
    """`2 cores of Some CPU (amx_bf16), 24 GiB`."""
    best = next((f for f in ("amx_bf16", "avx512_bf16", "avx2") if f in machine["flags"]), "")
    flags = f" with {best}" if best else ""
    return f"{machine['cores']} cores of {machine['cpu']}{flags}, {machine['memory_gib']:.0f} GiB"


# Markdown ----------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def times(value: float) -> str:
    """`12 ×`, `1.53 ×`: three digits at most."""
    return f"{value:.0f} ×" if value >= 99.5 else f"{value:.3g} ×"


def percent(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}%}".replace("%", " %")


def in_readme(machines: Sequence[Machine]) -> list[str]:
    """A row a comparison, a column a model; nothing where nothing was measured."""
    lines: list[str] = []
    for machine in machines:
        models = [name for name in TITLES if any(s.startswith(name) for s in machine.sections)]
        rows = []
        for pair in COMPARISONS:
            found = [ratio_of(machine, f"{model} {pair.task}", pair) for model in models]
            if any(found):
                rows.append(
                    [pair.label, *(times(one["by_medians"]) if one else "" for one in found)]
                )
        if rows:
            head = ["useful tokens a second, against", *(TITLES[name] for name in models)]
            lines += ["", *table(head, rows), "", f"On {machine.title}."]
    if not lines:
        return []
    return [
        "## Speed",
        "",
        "Whole runs on a CPU, JSONL to Parquet for everyone, on the same texts of mixed lengths, in turn;",
        "medians, without the time to load. How it was measured, and all figures:",
        "[docs/performance.md](docs/performance.md).",
        *lines,
    ]


def ratio_of(machine: Machine, section: str, pair: Any) -> Mapping[str, Any] | None:
    _, found = machine.sections.get(section, ({}, {"ratios": []}))
    same = (
        r for r in found.get("ratios", []) if (r["ours"], r["theirs"]) == (pair.ours, pair.theirs)
    )
    return next(same, None)


def in_docs(machines: Sequence[Machine]) -> list[str]:
    """Every section of every machine, whole."""
    lines: list[str] = []
    for machine in machines:
        lines += [f"## On {machine.title}", ""]
        for run in machine.runs:
            lines += [f"- {sentence}" for sentence in describe_run(run)]
        for name, (_, section) in machine.sections.items():
            model, task = name.rsplit(" ", 1)
            lines += ["", f"### {TITLES.get(model, model)}, {task}", "", *describe(section), ""]
            lines += comparison_table(section)
            lines += ["", *contestant_table(section)]
            lines += notes(section)
        lines.append("")
    return lines[:-1] or [NOT_YET]


def describe_run(run: Mapping[str, Any]) -> Iterator[str]:
    options, versions = run["options"], run["versions"]
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    yield (
        f"{run['made']}, revision {run['revision'][:12]}{' and changes' * ('changes' in run['revision'])}, "
        f"Python {run['machine']['python']}: {packages}"
    )
    yield f"texts: {', '.join(options['corpus'])}, seed {options['seed']}"


def describe(section: Mapping[str, Any]) -> list[str]:
    few = section["rows_of_slow"]
    rows = f"{section['rows']:,} rows, {section['tokens']:,} tokens"
    some = f" (the first {few:,} where it says so)" if few < section["rows"] else ""
    lines = [
        f"{rows}{some}: {section['least_tokens']} to {section['most_tokens']} a row, in the mean "
        f"{section['mean_tokens']:.0f}. A token costs {section['flops_per_token'] / 1e6:.1f} MFLOP."
    ]
    if "gflops" in section:
        rates = (f"{name} {found['median']:,.0f}" for name, found in section["gflops"].items())
        lines.append(f"Ceiling of its linear layers, GFLOP/s: {', '.join(rates)}.")
    return lines


def comparison_table(section: Mapping[str, Any]) -> list[str]:
    labels = {(p.ours, p.theirs): p.label for p in COMPARISONS if p.task == section["task"]}
    rows = []
    for found in section.get("ratios", []):
        label = labels.get((found["ours"], found["theirs"]))
        if label is None:  # a comparison that is no longer made, or has another name by now
            continue
        met = "met" if found["reached"] else "missed"
        goal = "" if found["goal"] is None else f"{found['goal']:g} ×, {met}"
        rows.append([
            found["ours"], label, f"**{times(found['by_medians'])}**",
            times(found["by_rounds"]), f"{found['least']:.3g}-{found['most']:.3g}", goal,
        ])  # fmt: skip
    head = ["", "against", "of medians", "median of rounds", "least-most", "goal"]
    return table(head, rows)


def contestant_table(section: Mapping[str, Any]) -> list[str]:
    """The quickest first; who has no time last."""
    by_speed = sorted(
        section["contestants"].items(),
        key=lambda item: -item[1].get("tokens_per_second", {"median": 0.0})["median"],
    )
    agreement = "smallest cosine" if section["task"] == "embed" else "labels agree"
    head = ["", "setting", "tokens/s", "least-most", "rows", "of the ceiling", "padding", agreement,
            "start, s"]  # fmt: skip
    return table(head, [contestant_row(name, result) for name, result in by_speed])


def contestant_row(name: str, result: Mapping[str, Any]) -> list[str]:
    if "failed" in result or "tokens_per_second" not in result:
        return [name, "", "–", *[""] * 6]
    speed, check = result["tokens_per_second"], result["check"]
    agrees = f"{check['smallest_cosine']:.5f}" if "smallest_cosine" in check else percent(
        check["labels_agree"], 1
    )  # fmt: skip
    return [
        name, ", ".join(f"{key} {value}" for key, value in result["setting"].items()),
        f"{speed['median']:,.0f}", f"{speed['least']:,.0f}-{speed['most']:,.0f}",
        f"{result['rows']:,}", percent(result.get("share_of_ceiling")), percent(result["padding"], 1),
        agrees, f"{result['start_seconds']:.1f}",
    ]  # fmt: skip


def notes(section: Mapping[str, Any]) -> list[str]:
    """Who has no time and why, and how much else ran on the machine."""
    results = section["contestants"]
    lines = [f"- {name} has no time: {r['failed']}" for name, r in results.items() if "failed" in r]
    shares = [one["others_share"] for r in results.values() for one in r.get("rounds", [])]
    for name, result in results.items():
        around = [
            one["around_seconds"] for one in result.get("rounds", []) if "around_seconds" in one
        ]
        if around:
            lines.append(
                f"- {name}: {sorted(around)[len(around) // 2]:.2f} s more before its first row and after "
                "its last, for planning and checks"
            )
    rounds = max((len(r.get("rounds", [])) for r in results.values()), default=0)
    if shares:
        lines.append(
            f"- {rounds} rounds; other processes had {percent(sorted(shares)[len(shares) // 2], 1)} of the "
            f"machine's CPU time in the median round, {percent(max(shares), 1)} at most"
        )
    return ["", *lines] if lines else []


# The files ---------------------------------------------------------------------------------------


def filled(text: str, block: Sequence[str]) -> str:
    """The text with the block between the markers. Raises ValueError where they are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} … {END}")
    inner = "".join(f"{line}\n" for line in block)
    return f"{before}{begin}\n{inner}{end}{after}"


def wanted(root: Path = ROOT) -> dict[Path, str]:
    """The files as they should be, from the results of the same tree."""
    machines = load(root / "benchmarks" / "results")
    blocks = {"README.md": in_readme(machines), "docs/performance.md": in_docs(machines)}
    return {
        root / name: filled((root / name).read_text(encoding="utf-8"), block)
        for name, block in blocks.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; 1 where they differ")
    check = parser.parse_args().check
    stale = {path: text for path, text in wanted().items() if path.read_text("utf-8") != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)}: {'differs from the results' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
