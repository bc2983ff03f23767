"""Filling masks: the tokens that a masked language model expects in the gaps of a text."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from batchinfer.config import RunConfig
from batchinfer.core import AnsweredChunk, Chunk, ModelSpec, Requests
from batchinfer.errors import UsageError, one_line
from batchinfer.tasks.base import AnswerField, Head, OnePass, lists, valid_rows
from batchinfer.tokenization import Encoder

if TYPE_CHECKING:
    import torch

log = logging.getLogger("batchinfer")

#: Tokens of a mask, where `--top-k` does not say.
_TOP_K = 5
#: What a head says of mask tokens alone may differ by this share: bfloat16 rounds by the shape of a batch.
_TOLERANCE = 0.03
#: So many of the best logits are computed in float32, where all others are halves.
_EXACT = 64


class FillMask(OnePass):
    """The best tokens for each mask token of a text, by the rules of transformers' fill-mask pipeline.

    `tokens` and `scores` hold a list for each mask, in the order of the text, the best token first
    (`--top-k` of them); `predicted_token` and `predicted_score` are the best of the first mask. Scores are
    a softmax over the whole vocabulary. Masks of one text are filled independently of each other. A token
    is written as the tokenizer decodes it alone: RoBERTa's have the space before the word.
    """

    name: ClassVar[str] = "fill-mask"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    head: ClassVar[Head] = "masks"
    knobs: ClassVar[frozenset[str]] = frozenset({"top_k"})
    writes_tokens: ClassVar[bool] = True
    word_columns: ClassVar[tuple[str, ...]] = ("predicted_token", "tokens")

    def __init__(
        self, spec: ModelSpec, config: RunConfig | None = None, schema: pa.Schema | None = None
    ) -> None:
        super().__init__(spec, config, schema)
        if self.text_pair_column is not None:
            raise UsageError("--text-pair-column: means nothing to --task fill-mask; leave it out")
        self.top_k = self.config.top_k or min(_TOP_K, spec.vocab_size)
        if self.top_k > spec.vocab_size:
            raise UsageError(
                f"--top-k {self.top_k}: {spec.name} has {spec.vocab_size:,} tokens; give fewer"
            )

    @property
    def columns(self) -> list[pa.Field[Any]]:
        return [
            pa.field("predicted_token", pa.string()),
            pa.field("predicted_score", pa.float32()),
            pa.field("tokens", pa.list_(pa.list_(pa.string()))),
            pa.field("scores", pa.list_(pa.list_(pa.float32()))),
        ]

    @property
    def answers(self) -> Mapping[str, AnswerField]:
        shape = (self.top_k,)
        return {
            "token": AnswerField(np.int32, shape, high=self.spec.vocab_size, unit="mask"),
            "score": AnswerField(np.float32, shape, unit="mask"),
        }

    def encode(self, chunk: Chunk, encoder: Encoder) -> Requests:
        requests = super().encode(chunk, encoder)
        masks = np.zeros(0, dtype=np.int32)
        if len(requests):
            masks = np.add.reduceat(requests.fields["is_mask"], requests.offsets[:-1])
        return dataclasses.replace(requests, masks=masks.astype(np.int32, copy=False))

    def prepare(self, model: Any) -> None:
        """Have the head look at mask tokens alone, where that is seen to change no answer.

        Of a model like MiniLM, the layer of the vocabulary has 11.7 M weights, all six others 10.6 M.
        """
        import torch

        hook = model.base_model.register_forward_hook(_hand_on_masks)
        try:
            why = "" if self._answers_alike(model) else "it answers otherwise then"
        except (torch.OutOfMemoryError, MemoryError):  # that says nothing of the model
            raise
        except Exception as error:  # whatever an unknown model raises
            why = one_line(error)
        if why:
            hook.remove()
            log.debug(f"the head looks at every token, not at the mask tokens alone: {why}")
            return  # of every token, the best logits in float32 would take more memory than the model
        vocabulary = model.get_output_embeddings()
        if getattr(vocabulary, "out_features", 0) >= self.spec.vocab_size:
            vocabulary.register_forward_hook(_widen_best)

    def _answers_alike(self, model: Any) -> bool:
        """Whether a few tokens are answered as by a head that looks at every token."""
        import torch

        ids = torch.arange(5, 21, device=model.device).remainder(self.spec.vocab_size).view(2, 8)
        places = torch.tensor([1, 6, 9], device=model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            expected = model(**inputs).logits.flatten(0, 1)[places].float()
            found = self.outputs(model, {**inputs, "mask_places": places})
        if found.shape != expected.shape:
            return False
        return bool((found - expected).norm() <= _TOLERANCE * expected.norm())

    def outputs(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        others = {name: value for name, value in inputs.items() if name != "mask_places"}
        _wanted.places = inputs["mask_places"]
        try:
            logits = model(**others).logits.flatten(0, 1)
            # What nobody has taken is left: the head has looked at every token.
            logits = logits if _wanted.places is None else logits[_wanted.places]
        finally:
            _wanted.places = None
        return logits.float()  # type: ignore[no-any-return]

    def reduce(self, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        best, token = outputs.topk(self.top_k, dim=-1)
        score = (best - outputs.logsumexp(dim=-1, keepdim=True)).exp()
        return {"token": token.int(), "score": score}

    def decode(self, answered: AnsweredChunk) -> list[pa.Array[Any]]:
        valid, requests = valid_rows(answered), answered.requests
        masks = requests.counts("mask")
        there = np.repeat(valid[requests.row], masks)
        counts = np.zeros(len(valid), dtype=np.int32)
        counts[requests.row] = masks
        counts *= valid
        tokens = self._strings(answered.values["token"][there].ravel())
        scores = pa.array(answered.values["score"][there].ravel())
        first: Any = pa.array((np.cumsum(counts) - counts) * self.top_k, mask=~valid)
        each = np.full(int(counts.sum()), self.top_k)
        none = np.zeros(len(each), dtype=np.bool_)
        return [
            tokens.take(first), scores.take(first),
            lists(counts, lists(each, tokens, none), ~valid),
            lists(counts, lists(each, scores, none), ~valid),
        ]  # fmt: skip

    def _strings(self, ids: np.ndarray[Any, np.dtype[np.int32]]) -> pa.Array[Any]:
        """The text of each token alone."""
        assert self.detokenizer is not None, "whoever decodes has prepared for it"
        known, place = np.unique(ids, return_inverse=True)
        texts = pa.array(self.detokenizer.decode(known[:, None].tolist()), pa.string())
        places: Any = pa.array(place)
        return texts.take(places)


class _Wanted(threading.local):
    """Of the batch that a thread answers: which states the head is to look at, until they are taken."""

    places: torch.Tensor | None = None


_wanted = _Wanted()


def _widen_best(layer: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
    """Compute the best logits in float32: in bfloat16 neighbouring scores would round to the same.

    All of them would need a copy of the vocabulary in float32, and more time: of BERT's, 1.05 ms a mask on
    a core with AMX, where bfloat16 takes 0.32 ms.
    """
    if logits.itemsize >= 4:
        return logits
    best = logits.topk(min(_EXACT, logits.shape[-1]), dim=-1).indices
    exact = (layer.weight[best].float() @ args[0].float()[..., None])[..., 0]
    if layer.bias is not None:
        exact += layer.bias[best].float()
    return logits.float().scatter(-1, best, exact)


def _hand_on_masks(base: Any, args: Any, output: Any) -> None:
    """Replace the states [b, t, h] that a head is going to look at by those wanted, [1, m, h]."""
    states = getattr(output, "last_hidden_state", None)
    if _wanted.places is not None and states is not None:
        output["last_hidden_state"] = states.flatten(0, 1)[_wanted.places][None]
        _wanted.places = None
