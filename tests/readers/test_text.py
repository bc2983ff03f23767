"""Text files: compressed, encoded, cut off; never silently the end."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from batchinfer.errors import InputError, StorageError, UsageError

from .conftest import read_all

ROWS = [{"id": i, "text": f"row {i} " + "é" * (i % 7)} for i in range(3000)]
DATA = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}
every_compression = pytest.mark.parametrize("suffix", sorted(COMPRESS))


@every_compression
def test_a_compressed_file_equals_the_plain_one(tmp_path: Path, suffix: str) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / f"a.jsonl.{suffix}"
    plain.write_bytes(DATA)
    packed.write_bytes(COMPRESS[suffix](DATA[:9999]) + COMPRESS[suffix](DATA[9999:]))
    first, second = read_all(plain), read_all(packed)
    assert [chunk.digest for chunk in first.chunks] == [chunk.digest for chunk in second.chunks]
    assert [chunk.next for chunk in first.chunks] == [chunk.next for chunk in second.chunks]
    assert first.table.drop_columns("_source").equals(second.table.drop_columns("_source"))


@every_compression
@pytest.mark.parametrize("keep", [0, 1, 10, 0.5, -1])
def test_a_truncated_file_is_an_error(tmp_path: Path, suffix: str, keep: float) -> None:
    packed = COMPRESS[suffix](DATA)
    length = int(len(packed) * keep) if isinstance(keep, float) else keep
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(packed[:length])
    with pytest.raises((InputError, StorageError), match=r"a\.jsonl\.") as error:
        read_all(path)
    assert "\n" not in str(error.value)


@every_compression
def test_a_damaged_second_stream_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(COMPRESS[suffix](DATA) + b"damage" + COMPRESS[suffix](DATA))
    with pytest.raises((InputError, StorageError), match="cannot be read on from line"):
        read_all(path)


def test_a_file_that_breaks_far_behind_its_head_says_which_line_was_reached(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(DATA * 40)[:-20])
    with pytest.raises(StorageError, match=r"a\.jsonl\.gz: .* from line \d{4,}: "):
        read_all(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "shift_jis", "cp1252"])
def test_another_encoding_is_transcoded(tmp_path: Path, encoding: str) -> None:
    text = "ア" if encoding == "shift_jis" else "é"
    path = tmp_path / "a.csv"
    path.write_bytes(f"id,text\n1,{text}\n2,{text}\n".encode(encoding))
    assert read_all(path, encoding=encoding).column("text") == [text, text]


@pytest.mark.parametrize(
    ("encoding", "bad"), [("utf-16-le", b"\x00\xdc"), ("shift_jis", b"\x80"), ("cp1252", b"\x81")]
)
def test_bytes_that_cannot_be_decoded_cost_their_line_only(
    tmp_path: Path, encoding: str, bad: bytes
) -> None:
    good = '{"text": "a"}\n'.encode(encoding)
    path = tmp_path / "a.jsonl"
    path.write_bytes(good + '{"text": "'.encode(encoding) + bad + '"}\n'.encode(encoding) + good)
    reading = read_all(path, encoding=encoding)
    assert reading.column("text") == ["a", None, "a"]
    assert reading.errors == {1: "line 2: not valid UTF-8 (byte 11)"}


@pytest.mark.parametrize("encoding", ["utf-99", "rot13", "base64", "nul\0"])
def test_an_encoding_that_does_not_exist_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(DATA)
    with pytest.raises(UsageError, match="--encoding"):
        read_all(path, encoding=encoding)


def _peak_mib(code: str) -> int:
    """Peak memory of a fresh process that runs this, beyond what importing costs.

    From /proc: what getrusage() says of a process starts with the peak of the one that started it.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    program = """
        import re
        from tests.readers.conftest import *
        def peak():
            return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
        base = peak()
    """
    program = textwrap.dedent(program) + textwrap.dedent(code) + "print((peak() - base) >> 10)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


LOOP = """
    files = list_inputs([{path!r}])
    read = ReadOptions(text_columns=("text",){options})
    read = replace(read, schema=inspect_inputs(files, read).schema)
    (segment,) = group_segments(files)
    rows = 0
    for chunk in read_chunks(Span(segment, 0, Position(), None), {chunk_rows}, read):
        rows += chunk.num_rows
    assert rows == {rows}, rows
"""


def test_large_rows_stay_within_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for i in range(1000):
            file.write(json.dumps({"id": i, "text": f"{i} " * 20_000}) + "\n")
    loop = LOOP.format(path=str(path), chunk_rows=100, rows=1000, options="")
    assert path.stat().st_size > 60 << 20
    assert _peak_mib(loop) < 120


def test_an_open_quote_in_a_large_file_stays_bounded(tmp_path: Path) -> None:
    path = tmp_path / "open.csv"
    with path.open("w") as file:
        file.write('id,text\n1,"open\n')
        for i in range(400_000):
            file.write(f"{i},some text of a row that is neither short nor long\n")
    loop = LOOP.format(
        path=str(path), chunk_rows=16384, rows=400_001, options=", max_line_bytes=16 << 20"
    )
    assert _peak_mib(loop) < 120


def test_importing_the_readers_imports_nothing_heavy() -> None:
    program = (
        "import sys, batchinfer.readers\n"
        "print(sorted({'torch', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
