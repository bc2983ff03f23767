"""What stands in the pages: blocks by their fence, the commands in them, and what they print.

A fence says what a block is, and so what a test does with it:

    sh        commands that are run, in the order of the page, in one folder a page; the `text` block
              behind it is what they print on stdout (without one, they print nothing)
    console   commands that a test cannot run (a GPU, a cluster, minutes): each `batchinfer …` in it is
              given to the parser of the command line, also behind `$ `, a launcher, over several lines
    python    run where a `text` block follows; otherwise compiled, and it imports what there is
    yaml      a job where one of its keys is a knob: then RunConfig takes it
    text      what the block in front of it prints, or nothing's output
    (none)    a drawing, without commands
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = {"sh", "console", "python", "yaml", "text", "json", "jinja", "html", "dockerfile", ""}

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)
_DECIMAL = re.compile(r"-?\d+\.\d+")
#: What an ellipsis stands for: one number, or an ellipsis that was printed.
_ANY_NUMBER = r"(?:-?\d[\d,]*(?:\.\d+)?|…)"
_OPERATORS = re.compile(r"[();<>|&]+")
_REDIRECTIONS = {">", ">>", "<", ">&", "&>"}
#: Commands that start another one.
WRAPPERS = {"docker", "exec", "flock", "nice", "nohup", "podman", "srun", "sudo", "time", "timeout"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the 1-based line of its fence, and what it is to print."""

    language: str
    text: str
    line: int
    prints: str | None = None


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page in their order, each with the `text` block right behind it."""
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(page):
        indent, language, text = match["indent"], match["language"], match["text"]
        text = "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
        line = page.count("\n", 0, match.start()) + 1
        follows = found and not page[end : match.start()].strip()
        if language == "text" and follows and found[-1].language in ("sh", "python"):
            last = found.pop()
            found.append(Block(last.language, last.text, last.line, prints=text))
        else:
            found.append(Block(language, text, line))
        end = match.end()
    return found


def differences(shown: str, printed: str) -> list[str]:
    """Where the two say something else.

    - Decimals may differ by one in the second place: another processor adds up in another order, which
      moves a float32 score by millionths, and so may tip its rounding.
    - `…` stands for one number, of any size: rows a second, seconds, bytes.
    - Space between columns follows the width of the numbers.

    All else, whole numbers too, is as it is shown.
    """
    found = []
    lines, others = shown.rstrip().split("\n"), printed.rstrip().split("\n")
    for line, against in zip(lines, others, strict=False):
        if not _is_like(line, against):
            found.append(f"shown:   {line}\nprinted: {against}")
    if len(lines) != len(others):
        rest = "\n".join(others[len(lines) :])
        found.append(f"{len(lines)} lines are shown, {len(others)} printed\n{rest}".rstrip())
    return found


def _is_like(shown: str, printed: str) -> bool:
    shown, printed = " ".join(shown.split()), " ".join(printed.split())
    pattern, decimals, end = "", [], 0
    for match in re.finditer(rf"…|{_DECIMAL.pattern}", shown):
        pattern += re.escape(shown[end : match.start()])
        if match[0] == "…":
            pattern += _ANY_NUMBER
        else:
            pattern += r"(-?\d+\.\d+)"
            decimals.append(float(match[0]))
        end = match.end()
    found = re.fullmatch(pattern + re.escape(shown[end:]), printed)
    return found is not None and all(
        abs(one - float(other)) <= 0.011
        for one, other in zip(decimals, found.groups(), strict=True)
    )


def commands_of(text: str) -> Iterator[list[str]]:
    """The arguments of each `batchinfer …` in commands for a shell, without what is the shell's.

    Where a line has a prompt, only those that have one are commands, and the others what they print. A
    backslash goes on in the next line, which may begin with `> `.
    """
    if re.search(r"^\$ ", text, re.M):
        text = "\n".join(re.findall(r"^\$ ((?:.*\\\n(?:> )?)*.*)$", text, re.M))
    for line in re.sub(r"\\\n(?:> )?\s*", " ", text).split("\n"):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word in _REDIRECTIONS or not _OPERATORS.fullmatch(word):
                command.append(word)
                continue
            if (arguments := _arguments_of(command)) is not None:
                yield arguments
            command = []


def _arguments_of(words: Sequence[str]) -> list[str] | None:
    """What batchinfer is given in one command, alone or behind a launcher; None: it is another's."""
    kept: list[str] = []
    target = False
    for word in words:
        if word in _REDIRECTIONS:
            if kept and kept[-1] == "2":  # 2>log
                kept.pop()
            target = True
        elif target:
            target = False
        else:
            kept.append(word)
    while kept and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", kept[0], re.S):
        kept.pop(0)
    for place, word in enumerate(kept):
        is_started = place == 0 or kept[place - 1] == "-m" or kept[0] in WRAPPERS
        if is_started and Path(word).name == "batchinfer":
            return kept[place + 1 :]
    return None
