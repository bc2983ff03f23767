"""Reads data/ with pyarrow alone, at any moment: what batchinfer says of it counts for nothing here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.checks import Broken, expect

SUCCESS = "_SUCCESS"


class Witness:
    """Knows every row of the inputs (JSONL, a `text` each), and looks at what stands in data/.

    A shard stands from the first look at it to the last as the same file. Raises Broken.
    """

    def __init__(self, data: Path, inputs: Sequence[Path]) -> None:
        self._data = data
        self._rows = [
            (path.name, number, json.loads(line)["text"])
            for path in inputs
            for number, line in enumerate(path.read_text().splitlines())
        ]
        self._known = set(self._rows)
        #: Shards by name: the file, and the rows that it holds.
        self._seen: dict[str, tuple[int, list[tuple[str, int, str]]]] = {}
        self._owner: dict[tuple[str, int, str], str] = {}

    def look(self) -> int:
        """See that what stands is whole, and no row of it twice; return the number of shards."""
        is_vouched = (
            self._data / SUCCESS
        ).exists()  # asked first: what it vouches for stands by now
        names = _shards(self._data)
        for name in sorted(names):
            self._look_at(name)
        for name in self._seen:
            expect(name in names, f"{name} is gone")
        if is_vouched:
            expect(len(self._owner) == len(self._rows), f"{SUCCESS}, but not every row is there")
        return len(names)

    def conclude(self) -> None:
        """See that every row is there, in the order of the input, and `_SUCCESS` beside them."""
        self.look()
        expect((self._data / SUCCESS).exists(), f"{SUCCESS} is missing")
        expect((self._data / SUCCESS).stat().st_size == 0, f"{SUCCESS} is not empty")
        found = [row for name in sorted(self._seen) for row in self._seen[name][1]]
        expect(found == self._rows, f"{len(found)} rows of {len(self._rows)}, or in another order")

    def _look_at(self, name: str) -> None:
        path = self._data / name
        inode = path.stat().st_ino
        if name in self._seen:
            expect(self._seen[name][0] == inode, f"{name} was replaced")
            return
        columns = ["_source", "_row", "text"]
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise Broken(f"{name} cannot be read: {error}") from None
        rows = list(zip(*(table[column].to_pylist() for column in columns), strict=True))
        expect(len(set(rows)) == len(rows), f"{name} holds a row twice")
        for row in rows:
            expect(row in self._known, f"{name}: row {row[:2]} is not one of the input")
            other = self._owner.setdefault(row, name)
            expect(other == name, f"row {row[:2]} stands in {other} and in {name}")
        self._seen[name] = inode, rows


def _shards(data: Path) -> set[str]:
    try:
        return {path.name for path in data.iterdir() if path.name.startswith("part-")}
    except FileNotFoundError:  # the run has not come so far
        return set()
