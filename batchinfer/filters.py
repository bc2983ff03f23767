"""What the expressions of templates are made of: filters, tests and arithmetic, each counted.

What there is of them is listed here and in methods.py; sandbox.py says what is bounded, and why.
"""

from __future__ import annotations

import datetime
import decimal
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from jinja2.filters import ignore_case, make_attrgetter
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context

#: What a template may do for one row. An item of a list and a round of a loop count as many characters as
#: take about their time.
MAX_WORK = 1 << 24
ITEM = 32
ROUND = 256
#: Bits of a whole number: it may not grow in each round of a loop.
MAX_BITS = 4096
#: Python looks for a text in steps that are the product of both lengths, where they are short; a step
#: takes this part of the time of a character. Beyond so many steps it has another way.
_STEPS, _MAX_STEPS = 16, 1 << 22
#: Columns and fields that one attribute may name: `sort(attribute="a,b.c")` goes through three.
_MAX_PARTS = 8

#: Jinja's own filters that are taken over. Those that widen a text by a number are not among them.
_FILTERS = (
    "abs", "capitalize", "count", "dictsort", "first", "float", "items", "last", "length", "list", "lower",
    "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "title",
    "truncate", "upper", "wordcount",
)  # fmt: skip
#: Those that take a text: null is "" to them, as where it is printed.
_OF_TEXT = frozenset({"capitalize", "lower", "title", "truncate", "upper", "wordcount"})
#: Those whose arguments may name an attribute, which each item is asked for.
_OF_ATTRIBUTES = frozenset({
    "groupby", "map", "max", "min", "rejectattr", "selectattr", "sort", "sum",
})  # fmt: skip
#: Jinja's own tests that are taken over. Whether two values are one in memory is none of a template's.
_TESTS = (
    "!=", "<", "<=", "==", ">", ">=", "boolean", "defined", "divisibleby", "eq", "equalto", "even", "false",
    "float", "ge", "greaterthan", "gt", "in", "integer", "iterable", "le", "lessthan", "lower", "lt",
    "mapping", "ne", "none", "number", "odd", "sequence", "string", "true", "undefined", "upper",
)  # fmt: skip
#: Those that divide; a text would be a format to them.
_OF_NUMBERS = frozenset({"divisibleby", "even", "odd"})
#: What can be printed, beside null.
_VALUES = (
    str, int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta,
    list, tuple, dict,
)  # fmt: skip
#: What can be reckoned with; what is undefined, or null, says so itself.
_OPERANDS = (
    int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta, Undefined, type(None),
)  # fmt: skip
_SEQUENCES: tuple[Any, ...] = (list, tuple, type({}.keys()), type({}.values()), type({}.items()))
#: Whole numbers below this have a hash of their own, so that none is looked for among others.
_MAX_KEY = 1 << 60


class RowContext(Context):
    """The variables of a row, and how much work is left."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left = MAX_WORK

    def spend(self, work: int) -> None:
        """Count work. Raises OverflowError where it is too much."""
        self.left -= work
        if self.left < 0:
            raise OverflowError(
                f"it makes more than {MAX_WORK:,} characters of one row, or as much work in loops"
            )

    def text(self, value: Any) -> str:
        """What is printed of a value: nothing of null, so that a missing value leaves no word behind.

        Raises TypeError for what is no value, or holds one that is none.
        """
        if isinstance(value, str):
            return value
        if value is None:
            return ""
        self.spend(size(value))
        _require_values(value)
        return str(value)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which an item is asked for by what is quick to look up."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item, a field or an attribute."""
        if isinstance(argument, (tuple, list, dict)):
            raise TypeError(f"a {type(argument).__name__} is no name of an item")
        return super().getitem(obj, argument)


def check_operands(context: RowContext, operator: str, left: Any, right: Any) -> None:
    """See that two values can be reckoned with: sums of texts and of lists, and numbers and times."""
    if isinstance(left, (str, list, tuple)) or isinstance(right, (str, list, tuple)):
        if operator != "+":
            raise TypeError(f"'{operator}' is for numbers, not for texts and lists")
        context.spend(size(left) + size(right))
        return
    for value in (left, right):
        if not isinstance(value, _OPERANDS):
            raise TypeError(f"'{operator}' is for numbers, not for a {type(value).__name__}")


def bounded(value: Any) -> Any:
    """A value that is no number of too many bits. Raises OverflowError for one that is."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise OverflowError("a number is too large")
    return value


def _require_values(value: Any) -> None:
    """See that a value has a text that is its own, and so has what it holds."""
    if isinstance(value, Undefined):
        str(value)  # raises, and says what is missing
    if value is not None and not isinstance(value, _VALUES):
        raise TypeError(
            f"a {type(value).__name__} cannot be printed; call it, or make it a list (| list) first"
        )
    if isinstance(value, dict):
        value = (*value.keys(), *value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            _require_values(item)


def size(value: Any) -> int:
    """What a value counts that is gone through."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, _SEQUENCES):
        return ITEM * len(value) + sum(map(size, value))
    if isinstance(value, dict):
        return sum(size(key) + size(item) + ITEM for key, item in value.items())
    return ITEM * len(value) if isinstance(value, range) else 1


def search(text: str, part: str) -> int:
    """What it counts to look for a text in another, beside their lengths."""
    return min(len(text) * len(part), _MAX_STEPS) // _STEPS


def _counting(name: str) -> Any:
    """One of Jinja's filters, counted by what it goes through."""

    @pass_context
    def counting(context: RowContext, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        if name in _OF_TEXT:
            value = context.text(value)
        context.spend(size((value, *args, *kwargs.values())))
        if name in _OF_ATTRIBUTES:
            _require_short(kwargs.get("attribute") if name == "map" else [*args, *kwargs.values()])
        result = _PLAIN.call_filter(name, value, args, kwargs, context=context)
        if isinstance(result, list):
            context.spend(ITEM * len(result))
        return _passing(context, result) if isinstance(result, Iterator) else result

    return counting


def _require_short(attributes: Any) -> None:
    """See that no attribute is many: each item is asked for all of them."""
    for attribute in attributes if isinstance(attributes, list) else [attributes]:
        if isinstance(attribute, str) and len(re.findall("[.,]", attribute)) >= _MAX_PARTS:
            raise ValueError(f"an attribute has more than {_MAX_PARTS} parts")


def _passing(context: RowContext, values: Iterator[Any]) -> Iterator[Any]:
    """The items that a filter passes on one by one; the next one does not see them before."""
    for value in values:
        context.spend(ITEM + size(value))
        yield value


def _counting_test(name: str) -> Any:
    """One of Jinja's tests, counted by what it compares."""

    @pass_context
    def counting(context: RowContext, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        given = (value, *args, *kwargs.values())
        context.spend(size(given))
        if name in _OF_NUMBERS and not all(isinstance(one, _OPERANDS) for one in given):
            raise TypeError(f"'{name}' is for numbers")
        if name == "in" and all(isinstance(one, str) for one in given):
            context.spend(search(given[-1], value))
        return _PLAIN.call_test(name, value, args, kwargs, context=context)

    return counting


@pass_context
def finalize(context: RowContext, value: Any) -> str:
    """The text that is printed of a value."""
    return context.text(value)


@pass_context
def _rounds(context: RowContext, values: Any) -> Iterator[Any]:
    """The items to loop over; of null none."""
    for value in () if values is None else values:
        context.spend(ROUND)
        yield value


@pass_context
def _counted(context: RowContext, value: Any) -> Any:
    """A value that is gone through, or written down: a list of itself, twice, would double in each line."""
    items: Any = (value,)
    if isinstance(value, dict):
        items = (*value.keys(), *value.values())
    elif isinstance(value, (list, tuple)):
        items = value
    for item in items:
        context.spend(ITEM + size(item))
    return value


def _key(value: Any) -> Any:
    """A key that is written down in a template."""
    is_large = isinstance(value, int) and abs(value) >= _MAX_KEY
    if is_large or isinstance(value, (tuple, decimal.Decimal)):
        raise TypeError("a key should be a text or a small number")
    return value


@pass_context
def _concatenate(context: RowContext, values: list[Any]) -> str:
    return join(context, values)


@pass_context
def join(context: RowContext, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    between, parts = context.text(d), []
    for item in () if value is None else value:
        if attribute is not None:
            item = context.environment.getitem(item, attribute)
        part = context.text(item)
        context.spend(ITEM + len(part) + len(between))
        parts.append(part)
    return between.join(parts)


@pass_context
def replace(context: RowContext, value: Any, old: Any, new: Any, count: int = -1, /) -> str:
    text, old, new = (context.text(part) for part in (value, old, new))
    context.spend(len(text) + search(text, old))
    context.spend(text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


@pass_context
def _trim(context: RowContext, value: Any, chars: str | None = None) -> str:
    text = context.text(value)
    context.spend(len(text) * max(1, len(chars or "")))
    return text.strip(chars)


@pass_context
def _groupby(
    context: RowContext,
    value: Any,
    attribute: str | int,
    default: Any = None,
    case_sensitive: bool = False,
) -> Any:
    items = list(value)
    context.spend(len(items) * size(default))
    return _by_group(context, items, attribute, default, case_sensitive)


@pass_context
def _unique(
    context: RowContext,
    value: Any,
    case_sensitive: bool = False,
    attribute: str | int | None = None,
) -> Iterator[Any]:
    """The items without those that stood before; each is compared to all that share its hash."""
    _require_short(attribute)
    key_of = make_attrgetter(
        context.environment, attribute, None if case_sensitive else ignore_case
    )
    seen: set[Any] = set()
    crowds: dict[int, int] = {}
    for item in value:
        key = key_of(item)
        crowd = crowds.get(hash(key), 0)
        context.spend(ITEM * (1 + crowd) + size(item))
        if key not in seen:
            seen.add(key)
            crowds[hash(key)] = crowd + 1
            yield item


@pass_context
def _sum(
    context: RowContext, value: Any, attribute: str | int | None = None, start: Any = 0
) -> Any:
    if not isinstance(start, (int, float, decimal.Decimal, datetime.timedelta)):
        raise TypeError("'sum' is for numbers; lists are looped over, texts are joined (| join)")
    return bounded(_sum_of(context, value, attribute, start))


@pass_context
def _int(context: RowContext, value: Any, default: Any = 0, base: int = 10) -> Any:
    is_long = isinstance(value, str) and len(value) > MAX_BITS
    if is_long or (isinstance(value, decimal.Decimal) and value.adjusted() > MAX_BITS):
        raise OverflowError("a number is too large")
    context.spend(size(value))
    return bounded(_PLAIN.call_filter("int", value, (default, base)))


@pass_context
def _default(
    context: RowContext, value: Any, default_value: Any = "", boolean: bool = False
) -> Any:
    """The value, or what stands for a missing one: null, too, as columns are never undefined."""
    is_missing = isinstance(value, Undefined) or value is None or (boolean and not value)
    return default_value if is_missing else value


def _round(value: Any, precision: int = 0) -> Any:
    return round(value, max(-30, min(30, precision)))


@pass_context
def _tojson(context: RowContext, value: Any) -> str:
    """JSON as it is read by models: letters as they are, and none escaped for HTML."""
    context.spend(size(value))
    return json.dumps(value, ensure_ascii=False, default=context.text)


#: Jinja's filters and tests as they are; those of templates call them.
_PLAIN = Sandbox(undefined=jinja2.StrictUndefined)
_by_group, _sum_of = _counting("groupby"), _counting("sum")

FILTERS: Mapping[str, Any] = {
    **{name: _counting(name) for name in _FILTERS},
    "d": _default, "default": _default, "groupby": _groupby, "int": _int, "join": join,
    "replace": replace, "round": _round, "string": finalize, "sum": _sum, "tojson": _tojson,
    "trim": _trim, "unique": _unique,
    # What a template cannot name:
    "~": _concatenate, "()": _counted, "{:}": _key, "{% for %}": _rounds,
}  # fmt: skip
TESTS: Mapping[str, Any] = {name: _counting_test(name) for name in _TESTS}
