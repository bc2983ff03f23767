"""Modules as a user's own package would have them: `--model tests.engines.factories:make_risk`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn


class Risk(nn.Module):
    """[b, k] to [b, 1]; weights from a seed, so that they are the same at each call."""

    def __init__(self, columns: int = 4, gives: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(columns, 8), nn.Linear(8, gives)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.first(x).tanh())


class Named(NamedTuple):
    """What a module may give by name."""

    low: torch.Tensor
    high: torch.Tensor


class Gives(Risk):
    """Everything that can be written, as `how` says."""

    def __init__(self, how: str, columns: int = 4) -> None:
        super().__init__(columns, gives=3)
        self.how = how

    def forward(self, x: torch.Tensor) -> Any:
        found = super().forward(x)
        one = found[:, 0]
        made: dict[str, Callable[[], Any]] = {
            "rows": lambda: one,
            "rows x 1": lambda: found[:, :1],
            "rows x 3": lambda: found,
            "rows x 3 x 2": lambda: torch.stack([found, -found], dim=2),
            "integers": lambda: found.argmax(dim=1),
            "truth": lambda: one > 0,
            "half": lambda: one.to(torch.bfloat16),
            "double": one.double,
            "dict": lambda: {"score": one, "grade": found.argmax(dim=1), "all": found, "no": None},
            "tuple": lambda: (one, found),
            "named": lambda: Named(one, one + 1),
            "squeezed": lambda: found[:, :1].squeeze(),
        }
        return made[self.how]()


class Several(nn.Module):
    """Inputs of their own, which it must not confuse."""

    def __init__(self) -> None:
        super().__init__()
        self.region = nn.Embedding(4, 1)
        with torch.no_grad():
            self.region.weight.copy_(torch.arange(4.0)[:, None] * 1000)

    def forward(
        self, income: torch.Tensor, region: torch.Tensor, scale: torch.Tensor | None = None
    ) -> torch.Tensor:
        found = income + self.region(region)[:, 0]
        return found if scale is None else found * scale


class Texts(nn.Module):
    """A column of texts, as a list, beside one of numbers."""

    def forward(self, income: torch.Tensor, name: list[str]) -> torch.Tensor:
        return income + torch.tensor([float(len(text)) for text in name])


class Centred(nn.Module):
    """Rows that depend on each other, as with a BatchNorm in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(dim=0)).sum(dim=1)


class Standardised(nn.Module):
    """As above, and NaN of a row alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(dim=0)
        return (x / x.abs().sum(dim=0)).sum(dim=1)


class Strict(Risk):
    """Raises at rows whose first number is above 90, unless the file that ALLOWED names is there."""

    def forward(self, x: torch.Tensor) -> Any:
        if bool((x[:, 0] > 90).any()) and not Path(os.environ["ALLOWED"]).exists():
            raise ValueError("above 90")
        return super().forward(x)


class Inverse(nn.Module):
    """1 / x: infinite at 0, and NaN of NaN, but for those that it is told to take for 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 / x[:, 0].nan_to_num(nan=2.0) + 0 * x[:, 1]


class Wide(nn.Module):
    """Any columns, in order."""

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return sum((i + 1) * column for i, column in enumerate(columns))  # type: ignore[return-value]


def make_risk() -> nn.Module:
    return Risk()


def make_other() -> nn.Module:
    return Risk(seed=1)


def make_any() -> nn.Module:
    """Other weights at each call."""
    return nn.Linear(4, 1)


def make_nothing() -> int:
    return 5


def raises() -> nn.Module:
    raise RuntimeError("no such file: weights.pt")


class Double(Risk):
    def __init__(self) -> None:
        super().__init__()
        self.double()


READY = Risk()
NUMBER = 5
