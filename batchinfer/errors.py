"""What can go wrong, as a tree; each branch carries the exit code of the command line.

    BatchInferError                1  internal error: a bug in batchinfer
    ├── UsageError                 2  flags, configuration, or an input that cannot be what it is said to be
    ├── InputError                66  an input is missing or unreadable, before a plan exists
    ├── ModelError                69  the model is unavailable or cannot do the task
    ├── JobMismatchError          73  the run folder belongs to another job, or the world changed
    ├── StorageError              74  an input or the run folder failed under way
    └── Interrupted               75  stopped cleanly; `batchinfer resume` goes on

Row errors are not exceptions: a bad row is a row of the output whose `_error` says why.
"""

from __future__ import annotations


class BatchInferError(Exception):
    """The base of every error that batchinfer raises on purpose.

    The message is one line that says what, where, and what to do.
    """

    exit_code = 1


class UsageError(BatchInferError):
    """The flags, the configuration or the shape of an input are not usable."""

    exit_code = 2


class InputError(BatchInferError):
    """An input is missing or cannot be read; nothing has been planned yet."""

    exit_code = 66


class ModelError(BatchInferError):
    """The model cannot be had, or cannot do what is asked of it."""

    exit_code = 69


class JobMismatchError(BatchInferError):
    """The run folder belongs to another job, or an input changed since it was planned."""

    exit_code = 73


class StorageError(BatchInferError):
    """Reading an input or writing the run folder failed under way."""

    exit_code = 74


class Interrupted(BatchInferError):
    """The run stopped cleanly before its end; what is committed stays, `resume` goes on."""

    exit_code = 75
