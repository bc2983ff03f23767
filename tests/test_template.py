"""A template makes the text of a row of its columns: any type, one row's failure, no end that is far."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer import RunConfig, controller, infer, resume, run
from batchinfer.core import Chunk, ChunkId, Position
from batchinfer.engines import fake
from batchinfer.engines.fake import FakeEngine
from batchinfer.errors import JobMismatchError, UsageError
from batchinfer.filters import MAX_WORK
from batchinfer.plan import Plan
from batchinfer.planning import make_plan
from batchinfer.sandbox import MAX_SOURCE, template_of
from batchinfer.tasks import create_task
from batchinfer.template import MAX_CHUNK, render_texts, settled
from batchinfer.tuning.sample import sample_rows
from tests.conftest import Cli, read_output
from tests.test_run import config, run_partly, write_jsonl


def rendered(template: str, *records: dict[str, Any], **types: Any) -> list[str | None]:
    """The texts of some rows; a row that fails is an error of the test."""
    texts, errors = render_texts(template, table_of(records, **types), {})
    assert not errors
    return texts.to_pylist()  # type: ignore[no-any-return]


def failures(template: str, *records: dict[str, Any], **types: Any) -> dict[int, str]:
    texts, errors = render_texts(template, table_of(records, **types), {})
    assert [text is None for text in texts.to_pylist()] == [
        i in errors for i in range(len(records))
    ]
    assert all("\n" not in why for why in errors.values())
    return errors


def table_of(records: tuple[dict[str, Any], ...], **types: Any) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record)
    return pa.table({n: pa.array([r.get(n) for r in records], types.get(n)) for n in names})


# -- what it says -----------------------------------------------------------------------------------

AUTHOR, DAY = {"name": "Ada", "items": ["a", "b"]}, datetime.date(2024, 5, 2)


@pytest.mark.parametrize(
    ("template", "record", "expected"),
    [
        ("{{ title }}: {{ body }}", {"title": "A", "body": "b"}, "A: b"),
        ("{{ title }}|{{ body }}", {"title": None, "body": ""}, "|"),
        ("{% if title %}yes{% else %}no{% endif %}", {"title": None}, "no"),
        ("{{ title | default('none') }}", {"title": None}, "none"),
        ("{{ title | upper }}{{ title | trim }}{{ title | string }}", {"title": None}, ""),
        ("{{ title ~ '-' ~ n }}", {"title": None, "n": 3}, "-3"),
        ("{{ [title, body] | join(', ') }}", {"title": "A", "body": None}, "A, "),
        ("{{ n + 1 }} {{ n * 2 }} {{ n // 2 }} {{ n % 2 }} {{ -n }}", {"n": 3}, "4 6 1 1 -3"),
        ("{{ price }} {{ price | round(1) }} {{ ok }}", {"price": 2.25, "ok": True}, "2.25 2.2 True"),
        ("{% for t in tags %}{{ loop.index }}{{ t }};{% endfor %}", {"tags": ["x", None]}, "1x;2;"),
        ("{% for t in tags %}{{ t.upper() }}{{ range(2) | join }}{% endfor %}", {"tags": ["x"]}, "X01"),
        ("{% for t in tags %}{{ loop.cycle('a', 'b') }}{% endfor %}", {"tags": ["x"] * 3}, "aba"),
        ("{% for t in tags %}x{% else %}none{% endfor %}", {"tags": None}, "none"),
        ("{% for t in tags if t > 'a' %}{{ t }}{% endfor %}", {"tags": ["a", "b"]}, "b"),
        ("{{ tags }} {{ tags | length }}", {"tags": ["x"]}, "['x'] 1"),
        ("{{ author.name }} {{ author['name'] }}", {"author": AUTHOR}, "Ada Ada"),
        ("{{ author.items | join }}", {"author": AUTHOR}, "ab"),
        ("{% for k, v in row.items() %}{{ k }}={{ v }} {% endfor %}", {"a": 1, "b c": "x"}, "a=1 b c=x "),
        ("{{ row['some column'] }}{{ row.title }}", {"some column": "x", "title": "y"}, "xy"),
        ("{{ row | tojson }}", {"a": "don't <é>", "n": None}, '{"a": "don\'t <é>", "n": null}'),
        ("{% set x = title | lower %}{{ x }}{{ x }}", {"title": "A"}, "aa"),
        ("{{ title.split(' ')[-1].strip('.') }}", {"title": "one two."}, "two"),
        ("{{ ', '.join(tags) }} {{ title.replace('a', 'bb') }}", {"tags": ["x"], "title": "a"}, "x bb"),
        ("{{ title | replace('a', 'b') | truncate(5) }}", {"title": "a" * 12}, "bb..."),
        ("{{ range(n) | join(' ') }}", {"n": 3}, "0 1 2"),
        ("{{ when.strftime('%d %B') }} {{ when.year }}", {"when": DAY}, "02 May 2024"),
        ("{{ when.strftime('%Y-%m-%dT%H:%M:%S.%f %j %y %I %p %%') }}",
         {"when": datetime.datetime(2024, 5, 2, 15, 4, 5, 6)},
         "2024-05-02T15:04:05.000006 123 24 03 PM %"),
        ("{{ when.strftime('%A %a %b %G-W%V %z%H %p') }}", {"when": DAY},
         "Thursday Thu May 2024-W18 00 AM"),
        ("{{ when.strftime('%H:%M %Y') }}", {"when": datetime.time(9, 30)}, "09:30 1900"),
        ("{{ 'a' in title }}{{ 'b' not in title }}{{ n in tags }}", {"title": "a", "n": 1, "tags": [1]},
         "TrueTrueTrue"),
        ("{{ tags | select('in', 'xyz') | join }}{{ tags | unique | join }}", {"tags": ["x", "X", "a"]},
         "xxa"),
        ("{{ tags | unique(true) | join }}{{ all | unique(attribute='k') | list | length }}",
         {"tags": ["x", "X", "x"], "all": [{"k": 1}, {"k": 1}]}, "xX1"),
        ("{% for g, all in all | groupby('k', default='-') %}{{ g }}{{ all | length }}{% endfor %}",
         {"all": [{"k": "a"}, {"k": "A"}, {"k": "b"}]}, "a2b1"),
        ("{{ [1, 2] | sum }} {{ all | sum(attribute='k', start=0.5) }}", {"all": [{"k": 1}]}, "3 1.5"),
        ("{{ 'ff' | int(base=16) }} {{ 'x' | int(-1) }} {{ n | int }}", {"n": 2.5}, "255 -1 2"),
        ("{{ title | trim('. ') }}{{ title.rsplit(' ', 1)[1] }}{{ title.rfind('o') }}",
         {"title": " one two."}, "one twotwo.7"),
        ("{{ {'a': 1, n: 2}[n] }}", {"n": 7}, "2"),
        ("{{ row.range }}{{ range(2) | list }}{{ row['self'] }}", {"range": "x", "self": "y"}, "x[0, 1]y"),
        ("{% for range in all %}{{ range }}{% endfor %}", {"all": [1, 2]}, "12"),
        ("{{ 'yes' if n is even else 'no' }}", {"n": 2}, "yes"),
        ("<b>{{ title }}</b>", {"title": "<i>&'"}, "<b><i>&'</b>"),
        ("{{ n }}\n", {"n": decimal.Decimal("1.50")}, "1.50"),
        ("{% raw %}{{ x }}{% endraw %}{# not said #}{{ n }}", {"n": 1}, "{{ x }}1"),
    ],
)  # fmt: skip
def test_a_template_says(template: str, record: dict[str, Any], expected: str) -> None:
    assert rendered(template, record) == [expected]


def test_times_are_those_of_python_however_fine_the_column_is() -> None:
    when = pa.array([1_000_000_001], pa.timestamp("ns", "UTC"))
    table = pa.table({"when": when, "took": pa.array([1_500_000_000], pa.duration("ns")),
                      "at": pa.StructArray.from_arrays([when], names=["begun"]),
                      "all": pa.array([[1]], pa.list_(pa.timestamp("ns"))),
                      "raw": pa.array([b"abc"])})  # fmt: skip
    template = "{{ when }}|{{ took }}|{{ at.begun }}|{{ all[0] }}|{{ raw }}"
    code = "import sys, pickle; from batchinfer.lean import spare_pandas; spare_pandas(); " \
        "from batchinfer.template import render_texts; " \
        "t = render_texts(*pickle.loads(sys.stdin.buffer.read()), {}); " \
        "assert 'pandas' not in sys.modules; print(t[0].to_pylist(), t[1])"  # fmt: skip
    lean = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps((template, table)), capture_output=True
    )
    texts, errors = render_texts(template, table, {})
    assert lean.stdout.decode().strip() == f"{texts.to_pylist()} {errors}", lean.stderr
    at = "1970-01-01 00:00:01"
    assert texts.to_pylist() == [f"{at}+00:00|0:00:01.500000|{at}+00:00|1970-01-01 00:00:00|abc"]


def test_a_row_that_is_asked_for_nothing_is_not_rendered() -> None:
    table = table_of(({"n": 1}, {"n": 0}, {"n": 2}))
    texts, errors = render_texts("{{ 4 // n }}", table, {1: "broken"})
    assert (texts.to_pylist(), errors) == (["4", None, "2"], {})


# -- one row's failure ------------------------------------------------------------------------------


def test_a_template_that_fails_fails_its_row() -> None:
    errors = failures("{{ 4 // n }}", {"n": 1}, {"n": 0}, {"n": None})
    assert set(errors) == {1, 2}
    assert errors[1].startswith("the template fails: ") and "zero" in errors[1]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ author.nmae }}", "no attribute 'nmae'"),
        ("{{ tags | map('upper') }}", "a generator cannot be printed"),
        ("{{ title.upper }}", "cannot be printed"),
        ("{{ title.title.upper() }}", "no attribute 'upper'"),
        ("{{ title + 1 }}", "concatenate"),
        ("{{ '%s' % title }}", "'%' is for numbers"),
        ("{{ title.format(1) }}", "'format' cannot be called"),
        ("{{ title.encode() }}", "'encode' cannot be called"),
        ("{{ title.__class__ }}", "unsafe"),
        ("{{ title.upper.__self__ }}", "unsafe"),
        ("{{ tags.append('x') }}", "unsafe|cannot be called"),
        ("{{ author.update(a=1) }}", "unsafe|cannot be called"),
        ("{{ loop(tags) }}{% for t in tags %}{{ loop(tags) }}{% endfor %}", "cannot be called|undefined"),
        ("{{ '\\ud800' ~ title }}", "half a surrogate pair"),
        ("{{ [title.upper] }}", "a builtin_function_or_method cannot be printed"),
        ("{{ [tags | map('upper')] }}", "a generator cannot be printed"),
        ("{{ {'a': ([title.upper],)} | string }}", "cannot be printed"),
        ("{{ [tags | reverse] | join }}{{ [title.upper] ~ '' }}", "cannot be printed"),
        ("{{ (author.keys() - tags) | list }}", "'-' is for numbers"),
        ("{{ [[1], [2]] | sum(start=[]) }}", "'sum' is for numbers"),
        ("{{ '%d' is divisibleby 3 }}", "'divisibleby' is for numbers"),
        ("{{ '%d' is even }}", "'even' is for numbers"),
        ("{{ when.strftime('%s') }}", "knows no '%s'; there are %Y"),
        ("{{ when.strftime('%900d') }}", "knows no '%9'"),
        ("{{ when.strftime('%-d') }}", "knows no '%-'"),
        ("{{ when.strftime('%c') }}", "knows no '%c'"),
        ("{{ when.strftime('%') }}", "knows no '%'"),
        ("{{ {(1, 2): 3} }}", "a key should be"),
        ("{{ author[(1, 2)] | default }}", "a tuple is no name of an item"),
    ],
)  # fmt: skip
def test_what_has_no_place_in_a_text_is_told(template: str, why: str) -> None:
    import re

    record: dict[str, Any] = {
        "author": AUTHOR,
        "tags": ["x"],
        "title": "t",
        "loop": "l",
        "when": DAY,
    }
    errors = failures(template, record)
    assert re.search(why, errors[0]), errors


def test_values_that_python_has_not_are_errors_of_their_rows() -> None:
    raw = pa.array([b"good", b"\xff", b"fine"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    when = pa.array([0, 1 << 60, 1], pa.timestamp("s"))
    for column, wrong in ((texts, 1), (raw, 1), (when, 1)):
        found, errors = render_texts("{{ x }}", pa.table({"x": column}), {})
        assert set(errors) == {wrong} and errors[wrong].startswith("column 'x' cannot be read: ")
        assert found.null_count == 1


def test_bytes_are_texts_or_errors_wherever_they_stand() -> None:
    ids = pa.array([b"0123456789abcdef", b"\xff" * 16], pa.binary(16))
    pairs = pa.array([[("k", b"abc")]] * 2, pa.map_(pa.string(), pa.binary(3)))
    texts, errors = render_texts(
        "{{ id.upper() }} {{ of }}", pa.table({"id": ids, "of": pairs}), {}
    )
    assert texts.to_pylist() == ["0123456789ABCDEF [('k', 'abc')]", None]
    assert errors[1].startswith("column 'id' cannot be read: ")


def test_times_are_written_in_english_whatever_the_machine_speaks() -> None:
    class Foreign(datetime.datetime):
        def strftime(self, format: str) -> str:
            said = {"%d": "02", "%H": "15"}
            assert format in said, f"{format} is of the machine"
            return said[format]

    template = template_of("{{ when.strftime('%A, %d %B %Y, %H %p') }}")
    text = template.render({"when": Foreign(24, 5, 2, 15)})
    assert text == "Thursday, 02 May 0024, 15 PM"


def rows() -> list[dict[str, Any]]:
    return [
        {"id": i, "title": f"title {i}", "n": i % 4, "tags": ["x"] * (i % 3)} for i in range(30)
    ]


def test_rows_fail_alone_in_a_run_and_again_when_they_are_tried_again(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows())
    report = run(config(source, tmp_path / "out", template="{{ title }} {{ 12 // n }}"))
    table = read_output(tmp_path / "out")
    failed = [error is not None for error in table["_error"].to_pylist()]
    assert failed == [row["n"] == 0 for row in rows()]
    assert report.num_errors == sum(failed)
    assert all(
        (label is None) == wrong
        for label, wrong in zip(table["predicted_label"].to_pylist(), failed, strict=True)
    )
    again = resume(tmp_path / "out", retry_errors=True)
    assert (again.num_errors, again.num_rows) == (sum(failed), 30)
    assert read_output(tmp_path / "out").equals(table)


def test_a_value_that_does_not_fit_its_column_is_an_error_and_null_is_none(tmp_path: Path) -> None:
    lines = ['{"title": "a", "n": 1}'] * 5
    lines += ['{"title": "b"}', '{"title": "c", "n": null}', '{"title": "d", "n": "x"}', "{"]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines))
    run(config(source, tmp_path / "out", template="{{ title }}{{ n }}", types={"n": "int64"}))
    errors = read_output(tmp_path / "out")["_error"].to_pylist()
    assert errors[:7] == [None] * 7
    assert errors[7] == "line 8: column 'n' holds a string, which does not fit its type, int64"
    assert errors[8].startswith("line 9: not valid JSON")


# -- every task -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"task": "classify"},
        {"task": "classify", "text_pair_column": "pair"},
        {"task": "embed", "prompt": "query: "},
        {"task": "token-classify"},
        {"task": "token-classify", "aggregation": "first"},
        {"task": "score", "text_pair_column": "pair"},
        {"task": "score", "text_pair_column": "list"},
        {"task": "zero-shot", "labels": ("a", "b")},
        {"task": "zero-shot", "labels_column": "list"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_template_answers_as_a_column_with_its_text(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    made = [
        {
            **row, "pair": f"pair {row['id']}", "list": ["x", f"y{row['id']}"],
            "text": f"{row['title']} by {row['n'] + 1}{''.join(row['tags'])}",
        }
        for row in rows()
    ]  # fmt: skip
    source = write_jsonl(tmp_path / "in.jsonl", made)
    template = "{{ title }} by {{ n + 1 }}{% for tag in tags %}{{ tag }}{% endfor %}"
    run(config(source, tmp_path / "one", **settings))
    run(config(source, tmp_path / "two", template=template, **settings))
    one, two = (read_output(tmp_path / name) for name in ("one", "two"))
    assert one.schema.equals(two.schema)
    assert one.equals(two)
    assert one["_error"].null_count == 30


def test_a_template_needs_only_the_columns_that_it_names(tmp_path: Path) -> None:
    table = pa.table({"title": ["a", "b"], "n": [1, 2], "other": [b"\x00", b"\x01"]})
    pq.write_table(table, tmp_path / "in.parquet")
    given = config(
        tmp_path / "in.parquet", tmp_path / "out", template="{{ n }}", keep=("title",), limit=1
    )
    plan, _ = make_plan(given)
    assert plan.input_schema.names == ["title", "n"]
    assert plan.read_options.value_columns == ("n",)
    assert sample_rows(plan, 10).table.column_names == ["n"]
    run(given)
    assert read_output(tmp_path / "out").column_names[:3] == ["_source", "_row", "title"]
    assert read_output(tmp_path / "out").num_rows == 1


def test_infer_takes_templates_over_a_dataframe_or_a_list() -> None:
    frame = pd.DataFrame(
        {"title": ["a", None, "c"], "n": [1, 2, 3], "when": pd.to_datetime(["2024-01-02"] * 3)},
        index=[5, 6, 7],
    )
    answers = infer(frame, engine="fake", template="{{ title }}{{ n }} {{ when.year }}")
    texts = infer(["a1 2024", "2 2024", "c3 2024"], engine="fake")
    assert answers["predicted_score"].tolist() == texts["predicted_score"].tolist()
    assert answers.index.tolist() == [5, 6, 7]
    listed = infer(["a1", "2"], engine="fake", template="{{ text }} 2024")
    assert listed["predicted_score"].tolist() == texts["predicted_score"].tolist()[:2]
    with pytest.raises(UsageError, match="no column 'titel'"):
        infer(frame, engine="fake", template="{{ titel }}")
    with pytest.raises(UsageError, match="give one of them"):
        infer(frame, engine="fake", template="{{ n }}", text_column="title")
    with pytest.raises(UsageError, match="column 'x': "):
        infer(pd.DataFrame({"x": ["a", 1]}), engine="fake", template="{{ x }}")


def test_a_task_travels_with_its_template() -> None:
    task = create_task(fake.describe("classify", None), RunConfig(template="{{ n }}"))
    chunk = Chunk(ChunkId(0, 0), pa.table({"n": [1, 2]}), {}, Position(), Position(), True, "")
    before = task.texts(chunk)[0].to_pylist()
    assert pickle.loads(pickle.dumps(task)).texts(chunk)[0].to_pylist() == before == ["1", "2"]


def test_jinja_is_only_imported_for_a_template(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    code = f"""
import sys
from batchinfer import RunConfig, run
run(RunConfig(inputs=({str(source)!r},), output={str(tmp_path / "out")!r}, engine="fake", workers=0))
print("jinja2" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- what is no template ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ titel }}", "--template: no column 'titel' in the input; it has: id, "),
        ("{{ row['titel'] }}", "; did you mean 'title'?"),
        ("{{ _row }}", "no column '_row'"),
        ("{{ namespace(x=1) }}", "no column 'namespace'"),
        ("{{ lipsum() }}", "no column 'lipsum'"),
        ("nothing", "--template: it names no column"),
        ("{{ title", "--template: line 1: unexpected end of template"),
        ("{{ title }}\n{% if %}", "--template: line 2: "),
        ("{{ title | uper }}", "line 1: no filter 'uper'; did you mean 'upper'?; there are abs, "),
        ("{{ title | center(9) }}", "no filter 'center'"),
        ("{{ title | random }}", "no filter 'random'"),
        ("{% if n %}{{ title | shout }}{% endif %}", "no filter 'shout'"),
        ("{{ title is nice }}", "no test 'nice'"),
        ("{{ n ** 2 }}", "'pow' cannot be used"),
        ("{{ range }}{{ n }}", "'range' is no column here; one of that name is row.range"),
        ("{{ range.start }}{{ n }}", "'range' is no column here; one of that name is row.range"),
        ("{{ self }}{{ n }}", "'self' is no column here; one of that name is row.self"),
        ("{{ title is sameas n }}", "no test 'sameas'"),
        ("{{ n < n in tags }}", "'in' cannot be chained"),
        ("{{ n // 0x" + "f" * 2000 + " }}", "a number is too large"),
        ("{% include 'x' %}{{ n }}", "'include' cannot be used"),
        ("{% import 'x' as y %}{{ n }}", "'import' cannot be used"),
        ("{% extends 'x' %}{{ n }}", "'extends' cannot be used"),
        ("{% block x %}{{ n }}{% endblock %}", "'block' cannot be used"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ n }}", "'macro' cannot be used"),
        ("{% set x %}{{ n }}{% endset %}{{ x }}", "'assignblock' cannot be used"),
        ("{% filter upper %}{{ n }}{% endfilter %}", "'filterblock' cannot be used"),
        ("{% set n.x = 1 %}{{ n }}", "'nsref' cannot be used"),
        ("{% autoescape true %}{{ n }}{% endautoescape %}", "cannot be used"),
        ("{% for t in tags recursive %}{{ loop(t) }}{% endfor %}", "'recursive' cannot be used"),
        ("{{ " + "(" * 5000 + "n" + ")" * 5000 + " }}", "--template: it cannot be compiled"),
        ("{{ n + " + "9" * 5000 + " }}", "--template: "),
        ("{% if n %}" * 300 + "{% endif %}" * 300 + "{{ n }}", "--template: it cannot be compiled"),
        ("{{ n }}" + "x" * MAX_SOURCE, "--template: it is longer than"),
    ],
)  # fmt: skip
def test_what_is_no_template_is_refused_before_the_first_row(
    template: str, why: str, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows())
    with pytest.raises(UsageError) as error:
        run(config(source, tmp_path / "out", template=template))
    assert why in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert not (tmp_path / "out").exists()


def test_a_text_column_beside_a_template_is_refused(cli: Cli, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    flags = ("run", "in.jsonl", "-o", "out", "--engine", "fake", "--template", "{{ text }}")
    done = cli(*flags, "--text-column", "text")
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        "--template and --text-column: give one of them; a template names its columns itself"
    )
    (tmp_path / "job.yaml").write_text(
        'template: "{{ text }}\\n"\ninputs: in.jsonl\nengine: fake\n'
    )
    assert cli("run", "-c", "job.yaml", "-o", "out").returncode == 0


def test_inputs_without_a_record_are_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("[1]\n{\n")
    for index, template in enumerate(("{{ title }}{{ body }}", "{{ row | tojson }}")):
        report = run(config(tmp_path / "in.jsonl", tmp_path / f"out{index}", template=template))
        assert report.num_errors == report.num_rows == 2


# -- files, and what is frozen ----------------------------------------------------------------------


def test_line_breaks_may_be_written_in_a_value() -> None:
    def text_of(template: str) -> str:
        made = settled(RunConfig(template=template)).template
        assert made is not None
        [text] = rendered(made, {"n": 1})
        return text or ""

    assert text_of(r"{{ n }}\n\n{{ n }}\t.") == "1\n\n1\t."
    assert text_of(r"{{ '\\n' }}{{ n }}\n") == "\\n1"  # the last line break is Jinja's to drop
    assert text_of(r"{%- if n -%} \n {{ n }}{% endif %}\\x") == "1\\\\x"
    assert text_of("{% raw %}{{ x }}\\n{% endraw %}{{ n }}") == "{{ x }}\n1"


def test_a_file_is_read_once_and_frozen(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows())
    file = tmp_path / "prompt.jinja"
    file.write_text("\ufeff@{{ title }}\\n\n", encoding="utf-8")
    job = config(source, tmp_path / "out", template=f"@{file}")
    run(job.model_copy(update={"output": str(tmp_path / "whole")}))
    run_partly(job, 15)
    assert make_plan(job)[0].config.template == "@{{ title }}\\n\n"
    file.write_text("{{ n }}")
    with pytest.raises(JobMismatchError, match="holds another job: template was ") as error:
        run(job, resume=True)
    assert "\n" not in str(error.value)
    file.unlink()
    resume(tmp_path / "out")
    whole = read_output(tmp_path / "whole")
    assert read_output(tmp_path / "out").equals(whole)
    expected = infer([f"@title {i}\\n" for i in range(30)], engine="fake")["predicted_score"]
    assert whole["predicted_score"].to_pylist() == expected.tolist()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file"),
        (b"\xff\xfe", "cannot be read: "),
        (b"\n\n{{ oops", "line 3: "),
        (b"x" * (5 * MAX_SOURCE), "it is longer than"),
    ],
)
def test_a_file_that_is_no_template_is_named(
    content: bytes | None, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^--template @.*prompt\.jinja: .*{why}"):
        settled(RunConfig(template=f"@{file}"))
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        settled(RunConfig(template=f"@{tmp_path}"))


@pytest.mark.parametrize(
    "template", ["{{ oops", "{% macro f() %}{% endmacro %}{{ title }}", "{{ nowhere }}"]
)
def test_a_plan_with_what_is_no_template_is_not_ours(template: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows())
    plan, _ = make_plan(config(source, tmp_path / "out", template="{{ title }}"))
    assert Plan.from_json(plan.to_json(), "plan.json") == plan
    other = dataclasses.replace(plan, config=plan.config.model_copy(update={"template": template}))
    with pytest.raises(JobMismatchError) as error:
        Plan.from_json(other.to_json(), "plan.json")
    assert "\n" not in str(error.value)


# -- no end that is far -----------------------------------------------------------------------------

ENDLESS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(1000000000) %}x{% endfor %}{{ t }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ t }}",
    "{% for i in range(99999) %}{{ t }}{{ big }}{% endfor %}",
    "{% for i in range(60000) %}" + "x" * 100_000 + "{% endfor %}{{ t }}",
    "{{ t }}{{ 'x' * 10000000000 }}",
    "{{ [t] * 10000000000 }}",
    "{{ t }}{{ 99999 * 99999 }}" + "{% set t = 9 %}" + "{% set t = t * t %}" * 40 + "{{ t }}",
    "{% set x = t %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
    "{% set x = t %}" + "{% set x = x + x %}" * 60 + "{{ x }}",
    "{% set x = [t] %}" + "{% set x = x + x %}" * 60 + "{{ x | length }}",
    "{% set x = [t] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
    "{% set x = (t,) %}" + "{% set x = (x, x) %}" * 60 + "{{ x | tojson }}",
    "{% set x = {'a': t} %}" + "{% set x = {'a': x, 'b': x} %}" * 60 + "{{ x == x }}",
    "{% set x = [t] %}" + "{% set x = [x] %}" * 2000 + "{{ x }}",
    "{% set x = t %}" + "{% set x = x | replace('', 'xxxxxxxxxx') %}" * 40 + "{{ x }}",
    "{% set x = t %}" + "{% set x = x.replace('', 'xxxxxxxxxx') %}" * 40 + "{{ x }}",
    "{% set x = t %}" + "{% set x = x.join(x | list) %}" * 40 + "{{ x }}",
    "{{ range(99999) | join(big) }}",
    "{{ big.ljust(10000000000) }}",
    "{{ big.expandtabs(10000000000) }}",
    "{{ '%10000000000d' % n }}",
    "{{ '{:10000000000}'.format(n) }}",
    "{{ t.format_map({'x': n}) }}",
    "{{ n.to_bytes(10000000000) }}",
    "{{ 5 | round(-1000000000) }}{{ n }}",
    "{{ big | list | map('replace', '', big) | list }}",
    "{% for i in range(60000) %}{{ big[i % 2 :] | length }}{% endfor %}",
    "{% for i in range(60000) %}{% if big == t ~ big[4:] or big in row.big %}{% endif %}{% endfor %}",
    "{% for i in range(60000) %}{{ t | truncate(100000, true, big) }}{{ t.count(big) }}{% endfor %}",
    "{% for a in big %}{% for b in big %}{{ a ~ b }}{% endfor %}{% endfor %}",
    "{{ numbers | reject('in', numbers) | list | length }}{{ numbers | select('in', numbers) | list }}",
    "{% for i in range(60000) %}{% if 0.5 is in(numbers) %}{% endif %}{% endfor %}{{ t }}",
    "{% for i in range(60000) %}{% if 0.5 in numbers %}{% endif %}{% endfor %}{{ t }}",
    "{% for i in range(60000) %}{% if 0.5 in {'a': numbers}.values() %}{% endif %}{% endfor %}{{ t }}",
    "{% set p = 'c' ~ big[:50000] %}{{ big.rfind(p) }}",
    "{% set p = 'c' ~ big[:50000] %}{{ big.rindex(p) }}",
    "{% set p = 'c' ~ big[:50000] %}{{ big.rsplit(p) | length }}",
    "{% set p = 'c' ~ big[:50000] %}{{ big.rpartition(p) | length }}",
    "{{ wide.strip(wide[:-1]) }}{{ wide.lstrip(wide[:-1]) }}{{ wide.rstrip(wide[1:]) }}",
    "{{ wide | trim(wide[:-1]) }}{{ wide | trim(wide[1:]) }}",
    "{% set p = big[:600] ~ 'c' ~ big[:600] %}{% set q = big[:2500] %}"
    "{% for i in range(60000) %}{{ q.find(p) }}{% endfor %}",
    "{% set p = big[:600] ~ 'c' ~ big[:600] %}{% set q = big[:2500] %}"
    "{% for i in range(60000) %}{{ p in q }}{% endfor %}",
    "{% set p = big[:600] ~ 'c' ~ big[:600] %}{% set q = big[:2500] %}"
    "{% for i in range(60000) %}{{ [p] | select('in', q) | list }}{% endfor %}",
    "{% set p = big[:600] ~ 'c' ~ big[:600] %}{% set q = big[:2500] %}"
    "{% for i in range(60000) %}{{ q | replace(p, '') | last }}{% endfor %}",
    "{{ lists | sum(start=[]) | length }}",
    "{{ (hex | int(base=16)) // (hex[1:500000] | int(base=16)) }}",
    "{{ hex | int(base=16) }}{{ t }}",
    "{{ '%10000000000d' is divisibleby n }}",
    "{{ '%10000000000d' is odd }}",
    "{{ (raw * 4000000000) and 1 }}",
    "{% for i in range(60000) %}{{ big | list | length }}{% endfor %}",
    "{{ spaces | list | map('trim') | map('default', spaces, true) | sort | length }}",
    "{{ nothings | groupby('x', default=big) | length }}",
    "{{ lists | sort(attribute='" + "0," * 9999 + "0') | length }}",
    "{% set x = (numbers, t) %}{% for i in range(60000) %}{{ row[x] | default }}{% endfor %}",
    "{{ crowd | map('int') | unique | list | length }}",
    "{% set d = price %}" + "{% set d = d * d %}" * 15 + "{{ d | int }}",
]


@pytest.mark.parametrize("template", ENDLESS, ids=lambda template: template[:40])
def test_no_template_is_endless(template: str) -> None:
    record = {
        "t": "text", "n": 7, "big": "b" * 100_000, "numbers": [float(i) for i in range(8192)],
        "wide": "".join(map(chr, range(256, 50_000))), "hex": "1" * 1_000_000, "raw": b"0123456789abcdef",
        "lists": [[i] * 2 for i in range(20_000)], "spaces": " " * 50_000, "nothings": [None] * 50_000,
        "price": decimal.Decimal("1E+37"), "crowd": [str(i * ((1 << 61) - 1)) for i in range(20_000)],
    }  # fmt: skip
    began = time.process_time()
    try:
        template_of(template)
    except ValueError:  # refused when the job is planned
        assert "10**9" in template
    else:
        table = table_of((record, {**record, "t": "other"}), raw=pa.binary(16))
        texts, errors = render_texts(template, table, {})
        if "round(" not in template:
            assert set(errors) == {0, 1}
        assert all(why.startswith("the template fails: ") for why in errors.values())
        assert all(len(text or "") <= MAX_WORK for text in texts.to_pylist())
    assert time.process_time() - began < 4


def test_the_texts_of_a_chunk_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_CHUNK >= 64 * MAX_WORK
    monkeypatch.setattr("batchinfer.template.MAX_CHUNK", 10)
    errors = failures("{{ t }}", *({"t": "abc"} for _ in range(5)))
    assert set(errors) == {3, 4} and "more than" in errors[3]


def test_nothing_of_the_process_is_in_reach() -> None:
    for template in (
        "{{ t.__class__.__mro__ }}",
        "{{ row.__init__.__globals__ }}{{ t }}",
        "{{ ''.__class__.__base__.__subclasses__() }}{{ t }}",
        "{{ t | attr('__class__') }}",
        "{{ [t] | map(attribute='__class__') | first }}",
        "{{ self.__init__ }}{{ t }}",
        "{{ range.__self__ }}{{ t }}",
        "{{ '{0.__class__}'.format(t) }}",
    ):
        try:
            errors = failures(template, {"t": "text"})
        except ValueError as error:
            assert "attr" in str(error) or "is no column here" in str(error)
        else:
            assert set(errors) == {0}, template


# -- beside a run -----------------------------------------------------------------------------------


def test_probes_render_no_text_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = [
        {"t": f"EVIL{i}" * 3, "tags": ["EVIL"] * 2, "who": {"name": "EVIL", "n": 5}, "n": 7}
        for i in range(20)
    ]
    source = write_jsonl(tmp_path / "in.jsonl", evil)
    template = "{{ t }}|{% for x in tags %}{{ x }}{% endfor %}|{{ who.name }}{{ who.n }}|{{ n }}"
    plan, _ = make_plan(config(source, tmp_path / "out", template=template))
    engine = FakeEngine(create_task(plan.model, plan.config, plan.input_schema))
    seen: list[str] = []
    texts_of = type(engine.task).texts

    def spy(task: Any, chunk: Chunk) -> Any:
        texts, errors = texts_of(task, chunk)
        seen.extend(texts.to_pylist())
        return texts, errors

    monkeypatch.setattr(type(engine.task), "texts", spy)
    assert len(controller._harmless(plan, None, engine)) == 20
    assert seen[20:] == seen[:20]  # the first rows say how many are needed
    assert not any("EVIL" in text for text in seen)
    expected = [f"{row['t']}|EVILEVIL|EVIL5|7" for row in evil]
    assert [len(text) for text in seen[:20]] == [len(text) for text in expected]


def test_tune_samples_what_a_template_needs(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows())
    plan, _ = make_plan(config(source, tmp_path / "out", template="{{ n }} {{ tags | join }}"))
    chunk = sample_rows(plan, 10)
    assert chunk.table.column_names == ["n", "tags"]
    task = create_task(plan.model, plan.config, plan.input_schema)
    assert task.texts(chunk)[0].to_pylist()[:3] == ["0 ", "1 x", "2 xx"]


def test_the_plan_says_the_template(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows())
    run(config(source, tmp_path / "out", template="{{ n }}"))
    plan = json.loads((tmp_path / "out" / "_batchinfer" / "plan.json").read_text())
    assert plan["config"]["template"] == "{{ n }}"
