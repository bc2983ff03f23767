"""docs/recording.svg: a job that is killed and resumed, run for real in a terminal, as an animated SVG.

    python scripts/record.py                 # needs pyte (pip install -e '.[dev]')

A shell runs in a pseudo-terminal; pyte keeps its screen. Of what was on it, the moments that tell the
story are kept: each command as it is typed, some of the progress, what it says in the end. How long each
is shown is set here and not measured, so that another recording differs in measured numbers alone. The
SVG has no script: rows of text that CSS shows at their time.
"""

from __future__ import annotations

import argparse
import fcntl
import html
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyte

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "recording.svg"
COLUMNS, LINES = 104, 20
#: So many copies of the sample reviews, a file each, keep a small model busy for some seconds.
NUM_FILES = 36
RUN = (
    "batchinfer run reviews/ --model tiny-sentiment --output out --chunk-rows 1000 --max-errors 1%"
)

#: A run of cells that look alike: first column, text, colour, whether it is bold.
Span = tuple[int, str, str, bool]
Screen = tuple[tuple[Span, ...], ...]


@dataclass(frozen=True)
class Scene:
    """A command, and how it is shown: moments of its progress, and seconds for what it says in the end."""

    command: str
    num_moments: int = 0
    kill_at: float | None = None  # the share of rows at which the process is killed, from outside
    seconds: float = 2.5


SCENES = (
    Scene(RUN, num_moments=8, kill_at=0.4, seconds=2.2),
    Scene("batchinfer resume out", num_moments=10, seconds=4.5),
    Scene("batchinfer errors out --summary", seconds=3.5),
    Scene("batchinfer verify out", seconds=6.0),
)
TYPING = 0.05  # seconds a key, in steps of several
MOMENT = 0.33  # seconds a moment of progress is shown


@dataclass
class Terminal:
    """A shell in a pseudo-terminal, and its screen."""

    folder: Path
    screen: pyte.Screen = field(init=False)
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self.deadline = time.monotonic() + 300
        self.pid, self._line = pty.fork()
        if self.pid == 0:
            os.chdir(self.folder)
            shell = ["bash", "--norc", "--noprofile", "--noediting", "-i"]
            os.execvpe("bash", shell, environment())
        size = struct.pack("4H", LINES, COLUMNS, 0, 0)
        fcntl.ioctl(self._line, termios.TIOCSWINSZ, size)

    def read(self, seconds: float = 0.02) -> bool:
        """Take what was printed, and return whether anything was."""
        if time.monotonic() > self.deadline:
            raise TimeoutError("the recording takes too long")
        ready, _, _ = select.select([self._line], [], [], seconds)
        if ready:
            self._stream.feed(os.read(self._line, 1 << 16))
        return bool(ready)

    def type(self, text: str) -> None:
        os.write(self._line, text.encode())

    @property
    def child(self) -> int | None:
        """The process that the shell runs, if it runs one."""
        tasks = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(tasks[0]) if tasks else None

    @property
    def is_at_prompt(self) -> bool:
        line = self.screen.display[self.screen.cursor.y]
        return line.strip() == "$" and self.child is None

    def close(self) -> None:
        os.kill(self.pid, signal.SIGHUP)
        os.close(self._line)
        os.waitpid(self.pid, 0)


def environment() -> dict[str, str]:
    """What the shell sees: this checkout's batchinfer, and nothing of whoever records."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PS1": "$ ",
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "LANG": "C.UTF-8",
        "BATCHINFER_PROFILE": "none",
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(Path(tempfile.gettempdir()) / "recording-cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }


def prepare(folder: Path) -> None:
    """The reviews as a folder of files, and the model that reads them."""
    (folder / "reviews").mkdir()
    for number in range(NUM_FILES):
        shutil.copy(
            ROOT / "sample_data/reviews.jsonl", folder / f"reviews/day-{number + 1:02}.jsonl"
        )
    shutil.copytree(ROOT / "sample_data/tiny-sentiment", folder / "tiny-sentiment")


def spans_of(screen: pyte.Screen) -> Screen:
    """What is on the screen, row by row, as runs of cells that look alike."""
    rows = []
    for y in range(LINES):
        row: list[Span] = []
        for x in range(COLUMNS):
            cell = screen.buffer[y][x]
            if cell.data in ("", " "):
                continue
            if row:
                start, text, *look = row[-1]
                gap = x - start - len(text)
                is_word = gap <= 1 and "━" not in cell.data + text
                if look == [cell.fg, cell.bold] and (gap == 0 or is_word):
                    row[-1] = (start, text + " " * gap + cell.data, cell.fg, cell.bold)
                    continue
            row.append((x, cell.data, cell.fg, cell.bold))
        rows.append(tuple(row))
    return tuple(rows)


def record(folder: Path) -> Iterator[tuple[Screen, float]]:
    """Play the scenes; yield what is seen, and for how many seconds it is shown."""
    terminal = Terminal(folder)
    while not terminal.is_at_prompt:
        terminal.read()
    for scene in SCENES:
        yield spans_of(terminal.screen), 0.6
        for place in range(0, len(scene.command), 4):
            keys = scene.command[place : place + 4]
            terminal.type(keys)
            while terminal.read(0.1):
                pass
            yield spans_of(terminal.screen), TYPING * len(keys)
        terminal.type("\n")
        moments = []
        while terminal.read() or not terminal.is_at_prompt:
            now = spans_of(terminal.screen)
            if not moments or now != moments[-1]:
                moments.append(now)
            if scene.kill_at is not None and terminal.child and share_done(folder) >= scene.kill_at:
                kill(terminal.child)
        end = spans_of(terminal.screen)
        moments = [moment for moment in moments if moment != end]
        for moment in evenly(moments, scene.num_moments):
            yield moment, MOMENT
        yield end, scene.seconds
    terminal.close()


def share_done(folder: Path) -> float:
    """The share of shards that stand, each of a thousand rows."""
    return len(list(folder.glob("out/data/*.parquet"))) / NUM_FILES


def kill(process: int) -> None:
    """SIGKILL, which no process can catch."""
    os.kill(process, signal.SIGKILL)
    time.sleep(0.3)


def evenly(moments: Sequence[Screen], number: int) -> list[Screen]:
    """So many of the moments, from the first to the last."""
    if len(moments) <= number:
        return list(moments)
    return [moments[round(n * (len(moments) - 1) / (number - 1))] for n in range(number)]


# The drawing -------------------------------------------------------------------------------------

CELL, LINE, SIZE = 8.4, 20, 14
PADDING, BAR = 18, 36
WIDTH = round(COLUMNS * CELL + 2 * PADDING)
HEIGHT = LINES * LINE + BAR + 2 * PADDING - 8
FOREGROUND = "#e6e9ef"
#: The terminal's colours, on a window that is dark on light pages too.
COLOURS = {
    "default": FOREGROUND,
    "black": "#5c6370",
    "red": "#ff7b72",
    "green": "#7ee787",
    "brown": "#e3b341",
    "blue": "#79c0ff",
    "magenta": "#d2a8ff",
    "cyan": "#76e3ea",
    "white": FOREGROUND,
}
PROMPT = "#7ee787"


def colour_of(name: str) -> str:
    """A colour of pyte's, a name or six hexadecimal digits, as one of CSS."""
    return COLOURS.get(name.removeprefix("bright"), f"#{name}" if len(name) == 6 else FOREGROUND)


def draw(moments: Sequence[tuple[Screen, float]]) -> str:
    """The animated SVG: every row of text once for each time that it is seen unchanged."""
    total = sum(seconds for _, seconds in moments)
    starts = [sum(seconds for _, seconds in moments[:n]) for n in range(len(moments) + 1)]
    texts, rules = [], {}
    for y in range(LINES):
        first = 0
        for n in range(1, len(moments) + 1):
            row = moments[first][0][y]
            if n < len(moments) and moments[n][0][y] == row:
                continue
            if row:
                name = f"t{first}-{n}"
                rules[name] = (starts[first] / total, starts[n] / total)
                last = " last" if n == len(moments) else ""
                texts.append(f'<g class="{name}{last}">{draw_row(y, row)}</g>')
            first = n
    css = "".join(rule(name, begin, end, total) for name, (begin, end) in rules.items())
    dots = "".join(
        f'<circle cx="{PADDING + 6 + 20 * n}" cy="{BAR // 2 + 2}" r="6" fill="{colour}"/>'
        for n, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-labelledby="title" data-moments="{len(moments)}">\n'
        '<title id="title">A run of batchinfer is killed, resumed and verified in a terminal</title>\n'
        "<style>"
        f"text{{font:{SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"fill:{FOREGROUND};white-space:pre}}.b{{font-weight:bold}}"
        "g[class]{visibility:hidden}"
        f"{css}"
        "@media (prefers-reduced-motion:reduce){g[class]{animation:none!important}"
        ".last{visibility:visible}}"
        "</style>\n"
        f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10" fill="#14181f" '
        'stroke="#3a414d"/>\n'
        f"{dots}\n"
        f'<text x="{WIDTH / 2:.0f}" y="{BAR // 2 + 7}" text-anchor="middle" '
        'style="fill:#8b93a1;font-size:13px">batchinfer</text>\n' + "\n".join(texts) + "\n</svg>\n"
    )


def rule(name: str, begin: float, end: float, total: float) -> str:
    """Show a class in a part of the time, again and again."""
    first = "" if begin == 0 else "0%{visibility:hidden}"
    after = "" if end >= 1 else f"{100 * end:.2f}%{{visibility:hidden}}"
    return (
        f".{name}{{animation:{name} {total:.2f}s step-end infinite}}"
        f"@keyframes {name}{{{first}{100 * begin:.2f}%{{visibility:visible}}{after}}}"
    )


def draw_row(y: int, row: Sequence[Span]) -> str:
    """A row of text, each run at its column and as wide as its cells, whatever font there is."""
    top = BAR + PADDING + y * LINE + SIZE - 2
    parts = []
    for x, text, colour, is_bold in row:
        if x == 0 and text.split(" ")[0] == "$":
            parts.append(draw_text(0, top, "$", PROMPT, True))
            x, text = 2, text[2:]
        if text:
            parts.append(draw_text(x, top, text, colour_of(colour), is_bold))
    return "".join(parts)


def draw_text(x: int, top: float, text: str, fill: str, is_bold: bool) -> str:
    """One run of cells; lines of a bar are drawn, as fonts leave gaps between them."""
    left = PADDING + x * CELL
    if set(text) <= set("━╸╺"):
        begin = left + (CELL / 2 if text[0] == "╺" else 0)
        end = left + (len(text) - (0.5 if text[-1] == "╸" else 0)) * CELL
        return (
            f'<rect x="{begin:.1f}" y="{top - 6}" width="{end - begin:.1f}" height="3" rx="1.5" '
            f'fill="{fill}"/>'
        )
    shown = "" if fill == FOREGROUND else f' style="fill:{fill}"'
    bold = ' class="b"' if is_bold else ""
    return (
        f'<text x="{left:.1f}" y="{top}" textLength="{len(text) * CELL:.1f}"{bold}{shown}>'
        f"{html.escape(text, quote=False)}</text>"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Record docs/recording.svg")
    parser.add_argument("--out", type=Path, default=PAGE)
    out: Path = parser.parse_args().out
    subprocess.run([sys.executable, "-c", "import torch, transformers"], check=True)  # into memory
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        moments = list(record(folder))
    out.write_text(draw(moments), encoding="utf-8")
    print(f"{out}: {out.stat().st_size:,} bytes, {len(moments)} moments")
    return 0


if __name__ == "__main__":
    sys.exit(main())
