"""Token ids back to text, in the process that writes: neither the model nor transformers is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: What cleaning takes the spaces out of, in this order.
_SPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class Detokenizer(Protocol):
    """Makes text of token ids. Detokenizers pickle small, and load where they are first used."""

    def decode(self, ids: Sequence[Sequence[int]], *, skips_special: bool = False) -> list[str]:
        """The text of each run of ids; `skips_special`: without those of special tokens."""
        ...


@dataclass(frozen=True)
class TextDetokenizer:
    """A model's tokenizer, from the text of its tokenizer.json, the other way round.

    `cleans_up`: take the spaces before punctuation out, where the tokenizer's configuration says so.
    """

    tokenizer_json: str
    cleans_up: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the loaded tokenizer, which is larger than the text and slower to send.
        return TextDetokenizer, (self.tokenizer_json, self.cleans_up)

    def decode(self, ids: Sequence[Sequence[int]], *, skips_special: bool = False) -> list[str]:
        """As transformers' tokenizers decode; an id that no token has stands for nothing."""
        texts = self._tokenizer.decode_batch(ids, skip_special_tokens=skips_special)
        if self.cleans_up:
            for part in _SPACED:
                texts = [text.replace(part, part.strip()) for text in texts]
        return texts

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.tokenizer_json)
