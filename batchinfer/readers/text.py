"""Text files as blocks of complete lines of UTF-8, from any offset, in bounded memory."""

from __future__ import annotations

import codecs
import hashlib
from collections import deque
from dataclasses import dataclass
from itertools import takewhile

from batchinfer.core import InputFile, Position
from batchinfer.errors import BatchInferError, StorageError, UsageError
from batchinfer.readers.base import START, Reader, ReadOptions, shown
from batchinfer.readers.compression import DAMAGED, ByteStream, open_bytes

_BLOCK_BYTES = 1 << 20
#: Enough where only the first lines are asked for, of a thousand files.
HEAD_BYTES = 64 << 10
_LINES_AHEAD = 1024
BOM = b"\xef\xbb\xbf"
#: A line of nothing else is no row.
BLANK = b" \t\r"


def _as_invalid_utf8(error: UnicodeError) -> tuple[str | bytes, int]:
    """Turn what cannot be decoded into what UTF-8 cannot say: one bad line, not a crash."""
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    if isinstance(error, UnicodeEncodeError):
        return b"\xff" * (error.end - error.start), error.end
    raise error


codecs.register_error("batchinfer-invalid", _as_invalid_utf8)


def is_utf8(encoding: str) -> bool:
    """Whether the bytes can be used as they are. Raises UsageError for an encoding nobody knows."""
    try:
        codec = codecs.lookup(encoding)
        "".encode(encoding)  # rot13 and its kind are codecs, yet no encodings
    except (LookupError, ValueError):
        raise UsageError(f"--encoding {shown(encoding)}: no such text encoding") from None
    return codec.name in ("utf-8", "utf-8-sig")


@dataclass(frozen=True, slots=True)
class Block:
    """Complete lines that start at `offset` and `line`; or one line that is too long to be kept.

    Of a line that is too long there is only `too_long`, the SHA-256 of its bytes.
    """

    data: bytes
    offset: int
    end: int
    line: int
    too_long: bytes = b""


class TextStream:
    """The text of a file as UTF-8 blocks.

    Raises StorageError, with the line that was reached, where the file cannot be read to its end.
    """

    def __init__(
        self,
        file: InputFile,
        options: ReadOptions,
        start: Position = START,
        block_bytes: int | None = None,
    ) -> None:
        self._file = file
        self._limit = options.max_line_bytes
        # A byte becomes at most four, so that only a block's first line can be over the limit.
        self._read_bytes = max(1, min(block_bytes or _BLOCK_BYTES, self._limit // 4))
        self._offset, self._line = start.offset, start.line
        self._decoder = None
        if not is_utf8(options.encoding):
            self._decoder = codecs.getincrementaldecoder(options.encoding)("batchinfer-invalid")
        self._finished = False
        #: Where the rows that are to be read end, where the file goes on behind them.
        self._stop = file.size if file.is_bounded else None
        self._ahead = b""
        try:
            self._raw: ByteStream = open_bytes(file.path, file.compression)
        except OSError as error:
            raise self._failure(error) from error
        try:
            self._skip_to(start.offset)
        except BatchInferError:
            self._raw.close()
            raise

    @property
    def bytes_on_disk(self) -> int:
        """How far the file itself was read."""
        return self._raw.tell()

    def next_block(self) -> Block | None:
        """The next complete lines, or None at the end of the file."""
        parts: list[bytes] = []
        size = 0
        while True:
            data = self._ahead or self._read()
            self._ahead = b""
            if not data:
                return self._block(b"".join(parts)) if parts else None
            first = data.find(b"\n")
            if size + (len(data) if first < 0 else first) > self._limit:
                return self._skip_line(parts, data)
            if first >= 0:
                end = data.rfind(b"\n") + 1
                self._ahead = data[end:]
                return self._block(b"".join([*parts, data[:end]]))
            parts.append(data)
            size += len(data)

    def close(self) -> None:
        self._raw.close()

    def _block(self, data: bytes) -> Block:
        offset, line = self._offset, self._line
        self._offset += len(data)
        self._line += data.count(b"\n") + (not data.endswith(b"\n"))
        return Block(data, offset, self._offset, line)

    def _skip_line(self, parts: list[bytes], data: bytes) -> Block:
        offset, line = self._offset, self._line
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
            self._offset += len(part)
        parts.clear()
        while data:
            end = data.find(b"\n") + 1 or len(data)
            digest.update(data[:end])
            self._offset += end
            if data[end - 1 : end] == b"\n":
                self._ahead = data[end:]
                break
            data = self._read()
        self._line += 1
        return Block(b"", offset, self._offset, line, digest.digest())

    def _skip_to(self, offset: int) -> None:
        if offset and self._decoder is None and not self._file.compression:
            raw = self._raw
            raw.seek(offset)  # type: ignore[attr-defined]
            return
        if not offset:
            data = self._read()
            while len(data) < len(BOM) and BOM.startswith(data) and (more := self._read()):
                data += more
            if data.startswith(BOM):
                data = data[len(BOM) :]
                self._offset = len(BOM)
            self._ahead = data
        while offset:
            data = self._read()
            if not data:
                raise StorageError(
                    "shorter than when it was read before; it changed", file=shown(self._file.path)
                )
            self._ahead = data[offset:]
            offset -= min(offset, len(data))

    def _read(self) -> bytes:
        """The next bytes of text, b"" at the end."""
        while not self._finished:
            try:
                size = self._read_bytes
                if self._stop is not None:
                    size = max(0, min(size, self._stop - self._raw.tell()))
                data = self._raw.read(size)
            except (OSError, EOFError, *DAMAGED) as error:
                raise self._failure(error) from error
            self._finished = not data
            if self._decoder is not None:
                data = self._decode(data)
            if data:
                return data
        return b""

    def _decode(self, data: bytes) -> bytes:
        """The next bytes as UTF-8. Raises UsageError where the encoding is not that of the file."""
        assert self._decoder is not None
        try:
            text = self._decoder.decode(data, final=self._finished)
            return text.encode("utf-8", "batchinfer-invalid")
        except UnicodeError as error:  # what no error handler is asked about: no byte order mark, …
            raise UsageError(
                f"cannot be decoded from line {self._line + 1} on: {error}",
                file=shown(self._file.path),
                advice="name another --encoding (utf-16-le, say, where there is no byte order mark)",
            ) from None

    def _failure(self, error: BaseException) -> StorageError:
        reason = (getattr(error, "strerror", None) or str(error)).replace("\n", " ")
        return StorageError(
            f"cannot be read on from line {self._line + 1}: {reason}", file=shown(self._file.path)
        )


class LineCursor:
    """The lines of a stream from the current one on, and where the current one stands."""

    def __init__(self, stream: TextStream, start: Position) -> None:
        self._stream = stream
        self._lines: list[bytes] = []
        self._index = 0
        self._ahead: deque[Block] = deque()
        self._block: Block | None = None
        self.offset, self.line = start.offset, start.line

    def peek(self, num_lines: int, skip: int = 0) -> list[bytes]:
        """Some of the lines `skip` lines ahead, at most `num_lines`; none at hand or at the end.

        A line that is too long is alone and empty, and `too_long` says that it is.
        """
        if self._index >= len(self._lines):
            block = self._next_block()
            if block is None:
                return []
            self._lines, self._index, self._block = _split(block), 0, block
            self.offset, self.line = block.offset, block.line
        begin = self._index + skip
        return self._lines[begin : begin + num_lines]

    @property
    def too_long(self) -> bytes:
        """The digest of the current line where it is too long, else empty. Valid after `peek`."""
        return self._block.too_long if self._block else b""

    def advance(self, num_lines: int) -> bytes:
        """Go `num_lines` of the peeked lines further; return their bytes."""
        lines = self._lines[self._index : self._index + num_lines]
        assert self._block is not None
        self._index += num_lines
        self.line += num_lines
        data = self._block.too_long or b"\n".join([*lines, b""])
        self.offset = min(self.offset + len(data), self._block.end)
        if self._block.too_long:
            self.offset = self._block.end
        return data

    def extend(self) -> bool:
        """Append the next block's lines to those that can be peeked; False where there are none."""
        block = self._next_block()
        if block is None:
            return False
        if block.too_long or self._block is None:
            self._ahead.appendleft(block)
            return False
        del self._lines[: self._index]
        self._lines += _split(block)
        self._index = 0
        self._block = Block(b"", self._block.offset, block.end, self._block.line)
        return True

    def odd_quotes_ahead(self, num_bytes: int) -> bool:
        """Whether a quote that is not doubled stands in the `num_bytes` behind the lines at hand.

        Looks at whole blocks, so it may say yes for one that stands a little behind.
        """
        seen = 0
        for block in self._ahead:
            if block.too_long or seen > num_bytes:
                return False
            if b'"' in block.data.replace(b'""', b""):
                return True
            seen += len(block.data)
        while seen <= num_bytes:
            new = self._stream.next_block()
            if new is None:
                return False
            self._ahead.append(new)
            if new.too_long:
                return False
            if b'"' in new.data.replace(b'""', b""):
                return True
            seen += len(new.data)
        return False

    def _next_block(self) -> Block | None:
        return self._ahead.popleft() if self._ahead else self._stream.next_block()


def _split(block: Block) -> list[bytes]:
    lines = block.data.split(b"\n")
    if len(lines) > 1 and not lines[-1]:
        lines.pop()
    return lines


class TextReader(Reader):
    """A reader over lines: the cursor, the position and the row count."""

    def __init__(self, file: InputFile, options: ReadOptions, start: Position) -> None:
        super().__init__(file, options, start)
        self._stream = TextStream(file, options, start)
        self._cursor = LineCursor(self._stream, start)
        self._row = start.row

    @property
    def position(self) -> Position:
        return Position(self.start.file, self._cursor.offset, self._cursor.line, self._row)

    def at_end(self) -> bool:
        while lines := self._cursor.peek(_LINES_AHEAD):
            if self._cursor.too_long:
                return False
            # Nothing but line ends is the cheapest way to fill a terabyte: not a call a line.
            blank = sum(1 for _ in takewhile(self.is_blank, lines)) if any(lines) else len(lines)
            if blank:
                self._cursor.advance(blank)
            if blank < len(lines):
                return False
        return True

    def close(self) -> None:
        self._stream.close()

    def is_blank(self, line: bytes) -> bool:
        """Whether a line is no row."""
        return not line.strip(BLANK)

    def too_long_error(self, line: int) -> str:
        limit = self.options.max_line_bytes
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
        return f"line {line + 1}: longer than {size}"
