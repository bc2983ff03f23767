"""What a JSON document that others may have written may hold, value by value.

Each raises ValueError or TypeError, with the name that it is given, for anything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any


def mapping(value: object, name: str) -> dict[str, Any]:
    """A JSON object."""
    if type(value) is not dict:
        raise TypeError(f"{name}: no object")
    return value


def text(value: object, name: str) -> str:
    """A string."""
    if type(value) is not str:
        raise TypeError(f"{name}: no text")
    return value


def word(value: object, name: str, known: tuple[str, ...]) -> str:
    """One of these words."""
    require(value in known, f"{name}: none of {', '.join(known)}")
    return str(value)


def optional_word(values: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str | None:
    """One of these words, or None where there is no such key."""
    value = values.get(name)
    return None if value is None else word(value, name, known)


def count(value: object, name: str, least: int = 0, most: int = 1 << 40) -> int:
    """A whole number within these limits."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name}: no whole number of at least {least:,}, or too large")
    return value


def optional_count(
    values: Mapping[str, Any], name: str, least: int = 0, most: int = 1 << 40
) -> int | None:
    """A whole number within these limits, or None where there is no such key."""
    value = values.get(name)
    return None if value is None else count(value, name, least, most)


def number(value: object, name: str, least: float = 0.0) -> float:
    """A finite number."""
    if type(value) not in (int, float):
        raise TypeError(f"{name}: no number")
    found = float(value)  # type: ignore[arg-type]
    require(math.isfinite(found) and found >= least, f"{name}: out of range")
    return found


def time(value: object, name: str) -> str:
    """A moment in UTC, such as 2026-01-31T12:00:00Z."""
    found = text(value, name)
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    require(re.fullmatch(form, found) is not None, f"{name}: no time such as 2026-01-31T12:00:00Z")
    return found


def require(fulfilled: bool, otherwise: str) -> None:
    """Raise ValueError with these words, unless."""
    if not fulfilled:
        raise ValueError(otherwise)
