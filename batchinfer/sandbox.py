"""The language of templates: Jinja, less what could go on for ever or differ from run to run.

A template may come with a run folder or a configuration that somebody else wrote. So what it may do is
listed here, and anything else is refused when the job is planned.

What is bounded
    Of one row, MAX_WORK: a character that is made, or that a filter, a method, a comparison or a slice goes
    through, counts one, an item of a list ITEM, a round of a loop ROUND. What would be more is an error,
    raised before the memory is taken: so it is with texts that are joined, repeated or replaced, and with
    lists of lists. Large numbers are bounded by their bits.
What is not
    The number of rows: a template that does the most that it may, a quarter of a second as measured, does
    it for each of them.

Nothing is drawn at random, no clock is read, and what is no value (a function, say, whose text would be its
address) is not printed: a template always says the same of the same row.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import pass_context
from jinja2.visitor import NodeTransformer

from batchinfer.config import did_you_mean
from batchinfer.errors import one_line

#: What a template may do for one row. An item of a list and a round of a loop count as many characters as
#: take about their time.
MAX_WORK = 1 << 24
ITEM = 32
ROUND = 256
#: Characters of a template: it may hold examples, but no corpus.
MAX_SOURCE = 1 << 18
#: Bits of a product: a number may not grow by multiplication in each round of a loop.
_MAX_BITS = 4096

#: The name by which a template reaches columns whose names are no identifiers.
ROW = "row"

_ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.With, nodes.Assign,
    nodes.Name, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword,
    nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice,
    nodes.Concat, nodes.Compare, nodes.Operand, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div,
    nodes.FloorDiv, nodes.Mod, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos,
)  # fmt: skip
#: Jinja's own filters that are taken over. Those that widen a text by a number are not among them.
_FILTERS = (
    "abs", "capitalize", "count", "dictsort", "first", "float", "groupby", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select",
    "selectattr", "sort", "sum", "title", "trim", "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
#: Those that take a text: null is "" to them, as where it is printed.
_OF_TEXT = frozenset({"capitalize", "lower", "title", "trim", "truncate", "upper", "wordcount"})
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
#: What the compiled template adds to calls in loops, for callers of macros.
_FOR_MACROS = ("_loop_vars", "_block_vars")
#: What can be printed, beside null.
_VALUES = (
    str, int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta,
    list, tuple, dict,
)  # fmt: skip


@dataclass(frozen=True)
class Template:
    """A template, compiled. `names`: the columns that it names; `takes_all`: it may ask for any."""

    names: frozenset[str]
    takes_all: bool
    takes_row: bool
    program: jinja2.Template

    def columns(self, there: Iterable[str]) -> tuple[str, ...]:
        """The columns that it needs of an input that has these; also those that are not there."""
        return tuple(there) if self.takes_all else tuple(sorted(self.names))

    def render(self, record: Mapping[str, Any]) -> str:
        """The text of one row. Raises whatever the template raises."""
        variables = {**record, **_SANDBOX.globals}
        if self.takes_row:
            variables[ROW] = record
        context = _Context(_SANDBOX, variables, None, {})
        parts = []
        for part in self.program.root_render_func(context):
            context.spend(len(part))
            parts.append(part)
        return "".join(parts)


@functools.lru_cache(maxsize=16)
def template_of(source: str) -> Template:
    """Compile a template. Raises ValueError, in one line, for what is none."""
    if len(source) > MAX_SOURCE:
        raise ValueError(f"it is longer than {MAX_SOURCE:,} characters")
    try:
        tree = _SANDBOX.parse(source)
        _require_allowed(tree)
        names = meta.find_undeclared_variables(tree)
        of_row, takes_all = _columns_of_row(tree) if ROW in names else (set(), False)
        code = _SANDBOX.compile(_Counted().visit(tree))
        program = jinja2.Template.from_code(_SANDBOX, code, _SANDBOX.globals)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"line {error.lineno}: {' '.join((error.message or '').split())}"
        ) from None
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"it cannot be compiled: {one_line(error, 100)}") from None
    return Template(frozenset(names - {ROW} | of_row), takes_all, ROW in names, program)


def with_line_breaks(source: str) -> str:
    r"""A template with line breaks and tabs for \n and \t, outside of its expressions.

    On a command line nobody can write them otherwise; within expressions, Jinja does it.
    """
    if "\\" not in source:
        return source
    try:
        tokens = list(_SANDBOX.lex(source))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.message}") from None
    return "".join(
        text.replace("\\n", "\n").replace("\\t", "\t") if kind == "data" else text
        for _, kind, text in tokens
    )


def _require_allowed(tree: nodes.Template) -> None:
    """See that a template holds nothing but what is listed here."""

    def refuse(node: nodes.Node, why: str) -> None:
        raise jinja2.TemplateSyntaxError(why, node.lineno)

    for node in tree.find_all(nodes.Node):
        if not isinstance(node, _ALLOWED):
            refuse(node, f"'{type(node).__name__.lower()}' cannot be used in this template")
        if isinstance(node, nodes.For) and node.recursive:
            refuse(node, "'recursive' cannot be used in this template")
        if isinstance(node, nodes.Filter) and node.name not in _SANDBOX.filters:
            hint = did_you_mean(node.name, _NAMED_FILTERS)
            refuse(node, f"no filter '{node.name}'{hint}; there are {', '.join(_NAMED_FILTERS)}")
        if isinstance(node, nodes.Test) and node.name not in _SANDBOX.tests:
            refuse(node, f"no test '{node.name}'{did_you_mean(node.name, _SANDBOX.tests)}")


def _columns_of_row(tree: nodes.Template) -> tuple[set[str], bool]:
    """The columns that are asked of `row` by a constant name, and whether it is used otherwise too."""
    found: set[str] = set()
    known: set[int] = set()
    node: Any
    for node in tree.find_all((nodes.Getitem, nodes.Getattr)):
        of = node.node
        if not (isinstance(of, nodes.Name) and of.name == ROW):
            continue
        name = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
        is_method = isinstance(node, nodes.Getattr) and hasattr(dict, node.attr)
        if isinstance(name, str) and not is_method:
            found.add(name)
            known.add(id(of))
    others = (n for n in tree.find_all(nodes.Name) if n.name == ROW and id(n) not in known)
    return found, any(True for _ in others)


class _Context(Context):
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

        Raises TypeError for what is no value.
        """
        if isinstance(value, str):
            return value
        if value is None:
            return ""
        if isinstance(value, Undefined):
            return str(value)  # raises, and says what is missing
        if not isinstance(value, _VALUES):
            raise TypeError(
                f"a {type(value).__name__} cannot be printed; call it, or make it a list (| list) first"
            )
        self.spend(_size(value))
        return str(value)


@pass_context
def _finalize(context: _Context, value: Any) -> str:
    return context.text(value)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with nothing that is not listed here and nothing that is not counted."""

    context_class = _Context
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%"})

    def __init__(self) -> None:
        # Constants are not worked out ahead: there it would not be counted.
        super().__init__(
            undefined=jinja2.StrictUndefined, finalize=_finalize, optimized=False, cache_size=0
        )
        self.globals = {"range": safe_range}
        self.filters = {
            **{name: _counting(name) for name in _FILTERS},
            "d": _default, "default": _default, "join": _join, "replace": _replace, "round": _round,
            "string": _finalize, "tojson": _tojson,
            # What a template cannot name:
            "~": _concatenate, "()": _counted, "{% for %}": _rounds,
        }  # fmt: skip

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A field of a struct rather than a method of that name."""
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call `range`, or a method that is listed here."""
        kwargs = {name: value for name, value in kwargs.items() if name not in _FOR_MACROS}
        if function is safe_range or isinstance(function, Undefined):
            return function(*args, **kwargs)
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        names = next((names for kind, names in _METHODS if isinstance(owner, kind)), ())
        if name not in names:
            raise SecurityError(f"'{name or type(function).__name__}' cannot be called here")
        if isinstance(owner, str) and name == "join":
            return _join(context, *args, **{**kwargs, "d": owner})
        if isinstance(owner, str) and name == "replace":
            return _replace(context, owner, *args, **kwargs)
        context.spend(_size((owner, *args, *kwargs.values())))
        return function(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Work out left + right and its kind; of what is no number only a sum, and nothing endless."""
        if isinstance(left, (str, list, tuple)) or isinstance(right, (str, list, tuple)):
            if operator != "+":
                raise TypeError(f"'{operator}' is for numbers, not for texts and lists")
            context.spend(_size(left) + _size(right))
        elif operator == "*" and _bits(left) + _bits(right) > _MAX_BITS:
            raise OverflowError("a product is too large")
        return super().call_binop(context, operator, left, right)


class _Counted(NodeTransformer):
    """Puts what counts around the parts of a template that have no hook of their own."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2's names
        self.generic_visit(node)
        node.iter = _filtered("{% for %}", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("~", nodes.List(node.nodes, lineno=node.lineno))

    def _made(self, node: nodes.List | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("()", node)

    visit_List = visit_Dict = _made  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("()", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("()", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filtered("()", node.expr)
        for operand in node.ops:
            operand.expr = _filtered("()", operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.node = _filtered("()", node.node)
        return node


def _filtered(name: str, node: Any) -> nodes.Filter:
    wrapped = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    wrapped.set_environment(_SANDBOX)
    return wrapped


def _size(value: Any) -> int:
    """What a value counts that is gone through."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (list, tuple)):
        return ITEM * len(value) + sum(map(_size, value))
    if isinstance(value, dict):
        return sum(_size(key) + _size(item) + ITEM for key, item in value.items())
    return ITEM * len(value) if isinstance(value, range) else 1


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _counting(name: str) -> Any:
    """One of Jinja's filters, counted by what it goes through."""

    @pass_context
    def counting(context: _Context, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        if name in _OF_TEXT:
            value = context.text(value)
        context.spend(_size((value, *args, *kwargs.values())))
        return _PLAIN.call_filter(name, value, args, kwargs, context=context)

    return counting


@pass_context
def _rounds(context: _Context, values: Any) -> Iterator[Any]:
    """The items to loop over; of null none."""
    for value in () if values is None else values:
        context.spend(ROUND)
        yield value


@pass_context
def _counted(context: _Context, value: Any) -> Any:
    """A value that is gone through, or written down: a list of itself, twice, would double in each line."""
    items: Any = (value,)
    if isinstance(value, dict):
        items = (*value.keys(), *value.values())
    elif isinstance(value, (list, tuple)):
        items = value
    for item in items:
        context.spend(ITEM + _size(item))
    return value


@pass_context
def _concatenate(context: _Context, values: list[Any]) -> str:
    return _join(context, values)


@pass_context
def _join(context: _Context, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    between, parts = context.text(d), []
    for item in () if value is None else value:
        if attribute is not None:
            item = context.environment.getitem(item, attribute)
        part = context.text(item)
        context.spend(ITEM + len(part) + len(between))
        parts.append(part)
    return between.join(parts)


@pass_context
def _replace(context: _Context, value: Any, old: Any, new: Any, count: int = -1, /) -> str:
    text, old, new = (context.text(part) for part in (value, old, new))
    context.spend(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


@pass_context
def _default(context: _Context, value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    """The value, or what stands for a missing one: null, too, as columns are never undefined."""
    is_missing = isinstance(value, Undefined) or value is None or (boolean and not value)
    return default_value if is_missing else value


def _round(value: Any, precision: int = 0) -> Any:
    return round(value, max(-30, min(30, precision)))


@pass_context
def _tojson(context: _Context, value: Any) -> str:
    """JSON as it is read by models: letters as they are, and none escaped for HTML."""
    context.spend(_size(value))
    return json.dumps(value, ensure_ascii=False, default=context.text)


#: Jinja's filters as they are; those of templates call them.
_PLAIN = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
_SANDBOX = _Sandbox()
_NAMED_FILTERS = sorted(name for name in _SANDBOX.filters if name.isidentifier())
