"""What all charts share: colours, sizes, and the way from a figure of matplotlib to a part of the page.

Colours become the page's variables, so that one drawing serves light and dark; ids become the page's own,
as several drawings share it; sizes are left to the page. Texts stay texts, in the page's font.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from batchinfer.errors import without_secrets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What drawings are coloured with: stand-ins that nobody draws with otherwise, and the page's variables.
INK, MUTED, GRID, ACCENT, SECOND, SHADE = (f"#0a0b0{digit}" for digit in range(1, 7))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    SHADE: "var(--shade)",
}
#: Inches of 72 units: about as wide as a phone, so that texts are as large there as they are drawn.
_WIDTH = 5.0
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "batchinfer",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "path.simplify": True,
}


_COLOR = re.compile("|".join(_VARIABLES))
_FONT = re.compile(r"font: (?:normal )*([\d.]+px) [^;]*")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_HREF = "{http://www.w3.org/1999/xlink}href"
_NAMESPACE = re.compile(r"^\{[^}]*\}")


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart. `name` stands in the page's addresses; `caption` says in words what is drawn."""

    name: str
    title: str
    caption: str
    svg: str


@contextmanager
def styled() -> Iterator[None]:
    """Everything that is drawn and written inside looks as the page does."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the page's font has it
        yield


def new_figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=rows > 1, squeeze=False)
    return figure, list(axes[:, 0])


def to_chart(figure: Figure, name: str, title: str, caption: str) -> Chart:
    written = io.StringIO()
    blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(written, format="svg", metadata=blank)
    return Chart(name, title, caption, embeddable(written.getvalue(), name, title, caption))


def ticks(axis: Any, *, whole: bool = True) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=5, integer=whole, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """A number for an axis: 950, 12k, 1.5M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def width(text: str) -> float:
    """About how wide a text is, in heights of its letters; no font is asked, as the page's is not known."""
    return sum(0.0 if unicodedata.combining(c) else 1.05 if _is_wide(c) else 0.62 for c in text)


def _is_wide(letter: str) -> bool:
    return letter in "mwMW@%—…" or unicodedata.east_asian_width(letter) in "WF"


def fit(text: object, ems: float) -> str:
    """A text to show in a drawing, cut to about so many heights of its letters."""
    shown = clean(text)
    while width(shown) > ems:
        shown = shown[: -max(2, len(shown) // 20)] + "…"
    return shown


def clean(text: object, limit: int = 300) -> str:
    """A text to show: others wrote it, and it may hold secrets, line breaks, or marks that turn it around.

    What cannot be printed is escaped, and what is longer is cut.
    """
    said = without_secrets(str(text)[: 20 * limit])
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def embeddable(written: str, name: str, title: str, description: str) -> str:
    """The drawing as an element of a page, with a text alternative; its ids begin with `name`."""
    root = ElementTree.fromstring(written[written.index("<svg") :])
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}metadata"):
                parent.remove(child)
    ids = {id: f"{name}-{number}" for number, id in enumerate(_ids(root))}
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        if target := element.attrib.pop(_HREF, None):
            element.set("href", f"#{ids[target.removeprefix('#')]}")
        if id := element.attrib.pop("id", None):
            element.set("id", ids[id])
        for key, value in element.attrib.items():
            value = _REFERENCE.sub(lambda match: f"url(#{ids[match[1]]})", value)
            if key == "style":
                value = _COLOR.sub(lambda match: _VARIABLES[match[0]], value)
                value = _FONT.sub(r"font-size: \1", value)
            element.set(key, value)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"role": "img", "aria-labelledby": f"{name}-title {name}-description"})
    for tag, text in (("desc", description), ("title", title)):
        said = ElementTree.Element(tag, id=f"{name}-{'title' if tag == 'title' else 'description'}")
        said.text = clean(text, 1000)
        root.insert(0, said)
    return ElementTree.tostring(root, encoding="unicode")


def _ids(root: ElementTree.Element) -> list[str]:
    return [id for element in root.iter() if (id := element.get("id"))]
