"""Generation: what a decoder writes behind a prompt, or answers in a conversation."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import orjson
import pyarrow as pa

from batchinfer.config import RunConfig
from batchinfer.core import Chunk, Int32Array, ModelSpec, Requests
from batchinfer.errors import UsageError, one_line
from batchinfer.tasks.generation import Generation
from batchinfer.template import python_values
from batchinfer.tokenization import Encoder, as_strings, choose, encode_requests, rows_without

#: What a message of a conversation must have.
_ROLE, _CONTENT = "role", "content"


class Generate(Generation):
    """The text that a causal language model adds to each row's prompt.

    `--text-column` holds prompts, or conversations: lists of messages with `role` and `content`. Where
    the model has a chat template, a prompt is the message of a user (`--no-chat`: it stays as it is),
    behind that of `--system`. A prompt that leaves no room for the answer is an error of its row: cut,
    it would ask for something else.
    """

    name: ClassVar[str] = "generate"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    knobs: ClassVar[frozenset[str]] = Generation.knobs | {"chat", "system"}

    def __init__(
        self, spec: ModelSpec, config: RunConfig | None = None, schema: pa.Schema | None = None
    ) -> None:
        super().__init__(spec, config, schema)
        if self.config.system is not None and not spec.chat:
            why = "--no-chat" if self.config.chat is False else f"{spec.name} has no chat template"
            raise UsageError(f"--system: means nothing here ({why}); leave it out")
        self.holds_conversations = self.config.template is None and self.holds_list(
            self.text_column
        )
        if not self.holds_conversations:
            return
        kind: Any = self.schema.field(self.text_column).type
        fields = {field.name for field in kind.value_type} if _is_struct(kind) else set()
        if not {_ROLE, _CONTENT} <= fields:
            raise UsageError(
                f"column '{self.text_column}' holds {kind}: a conversation is a list of messages with "
                f"'{_ROLE}' and '{_CONTENT}'"
            )
        if not spec.chat:
            why = "--no-chat" if self.config.chat is False else f"{spec.name} has no chat template"
            raise UsageError(f"column '{self.text_column}' holds conversations, but: {why}")

    def takes_list(self, name: str) -> bool:
        return True  # what is no conversation is told with more words

    def encode(self, chunk: Chunk, encoder: Encoder) -> Requests:
        column, failed = self.texts(chunk)
        errors = dict(failed)
        rows = rows_without({**chunk.errors, **errors}, chunk.num_rows)
        prompts: pa.Array[Any]
        if self.spec.chat:
            rows, prompts = self._conversations(column, rows, errors)
        else:
            prompts = choose(column, rows)
        requests = encode_requests(encoder, rows, prompts, None)
        too_long = (
            f"the prompt has more than {self.spec.max_length:,} tokens (--max-length), which leave room "
            f"for {self.max_new_tokens:,} new ones (--max-new-tokens)"
        )
        errors.update(dict.fromkeys(requests.row[requests.truncated].tolist(), too_long))
        requests = requests.keep(~requests.truncated).with_errors(errors)
        return self.seeded(requests, chunk)

    def _conversations(
        self, column: pa.ChunkedArray[Any], rows: Int32Array, errors: dict[int, str]
    ) -> tuple[Int32Array, pa.Array[Any]]:
        """The rows that hold a prompt or a conversation, and the conversations, as JSON."""
        found = {}
        before = [] if self.config.system is None else [_message("system", self.config.system)]
        if self.holds_conversations:
            held = python_values(column, self.text_column, rows.tolist(), errors)
            for row, messages in zip(rows.tolist(), held, strict=True):
                if row in errors:
                    continue
                if why := self._fault(messages):
                    errors[row] = why
                    continue
                try:
                    found[row] = orjson.dumps([*before, *_as_given(messages)])
                except TypeError as error:
                    errors[row] = f"column '{self.text_column}' cannot be read: {one_line(error)}"
        else:
            wrong: dict[int, str] = {}
            texts = as_strings(choose(column, rows), wrong)
            errors.update({int(rows[i]): why for i, why in wrong.items()})
            for row, text in zip(rows.tolist(), texts, strict=True):
                if row not in errors:
                    found[row] = orjson.dumps([*before, _message("user", text)])
        asked: Any = pa.array(list(found.values()), pa.large_binary())
        return np.fromiter(found, np.int32, len(found)), asked.cast(pa.large_string())

    def _fault(self, messages: Any) -> str:
        """What is wrong with a conversation: "" where nothing is."""
        for message in messages or ():
            if not isinstance(message, dict) or any(
                not isinstance(message.get(name), str) for name in (_ROLE, _CONTENT)
            ):
                return f"a message of column '{self.text_column}' lacks '{_ROLE}' or '{_CONTENT}'"
        return "" if messages else f"the conversation in column '{self.text_column}' is empty"


def _message(role: str, content: str) -> dict[str, str]:
    return {_ROLE: role, _CONTENT: content}


def _as_given(value: Any) -> Any:
    """A value without the fields that are null: Arrow gives each struct those of all others.

    Templates ask whether a message has a field.
    """
    if isinstance(value, dict):
        return {name: _as_given(held) for name, held in value.items() if held is not None}
    return [_as_given(held) for held in value] if isinstance(value, list) else value


def _is_struct(kind: Any) -> bool:
    return bool(pa.types.is_struct(kind.value_type))
