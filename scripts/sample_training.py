"""What the scripts that train sample models share: the loop, tokenizers, scores and model folders."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample_data"
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Score:
    """How many of a set were answered right."""

    right: int
    total: int

    def __str__(self) -> str:
        return f"{100 * self.right / self.total:.1f} % ({self.right} of {self.total})"


def bert_tokenizer(
    tokens: Sequence[str], normalizer: normalizers.Normalizer, max_length: int
) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of these tokens, which hold BERT_TOKENS; texts and pairs as BERT has them."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def optimize(
    model: PreTrainedModel,
    next_loss: Callable[[int], torch.Tensor],
    *,
    steps: int,
    peak_rate: float,
) -> float:
    """Train the model in place; return the seconds of CPU time that it took.

    `next_loss(step)` is the loss of a new batch. The rate rises for a thirtieth of the steps and
    falls along a cosine to nothing.
    """
    warm_up = max(1, steps // 30)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=0.01, fused=True)
    model.train()
    losses: list[float] = []
    started = time.process_time()
    for step in range(steps):
        progress = (step - warm_up) / max(1, steps - warm_up)
        scale = step / warm_up if step < warm_up else 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * scale
        loss = next_loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            recent = losses[-200:]
            seconds = time.process_time() - started
            print(
                f"step {step + 1}/{steps}  loss {sum(recent) / len(recent):.3f}  {seconds:.0f} s",
                flush=True,
            )
    model.eval()
    return time.process_time() - started


def logits_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[Any],
    batch_size: int = 64,
) -> torch.Tensor:
    """The logits of a classifier, float32[texts, labels]; a text may be a pair of texts."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            encoded = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            found.append(model(**encoded).logits.float())
    return torch.cat(found)


def save(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, card: str
) -> None:
    """Write a model folder anew: configuration, weights, tokenizer and the card as README.md."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def num_parameters(model: PreTrainedModel) -> int:
    """Parameters, each counted once where it is shared."""
    return sum(parameter.numel() for parameter in model.parameters())


def table(rows: Mapping[str, object]) -> str:
    """Lines of a Markdown table."""
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())
