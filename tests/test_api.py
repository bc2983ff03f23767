"""infer(): texts in memory in, a DataFrame out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from batchinfer import infer
from batchinfer.errors import UsageError


def test_a_list_gives_a_row_each_in_order() -> None:
    texts = [f"text {i} " * (i % 5) for i in range(50)]
    frame = infer(texts, engine="fake", max_batch_tokens=32)
    assert frame["text"].tolist() == texts
    alone = [infer([text], engine="fake")["predicted_score"][0] for text in texts[:5]]
    assert frame["predicted_score"].tolist()[:5] == alone


def test_a_dataframe_keeps_its_columns_and_index() -> None:
    frame = pd.DataFrame({"x": [1, 2], "body": ["a", "b"]}, index=["r", "s"])
    answers = infer(frame, engine="fake", text_column="body")
    assert answers.index.tolist() == ["r", "s"]
    assert answers["x"].tolist() == [1, 2]
    assert answers.columns[:3].tolist() == ["x", "body", "predicted_label"]


def test_a_cell_without_text_is_an_error_of_its_row() -> None:
    answers = infer(["a", None, 3, "b"], engine="fake")  # type: ignore[list-item]
    assert answers["_error"].isna().tolist() == [True, False, False, True]
    assert "int" in answers["_error"][2]


def test_embeddings_come_as_lists() -> None:
    answers = infer(["a", "b"], engine="fake", task="embed")
    assert [len(vector) for vector in answers["embedding"]] == [8, 8]


def test_no_texts_give_no_rows() -> None:
    assert len(infer([], engine="fake")) == 0


def test_a_column_in_the_way_is_told() -> None:
    frame = pd.DataFrame({"text": ["a"], "predicted_label": ["x"]})
    with pytest.raises(UsageError, match="output_prefix"):
        infer(frame, engine="fake")
    assert "new_predicted_label" in infer(frame, engine="fake", output_prefix="new_").columns


def test_a_single_string_and_odd_settings_are_told() -> None:
    with pytest.raises(UsageError, match=r"infer\(\[text\]\)"):
        infer("abc", engine="fake")
    with pytest.raises(UsageError, match="no 'limit'"):
        infer(["a"], engine="fake", limit=1)
    with pytest.raises(UsageError, match="--max-length"):
        infer(["a"], engine="fake", max_length=0)


def test_half_a_surrogate_pair_is_an_error_of_its_row() -> None:
    assert infer(["a", "\ud800"], engine="fake")["_error"].isna().tolist() == [True, False]


def test_a_missing_column_is_told() -> None:
    with pytest.raises(UsageError, match="'text'.*it has: body"):
        infer(pd.DataFrame({"body": ["a"]}), engine="fake")


def test_a_column_may_hold_lists_where_the_task_takes_them() -> None:
    documents = [["a", "b c"], ("d",), np.array(["e", "f", "g"]), [], None, "text", ["h"]]
    frame = pd.DataFrame({"query": ["q"] * 7, "documents": documents}, index=list("tuvwxyz"))
    settings = {"task": "score", "text_column": "query", "text_pair_column": "documents"}
    found = infer(frame, engine="fake", **settings)
    assert [None if row is None else len(row) for row in found["scores"]] == [
        2,
        1,
        3,
        0,
        None,
        None,
        1,
    ]
    assert found.loc["x", "_error"] == "no text: column 'documents' holds NoneType"
    assert found.loc["y", "_error"] == "no text: column 'documents' holds str"
    assert found["documents"].tolist() is not documents and found.loc["t", "documents"] == [
        "a",
        "b c",
    ]
    words = infer([["Ada", "Lovelace"], ["met"]], engine="fake", task="token-classify")
    assert words["_error"].isna().all() and (words["_num_tokens"] > 0).all()


def test_lists_that_no_task_takes_are_told() -> None:
    with pytest.raises(UsageError, match="column 'text' holds list<.*>, not text: --task classify"):
        infer([["a"], ["b"]], engine="fake", task="classify")
    with pytest.raises(UsageError, match="column 'text': "):
        infer([["a"], [1]], engine="fake", task="token-classify")
