"""batchinfer with a fake engine that certain rows are poison to: python -m tests.poison run …

A text that holds one of the words below does that to the process that answers it. Child processes
import this module as their main one, so that they are poisoned too. Variables of the environment make
it slow: POISON_COLD, the seconds that a process takes for its first answer, POISON_ANSWER, those that it
takes for each batch, and POISON_TOKENIZER, for each chunk.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from batchinfer.core import Answers, Batch
from batchinfer.engines.fake import FakeEncoder, FakeEngine


def die(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(10)  # the signal is on its way


def fail() -> None:
    raise RuntimeError("the row is poison")


EFFECTS: dict[str, Callable[[], None]] = {
    "SEGFAULT": lambda: die(signal.SIGSEGV),
    "OOMKILL": lambda: die(signal.SIGKILL),
    "EXIT": lambda: os._exit(3),
    "HANG": lambda: time.sleep(60),
    "RAISE": fail,
}
IN_TOKENIZER = "TOKENIZER"
NO_ROOM = "NOROOM"

_answer, _encode = FakeEngine.answer, FakeEncoder.encode


def answer(self: FakeEngine, batch: Batch) -> Answers:
    time.sleep(float(os.environ.pop("POISON_COLD", "0")))
    time.sleep(float(os.environ.get("POISON_ANSWER", "0")))
    texts = batch.fields["input_ids"].tobytes()
    if NO_ROOM.encode() in texts and len(batch) > 1:
        raise MemoryError
    for word, effect in EFFECTS.items():
        if word.encode() in texts:
            effect()
    return _answer(self, batch)


def encode(self: FakeEncoder, texts: Any, pairs: Any) -> Any:
    if len(texts) > 1:
        time.sleep(float(os.environ.get("POISON_TOKENIZER", "0")))
    if any(IN_TOKENIZER in text for text in texts.to_pylist()):
        die(signal.SIGABRT)
    return _encode(self, texts, pairs)


FakeEngine.answer = answer  # type: ignore[method-assign]
FakeEncoder.encode = encode  # type: ignore[method-assign]

if __name__ == "__main__":
    from batchinfer.cli import main

    sys.exit(main())
