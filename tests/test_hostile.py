"""Inputs made to break things: any bytes, any boundary, any name, any compression ratio."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batchinfer import run
from batchinfer.core import InputFile, Position, Segment, Span
from batchinfer.errors import BatchInferError, InputError, UsageError
from batchinfer.readers import ReadOptions, list_inputs, read_chunks, text
from tests.conftest import Cli, read_output
from tests.test_run import config

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}
GOOD = b'{"text": "good"}\n'


# -- any bytes, any boundary -----------------------------------------------------------------------

PIECES = (
    b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\0", b'"', b'""', b",", b";", b"\t", b"{", b"}", b" ",
    b'{"text": "a"}', b'{"text": 1}', b'{"text": "\\ud800"}', b'{"text": "a", "text": "b"}',
    b'{"id": 99999999999999999999}', b"[" * 50, b"text,id", b'a,"b\nc",d', codecs.BOM_UTF8,
    codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"\xff", b"\xed\xa0\x80", b"\xc3", "é".encode(),
    "é\n".encode("utf-16-le"), "\u2028\x85".encode(), b"\x1b$B", b"\\x", b"+AGE-", b"x" * 70, b"PAR1",
)  # fmt: skip
anything = st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=40).map(b"".join)
ENCODINGS = ("utf-8", "utf-16", "utf-16-le", "utf-32", "latin-1", "shift_jis", "utf-7", "gb18030")
SCHEMA = pa.schema([("text", pa.string()), ("id", pa.int64()), ("b", pa.list_(pa.string()))])


@dataclass(frozen=True)
class Found:
    """What a file's rows are, however they were read; or why there are none."""

    rows: tuple[str, ...] = ()
    errors: tuple[tuple[int, str], ...] = ()
    refused: str = ""


def read(segment: Segment, options: ReadOptions, chunk_rows: int, block_bytes: int) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK_BYTES", block_bytes)
        rows: list[str] = []
        errors: list[tuple[int, str]] = []
        try:
            for chunk in read_chunks(Span(segment, 0, Position(), None), chunk_rows, options):
                assert chunk.num_rows == chunk_rows or chunk.ends_segment
                assert chunk.num_rows or chunk.id.chunk == 0, "no chunk without rows behind others"
                errors += [(len(rows) + row, why) for row, why in sorted(chunk.errors.items())]
                rows += map(repr, chunk.table.to_pylist())
        except BatchInferError as error:
            assert "\n" not in str(error)
            return Found(refused=str(error))
    assert all("\n" not in why and len(why) < 300 for _, why in errors)
    return Found(tuple(rows), tuple(errors))


def segment_of(path: Path, kind: str, compression: str = "") -> Segment:
    status = path.stat()
    file = InputFile(
        str(path), path.name, kind, compression, status.st_size, status.st_mtime_ns
    )  # fmt: skip
    return Segment(0, (file,))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=anything,
    kind=st.sampled_from(["jsonl", "csv", "tsv"]),
    encoding=st.sampled_from(ENCODINGS),
    limit=st.sampled_from([40, 1 << 20]),
    header=st.booleans(),
)
@example(b"\r\r\n", "csv", "utf-8", 1 << 20, True)
@example(b"text\na\n\r\r\n", "csv", "utf-8", 1 << 20, True)
@example(b"\xff" * 9, "jsonl", "utf-16", 1 << 20, True)
@example(b"a\n" * 9, "csv", "utf-32", 1 << 20, False)
def test_any_bytes_give_the_same_rows_in_any_chunks_and_blocks(
    tmp_path: Path, data: bytes, kind: str, encoding: str, limit: int, header: bool
) -> None:
    path = tmp_path / "any"
    path.write_bytes(data)
    segment = segment_of(path, kind)
    options = ReadOptions(
        text_columns=("text",),
        schema=SCHEMA,
        encoding=encoding,
        max_line_bytes=limit,
        header=header,
    )
    expected = read(segment, options, 1000, 1 << 20)
    for chunk_rows, block_bytes in ((1000, 1 << 20), (1, 1 << 20), (3, 7), (1000, 1), (2, 64)):
        assert read(segment, options, chunk_rows, block_bytes) == expected


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=4)
)
def test_a_flipped_byte_in_parquet_is_rows_or_one_line(
    tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": [f"row {i % 7}" for i in range(300)], "id": list(range(300))})
    pq.write_table(table, path, row_group_size=100, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    for place, flip in flips:
        data[place % len(data)] ^= flip
    path.write_bytes(data)
    options = ReadOptions(text_columns=("text",), schema=SCHEMA)
    expected = read(segment_of(path, "parquet"), options, 1000, 1)
    found = read(segment_of(path, "parquet"), options, 7, 1)
    if expected.refused:  # the row that was reached differs
        assert found.refused.split(" as Parquet")[0] == expected.refused.split(" as Parquet")[0]
    else:
        assert found == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "iso2022_jp", "iso2022_kr"])
def test_a_file_that_is_not_in_its_encoding_is_refused_in_one_line(
    encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "plain"}\n\x1b$(CA\x1b$B\xff' * 4)
    try:
        run(config(path, tmp_path / "out", encoding=encoding))
    except (UsageError, InputError) as error:
        assert str(path) in str(error) and "\n" not in str(error)
        assert "encod" in str(error)
    else:
        assert encoding.startswith("iso")


def test_lines_of_mixed_encodings_cost_themselves_alone(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    line = '{"text": "é"}'
    lines = [line.encode(), line.encode("latin-1"), line.encode("utf-16-be"), b"\0" * 30]
    path.write_bytes(b"\n".join([GOOD.strip(), *lines, GOOD]))
    report = run(config(path, tmp_path / "out"))
    table = read_output(tmp_path / "out")
    assert table["text"].to_pylist() == ["good", "é", None, None, None, "good"]
    assert [why is None for why in table["_error"].to_pylist()] == [True, True, *[False] * 3, True]
    assert report.num_errors == 3


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_zero_bytes_in_a_text_are_text(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    lines = ['{"text": "a"}', '{"text": "b\\u0000c"}'] if kind == "jsonl" else ["text", "a", "b\0c"]
    path.write_text("\n".join(lines) + "\n")
    run(config(path, tmp_path / "out"))
    assert read_output(tmp_path / "out")["text"].to_pylist() == ["a", "b\0c"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("depth", [20, 900, 1023, 1025, 100_000])
def test_nesting_of_any_depth_costs_its_own_line_at_most(
    depth: int, first: bool, tmp_path: Path
) -> None:
    deep = b'{"text": "deep", "x": ' + b"[" * depth + b"]" * depth + b"}\n"
    keys = b'{"text": "keys", "y": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}\n"
    path = tmp_path / "rows.jsonl"
    lines = [deep, keys, GOOD] if first else [GOOD, deep, keys]
    path.write_bytes(b"".join([GOOD, *lines, GOOD]))
    run(config(path, tmp_path / "out"))
    table = read_output(tmp_path / "out")
    assert table.num_rows == 5
    for row in table.to_pylist():
        assert (
            row["text"] in ("good", "deep", "keys")
            if row["_error"] is None
            else "line" in row["_error"]
        )
    assert table["text"].to_pylist().count("good") == 3


# -- sizes -----------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from batchinfer.cli import main
code = main(sys.argv[1:])
status = Path("/proc/self/status").read_text()
print("peak", int(status.split("VmHWM:")[1].split()[0]) >> 10, file=sys.stderr)
sys.exit(code)
"""


def peak_of_run(folder: Path, *arguments: str, code: int = 0) -> int:
    """Peak memory in MiB of a whole run of `arguments` into `out`, in a process of its own."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "run", *arguments, "--engine", "fake", "--workers", "0",
         "--no-progress", "--output", "out"],
        cwd=folder, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return int(done.stderr.split("peak ")[-1])


@pytest.fixture(scope="module")
def usual_peak(tmp_path_factory: pytest.TempPathFactory) -> int:
    """What a run of two rows takes."""
    folder = tmp_path_factory.mktemp("usual")
    (folder / "rows.jsonl").write_bytes(GOOD * 2)
    return peak_of_run(folder, "rows.jsonl")


def bomb(suffix: str, unit: bytes, mebibytes: int) -> bytes:
    """A compressed file of so many MiB of the unit between two good rows: streams, end to end."""
    block = COMPRESS[suffix](unit * ((8 << 20) // len(unit)))
    return (
        COMPRESS[suffix](GOOD) + block * (mebibytes // 8) + COMPRESS[suffix](b"\n" + GOOD)
    )  # fmt: skip


#: A line of zeros so long; bz2 and xz take 8 s of a processor for a gigabyte.
SIZES = {"gz": 1024, "zst": 1024, "bz2": 64, "xz": 64}


@pytest.mark.parametrize("suffix", sorted(SIZES))
def test_a_line_of_a_gigabyte_out_of_a_small_file_is_one_error_row(
    suffix: str, usual_peak: int, tmp_path: Path
) -> None:
    path = tmp_path / f"bomb.jsonl.{suffix}"
    path.write_bytes(bomb(suffix, b"\0", SIZES[suffix]))
    assert path.stat().st_size < 2 << 20
    peak = peak_of_run(tmp_path, path.name, "--max-line-bytes", str(4 << 20), code=65)
    assert peak < usual_peak + 60
    table = read_output(tmp_path / "out")
    assert table["text"].to_pylist() == ["good", None, "good"]
    assert table["_error"].to_pylist()[1] == "line 2: longer than 4 MiB"


def test_a_million_rows_out_of_a_small_file_stay_flat(usual_peak: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.zst"
    path.write_bytes(bomb("zst", b'{"text":"a"}\n\n{}\n', 8))
    assert path.stat().st_size < 1 << 14
    peak = peak_of_run(tmp_path, path.name, "--max-length", "8", code=65)
    assert peak < usual_peak + 150
    table = read_output(tmp_path / "out").select(["_row", "_error"])
    rows = ((8 << 20) // 17) * 2 + 2
    assert table["_row"].to_pylist() == list(range(rows)) and rows > 980_000


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_blank_lines_without_end_are_no_rows_and_stay_flat(
    kind: str, usual_peak: int, tmp_path: Path
) -> None:
    path = tmp_path / f"blank.{kind}.zst"
    head = GOOD if kind == "jsonl" else b"text\ngood\n"
    tail = GOOD if kind == "jsonl" else b"good\n"
    block = zstd.compress(b"\n" * (8 << 20))
    path.write_bytes(zstd.compress(head) + block * 4 + zstd.compress(tail))
    assert peak_of_run(tmp_path, path.name) < usual_peak + 90
    assert read_output(tmp_path / "out")["text"].to_pylist() == ["good", "good"]


def test_a_line_of_100_megabytes_is_an_error_row_or_a_row(usual_peak: int, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(GOOD)
        file.write(b'{"text": "' + b"x" * (100 << 20) + b'"}\n')
        file.write(GOOD)
    peak = peak_of_run(tmp_path, path.name, code=65)
    assert peak < usual_peak + 100, "the 64 MiB that are kept of a line, and a block"
    errors = read_output(tmp_path / "out")["_error"].to_pylist()
    assert errors == [None, "line 2: longer than 64 MiB", None]


def test_parquet_of_a_few_bytes_a_row_stays_flat(usual_peak: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    same = pa.DictionaryArray.from_arrays(
        pa.array([0] * 200_000, pa.int32()), pa.array(["x" * 1000])
    )  # fmt: skip
    pq.write_table(pa.table({"text": same}), path)
    assert path.stat().st_size < 1 << 15
    peak = peak_of_run(tmp_path, path.name, "--max-length", "8", "--keep", "none")
    assert peak < usual_peak + 200, "a chunk's texts, not the 190 MiB of all"
    assert (
        sum(pq.read_metadata(p).num_rows for p in (tmp_path / "out/data").glob("*.parquet"))
        == 200_000
    )


def test_an_xz_file_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    data = bytearray(lzma.compress(GOOD * 100))
    size = (data[12] + 1) * 4  # of the block header; its filter's one property is the dictionary
    place = data.index(b"\x21\x01", 12, 12 + size) + 2
    data[place] = 40  # 4 GiB
    data[12 + size - 4 : 12 + size] = zlib.crc32(data[12 : 12 + size - 4]).to_bytes(4, "little")
    path = tmp_path / "greedy.jsonl.xz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"greedy\.jsonl\.xz.*[Mm]emory usage limit") as error:
        run(config(path, tmp_path / "out"))
    assert "\n" not in str(error.value)


# -- names -----------------------------------------------------------------------------------------

NAMES = (
    b"a b.jsonl", b"a\nb.jsonl", b"a\tb.jsonl", b"*.jsonl", b"[a-z]?.jsonl", b"{a,b}.jsonl", b"-o.jsonl",
    b"--output.jsonl", b"'quote\".jsonl", b"a\\b.jsonl", b"%s%n.jsonl", b"$(id).jsonl", b"~.jsonl",
    b"caf\xe9.jsonl", b"\xff\xfe.csv", b"caf\xe9.parquet", b"\x1b[2J.jsonl", "\u202egpj.jsonl".encode(),
    "日本.jsonl".encode(), b"x" * 240 + b".jsonl",
)  # fmt: skip


def test_files_of_any_name_are_read_from_a_folder_and_resumed(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))
        if name.endswith(b".parquet"):
            with path.open("wb") as file:
                pq.write_table(pa.table({"text": [f"{number}"]}), file)
        else:
            head = "text\n" if name.endswith(b".csv") else ""
            path.write_text(
                head + (f"{number}\n" if head else json.dumps({"text": f"{number}"}) + "\n")
            )
    (folder / "loop").symlink_to(folder)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "up").symlink_to(tmp_path)
    done = cli("run", "in", "--engine", "fake", "--workers", "0", "--output", "out", "-v")
    assert done.returncode == 0, done.stderr
    assert done.stderr.replace("\n", "").isprintable()
    table = read_output(tmp_path / "out")
    assert sorted(table["text"].to_pylist(), key=int) == [str(i) for i in range(len(NAMES))]
    assert len(set(table["_source"].to_pylist())) == len(NAMES), "each under a name of its own"
    for shard in (tmp_path / "out" / "data").glob("*.parquet"):
        shard.unlink()
    assert cli("status", "out").returncode == 0
    assert cli("resume", "out").returncode == 0
    assert read_output(tmp_path / "out").equals(table)


@pytest.mark.parametrize("name", NAMES[:-1], ids=ascii)
def test_a_file_of_any_name_can_be_named(name: bytes, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    path.write_bytes(GOOD)
    (file,) = list_inputs([str(path)])
    assert file.path == str(path)
    file.source.encode()


def test_links_that_lead_in_circles_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    (tmp_path / "self").symlink_to("self")
    for name in ("a.jsonl", ".", "self", "*.jsonl", "self/x.jsonl"):
        with pytest.raises(InputError) as error:
            list_inputs([str(tmp_path / name)])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b"-o [x]*"])
def test_a_run_folder_of_any_name_is_written_and_resumed(name: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(GOOD * 3)
    command = [os.fsencode(sys.executable), b"-m", b"batchinfer"]
    job = [b"rows.jsonl", b"--engine", b"fake", b"--workers", b"0", b"--output=" + name]
    for arguments in ([b"run", *job], [b"run", *job, b"--json"], [b"status", b"--", name],
                      [b"resume", b"--", name]):  # fmt: skip
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        assert arguments[-1] != b"--json" or json.loads(done.stdout)["num_rows"] == 3


def test_a_stdout_that_cannot_show_a_name_shows_it_escaped(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "rows.jsonl").write_bytes(GOOD)
    done = cli(
        "run", "rows.jsonl", "--engine", "fake", "--workers", "0", "-o", "日本",
        PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\\u65e5\\u672c/data" in done.stdout
