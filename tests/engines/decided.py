"""Heads whose answers are decided: labels that stay in half precision, as those of trained models do.

A random head answers some rows nearly by a tie, and rounding then takes one label or the other. So a
head is sought that looks where rows differ most, compared with what rounding changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

#: Directions that a head may look in, and heads that are tried.
_DIRECTIONS, _TRIES = 4, 200


@torch.inference_mode()
def decide(folder: Path, head: str, rows: list[Any], topics: int = 1) -> None:
    """Give a saved classifier the head, of many, whose closest calls rounding disturbs least.

    `head`: ForSequenceClassification or ForTokenClassification. `rows`: texts; or, by `topics` of them,
    pairs of one text with a hypothesis on each topic: then the last label's logits are to decide among
    the topics.
    """
    half, (model, last, states) = (
        _inputs_of_head(folder, head, rows, topics, dtype)
        for dtype in (torch.bfloat16, torch.float32)
    )
    changes, signal = half[2] - states, states - states.mean(dim=0)
    if topics > 1:  # what a topic has in every text, and a text with every topic, decides nothing
        grid = signal.view(-1, topics, signal.shape[1])
        same = torch.linalg.svd(grid.mean(dim=0), full_matrices=False).Vh[: topics - 1]
        signal = (grid - grid.mean(dim=1, keepdim=True)).view(signal.shape)
        signal, changes = (x - x @ same.T @ same for x in (signal, changes))
    directions = _clear_directions(signal, changes)
    clearest, weight = -1.0, torch.zeros(0)
    draw = torch.Generator().manual_seed(0)
    for _ in range(_TRIES):
        tried = (
            torch.randn(model.config.num_labels, _DIRECTIONS, generator=draw).double() @ directions
        )
        tried /= (signal @ tried.T).std(dim=0)[:, None]
        calls = (signal @ tried[-1]).view(-1, topics) if topics > 1 else signal @ tried.T
        first, second = calls.topk(2, dim=1).values.T
        clear = float(((first - second) / (changes @ tried.T).std()).quantile(0.01))
        if clear > clearest and calls.argmax(dim=1).bincount().max() < 0.7 * len(calls):
            clearest, weight = clear, tried
    centred = states - states.mean(dim=0)
    last.weight.copy_(
        1.5 * weight / (centred @ weight.T).std(dim=0)[:, None]
    )  # no score is all but 1
    last.bias.copy_(-(last.weight.double() @ states.mean(dim=0)))
    model.save_pretrained(folder)


def _inputs_of_head(
    folder: Path, head: str, rows: list[Any], topics: int, dtype: torch.dtype
) -> tuple[Any, torch.nn.Linear, torch.Tensor]:
    """The model, its last layer, and what comes in there: float64[rows or tokens, h]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, f"AutoModel{head}").from_pretrained(folder, dtype=dtype)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    [last] = [m for m in linear if m.out_features == model.config.num_labels]
    found: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, states: found.append(states[0].double()))

    def batches() -> Iterator[torch.Tensor]:
        for start in range(0, len(rows), 32):
            inputs = tokenizer(
                rows[start : start + 32], padding=True, return_tensors="pt",
                truncation="only_first" if topics > 1 else True,
            )  # fmt: skip
            model(**inputs)
            states, mask = found.pop(), inputs["attention_mask"].bool()
            yield states[mask] if states.shape[:-1] == mask.shape else states.flatten(0, -2)

    return model, last, torch.cat(list(batches()))


def _clear_directions(signal: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
    """Where rows differ most, measured in what rounding changes there: float64[_DIRECTIONS, h]."""
    noise = changes.T @ changes
    noise += 0.1 * noise.diagonal().mean() * torch.eye(len(noise)).double()
    whiten = torch.linalg.inv(torch.linalg.cholesky(noise))
    white = signal @ whiten.T
    return torch.linalg.eigh(white.T @ white).eigenvectors[:, -_DIRECTIONS:].T @ whiten
