"""How far a value is from the one that was computed again, by its Arrow type alone.

No task is known here. Floats move; everything else is the same or not, which is called a flip.

    float                          how far it moved
    string, int, bool, …           flipped or not
    list of fixed size, of floats  a vector: how far its numbers moved, and its cosine
    list of structs with a float   items are found again by what is no float in them, in whatever order
                                   (of equally good labels any may stand first); then how far floats moved
    other lists, structs           item by item
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.types as pat

from batchinfer.readers.columns import is_list


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one value is from the one computed again.

    `flipped`: it differs in something that is no float. `moved`: how far its floats are from those of
    the other, the largest distance; `relative`: as a share of the larger number (of a vector, of its
    norm); both 0 where it flipped. `size`: the largest float of the one computed again. `cosine`: of
    vectors, else None.
    """

    flipped: bool = False
    moved: float = 0.0
    relative: float = 0.0
    size: float = 0.0
    cosine: float | None = None

    @property
    def is_none(self) -> bool:
        """Whether the two are the same."""
        return not self.flipped and self.moved == 0.0


_FLIPPED = Difference(flipped=True)


def difference(kind: Any, before: Any, after: Any) -> Difference:
    """How far `before` is from `after`, both as Arrow's `as_py` gives values of the type `kind`."""
    if before is None or after is None:
        return Difference(flipped=(before is None) != (after is None))
    if pat.is_floating(kind):
        return _of_floats(float(before), float(after))
    if is_vector(kind):
        return _of_vectors(before, after)
    if pat.is_struct(kind):
        return _joined(
            difference(field.type, before[field.name], after[field.name]) for field in kind
        )
    if is_list(kind):
        return _of_lists(kind.value_type, before, after)
    return Difference(flipped=before != after)


def is_vector(kind: Any) -> bool:
    """Whether values of this type are vectors, as embeddings are."""
    return pat.is_fixed_size_list(kind) and pat.is_floating(kind.value_type)


def holds_floats(kind: Any) -> bool:
    """Whether there are floats in values of this type."""
    if pat.is_struct(kind):
        return any(holds_floats(field.type) for field in kind)
    if is_list(kind):
        return holds_floats(kind.value_type)
    return bool(pat.is_floating(kind))


def holds_more_than_floats(kind: Any) -> bool:
    """Whether values of this type can flip."""
    if pat.is_struct(kind):
        return any(holds_more_than_floats(field.type) for field in kind)
    if is_list(kind):
        return holds_more_than_floats(kind.value_type)
    return not pat.is_floating(kind)


def _of_floats(before: float, after: float) -> Difference:
    if before == after or (math.isnan(before) and math.isnan(after)):
        return Difference(size=abs(after) if math.isfinite(after) else 0.0)
    if not (math.isfinite(before) and math.isfinite(after)):
        return _FLIPPED
    moved = abs(before - after)
    return Difference(moved=moved, relative=moved / max(abs(before), abs(after)), size=abs(after))


def _of_vectors(before: Sequence[Any], after: Sequence[Any]) -> Difference:
    there, here = (np.array(values, dtype=np.float64) for values in (before, after))
    if np.array_equal(there, here):
        return Difference(size=float(np.abs(here).max(initial=0.0)), cosine=1.0)
    if not (np.isfinite(there).all() and np.isfinite(here).all()):
        return _FLIPPED
    norms = _norm(there), _norm(here)
    cosine = float((there / norms[0]) @ (here / norms[1])) if all(norms) else 0.0
    return Difference(
        moved=float(np.abs(there - here).max()),
        relative=_norm(there - here) / max(norms),
        size=float(np.abs(here).max()),
        cosine=min(1.0, cosine),
    )


def _norm(vector: npt.NDArray[np.float64]) -> float:
    """The length of a vector, of which no square underflows."""
    largest = float(np.abs(vector).max())
    return largest * float(np.linalg.norm(vector / largest)) if largest else 0.0


def _of_lists(kind: Any, before: Sequence[Any], after: Sequence[Any]) -> Difference:
    if len(before) != len(after):
        return _FLIPPED
    if pat.is_struct(kind) and holds_floats(kind):
        before, after = (
            sorted(items, key=lambda item: _name(kind, item)) for items in (before, after)
        )
    return _joined(difference(kind, *pair) for pair in zip(before, after, strict=True))


def _name(kind: Any, value: Any) -> str:
    """What is no float in a value, as a text that sorts."""
    if value is None or not pat.is_struct(kind):
        return repr(value)
    return repr([_name(f.type, value[f.name]) for f in kind if not holds_floats(f.type)])


def _joined(parts: Iterable[Difference]) -> Difference:
    """Of a value with these parts."""
    parts = list(parts)
    if any(part.flipped for part in parts):
        return _FLIPPED
    return Difference(
        moved=max((part.moved for part in parts), default=0.0),
        relative=max((part.relative for part in parts), default=0.0),
        size=max((part.size for part in parts), default=0.0),
    )
