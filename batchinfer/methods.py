"""Methods that templates may call, each counted; sandbox.py says what is bounded, and why."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext

from batchinfer.filters import ITEM, RowContext, join, replace, search, size

#: Methods that may be called, by the types that have them.
_METHODS: tuple[tuple[Any, frozenset[str]], ...] = (
    (str, frozenset({
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
        "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower",
        "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition",
        "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
    })),
    (dict, frozenset({"get", "items", "keys", "values"})),
    ((list, tuple), frozenset({"count", "index"})),
    ((datetime.date, datetime.time, datetime.timedelta), frozenset({
        "date", "isoformat", "isoweekday", "strftime", "time", "total_seconds", "weekday",
    })),
    (LoopContext, frozenset({"changed", "cycle"})),
)  # fmt: skip
#: Methods of texts that look for another one from its beginning, and those whose every step may take as
#: long as the other one is.
_SEARCHES = frozenset({"count", "find", "index", "partition", "split"})
_SLOW = frozenset({
    "lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip",
})  # fmt: skip
#: What strftime says alike on every machine, and the words that it would say in the machine's language.
_DIRECTIVES = "dmyHIMSfjuwUWVzZ%"
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
_WORDS: dict[str, Callable[[datetime.date, int], str]] = {
    "Y": lambda day, hour: f"{day.year:04}",
    "G": lambda day, hour: f"{day.isocalendar().year:04}",
    "A": lambda day, hour: _DAYS[day.weekday()],
    "a": lambda day, hour: _DAYS[day.weekday()][:3],
    "B": lambda day, hour: _MONTHS[day.month - 1],
    "b": lambda day, hour: _MONTHS[day.month - 1][:3],
    "p": lambda day, hour: "AM" if hour < 12 else "PM",
}


def called(
    context: RowContext, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What a method of a value gives. Raises SecurityError for all that is not listed here."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    names = next((names for kind, names in _METHODS if isinstance(owner, kind)), ())
    if name not in names:
        raise SecurityError(f"'{name or type(function).__name__}' cannot be called here")
    given = (*args, *kwargs.values())
    context.spend(size((owner, *given)))
    if isinstance(owner, str):
        if name == "join":
            return join(context, *args, **{**kwargs, "d": owner})
        if name == "replace":
            return replace(context, owner, *args, **kwargs)
        for part in given:
            if isinstance(part, str) and name in _SEARCHES:
                context.spend(search(owner, part))
            elif isinstance(part, str) and name in _SLOW:
                context.spend(len(owner) * len(part))
    if name == "strftime":
        return _strftime(context, owner, *args, **kwargs)
    result = function(*args, **kwargs)
    if isinstance(result, list):
        context.spend(ITEM * len(result))
    return result


def _strftime(context: RowContext, when: Any, format: str) -> str:
    day = when if isinstance(when, datetime.date) else datetime.date(1900, 1, 1)

    def say(directive: re.Match[str]) -> str:
        letter = directive[1]
        if word := _WORDS.get(letter):
            return word(day, getattr(when, "hour", 0))
        if not letter or letter not in _DIRECTIVES:
            there = " ".join(f"%{known}" for known in (*_WORDS, *_DIRECTIVES))
            raise ValueError(f"strftime knows no '%{letter}'; there are {there}")
        return str(when.strftime(directive[0]))

    context.spend(ITEM * format.count("%"))
    return re.sub("%(.?)", say, format, flags=re.DOTALL)
