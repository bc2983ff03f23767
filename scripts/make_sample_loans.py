"""Make sample_data/loans.parquet: 1,000 made-up loans, one of them without an income.

    python scripts/make_sample_loans.py

The same file each time. It is for --task module; sample_data/risk.py holds a model for it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 1000
WITHOUT_INCOME = 418
PLACE = Path(__file__).resolve().parent.parent / "sample_data" / "loans.parquet"


def make_loans() -> pa.Table:
    """One row a loan."""
    draw = np.random.default_rng(11)
    age = draw.integers(19, 76, ROWS)
    income = np.round(draw.lognormal(10.5, 0.4, ROWS), 2)
    missing = np.arange(ROWS) == WITHOUT_INCOME
    return pa.table(
        {
            "id": np.arange(1, ROWS + 1),
            "region": draw.choice(["north", "east", "south", "west"], ROWS),
            "age": age.astype(np.int32),
            "income": pa.array(income, mask=missing),
            "debt": np.round(income * draw.beta(2, 5, ROWS), 2),
            "late_payments": draw.poisson(0.7, ROWS).astype(np.int16),
            "months_employed": np.minimum(draw.integers(0, 241, ROWS), 12 * (age - 18)),
        }
    )


if __name__ == "__main__":
    pq.write_table(make_loans(), PLACE, compression="zstd")
    print(f"{PLACE}: {PLACE.stat().st_size:,} bytes")
