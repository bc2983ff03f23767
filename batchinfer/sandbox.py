"""The language of templates: Jinja, less what could go on for ever or differ from run to run.

A template may come with a run folder or a configuration that somebody else wrote. So what it may do is
listed here, in filters.py and in methods.py, and anything else is refused when the job is planned.

What is bounded
    Of one row, MAX_WORK: a character that is made, or that a filter, a test, a method, a comparison or a
    slice goes through, counts one, an item of a list ITEM, a round of a loop ROUND. What takes longer than
    its operands are long (searches, strips, one item put to each of many) counts by what it takes at
    worst, or is refused. What would be more is an error, raised before the memory is taken: so it is with
    texts that are joined, repeated or replaced, and with lists of lists. No whole number has more than
    MAX_BITS, in the template, as a result of arithmetic or made of a text.
What is not
    The number of rows: a template that does the most that it may, half a second as measured, does it for
    each of them.

Nothing is drawn at random, no clock, time zone or language of the machine is read, no set is made, and what
is no value (a function, say, whose text would be its address) is not printed, in a list neither: a template
always says the same of the same row.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.runtime import Undefined
from jinja2.sandbox import safe_range
from jinja2.visitor import NodeTransformer

from batchinfer.errors import one_line
from batchinfer.filters import (
    FILTERS,
    TESTS,
    RowContext,
    Sandbox,
    bounded,
    check_operands,
    finalize,
)
from batchinfer.hints import did_you_mean
from batchinfer.methods import called

#: Characters of a template: it may hold examples, but no corpus.
MAX_SOURCE = 1 << 18

#: The name by which a template reaches columns whose names are no identifiers.
ROW = "row"

_ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.With, nodes.Assign,
    nodes.Name, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword,
    nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice,
    nodes.Concat, nodes.Compare, nodes.Operand, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div,
    nodes.FloorDiv, nodes.Mod, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos,
)  # fmt: skip
#: What is looked for in texts and lists, which a comparison does not count.
_MEMBERSHIP = ("in", "notin")
#: Names that are never those of columns.
_TAKEN = ("range", "self")
#: What the compiled template adds to calls in loops, for callers of macros.
_FOR_MACROS = ("_loop_vars", "_block_vars")


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
        context = RowContext(_SANDBOX, variables, None, {})
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

    names = list(tree.find_all(nodes.Name))
    is_variable = {name.name for name in names if name.ctx != "load"}
    is_called = {id(call.node) for call in tree.find_all(nodes.Call)}
    for name in names:
        if name.name in _TAKEN and name.name not in is_variable and id(name) not in is_called:
            refuse(name, f"'{name.name}' is no column here; one of that name is row.{name.name}")
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, _ALLOWED):
            refuse(node, f"'{type(node).__name__.lower()}' cannot be used in this template")
        if isinstance(node, nodes.For) and node.recursive:
            refuse(node, "'recursive' cannot be used in this template")
        if isinstance(node, nodes.Filter) and node.name not in _SANDBOX.filters:
            hint = did_you_mean(node.name, _NAMED_FILTERS)
            refuse(node, f"no filter '{node.name}'{hint}; there are {', '.join(_NAMED_FILTERS)}")
        if isinstance(node, nodes.Const):
            try:
                bounded(node.value)
            except OverflowError as error:
                refuse(node, str(error))
        is_chain = isinstance(node, nodes.Compare) and len(node.ops) > 1
        if is_chain and any(one.op in _MEMBERSHIP for one in node.find_all(nodes.Operand)):
            refuse(node, "'in' cannot be chained with another comparison; put one in brackets")
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


class _Sandbox(Sandbox):
    """Jinja's sandbox, with nothing that is not listed here and nothing that is not counted."""

    context_class = RowContext
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%"})

    def __init__(self) -> None:
        # Constants are not worked out ahead: there it would not be counted.
        super().__init__(
            undefined=jinja2.StrictUndefined, finalize=finalize, optimized=False, cache_size=0
        )
        self.globals = {"range": safe_range}
        self.filters, self.tests = dict(FILTERS), dict(TESTS)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A field of a struct rather than a method of that name."""
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call `range`, or a method that is listed."""
        kwargs = {name: value for name, value in kwargs.items() if name not in _FOR_MACROS}
        if function is safe_range or isinstance(function, Undefined):
            return function(*args, **kwargs)
        return called(context, function, args, kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Work out left + right and its kind; of what is no number only a sum, and nothing endless."""
        check_operands(context, operator, left, right)
        return bounded(super().call_binop(context, operator, left, right))


class _Counted(NodeTransformer):
    """Puts what counts around the parts of a template that have no hook of their own."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2's names
        self.generic_visit(node)
        node.iter = _filtered("{% for %}", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("~", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("()", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _filtered("{:}", pair.key)
        return _filtered("()", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("()", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("()", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.ops[0].op in _MEMBERSHIP:
            test = nodes.Test(
                node.expr, "in", [node.ops[0].expr], [], None, None, lineno=node.lineno
            )
            test.set_environment(_SANDBOX)
            return test if node.ops[0].op == "in" else nodes.Not(test, lineno=node.lineno)
        node.expr = _filtered("()", node.expr)
        for operand in node.ops:
            operand.expr = _filtered("()", operand.expr)
        return node


def _filtered(name: str, node: Any) -> nodes.Filter:
    wrapped = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    wrapped.set_environment(_SANDBOX)
    return wrapped


_SANDBOX = _Sandbox()
_NAMED_FILTERS = sorted(name for name in _SANDBOX.filters if name.isidentifier())
