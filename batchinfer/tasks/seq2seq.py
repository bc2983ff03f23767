"""Text to text: translations, summaries, whatever an encoder-decoder was trained to make of a text."""

from __future__ import annotations

from typing import ClassVar

from batchinfer.tasks.generation import Generation


class Seq2Seq(Generation):
    """The text that an encoder-decoder makes of each row's text, which is cut where it is too long."""

    name: ClassVar[str] = "seq2seq"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
