"""docs/recording.svg: a picture without code, of moments that follow each other."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

from scripts.record import PAGE, SCENES, Screen, draw, evenly

SVG = "{http://www.w3.org/2000/svg}"


def seen(svg: str) -> list[tuple[float, float, str, float]]:
    """What is shown: begin and end as shares of the time, text, and height of the row."""
    times = {}
    for name, steps in re.findall(r"@keyframes (t[\d-]+)\{((?:[^{}]*\{[^{}]*\})*)\}", svg):
        begin = float(re.findall(r"([\d.]+)%\{visibility:visible\}", steps)[0])
        after = [float(one) for one in re.findall(r"([\d.]+)%\{visibility:hidden\}", steps)]
        times[name] = (begin, max([one for one in after if one > begin], default=100.0))
    rows = []
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        texts = group.findall(f"{SVG}text")
        words = " ".join(text.text or "" for text in texts)
        if texts:
            rows.append(
                (*times[group.attrib["class"].split()[0]], words, float(texts[0].attrib["y"]))
            )
    return rows


def test_the_recording_is_a_picture_without_code() -> None:
    svg = PAGE.read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    kinds = {node.tag.removeprefix(SVG) for node in root.iter()}
    assert kinds <= {"svg", "title", "style", "rect", "circle", "text", "g"}
    names = {name for node in root.iter() for name in node.attrib}
    assert not [name for name in names if name.startswith("on") or "href" in name]
    assert "url(" not in svg
    assert "@import" not in svg
    assert len(svg) < 200_000


def test_the_recording_tells_the_whole_story() -> None:
    svg = PAGE.read_text(encoding="utf-8")
    rows = seen(svg)
    assert int(ElementTree.fromstring(svg).attrib["data-moments"]) > 40
    for scene in SCENES:
        assert any(words.split(" ", 1) == ["$", scene.command] for _, _, words, _ in rows), (
            scene.command
        )
    last = [words for _, end, words, _ in rows if end == 100.0]
    assert any("each once: OK" in words for words in last)
    assert any(words == "Killed" for _, _, words, _ in rows)
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", svg)


def test_each_row_shows_one_thing_at_a_time() -> None:
    rows = seen(PAGE.read_text(encoding="utf-8"))
    for height in {height for *_, height in rows}:
        times = sorted((begin, end) for begin, end, _, at in rows if at == height)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(times))


def screen(*lines: str) -> Screen:
    rows = [((0, line, "default", False),) if line else () for line in lines]
    return tuple([*rows, *[()] * (20 - len(lines))])


def test_a_row_that_stays_is_drawn_once() -> None:
    svg = draw([(screen("$ ls", ""), 1.0), (screen("$ ls", "a & b"), 3.0), (screen(""), 1.0)])
    assert [(begin, end, words) for begin, end, words, _ in seen(svg)] == [
        (0.0, 80.0, "$ ls"),
        (20.0, 80.0, "a & b"),
    ]


def test_moments_are_taken_from_first_to_last() -> None:
    moments = [screen(str(n)) for n in range(20)]
    assert evenly(moments, 3) == [moments[0], moments[10], moments[19]]
    assert evenly(moments[:2], 3) == moments[:2]
