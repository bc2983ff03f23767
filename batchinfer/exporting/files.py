"""Exported rows as a file: Parquet, JSONL, CSV or TSV, text also compressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.errors import UsageError
from batchinfer.exporting.texts import Texts, has_no_text
from batchinfer.readers.base import shown
from batchinfer.readers.listing import COMPRESSIONS, EXTENSIONS
from batchinfer.writers.streamed import created

if TYPE_CHECKING:
    from batchinfer.exporting.targets import Content, Options, Sheet

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: As they are read as inputs, but for .json: who names a file so means one document, not lines.
_EXTENSIONS = {end: format for end, format in EXTENSIONS.items() if end != ".json"}
CODECS = ("zstd", "snappy", "gzip", "lz4", "none")
_DEFAULT_CODEC = "zstd"
ROW_GROUP_ROWS = 131_072
#: A row group is in memory until it is whole, so it ends early where rows are large.
_ROW_GROUP_BYTES = 128 << 20
#: What is made text at a time: the same as a table, its cells, and its lines are in memory.
_TEXT_BYTES = 4 << 20
_DELIMITERS = {"csv": ",", "tsv": "\t"}


@dataclass(frozen=True, slots=True)
class FileTarget:
    """A file on a disk; `format` is one of parquet, jsonl, csv and tsv."""

    path: Path
    format: str
    compression: str
    options: Options

    def check(self, content: Content) -> None:
        """Refuse what cannot be written, and a name that is taken. Raises UsageError."""
        codec, rows = self.options.codec, self.options.row_group_size
        if self.format == "parquet":
            if codec not in (None, *CODECS):
                raise UsageError(f"--codec {codec}: choose one of {', '.join(CODECS)}")
            if rows is not None and rows < 1:
                raise UsageError(f"--row-group-size: should be 1 or more, got {rows}")
        elif codec is not None or rows is not None:
            raise UsageError(
                f"--codec and --row-group-size are of .parquet; {shown(str(self.path))} is compressed if "
                f"its name ends in one of {', '.join(COMPRESSIONS)}"
            )
        else:
            _require_text(content.schema)
        if self.path.is_dir():
            raise UsageError(f"--to {self.path}: is a folder; name a file in it")
        if not self.path.parent.is_dir():
            raise UsageError(f"--to {self.path}: there is no folder {self.path.parent}; create it")
        if os.path.lexists(self.path) and not self.options.overwrite:
            raise self._taken()

    @contextmanager
    def opened(self, content: Content) -> Iterator[Sheet]:
        """Write; the file has its name when the block ends. Raises UsageError where that is taken."""
        try:
            with created(self.path, replacing=self.options.overwrite) as file:
                if self.format == "parquet":
                    with _ParquetSheet(file, content, self.options) as sheet:
                        yield sheet
                else:
                    with _COMPRESSORS[self.compression](file) as stream:
                        yield _TextSheet(stream, content.schema, self.format)
        except FileExistsError:
            raise self._taken() from None

    def _taken(self) -> UsageError:
        return UsageError(f"--to {self.path}: exists; --overwrite replaces it")

    @property
    def num_bytes(self) -> int:
        """The size of the file that was written."""
        return self.path.stat().st_size


def file_target(name: str, options: Options) -> FileTarget:
    """The file that a name stands for, with its format. Raises UsageError where the name says none."""
    path = Path(name)
    stem, extension = os.path.splitext(path.name.lower())
    compression = COMPRESSIONS.get(extension, "")
    format = _EXTENSIONS.get(os.path.splitext(stem)[1] if compression else extension)
    if format is None:
        raise UsageError(
            f"--to {shown(name)}: the name says the format; end it in one of {', '.join(_EXTENSIONS)} "
            f"(text also with {', '.join(COMPRESSIONS)})"
        )
    if format == "parquet" and compression:
        raise UsageError(
            f"--to {shown(name)}: Parquet is compressed inside; end the name in .parquet"
        )
    return FileTarget(path, format, compression, options)


def _require_text(schema: pa.Schema) -> None:
    for field in schema:
        if has_no_text(field.type):
            raise UsageError(
                f"column {shown(field.name)}: {field.type} cannot be written as text; export to .parquet, "
                "or leave it out with --columns"
            )


class _ParquetSheet:
    """Row groups of so many rows, whatever the tables that they come in.

    Dictionaries as in shards. The same rows give the same bytes, by the same version of pyarrow.
    """

    def __init__(self, file: BinaryIO, content: Content, options: Options) -> None:
        self.num_nulled = 0
        self._max_rows = options.row_group_size or ROW_GROUP_ROWS
        self._held: list[pa.Table] = []
        self._num_rows = self._num_bytes = 0
        self._writer = pq.ParquetWriter(
            file,
            content.schema.with_metadata(dict(content.metadata)),
            version="2.6",
            compression=cast(Any, options.codec or _DEFAULT_CODEC),
            use_dictionary=list(content.repeating),  # type: ignore[arg-type]  # names are fine
            write_page_checksum=True,
        )

    def __enter__(self) -> _ParquetSheet:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._write_group()
            self._writer.close()
            return
        with suppress(Exception):  # it would write a footer, to a disk that may be full
            self._writer.close()

    def write(self, table: pa.Table) -> None:
        while table.num_rows:
            head = table.slice(0, self._max_rows - self._num_rows)
            table = table.slice(head.num_rows)
            self._held.append(head)
            self._num_rows += head.num_rows
            self._num_bytes += head.nbytes
            if self._num_rows == self._max_rows or self._num_bytes >= _ROW_GROUP_BYTES:
                self._write_group()

    def _write_group(self) -> None:
        if self._held:
            group = pa.concat_tables(self._held)
            self._writer.write_table(group, row_group_size=group.num_rows)
        self._held, self._num_rows, self._num_bytes = [], 0, 0


class _TextSheet:
    """Lines; of CSV and TSV, the first has the columns' names."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema, format: str) -> None:
        self._stream, self._texts = stream, Texts()
        self._delimiter = _DELIMITERS.get(format)
        if self._delimiter is not None:
            stream.write(self._texts.csv_header(schema.names, self._delimiter))

    @property
    def num_nulled(self) -> int:
        return self._texts.num_nulled

    def write(self, table: pa.Table) -> None:
        rows = max(1, table.num_rows * _TEXT_BYTES // max(1, table.nbytes))
        for batch in table.combine_chunks().to_batches(max_chunksize=rows):
            if self._delimiter is None:
                self._stream.write(self._texts.json_lines(batch))
            else:
                self._stream.write(self._texts.csv_lines(batch, self._delimiter))


@contextmanager
def _uncompressed(file: BinaryIO) -> Iterator[BinaryIO]:
    yield file


#: Without the time and the name that gzip would put into its header.
_COMPRESSORS: Mapping[str, Callable[[BinaryIO], Any]] = {
    "": _uncompressed,
    "gz": lambda file: gzip.GzipFile("", "wb", 6, file, mtime=0),
    "bz2": lambda file: bz2.BZ2File(file, "wb"),
    "xz": lambda file: lzma.LZMAFile(file, "wb"),  # noqa: SIM115  # whoever calls it closes it
    "zst": lambda file: zstd.ZstdFile(cast(Any, file), "wb"),
}
