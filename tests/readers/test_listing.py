"""What the user names becomes a frozen list of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchinfer.core import InputFile
from batchinfer.errors import BatchInferError, InputError, UsageError
from batchinfer.readers import group_segments, list_inputs

from .conftest import read_all

LINE = '{"text": "a"}\n'


def write(path: Path, text: str = LINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def sources(*inputs: Path | str, format: str = "auto") -> list[str]:
    return [file.source for file in list_inputs([str(name) for name in inputs], format)]


def test_files_keep_the_order_in_which_they_were_named(tmp_path: Path) -> None:
    b, a = write(tmp_path / "b.jsonl"), write(tmp_path / "a.jsonl")
    assert sources(b, a) == ["b.jsonl", "a.jsonl"]


def test_a_folder_is_read_sorted_without_bookkeeping_and_unknown_files(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.csv", "a.parquet", "a-b/x.tsv.gz", "notes.txt"):
        write(tmp_path / name)
    for name in ("_SUCCESS", "_batchinfer/tmp/p.parquet", ".hidden.jsonl", ".git/x.jsonl"):
        write(tmp_path / name)
    assert sources(tmp_path) == ["a-b/x.tsv.gz", "a.parquet", "b/1.csv", "b/2.jsonl"]


def test_a_glob_reads_below_folders(tmp_path: Path) -> None:
    for name in ("x/1.jsonl", "x/y/2.jsonl", "3.jsonl", "x/readme.md"):
        write(tmp_path / name)
    assert sources(tmp_path / "**") == ["3.jsonl", "x/1.jsonl", "x/y/2.jsonl"]
    assert sources(tmp_path / "x" / "*") == ["1.jsonl"]


def test_a_glob_that_matches_folders_only_reads_what_they_hold(tmp_path: Path) -> None:
    write(tmp_path / "day-1" / "a.jsonl")
    write(tmp_path / "day-2" / "a.jsonl")
    assert sources(tmp_path / "day-*") == ["day-1/a.jsonl", "day-2/a.jsonl"]


def test_a_path_that_exists_wins_over_its_reading_as_a_glob(tmp_path: Path) -> None:
    write(tmp_path / "a[1].jsonl")
    write(tmp_path / "a1.jsonl")
    assert sources(tmp_path / "a[1].jsonl") == ["a[1].jsonl"]


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl")
    (tmp_path / "link.jsonl").symlink_to(a)
    assert sources(a, tmp_path, tmp_path / "*.jsonl") == ["a.jsonl"]


def test_a_symlink_loop_ends(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.jsonl")
    (tmp_path / "data" / "again").symlink_to(tmp_path)
    assert sources(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("name", ["a\nb.jsonl", "a b.jsonl", "*?.jsonl", "ä.jsonl"])
def test_odd_file_names_are_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert sources(tmp_path) == [name]
    assert read_all(tmp_path / name).column("_source") == [name]


def test_a_file_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jsonl")
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(LINE.encode())
    reading = read_all(tmp_path)
    assert reading.column("_source") == ["caf\\xe9.jsonl"]
    Path(os.fsdecode(path)).write_bytes(b"\xff\n")
    with pytest.raises(UsageError, match=r"caf\\udce9") as error:
        read_all(tmp_path)
    str(error.value).encode()


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("missing.jsonl", InputError, "no such file"),
        ("*.nothing", InputError, "matches nothing"),
        ("empty", InputError, "no usable file"),
        ("fifo.jsonl", InputError, "not a regular file"),
        ("data.txt", UsageError, "--format"),
        ("data.gz", UsageError, "--format"),
        ("x.parquet.gz", UsageError, "--format"),
        ("broken.jsonl", InputError, "No such file"),
        ("nul\0.jsonl", InputError, "not a file name"),
        ("x" * 300 + ".jsonl", InputError, "no such file"),
        ("line\nbreak.jsonl", InputError, r"line\\nbreak"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, kind: type[BatchInferError], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    for known in ("data.txt", "data.gz", "x.parquet.gz"):
        write(tmp_path / known)
    os.mkfifo(tmp_path / "fifo.jsonl")
    (tmp_path / "broken.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(kind, match=says) as error:
        list_inputs([str(tmp_path / name)])
    assert "\n" not in str(error.value)


def test_a_format_that_is_given_overrides_the_extension(tmp_path: Path) -> None:
    path = write(tmp_path / "data.txt.gz")
    (file,) = list_inputs([str(path)], "csv")
    assert (file.format, file.compression) == ("csv", "gz")
    with pytest.raises(UsageError, match="--format"):
        list_inputs([str(path)], "xml")


def test_sources_are_relative_to_the_deepest_common_folder(tmp_path: Path) -> None:
    write(tmp_path / "x" / "y" / "1.jsonl")
    write(tmp_path / "x" / "z" / "2.jsonl")
    assert sources(tmp_path) == ["y/1.jsonl", "z/2.jsonl"]
    assert all(Path(file.path).is_absolute() for file in list_inputs([str(tmp_path)]))


def test_small_files_share_a_segment_and_large_ones_do_not() -> None:
    def file(size: int) -> InputFile:
        return InputFile("p", "s", "jsonl", "", size << 20, 0)

    sizes = [1, 2, 7, 8, 100, 7, 7, 7, 7, 7, 0]
    groups = group_segments(map(file, sizes))
    assert [[f.size >> 20 for f in group.files] for group in groups] == [
        [1, 2, 7],
        [8],
        [100],
        [7, 7, 7, 7],
        [7, 0],
    ]
    assert [group.index for group in groups] == list(range(5))
