"""A made-up risk model over sample_data/loans.parquet: `--model sample_data.risk:make_model`.

A factory is a callable that takes nothing and returns an nn.Module; yours would load its weights from a file.
"""

import torch
from torch import nn

#: Column, its mean, its spread, and what it adds to the risk; in the order of `--features`.
COLUMNS = [
    ("age", 43.0, 14.0, -0.3),
    ("income", 42_000.0, 18_000.0, -0.8),
    ("debt", 12_000.0, 9_000.0, 0.9),
    ("late_payments", 0.7, 1.1, 1.2),
    ("months_employed", 60.0, 50.0, -0.4),
]


class Risk(nn.Module):
    """float32[b, 5] to the risk that a loan is not paid back, float32[b], and its grade of 0 to 4, int64[b]."""

    def __init__(self) -> None:
        super().__init__()
        _, mean, spread, weight = zip(*COLUMNS)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("spread", torch.tensor(spread))
        self.score = nn.Linear(len(COLUMNS), 1)
        with torch.no_grad():
            self.score.weight.copy_(torch.tensor([weight]))
            self.score.bias.fill_(-1.0)

    def forward(self, loans: torch.Tensor) -> dict[str, torch.Tensor]:
        risk = self.score((loans - self.mean) / self.spread).sigmoid()[:, 0]
        return {"risk": risk, "grade": (risk * 5).long().clamp(max=4)}


def make_model() -> nn.Module:
    return Risk()
