"""Keep pandas out of processes that have no use for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence


class _NoPandas:
    """A module finder that has never heard of pandas."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def spare_pandas() -> None:
    """Let pyarrow make its first array without pandas.

    It would import pandas (0.4 s, 60 MB) to see whether it was given one of its objects, which the
    command line and the loader processes never hold. `to_pandas()` imports pandas all the same.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    blocker = _NoPandas()
    sys.meta_path.insert(0, blocker)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(blocker)
