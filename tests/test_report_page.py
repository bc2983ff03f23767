"""The page of report: whole in itself, harmless whatever stands in it, and fit for any screen and paper."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchinfer import run
from batchinfer.reporting.overview.facts import (
    Ceiling,
    Comparison,
    Distribution,
    ErrorReason,
    Facts,
    Histogram,
)
from batchinfer.reporting.overview.gather import gather
from batchinfer.reporting.overview.page import render
from tests.browser import Browser, find_browser
from tests.test_report import forget_events, write_events
from tests.test_run import config

#: Texts that others may have put into names, labels, errors and files.
HOSTILE = (
    "<script>alert(1)</script>",
    "</title></svg></style><img src=x onerror=alert(1)>",
    '" onload="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "{{ 7 * 7 }}{% raw %}${alert(1)}",
    "$\\frac{1}{0}$ ^_{x $$",
    "half a pair: \ud800 \udfff",
    "turned \u202e around \u2066 and \u200f back",
    "\x00\x1b[31m\r\n\t\ufffe",
    "url(#x) fill: #0a0b01 &lt; &amp; ]]> <!-- -->",
    "語" * 50 + "🙂" + "e\u0301\u0301\u0301" * 50,
    "w" * 10_000,
)
#: Words that are batchinfer's own, and decide what is shown.
OWN = ("state", "unit", "output", "task", "dtype", "engine")
VOID = ("meta", "br", "img", "link", "hr", "input")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """Facts with everything that can be shown: an interrupted job with errors, of several kinds."""
    folder = tmp_path_factory.mktemp("report")
    lines = [json.dumps({"text": "word " * (1 + i % 40)}) for i in range(300)]
    lines[20:20] = ['{"id"', "{", '{"id": 3}']
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    run(config(folder / "in.jsonl", folder / "out", max_length=32, keep=("none",)))
    forget_events(folder / "out")
    write_events(folder / "out", "1", seconds=400, state=None, device="cuda:0", attention="padded")
    write_events(folder / "out", "2", after=3600, seconds=200, state="stopped")
    write_events(folder / "out", "3", after=9000, seconds=300)
    found = gather(str(folder / "out"))
    return dataclasses.replace(
        found,
        errors=(*found.errors, ErrorReason("a reason with many words " * 10, 2, "in.jsonl:7")),
        forecast=(
            Comparison("rows", "rows", 310, 303),
            Comparison("time", "seconds", 7200.0, 8000.5),
            Comparison("output", "bytes", 12_345_678, 2_345_678),
        ),
        ceiling=Ceiling("3", 85_000_000, 4.1e11, 4.6e11, 7.2e11, "bfloat16", "cpu", 2),
        answers=(
            *found.answers,
            Distribution("norm", "Lengths", "norm", Histogram.of(np.ones(7))),
            Distribution(
                "label", "Labels", "label", None, tuple((f"L{i}", 9) for i in range(12)), 4, 5
            ),
        ),
    )


@pytest.fixture(scope="module")
def bare(facts: Facts) -> Facts:
    """Facts that nothing can be drawn of."""
    return dataclasses.replace(
        facts, runs=(), lengths=None, padding=None, errors=(), answers=(), forecast=(), ceiling=None,
        work=type(facts.work)(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain_page(facts: Facts) -> str:
    return render(facts)


@pytest.fixture(scope="module")
def hostile_page(facts: Facts) -> str:
    return render(made_hostile(facts, endless()))


class Elements(HTMLParser):
    """The elements of a page, and whether they are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def made_hostile(value: Any, texts: Iterator[str], name: str = "") -> Any:
    """A value with other texts in place of those that others choose."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            field.name: made_hostile(getattr(value, field.name), texts, field.name)
            for field in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changed)
    if isinstance(value, str):
        return value if name in OWN else next(texts)
    if isinstance(value, tuple):
        return tuple(made_hostile(one, texts, name) for one in value)
    if isinstance(value, dict):
        return {next(texts): made_hostile(one, texts) for one in value.values()}
    return value


def endless() -> Iterator[str]:
    while True:
        yield from HOSTILE


def check_harmless(page: str, tags_of: set[str]) -> None:
    page.encode()  # no half surrogates
    elements = Elements(page)
    assert {tag for tag, _ in elements.tags} == tags_of
    for tag, attributes in elements.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "src", "action", "srcdoc", "data", "formaction", "poster"):
            assert attributes.get(name, "#").startswith("#"), tag
        style = attributes.get("style") or ""
        assert "url(" not in style.replace("url(#", ""), style
    assert not [c for c in page if not c.isprintable() and c not in "\n"]


def test_the_page_needs_nothing_else_and_runs_nothing(plain_page: str) -> None:
    page = plain_page
    tags = {tag for tag, _ in Elements(page).tags}
    assert not tags & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "image",
    }
    check_harmless(page, tags)
    assert "default-src 'none'" in page
    assert "@import" not in page and "url(" not in page.replace("url(#", "")


def test_texts_of_others_stay_texts(plain_page: str, hostile_page: str) -> None:
    tags = {tag for tag, _ in Elements(plain_page).tags}
    page = hostile_page
    check_harmless(page, tags)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "49" not in re.findall(r"<td><bdi>(\d+)", page), "nothing is evaluated"
    assert "w" * 1001 not in page, "long texts are cut"


def test_labels_in_charts_are_no_formulas(bare: Facts) -> None:
    labels = (("$x^2$ and $y$", 3), ("50 % of $", 1))
    one = Distribution("label", "Labels", "label", labels=labels)
    page = render(dataclasses.replace(bare, answers=(one,)))
    assert "$x^2$ and $y$" in Elements(page).texts


def test_secrets_are_blotted_out(bare: Facts) -> None:
    reason = ErrorReason("refused by https://me:pass@host/?token=abcdefgh", 1, "a:1")
    page = render(dataclasses.replace(bare, errors=(reason,)))
    assert "pass@" not in page and "abcdefgh" not in page
    assert "https://***@host" in page


def test_every_chart_has_a_title_a_description_and_units(plain_page: str) -> None:
    page = plain_page
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    titles = [
        "Throughput over time", "Where the time went", "Memory over time",
        "What the device waited for, over time", "How near to the hardware's limit",
        "Lengths of the texts", "Useful tokens, and padding", "Labels", "Scores of the best answer",
        "Lengths", "Labels", "Errors by reason",
    ]  # fmt: skip
    assert re.findall(r"<h3>(.*?)</h3>", page.replace("&#39;", "'")) == titles
    assert len(drawings) == len(titles)
    for drawing in drawings:
        names = dict(re.findall(r'aria-labelledby="(\S+) (\S+)"', drawing))
        [(title, description)] = names.items()
        assert f'id="{title}"' in drawing and f'id="{description}"' in drawing
        assert 'role="img"' in drawing
        colors = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawing))
        assert {color for color in colors if not color.startswith("var(--")} <= {"none"}
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "drawings do not share names"


def test_what_there_is_no_figure_for_is_not_drawn(bare: Facts) -> None:
    page = render(bare)
    assert "<svg" not in page
    for heading in ("Speed", "Input", "Answers", "Errors", "Planned", "Runs"):
        assert f"<h2>{heading}" not in page


# -- as a browser shows it ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium: apt-get install --no-install-recommends chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(params=["plain", "hostile"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(request.getfixturevalue(f"{request.param}_page"), encoding="utf-8")
    return path


#: Texts of charts that stand out of their panel, and charts without a size.
CUT = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const panel = svg.closest('.panel').getBoundingClientRect();
  const size = svg.getBoundingClientRect();
  const cut = [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < panel.left - 1 || box.right > panel.right + 1
      || box.top < panel.top - 1 || box.bottom > panel.bottom + 1;
  }).map(text => text.textContent);
  return size.width > 100 && size.height > 50 ? cut : ['no size'];
})
"""


def test_a_browser_shows_it_whole_on_any_screen(browser: Browser, page: Path) -> None:
    for width in (390, 760, 1280):
        for scheme in ("light", "dark"):
            browser.show(width=width, scheme=scheme)
            browser.open(page)
            assert browser.evaluate("document.querySelectorAll('svg').length") == 12
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate(CUT) == []
            told = [one for one in browser.events if "method" in one]
            requested = [
                one["params"]["request"]["url"]
                for one in told
                if one["method"] == "Network.requestWillBeSent"
            ]
            assert requested == [page.as_uri()]
            complaints = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
            assert not [one for one in told if one["method"] in complaints]


#: How far the colours of texts are from what they stand on, at least: WCAG's contrast.
CONTRAST = """
(() => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).slice(0, 3).map(v => {
      v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (color !== 'rgba(0, 0, 0, 0)') return color;
    }
  };
  let least = 21;
  const texts = 'p, h1, h2, h3, td, th, dd, dt, code, span, figcaption, svg text';
  for (const element of document.querySelectorAll(texts)) {
    const style = getComputedStyle(element);
    const [a, b] = [light(element.matches('text') ? style.fill : style.color), light(ground(element))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_light_and_dark(
    browser: Browser, plain_page: str, tmp_path: Path, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(plain_page, encoding="utf-8")
    browser.show(width=1280, scheme=scheme)
    browser.open(path)
    assert browser.evaluate(CONTRAST) >= 4.5
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    darkness = sum(map(int, re.findall(r"\d+", ground)[:3]))
    assert darkness < 150 if scheme == "dark" else darkness > 600


def test_it_prints_on_paper_in_light_colours(browser: Browser, page: Path) -> None:
    browser.show(width=1280, scheme="dark")
    browser.open(page)
    printed = browser.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
    content = base64.b64decode(printed["data"])
    sheets = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content)
    assert 2 <= len(sheets) <= 20
    assert {(round(float(a)), round(float(b))) for a, b in sheets} == {(595, 842)}, "A4"
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
