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

import os
import re
from typing import Any

#: Variables whose values are nobody's business: HF_TOKEN, OPENAI_API_KEY, AWS_SECRET_ACCESS_KEY, …
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY|(^|_)(KEY|AUTH)$", re.IGNORECASE
)
#: Shorter values would blot out words: TOKENIZERS_PARALLELISM is `false`.
_MIN_SECRET_LENGTH = 8
_HIDDEN = "***"
_SECRET_FORMS = (
    (re.compile(r"(?<=://)[^\s/@]+@"), f"{_HIDDEN}@"),  # https://user:password@host
    (
        re.compile(
            # Names are short: without a limit, a long text of `?` would be gone through for each of them.
            r"([?&][^\s=&]{0,64}(?:token|key|secret|signature|password|credential|auth|sig)"
            r"[^\s=&]{0,64}=)[^\s&\"'\\]+",
            re.IGNORECASE,
        ),
        rf"\1{_HIDDEN}",
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), _HIDDEN),
    (re.compile(r"\bBearer\s+[\w+/=.~-]{8,}"), f"Bearer {_HIDDEN}"),
)


def without_secrets(text: str) -> str:
    """A text with tokens, passwords and keys blotted out: those of the environment, and in URLs.

    Libraries put the addresses they asked into their messages, and users put tokens into addresses.
    """
    for secret in _secrets_of_environment():
        text = text.replace(secret, _HIDDEN)
    for form, replacement in _SECRET_FORMS:
        text = form.sub(replacement, text)
    return text


def one_line(error: BaseException, limit: int = 300) -> str:
    """What a foreign error says, as one short line without secrets; its type where it says nothing.

    It is cut when it is clean: half a secret would not be recognized.
    """
    text = " ".join(without_secrets(str(error)).split())
    return text[:limit] or type(error).__name__


def _secrets_of_environment() -> list[str]:
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name)
        and len(value) >= _MIN_SECRET_LENGTH
        and not value.startswith(os.sep)  # HF_TOKEN_PATH: where a secret lies is none
    }
    return sorted(found, key=len, reverse=True)


class BatchInferError(Exception):
    """The base of every error that batchinfer raises on purpose.

    The message is one line that says what, where, and what to do; it holds no secret. Where the three
    are given apart it is `file: what; advice`, and who has another advice (verify) takes the parts.
    """

    exit_code = 1

    def __init__(self, what: str, *, file: str = "", advice: str = "") -> None:
        super().__init__((f"{file}: " if file else "") + what + (f"; {advice}" if advice else ""))
        self.file, self.what, self.advice = file, without_secrets(what), advice

    def __str__(self) -> str:
        return without_secrets(super().__str__())


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
    """The run stopped cleanly before its end; what is committed stays, `resume` goes on.

    `report`: the RunReport of what was done, where it is known.
    """

    exit_code = 75

    def __init__(self, what: str, *, report: Any = None) -> None:
        super().__init__(what)
        self.report = report
