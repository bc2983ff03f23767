"""A table through any module gives what the module gives, in its types; what it cannot take is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from typer.testing import CliRunner

from batchinfer import RunConfig, audit, infer, planning, resume, run
from batchinfer.core import TensorSpec
from batchinfer.engines import programs
from batchinfer.engines.bound import Bound
from batchinfer.errors import JobMismatchError, ModelError, UsageError
from batchinfer.options import options_of
from batchinfer.plan import Plan
from batchinfer.planning import make_plan
from batchinfer.reporting.status import read_status
from batchinfer.tuning.tune import tune
from batchinfer.verification import verify
from tests.conftest import ROOT, Cli, read_output, shard_bytes
from tests.engines import factories
from tests.engines.factories import Gives, Risk
from tests.engines.made import make_model
from tests.test_run import run_partly
from tests.test_safety import forge_as_its_own, plan_of

FACTORIES = "tests.engines.factories"
FEATURES = ("age", "income", "debt", "late")
ROWS = 300
#: A batch of another size is computed by other kernels: the last bits of float32 differ.
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}

Exported = Callable[..., Path]


def loans(rows: int = ROWS) -> pa.Table:
    """Columns of several types of numbers, no two rows alike."""
    draw = np.random.default_rng(3)
    return pa.table(
        {
            "id": np.arange(rows),
            "age": draw.integers(-3, 4, rows).astype(np.int32),
            "income": draw.standard_normal(rows),
            "debt": draw.standard_normal(rows).astype(np.float32),
            "late": draw.integers(0, 2, rows).astype(bool),
            "region": draw.integers(0, 4, rows),
            "name": [f"n{'o' * (i % 7)}" for i in range(rows)],
            "emb": list(draw.standard_normal((rows, 4))),
        }
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "loans.parquet"
    pq.write_table(loans(), path, row_group_size=70)
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export a module, or hand out the file that an earlier test made: by default for any batch."""
    folder, made = tmp_path_factory.mktemp("exported"), set[str]()

    def export(
        name: str, module: torch.nn.Module, *example: torch.Tensor, rows: Any = "any"
    ) -> Path:
        path = folder / f"{name}.pt2"
        if name not in made:
            example = example or (torch.zeros(8, 4),)
            size = torch.export.Dim("rows") if rows == "any" else rows
            shapes = tuple({0: size} for _ in example) if size else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(module.eval(), example, dynamic_shapes=shapes)
                torch.export.save(program, path)
            made.add(name)
        return path

    return export


@pytest.fixture(autouse=True)
def quiet_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads, "an engine gives threads back"


def job(source: Path, model: Path | str, /, **settings: Any) -> RunConfig:
    defaults: dict[str, Any] = {
        "inputs": (str(source),),
        "output": str(source.parent / "out"),
        "model": str(model) if isinstance(model, Path) else f"{FACTORIES}:{model}",
        "features": FEATURES,
        "chunk_rows": 64,
        "max_batch_rows": 17,
        "trust_remote_code": isinstance(model, Path),
        "device": "cpu",
    }
    return RunConfig(**{**defaults, **settings})


def answer(source: Path, model: Path | str, /, **settings: Any) -> pa.Table:
    run(job(source, model, **settings))
    return read_output(source.parent / "out")


def stacked(table: pa.Table, names: tuple[str, ...] = FEATURES) -> torch.Tensor:
    columns = [table[name].to_numpy(zero_copy_only=False).astype(np.float32) for name in names]
    return torch.from_numpy(np.stack(columns, axis=1))


def bare(module: torch.nn.Module, *inputs: Any) -> Any:
    with torch.inference_mode():
        return module.eval()(*inputs)


def values(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    return np.array(column.to_pylist())


def errors_of(table: pa.Table) -> dict[int, str]:
    return {i: why for i, why in enumerate(table["_error"].to_pylist()) if why is not None}


# -- what comes out --------------------------------------------------------------------------------

LIST3 = pa.list_(pa.float32(), 3)
KINDS: dict[str, dict[str, Any]] = {
    "rows": {"prediction": pa.float32()},
    "rows x 1": {"prediction": pa.float32()},
    "rows x 3": {"prediction": LIST3},
    "rows x 3 x 2": {"prediction": pa.list_(pa.list_(pa.float32(), 2), 3)},
    "integers": {"prediction": pa.int64()},
    "truth": {"prediction": pa.bool_()},
    "half": {"prediction": pa.float32()},
    "double": {"prediction": pa.float64()},
    "dict": {"score": pa.float32(), "grade": pa.int64(), "all": LIST3},
    "tuple": {"prediction_0": pa.float32(), "prediction_1": LIST3},
    "named": {"low": pa.float32(), "high": pa.float32()},
}
EXPORTED_KINDS = sorted(KINDS.keys() - {"named"})


def expected_of(how: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
    found = bare(Gives(how), x)
    if how == "named":
        return {"low": found.low, "high": found.high}
    if how == "tuple":
        return {"prediction_0": found[0], "prediction_1": found[1]}
    return found if isinstance(found, dict) else {"prediction": found}


def assert_answers(table: pa.Table, how: str, x: torch.Tensor) -> None:
    for name, kind in KINDS[how].items():
        assert table.schema.field(name).type == kind
        expected = expected_of(how, x)[name].float().reshape(table.num_rows, -1).numpy()
        if kind not in (pa.int64(), pa.bool_()):
            assert len(np.unique(expected[:, 0])) > 0.9 * min(len(x), 100), (
                "a swap of rows would show"
            )
        found = values(table[name]).reshape(table.num_rows, -1)
        tolerance = {"rtol": 0.02, "atol": 1e-4} if how == "half" else CLOSE  # of bfloat16
        np.testing.assert_allclose(found, expected, **tolerance)


@pytest.mark.parametrize("how", EXPORTED_KINDS)
def test_answers_of_an_exported_program_are_its_own(
    how: str, exported: Exported, source: Path
) -> None:
    table = answer(source, exported(how.replace(" ", ""), Gives(how)))
    assert_answers(table, how, stacked(loans()))
    assert table["id"].to_pylist() == list(range(ROWS)) and not errors_of(table)
    assert table.schema.field("age").type == pa.int32(), "input columns come through"
    assert set(table["_num_tokens"].to_pylist()) == {1}


@pytest.mark.parametrize("how", sorted(KINDS))
def test_answers_of_a_factory_are_its_own(
    how: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factories, "made", lambda: Gives(how), raising=False)
    assert_answers(answer(source, "made"), how, stacked(loans()))


def test_a_swap_of_two_rows_fails_the_comparison(source: Path) -> None:
    table, x = answer(source, "make_risk"), stacked(loans())
    order = np.arange(ROWS)
    order[[3, 200]] = [200, 3]
    np.testing.assert_allclose(values(table["prediction"]), bare(Risk(), x)[:, 0], **CLOSE)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            values(table.take(order)["prediction"]), bare(Risk(), x)[:, 0], **CLOSE
        )


@pytest.mark.parametrize("model", ["Risk", "READY", "make_risk"])
def test_a_class_an_instance_and_a_function_are_factories(model: str, source: Path) -> None:
    found = values(answer(source, model)["prediction"])
    np.testing.assert_allclose(found, bare(Risk(), stacked(loans()))[:, 0], **CLOSE)


def test_the_answer_to_a_single_row_is_no_other(source: Path, tmp_path: Path) -> None:
    """One row left over at the end of a chunk, where the module drops the axis of rows."""
    pq.write_table(loans(65), tmp_path / "few.parquet")
    squeezed = pytest.MonkeyPatch()
    with squeezed.context() as patch:
        patch.setattr(factories, "made", lambda: Gives("squeezed"), raising=False)
        table = answer(tmp_path / "few.parquet", "made", max_batch_rows=16)
    found = values(table["prediction"])
    np.testing.assert_allclose(found, bare(Gives("rows"), stacked(loans(65))), **CLOSE)


def test_columns_that_are_there_already_need_a_prefix(exported: Exported, source: Path) -> None:
    model = exported("dict", Gives("dict"))
    table = pq.read_table(source).append_column("score", pa.array([1] * ROWS))
    pq.write_table(table, source)
    with pytest.raises(UsageError, match="'score' is there already.*--output-prefix"):
        run(job(source, model))
    assert "new_score" in answer(source, model, output_prefix="new_").column_names


# -- what goes in ----------------------------------------------------------------------------------


def test_lists_of_numbers_are_one_tensor(exported: Exported, source: Path) -> None:
    emb = torch.tensor(loans()["emb"].to_pylist(), dtype=torch.float32)
    both = torch.cat([emb, stacked(loans(), ("debt",))], dim=1)
    module = Risk(columns=5)
    model = exported("five", module, torch.zeros(8, 5))
    found = values(answer(source, model, features=("emb", "debt"))["prediction"])
    np.testing.assert_allclose(found, bare(module, both)[:, 0], **CLOSE)


def test_inputs_of_their_own_are_found_by_name_or_in_order(source: Path, tmp_path: Path) -> None:
    table = loans()
    expected = table["income"].to_numpy() + 1000.0 * table["region"].to_numpy()
    names = {"region": ("region", "income"), "x": ("x", "region")}
    for output, features in names.items():
        renamed = table.rename_columns(["x" if n == "income" and output == "x" else n
                                        for n in table.column_names])  # fmt: skip
        pq.write_table(renamed, source)
        run(job(source, "Several", features=features, output=str(tmp_path / output)))
        found = values(read_output(tmp_path / output)["prediction"])
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_input_with_a_default_is_taken_where_a_column_has_its_name(source: Path) -> None:
    table = loans().append_column("scale", pa.array(np.full(ROWS, 2.0)))
    pq.write_table(table, source)
    found = values(answer(source, "Several", features=("income", "region", "scale"))["prediction"])
    expected = 2 * (table["income"].to_numpy() + 1000.0 * table["region"].to_numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_any_number_of_inputs_come_in_order(source: Path) -> None:
    table = loans()
    found = values(answer(source, "Wide", features=("debt", "income", "age"))["prediction"])
    debt, income, age = (table[n].to_numpy() for n in ("debt", "income", "age"))
    np.testing.assert_allclose(found, debt + 2 * income + 3 * age, **CLOSE)


def test_a_factory_may_take_texts(source: Path) -> None:
    table = loans()
    found = values(answer(source, "Texts", features=("income", "name"))["prediction"])
    sizes = [len(name) for name in table["name"].to_pylist()]
    np.testing.assert_allclose(found, table["income"].to_numpy() + sizes, **CLOSE)


class Typed(torch.nn.Module):
    def forward(self, region: torch.Tensor, income: torch.Tensor) -> torch.Tensor:
        return region + income


def test_an_exported_program_gets_the_types_that_it_was_exported_with(
    exported: Exported, source: Path
) -> None:
    example = torch.zeros(8, dtype=torch.int64), torch.zeros(8, 1, dtype=torch.float64)
    model = exported("typed", Typed(), example[0], example[1][:, 0])
    large = 2**53 + 1 + np.arange(ROWS)
    income = np.where(np.arange(ROWS) % 2, 2.0, 3.0)
    pq.write_table(pa.table({"region": large, "income": income}), source)
    found = values(answer(source, model, features=("income", "region"))["prediction"])
    np.testing.assert_array_equal(found, large.astype(np.float64) + income)
    assert len(set(found)) > ROWS / 2, "float32 would make few numbers of these"


class Apart(torch.nn.Module):
    def forward(self, income: torch.Tensor, *, age: torch.Tensor) -> torch.Tensor:
        return 10 * income[:, 0] + age


class Packed(torch.nn.Module):
    def forward(self, columns: dict[str, torch.Tensor]) -> torch.Tensor:
        return columns["age"] + columns["income"]


def test_an_exported_program_may_take_a_column_as_a_matrix_and_one_by_its_name(
    source: Path, tmp_path: Path
) -> None:
    rows = torch.export.Dim("rows")
    example, named = (torch.zeros(8, 1),), {"age": torch.zeros(8, dtype=torch.int64)}
    shapes = {"income": {0: rows}, "age": {0: rows}}
    program = torch.export.export(Apart(), example, named, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "apart.pt2")
    found = values(answer(source, tmp_path / "apart.pt2", features=("age", "income"))["prediction"])
    table = loans()
    expected = 10 * table["income"].to_numpy() + table["age"].to_numpy()
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_tensors_in_a_dict_are_no_columns(source: Path, tmp_path: Path) -> None:
    example = ({"age": torch.zeros(8), "income": torch.zeros(8)},)
    torch.export.save(torch.export.export(Packed(), example), tmp_path / "packed.pt2")
    with pytest.raises(ModelError, match=r"packed\.pt2 takes tensors in a list, tuple or dict"):
        run(job(source, tmp_path / "packed.pt2"))


def test_a_double_module_stays_one(source: Path) -> None:
    table = answer(source, "Double")
    assert table.schema.field("prediction").type == pa.float64()
    x = stacked(loans()).double()
    x[:, 1] = torch.tensor(loans()["income"].to_pylist(), dtype=torch.float64)
    expected = bare(factories.Double(), x)[:, 0]
    np.testing.assert_allclose(values(table["prediction"]), expected, rtol=1e-12)


@pytest.mark.parametrize("model", ["make_risk", "READY"])
def test_a_lower_precision_is_asked_for(model: str, source: Path) -> None:
    found = values(answer(source, model, dtype="bfloat16")["prediction"])
    expected = bare(Risk(), stacked(loans()))[:, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert np.abs(found - expected).max() > 1e-4, "it was computed in bfloat16"


@pytest.mark.parametrize("rows", [None, torch.export.Dim("few", min=4, max=32)])
def test_batches_are_of_a_size_that_the_program_takes(
    rows: Any, exported: Exported, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "static" if rows is None else "bounded"
    example = torch.zeros(8, 4)
    found = answer(source, exported(name, Risk(), example, rows=rows), max_batch_rows=50)
    expected = bare(Risk(), stacked(loans()))[:, 0]
    np.testing.assert_allclose(values(found["prediction"]), expected, **CLOSE)
    assert f"at most {8 if rows is None else 32} rows" in caplog.text
    assert 'torch.export.Dim("rows")' in caplog.text


@pytest.mark.parametrize(("rows", "asked"), [(50, 8), (3, 8), (8, 8), (9, 32)])
def test_a_batch_is_cut_and_filled_up_to_what_the_program_takes(
    rows: int, asked: int, exported: Exported
) -> None:
    sizes = None if asked == 8 else torch.export.Dim("few", min=4, max=32)
    path = exported("static" if asked == 8 else "bounded", Risk(), torch.zeros(8, 4), rows=sizes)
    columns = [TensorSpec(name, "float32") for name in FEATURES]
    bound = Bound(programs.load_program(path, torch.device("cpu")), columns)
    x = stacked(loans())[:rows]
    with torch.inference_mode():
        found = bound({"features": x})["prediction"]
    np.testing.assert_allclose(found, bare(Risk(), x), **CLOSE)


# -- rows that cannot be answered -------------------------------------------------------------------


def test_a_row_without_a_number_is_an_error_that_names_the_column(tmp_path: Path) -> None:
    path = tmp_path / "loans.jsonl"
    good = {"age": 1, "income": 2.5, "debt": -1.0, "late": 0}
    rows = [
        good,
        {**good, "income": None},
        {**good, "age": "old"},
        good,
        {"age": 1},
        {**good, "debt": [1]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [good] * 30 + rows))
    kinds = dict.fromkeys(FEATURES, "float64") | {"age": "int64"}
    table = answer(path, "make_risk", types=kinds)
    found = errors_of(table)
    assert found.keys() == {31, 32, 34, 35}
    assert found[31] == "line 32: column 'income' is null or missing"
    assert found[32] == "line 33: column 'age' holds a string, not a value of type int64"
    assert found[35] == "line 36: column 'debt' holds an array, not a value of type double"
    expected = bare(Risk(), torch.tensor([[1, 2.5, -1.0, 0]]))[0, 0]
    for row, value in enumerate(table["prediction"].to_pylist()):
        assert value is None if row in found else value == pytest.approx(float(expected), rel=1e-5)


def test_what_a_type_cannot_hold_is_an_error_that_says_so(exported: Exported, source: Path) -> None:
    model = exported("typed32", Typed(), torch.zeros(8, dtype=torch.int32), torch.zeros(8))
    region: list[Any] = [1.0, 2.5, 3e10, float("nan"), -1.0, float("inf")]
    income = [1.0, 1.0, 1.0, 1.0, 1e300, float("inf")]
    pq.write_table(pa.table({"region": region, "income": income}), source)
    table = answer(source, model, features=("region", "income"))
    found = errors_of(table)
    assert found[1] == "column 'region' holds 2.5, and the model takes int32"
    assert found.keys() == {1, 2, 3, 4, 5}
    assert "'income' holds 1e+300, and the model takes float32" in found[4]
    assert table["prediction"].to_pylist() == [2.0, None, None, None, None, None]


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float32())], ids=str)
def test_lists_of_another_length_or_with_a_null_are_errors(kind: Any, source: Path) -> None:
    lists: list[Any] = [[1.0, 2.0, 3.0, 4.0]] * 9 + [[1.0], None, [1.0, None, 3.0, 4.0], []]
    pq.write_table(pa.table({"emb": pa.array(lists, kind)}), source)
    assert errors_of(answer(source, "make_risk", features=("emb",))) == {
        9: "column 'emb' holds a list of 1 numbers, not of 4",
        10: "row 10: column 'emb' is null or missing",
        11: "a number in the list of column 'emb' is null",
        12: "column 'emb' holds a list of 0 numbers, not of 4",
    }


def test_lists_of_a_fixed_size_may_be_null_and_hold_nulls(source: Path) -> None:
    lists: list[Any] = [[1.0, 2.0, 3.0, 4.0], None, [1.0, None, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]]
    kind: Any = pa.list_(pa.float32(), 4)
    pq.write_table(pa.table({"emb": pa.array(lists, kind)}), source)
    table = answer(source, "make_risk", features=("emb",))
    assert errors_of(table).keys() == {1, 2}
    expected = bare(Risk(), torch.tensor([lists[0], lists[3]]))[:, 0]
    found = table["prediction"].to_pylist()
    np.testing.assert_allclose([found[0], found[3]], expected, **CLOSE)


def test_large_and_odd_numbers_are_what_they_are_or_errors(source: Path) -> None:
    decimals = pa.array([1, 2, 3], pa.decimal128(12, 2))
    region = pa.array([3, 2**63 + 5, 1], pa.uint64())
    pq.write_table(pa.table({"income": decimals, "region": region}), source)
    table = answer(source, "Several", features=("income", "region"))
    assert errors_of(table) == {1: f"column 'region' holds {2**63 + 5}, and the model takes int64"}
    assert table["prediction"].to_pylist() == [3001.0, None, 1003.0]


def test_nan_is_the_modules_affair_and_an_answer_of_nan_is_none(source: Path) -> None:
    x, y = [1.0, float("nan"), 0.0, 4.0], [1.0, 1.0, 1.0, float("nan")]
    pq.write_table(pa.table({"x": x, "y": y}), source)
    table = answer(source, "Inverse", features=("x", "y"))
    assert table["prediction"].to_pylist() == [1.0, 0.5, None, None]
    assert set(errors_of(table).values()) == {"the model's answer is NaN or infinite"}


def test_a_row_that_the_module_refuses_takes_no_neighbour_with_it_and_is_tried_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLOWED", str(tmp_path / "allowed"))
    table = loans().to_pandas().astype({"age": float})
    table.loc[[5, 6, 170], "age"] = 95.0
    table.to_parquet(source)
    first = answer(source, "Strict")
    assert errors_of(first) == dict.fromkeys((5, 6, 170), "ValueError: above 90")
    before = shard_bytes(tmp_path / "out")
    (tmp_path / "allowed").touch()
    report = resume(tmp_path / "out", retry_errors=True, trust_remote_code=True)
    assert (report.retried_rows, report.cured_rows, report.num_errors) == (3, 3, 0)
    x = stacked(pa.Table.from_pandas(table))
    found = values(read_output(tmp_path / "out")["prediction"])
    np.testing.assert_allclose(found, bare(Risk(), x)[:, 0], **CLOSE)
    after = shard_bytes(tmp_path / "out")
    assert [name for name in before if before[name] != after[name] and name != "_SUCCESS"] == [
        "part-000000-000000.parquet",
        "part-000000-000002.parquet",
    ]


def test_csv_is_read_as_numbers_where_the_schema_says_so(tmp_path: Path) -> None:
    path = tmp_path / "loans.csv"
    path.write_text("age,income,debt,late\n1,2.5,-1,0\n1,,-1,0\nx,2.5,-1,0\n")
    with pytest.raises(UsageError, match="'age' holds text.*--schema age=float64"):
        run(job(path, "make_risk"))
    table = answer(path, "make_risk", types=dict.fromkeys(FEATURES, "float64"))
    assert errors_of(table) == {
        1: "line 3: column 'income' is null or missing",
        2: "line 4: column 'age' holds a string, not a value of type double",
    }


# -- what is refused before a row is read ----------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a column that is not there": (
        "make_risk", {"features": ("agee", "income")}, "no column 'agee'.*did you mean --features age",
    ),
    "no columns": ("make_risk", {"features": ()}, "--task module needs --features.*has: id, age"),
    "a column twice": ("make_risk", {"features": ("age", "age")}, "'age' stands twice"),
    "texts in a tensor": (
        "make_risk", {"features": ("age", "name")}, "'name' holds text.*--schema name=float64",
    ),
    "too few columns": ("Several", {"features": ("income",)}, "takes 2 inputs.*income, region"),
    "too many columns": (
        "Several", {"features": ("age", "id", "debt")}, "takes 2 inputs.*names 3 columns",
    ),
    "columns of another number": ("make_risk", {"features": ("age",)}, "fails on rows of zeros"),
    "no such attribute": ("make_rsk", {}, "has no 'make_rsk'.*did you mean 'make_risk'"),
    "a number": ("NUMBER", {}, "gives a int, not an nn.Module"),
    "a factory of numbers": ("make_nothing", {}, "gives a int, not an nn.Module"),
    "a factory that fails": ("raises", {}, "cannot be made: no such file: weights.pt"),
    "weights by chance": ("make_any", {}, "must make the same weights at each call"),
    "attention": ("make_risk", {"attention": "sdpa"}, "--attention sdpa: means nothing"),
    "a length": ("make_risk", {"max_length": 5}, "--max-length 5: means nothing"),
    "a text column": ("make_risk", {"text_column": "name"}, "--text-column: means nothing"),
    "an engine": ("make_risk", {"engine": "openvino"}, "--engine openvino is of transformers"),
    "labels": ("make_risk", {"labels": ("a",)}, "--labels: means nothing to --task module"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_does_not_fit_is_one_line(case: str, source: Path) -> None:
    model, settings, says = REFUSED[case]
    with pytest.raises((UsageError, ModelError), match=says) as error:
        run(job(source, model, **settings))
    assert "\n" not in str(error.value)
    assert not (source.parent / "out" / "_batchinfer" / "plan.json").exists()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("no.such.place:make", "no module 'no' in .* PYTHONPATH"),
        ("tests.engines.nothing:make", "no module 'tests.engines.nothing'"),
        ("missing.pt2", "missing.pt2: no such file"),
        ("org/name", "takes an exported program .* or package.module:factory"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(model: str, says: str, source: Path) -> None:
    with pytest.raises((UsageError, ModelError), match=says):
        run(job(source, "x", model=model, task="module"))


def test_an_exported_program_that_takes_something_else_is_one_line(
    exported: Exported, source: Path, tmp_path: Path
) -> None:
    model = exported("rows", Gives("rows"))
    with pytest.raises(UsageError, match=r"takes x: float32\[rows, 4\].*names 3 numbers a row"):
        run(job(source, model, features=FEATURES[:3]))
    with pytest.raises(UsageError, match="--dtype bfloat16: a .pt2 file computes as it"):
        run(job(source, model, dtype="bfloat16"))
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ModelError, match="broken.pt2: cannot be loaded as an exported program"):
        run(job(source, broken))


def test_features_mean_nothing_to_a_task_of_texts(source: Path) -> None:
    with pytest.raises(UsageError, match="--features: means nothing to --task classify"):
        run(job(source, "x", engine="fake", model="", task="classify", text_column="name"))


@pytest.mark.parametrize("task", ["classify", "auto"])
def test_features_that_are_not_there_mean_nothing_either(task: str, source: Path) -> None:
    settings = {"engine": "fake", "task": task, "features": ("nope",), "text_column": "name"}
    with pytest.raises(UsageError, match="--features: means nothing to --task classify"):
        run(job(source, "x", model="", **settings))
    with pytest.raises(UsageError, match="--features: means nothing to --task classify"):
        infer(["a"], "", engine="fake", task=task, features=("nope",))


def test_an_input_without_a_readable_record_has_rows_of_errors(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"age": 1\n{"age": 2\n')
    table = answer(tmp_path / "broken.jsonl", "make_risk")
    assert [*errors_of(table)] == [0, 1] and table["prediction"].null_count == 2
    with pytest.raises(UsageError, match="'age' stands twice"):
        run(job(tmp_path / "broken.jsonl", "make_risk", features=("age", "age")))


def test_features_are_named_with_commas_or_one_by_one() -> None:
    names = ("age", "net income", "debt")
    for given in ("age, net income,debt", names, list(names)):
        assert RunConfig.load({"features": given}, environ={}).features == names
    assert RunConfig.load({}, environ={"BATCHINFER_FEATURES": "age,debt"}).features == (
        "age",
        "debt",
    )


def test_a_name_in_a_list_may_have_commas(tmp_path: Path) -> None:
    names = ("Income, USD", "age")
    assert RunConfig(features=names).features == names
    (tmp_path / "job.yaml").write_text('features: ["Income, USD", age]')
    job = RunConfig.load({}, tmp_path / "job.yaml", {})
    assert job.features == RunConfig.model_validate(job.model_dump(mode="json")).features == names
    (tmp_path / "job.yaml").write_text("features: income, age")
    assert RunConfig.load({}, tmp_path / "job.yaml", {}).features == ("income", "age")


def test_flags_that_name_features_are_separated_by_commas_too() -> None:
    given: list[dict[str, Any]] = []
    app = typer.Typer()

    @app.command()
    @options_of(("features", "labels"))
    def command(*, flags: dict[str, Any]) -> None:
        given.append(flags)

    arguments = ["--features", "age, net income", "--features", "debt", "--labels", "a,b"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, []).exit_code == 0
    job = RunConfig.load(given[0], environ={})
    assert (job.features, job.labels) == (("age", "net income", "debt"), ("a,b",))
    assert given[1] == {}


# -- what a module is, and what may be run ---------------------------------------------------------


def test_rows_that_depend_on_each_other_are_told(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(job(source, "make_risk", output=str(source.parent / "independent")))
    assert "depends on the rows beside it" not in caplog.text
    run(job(source, "Centred"))
    assert "Centred: a row's answer depends on the rows beside it" in caplog.text
    run(job(source, "Standardised", output=str(source.parent / "standardised")))
    assert "Standardised: a row's answer depends on the rows beside it" in caplog.text
    assert "'prediction' is a number one time, and NaN or infinite the other" in caplog.text


@pytest.mark.parametrize("kind", ["program", "factory"])
def test_a_stopped_run_goes_on_with_the_same_weights_alone(
    kind: str, exported: Exported, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model: Path | str = "make_risk"
    if kind == "program":
        model = tmp_path / "own.pt2"
        model.write_bytes(exported("risk", Risk()).read_bytes())
    run(job(source, model, output=str(tmp_path / "whole")))
    run_partly(job(source, model), 100)
    with pytest.raises(UsageError, match="Python code of .*--trust-remote-code"):
        resume(tmp_path / "out")
    if isinstance(model, Path):
        model.write_bytes(exported("other", Risk(seed=1)).read_bytes())
    else:
        monkeypatch.setattr(factories, "make_risk", factories.make_other)
    with pytest.raises(JobMismatchError, match="the code or the weights of .* differ"):
        resume(tmp_path / "out", trust_remote_code=True)
    if isinstance(model, Path):
        model.write_bytes(exported("risk", Risk()).read_bytes())
    else:
        monkeypatch.undo()
    report = resume(tmp_path / "out", trust_remote_code=True)
    assert (report.finished, report.num_rows) == (True, ROWS) and report.new_rows < ROWS
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")
    assert verify(str(tmp_path / "out")).exit_code == 0
    read_status(str(tmp_path / "out"))


def test_two_factories_of_a_file_are_two_jobs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they make modules of one class and the same weights."""
    for name in ("low", "high"):
        monkeypatch.setattr(factories, name, lambda: Gives("rows"), raising=False)
    run(job(source, "low"))
    with pytest.raises(
        JobMismatchError, match=f"the module differs .*low then, {FACTORIES}:high now"
    ):
        run(job(source, "high"))
    run_partly(job(source, "low", output=str(tmp_path / "begun")), 100)
    with pytest.raises(JobMismatchError, match="the module differs"):
        run(job(source, "high", output=str(tmp_path / "begun")), resume=True)
    run(job(source, "low", output=str(tmp_path / "begun")), resume=True)


CODE = {
    "scoring/__init__.py": "",
    "scoring/bases.py": "import torch\nclass Base(torch.nn.Module):\n    scale = 1\n",
    "scoring/layers.py": (
        "from scoring.bases import Base\n"
        "class Sum(Base):\n    def forward(self, x):\n        return x.sum(dim=1)\n"
    ),
    "scoring/risk.py": (
        "import torch\nfrom scoring.layers import Sum\nfrom library.layers import Same\n"
        "def make():\n    return torch.nn.Sequential(Same(), Sum())\n"
    ),
    "site-packages/library/__init__.py": "",
    "site-packages/library/layers.py": "import torch\nclass Same(torch.nn.Identity):\n    pass\n",
}


def test_the_code_of_parts_and_bases_is_a_modules_code(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is not that of another package that is installed."""
    for name, text in CODE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "site-packages", tmp_path):
        monkeypatch.syspath_prepend(str(place))

    def identity() -> str:
        for name in [n for n in sys.modules if n.partition(".")[0] in ("scoring", "library")]:
            monkeypatch.delitem(sys.modules, name)
        return make_plan(job(source, "x", model="scoring.risk:make"))[0].model.identity

    found, own = identity(), ("risk", "layers", "bases")
    for path in (tmp_path / "scoring" / f"{name}.py" for name in own):
        text = path.read_text()
        path.write_text(text + "# other code, of another length\n")
        assert identity() != found, path.name
        path.write_text(text)
    assert identity() == found
    library = tmp_path / "site-packages" / "library"
    (library / "layers.py").write_text(CODE["site-packages/library/layers.py"] + "# 1.1\n")
    assert identity() == found
    shutil.copytree(tmp_path / "scoring", tmp_path / "site-packages" / "scoring")
    shutil.rmtree(tmp_path / "scoring")
    assert identity() == found, "the same code, installed"
    path = tmp_path / "site-packages" / "scoring" / "layers.py"
    path.write_text(path.read_text() + "# other code, of another length\n")
    assert identity() != found


def test_a_folder_of_another_kind_of_job_says_so(source: Path, tmp_path: Path) -> None:
    """A module where a model is asked for, and the other way round."""
    model = str(make_model(tmp_path / "bert", "bert", "ForSequenceClassification", num_labels=3))
    modules, texts = str(tmp_path / "modules"), str(tmp_path / "texts")
    text: dict[str, Any] = {"model": model, "features": (), "text_column": "name"}
    run(job(source, "make_risk", output=modules, chunk_rows=None))
    run(job(source, "x", output=texts, **text, limit=5))
    says = "holds another job: task was {}, now {};"
    with pytest.raises(JobMismatchError, match=says.format("module", "classify")):
        run(job(source, "x", output=modules, **text))
    with pytest.raises(JobMismatchError, match=says.format("module", "embed")):
        run(job(source, "x", output=modules, **text, task="embed"))
    with pytest.raises(JobMismatchError, match=says.format("classify", "module")):
        run(job(source, "make_risk", output=texts, chunk_rows=None))
    run(job(source, "make_risk", output=modules, chunk_rows=None))
    rehearsal = job(
        source, "x", output=str(tmp_path / "fake"), model="", engine="fake", task="module"
    )
    run(rehearsal)
    run(rehearsal.model_copy(update={"task": "auto", "engine": "auto"}))


def test_a_plan_survives_its_own_json(exported: Exported, source: Path) -> None:
    plan, _ = make_plan(job(source, exported("dict", Gives("dict"))))
    again = Plan.from_json(plan.to_json(), "plan.json")
    assert (again.model, again.id) == (plan.model, plan.id)
    assert [one.name for one in again.model.outputs] == ["score", "grade", "all"]


def test_a_run_folder_cannot_make_anyone_import_its_code(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "the-code-ran"
    (tmp_path / "evil_risk.py").write_text(
        f"import pathlib, torch\npathlib.Path({str(mark)!r}).touch()\nmake = torch.nn.Identity\n"
    )
    monkeypatch.chdir(tmp_path)
    run_partly(job(source, "x", engine="fake", model="", task="module"), 100)
    document = plan_of(tmp_path / "out")
    document["config"] |= {"engine": "local", "model": "evil_risk:make"}
    forge_as_its_own(tmp_path / "out", document)
    for consents in ({}, {"allow_pickle": True}):
        with pytest.raises(UsageError, match="evil_risk:make.*--trust-remote-code"):
            resume(tmp_path / "out", **consents)
    verify(str(tmp_path / "out"))
    read_status(str(tmp_path / "out"))
    assert not mark.exists()
    with pytest.raises(JobMismatchError):
        resume(tmp_path / "out", trust_remote_code=True)
    assert mark.exists(), "this plan does name code that runs"


def test_an_exported_program_is_not_opened_without_consent(
    exported: Exported, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "load", lambda path: pytest.fail("it was opened"))
    with pytest.raises(ModelError, match="an exported program is code.*--trust-remote-code"):
        run(job(source, exported("rows", Gives("rows")), trust_remote_code=False))


# -- the other ways to run it -----------------------------------------------------------------------


def test_streams_answer_as_one_does(exported: Exported, source: Path, tmp_path: Path) -> None:
    model = exported("risk", Risk())
    for streams in (1, 3):
        run(
            job(
                source, model, threads=streams, streams=streams, output=str(tmp_path / str(streams))
            )
        )
    assert shard_bytes(tmp_path / "1") == shard_bytes(tmp_path / "3")


def test_a_watched_process_answers_alike(source: Path, tmp_path: Path) -> None:
    watched = str(tmp_path / "watched")
    run(job(source, "make_risk", threads=1, batch_timeout=100.0, output=watched))
    run(job(source, "make_risk", threads=1))
    assert shard_bytes(tmp_path / "watched") == shard_bytes(tmp_path / "out")


def test_a_row_that_kills_the_process_is_found_by_resume(
    source: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "poison.py").write_text(
        "import os, signal, torch\n"
        "class Poison(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        if (x[:, 0] > 90).any():\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return x.sum(dim=1)\n"
    )
    table = loans(12).to_pandas().astype({"age": float})
    table.loc[6, "age"] = 99.0
    table.to_parquet(source)
    begun = cli(
        "run", source.name, "--model", "poison:Poison", "--features", ",".join(FEATURES),
        "--output", "out", "--chunk-rows", "4", "--max-batch-rows", "2", "--device", "cpu",
    )  # fmt: skip
    assert begun.returncode == -9, begun.stderr
    refused = cli("resume", "out")
    assert refused.returncode == 2 and "--trust-remote-code" in refused.stderr
    done = cli("resume", "out", "--trust-remote-code", "--max-errors", "1")
    assert done.returncode == 0, done.stderr
    found = read_output(tmp_path / "out")
    assert list(errors_of(found)) == [6] and "SIGKILL" in errors_of(found)[6]
    expected = stacked(pa.Table.from_pandas(table)).sum(dim=1).numpy()
    others = np.arange(12) != 6
    np.testing.assert_allclose(
        values(found["prediction"])[others].astype(np.float32), expected[others], **CLOSE
    )


def test_a_compiled_module_answers_as_before_or_is_refused(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def compiled(module: Any, dynamic: bool) -> Any:
        asked.append(dynamic)
        return lambda x: module(x) + shift

    monkeypatch.setattr(torch, "compile", compiled)
    shift = 0.0
    found = values(answer(source, "make_risk", compile=True)["prediction"])
    np.testing.assert_allclose(found, bare(Risk(), stacked(loans()))[:, 0], **CLOSE)
    shift = 1.0
    with pytest.raises(UsageError, match="--compile: .*'prediction' differs"):
        run(job(source, "make_risk", compile=True, output=str(source.parent / "shifted")))
    shift = float("nan")
    with pytest.raises(UsageError, match="--compile: .*'prediction' is a number one time"):
        run(job(source, "make_risk", compile=True, output=str(source.parent / "nowhere")))
    assert asked == [True, True, True]


def test_a_rehearsal_without_the_model_depends_on_every_number(source: Path) -> None:
    table = answer(source, "x", engine="fake", model="", task="module",
                   features=("age", "income", "name", "emb"))  # fmt: skip
    found = table["prediction"].to_pylist()
    assert len(set(found)) == ROWS and not errors_of(table)


@pytest.mark.parametrize("kind", ["program", "factory", "lists", "rehearsal"])
def test_an_audit_asks_the_module_again(
    kind: str, exported: Exported, source: Path, tmp_path: Path
) -> None:
    settings = {
        "program": {},
        "factory": {"dtype": "bfloat16"},
        "lists": {"features": ("emb",)},
        "rehearsal": {"engine": "fake", "model": "", "task": "module"},
    }[kind]
    run(job(source, exported("risk", Risk()) if kind == "program" else "make_risk", **settings))
    limit = 0.1 if kind == "factory" else 1e-5
    found = audit(tmp_path / "out", sample=40, max_difference=limit, trust_remote_code=True)
    assert (found.num_rows, found.num_failed, found.exit_code) == (40, 0, 0)
    assert [column.column for column in found.columns] == ["prediction"]
    assert (found.columns[0].largest_difference > 1e-3) == (kind == "factory"), (
        "float32 beside bfloat16"
    )


def test_tune_finds_a_budget_in_rows(exported: Exported, source: Path) -> None:
    config = job(source, exported("risk", Risk()), output="", profile="none", max_batch_rows=None)
    report = tune(config, max_seconds=3.0)
    assert (report.profile.engine, report.profile.dtype) == ("local", "float32")
    assert report.lengths["max"] == 1 and report.num_rows >= ROWS
    assert report.chosen.agreement == pytest.approx(1.0, abs=1e-5)
    assert {trial.engine for trial in report.profile.trials} == {"local"}
    assert {trial.settings.attention for trial in report.profile.trials} == {None}


def test_data_in_memory_is_answered_alike(exported: Exported) -> None:
    frame = loans(50).to_pandas().drop(columns=["emb"])
    frame["income"] = frame["income"].where(frame.index != 7, np.nan)
    frame["late"] = frame["late"].astype(object).where(frame.index != 9, None)
    frame.index = pd.Index([f"row {i}" for i in range(50)])
    found = infer(
        frame, str(exported("risk", Risk())), features=list(FEATURES), trust_remote_code=True
    )
    assert found.index.equals(frame.index) and found["age"].equals(frame["age"])
    expected = bare(Risk(), stacked(loans(50)))[:, 0].numpy()
    good = ~np.isin(np.arange(50), [7, 9])
    np.testing.assert_allclose(found["prediction"].to_numpy()[good], expected[good], **CLOSE)
    assert found["_error"].iloc[7] == "the model's answer is NaN or infinite"
    assert found["_error"].iloc[9] == "column 'late' is null or missing"
    with pytest.raises(UsageError, match="no column 'x' in the DataFrame"):
        infer(frame, f"{FACTORIES}:make_risk", features=["x"])


def test_the_command_line_imports_from_the_current_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\nmake = torch.nn.Identity\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "batchinfer", "run", source.name, "-m", "mine:make",
         "--features", "age,income", "-o", "out", "--json"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["task"] == "module"
    assert read_output(tmp_path / "out").schema.field("prediction").type == pa.list_(
        pa.float32(), 2
    )


@pytest.mark.parametrize(
    ("task", "rows"),
    [("module", 65536), ("classify", 16384), ("generate", 1024), ("seq2seq", 1024)],
)
def test_chunks_are_as_large_as_a_tasks_rows_are_quick(task: str, rows: int) -> None:
    assert planning._chunk_rows(10.0, task) == rows
    assert planning._chunk_rows(float(32 << 20), task) == 1
