"""Long texts in windows: the answers are those of the windows alone, put together by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)
from transformers.pipelines.token_classification import AggregationStrategy

from batchinfer import RunConfig, infer, resume, run
from batchinfer.batching import make_batches
from batchinfer.core import (
    AnsweredChunk,
    Answers,
    Batch,
    BatchBudget,
    Chunk,
    ChunkId,
    LoadedChunk,
    Position,
)
from batchinfer.engines import create_encoder
from batchinfer.engines.fake import FakeEngine
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe
from batchinfer.errors import UsageError
from batchinfer.gathering import Gathering
from batchinfer.tasks import create_task
from batchinfer.windows import cut
from batchinfer.writers.shard import assemble, output_schema
from tests.conftest import read_output
from tests.engines import made
from tests.engines.conftest import Made
from tests.engines.test_models import with_slow_tokenizer
from tests.test_run import config, write_jsonl

HEAD = "ForSequenceClassification"
LENGTH = 24
#: Tokens of text in a window of a single text, and of these the ones that neighbours share.
ROOM, SHARED = LENGTH - 2, (LENGTH - 2) // 4
SHORT = made.texts(12, seed=41, longest=5)
LONG = [" ".join(made.texts(n, seed=n)) for n in (2, 3, 5, 4)]
TEXTS = [*SHORT[:5], *LONG, *SHORT[5:], ""]


def ask(folder: Path, table: dict[str, Any], task: str, **given: Any) -> dict[str, Any]:
    """The output's columns of one chunk, by the way that a run goes."""
    chosen = RunConfig(task=task, **{"max_length": LENGTH, "long": "stride", **given})
    paired = chosen.text_pair_column is not None or task == "zero-shot"
    spec, place = describe(
        str(folder), task=task, max_length=chosen.max_length, pairs=paired, stride=chosen.stride
    )
    rows = pa.table(table)
    num = rows.num_rows
    maker = create_task(spec, chosen, rows.schema)
    for name, values in (("_source", pa.nulls(num, pa.string())), ("_row", pa.array(range(num))),
                         ("_rescued_data", pa.nulls(num, pa.string()))):  # fmt: skip
        rows = rows.append_column(name, values)
    chunk = Chunk(ChunkId(0, 0), rows, {}, Position(), Position(), True, "")
    requests = maker.encode(chunk, create_encoder(chosen, spec, place))
    engine = LocalEngine(maker, place, dtype="float32", device="cpu")
    batches = make_batches(chunk.id, requests, BatchBudget(300, 12))
    gathering = Gathering.of(LoadedChunk(chunk, requests, batches), maker.answers)
    for batch, answers in engine.stream(batches):
        gathering.add(batch, answers)
    engine.close()
    answered: AnsweredChunk = gathering.result()
    found = assemble(answered, maker, output_schema([], maker.columns))
    return {name: found[name].to_pylist() for name in found.column_names}


class Reference:
    """A model as transformers loads it, asked window by window."""

    def __init__(self, folder: Path, auto: Any = AutoModelForSequenceClassification) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model = auto.from_pretrained(folder).eval()

    def windows(self, *texts: str, slides: int = 0, stride: int | None = None) -> list[Any]:
        """The inputs of each window."""
        if stride is None:
            specials = self.tokenizer.num_special_tokens_to_add(len(texts) > 1)
            other = self.ids(texts[1 - slides]) if len(texts) > 1 else []
            stride = (LENGTH - specials - len(other)) // 4
        tokens = self.tokenizer(
            *texts, max_length=LENGTH, stride=stride, return_overflowing_tokens=True,
            truncation=("only_first", "only_second")[slides],
        )  # fmt: skip
        return [
            {name: tokens[name][i] for name in tokens if name != "overflow_to_sample_mapping"}
            for i in range(len(tokens["input_ids"]))
        ]

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    @torch.inference_mode()
    def outputs(self, window: dict[str, Any]) -> Any:
        inputs = {n: torch.tensor([v]) for n, v in window.items()}
        return self.model(**inputs)

    def logits(self, *texts: str, **how: Any) -> np.ndarray[Any, Any]:
        """Of all windows: float64[windows, labels]."""
        windows = self.windows(*texts, **how)
        return np.stack([self.outputs(w).logits[0].double().numpy() for w in windows])


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers: np.ndarray[Any, Any] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 1 / (1 + np.exp(-logits))  # type: ignore[no-any-return]


# -- windows ----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 4), st.integers(0, 9)), max_size=6),
    stride=st.none() | st.integers(0, 12),
)
def test_windows_cover_each_text_once_and_in_order(
    texts: list[tuple[int, int, int]], stride: int | None
) -> None:
    # Of each text: tokens that slide, and those before and behind them.
    lengths = np.array([sum(text) for text in texts], np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    begin = np.array([before for _, before, _ in texts], np.int64)
    end = begin + np.array([slides for slides, _, _ in texts], np.int64)
    cuts = cut(offsets, begin, end, 16, stride)
    fresh = np.zeros(len(texts), np.int64)
    np.add.at(fresh, cuts.windows.text, cuts.windows.fresh)
    for i, (slides, before, behind) in enumerate(texts):
        mine = np.flatnonzero(cuts.windows.text == i)
        windows = [cuts.place[cuts.offsets[w] : cuts.offsets[w + 1]].tolist() for w in mine]
        sources = [cuts.source[cuts.offsets[w] : cuts.offsets[w + 1]].tolist() for w in mine]
        assert sources == [[place + offsets[i] for place in window] for window in windows]
        if i in cuts.errors:
            room = 16 - before - behind
            assert room <= (room // 4 if stride is None else stride)
            assert windows == [[]] and fresh[i] == 0
            continue
        if lengths[i] <= 16:
            assert windows == [list(range(lengths[i]))] and fresh[i] == lengths[i]
            continue
        shared = (16 - before - behind) // 4 if stride is None else stride
        stay = [*range(before), *range(before + slides, lengths[i])]
        parts = [[p for p in w if before <= p < before + slides] for w in windows]
        for window, part in zip(windows, parts, strict=True):
            assert window == sorted(set(window)) and set(window) - set(part) == set(stay)
        assert all(len(window) == 16 for window in windows[:-1]) and len(windows[-1]) <= 16
        assert all(a[-shared or len(a) :] == b[:shared] for a, b in zip(parts, parts[1:]))  # noqa: B905, RUF007
        assert sorted({p for part in parts for p in part}) == list(range(before, before + slides))
        assert len(windows) > 1 and len(parts[-1]) > shared
        assert fresh[i] == lengths[i]


# -- each task --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "stride"),
    [
        ("bert", 0),
        ("bert", 9),
        *((a, None) for a in ("bert", "roberta", "xlm-roberta", "modernbert", "gpt2")),
    ],
)
def test_classify_takes_the_mean_of_the_scores(
    made_model: Made, architecture: str, stride: int | None
) -> None:
    folder = made_model(architecture, HEAD, num_labels=3)
    found = ask(folder, {"text": TEXTS[:-1]}, "classify", stride=stride, all_scores=True)
    reference = Reference(folder)
    room = LENGTH - reference.tokenizer.num_special_tokens_to_add()
    several = 0
    for row, text in enumerate(TEXTS[:-1]):
        logits = reference.logits(text, stride=room // 4 if stride is None else stride)
        several += len(logits) > 1
        scores = softmax(logits).mean(axis=0)
        ranked = {f"LABEL_{i}": score for i, score in enumerate(scores)}
        listed = {one["label"]: one["score"] for one in found["predictions"][row]}
        assert listed == pytest.approx(ranked, abs=1e-4)
        assert found["predicted_score"][row] == pytest.approx(scores.max(), abs=1e-4)
        assert found["predicted_label"][row] == found["predictions"][row][0]["label"]
        assert found["_num_tokens"][row] == len(reference.tokenizer(text)["input_ids"])
    assert several == len(LONG) and not any(found["_truncated"])
    cut_off = ask(folder, {"text": LONG}, "classify", long="truncate", all_scores=True)
    assert [row[0]["score"] for row in cut_off["predictions"]] != pytest.approx(
        [found["predictions"][TEXTS.index(text)][0]["score"] for text in LONG], abs=1e-2
    ), "windows change nothing here"


def test_the_best_label_may_be_the_best_of_no_window(made_model: Made) -> None:
    spec, _ = describe(str(made_model("bert", HEAD, num_labels=3)), task="classify")
    task = create_task(spec, RunConfig(long="stride"))
    windows = np.array([[0.5, 0.45, 0.05], [0.05, 0.45, 0.5]], np.float32)
    cuts = cut(np.array([0, 20]), np.array([0]), np.array([20]), 12, 4)
    merged = task.merge({"scores": windows}, cuts.windows, np.array([12, 12], np.int32))
    np.testing.assert_allclose(merged["scores"], [[0.275, 0.45, 0.275]])


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("architecture", "pooling"), [("bert", "mean"), ("gpt2", "last")])
def test_embed_takes_the_mean_of_the_vectors_by_their_tokens(
    made_model: Made, architecture: str, pooling: str, normalized: bool
) -> None:
    folder = made_model(architecture)
    texts = TEXTS[:-1]
    found = ask(folder, {"text": texts}, "embed", pooling=pooling, normalize=normalized)
    reference = Reference(folder, AutoModel)
    for row, text in enumerate(texts):
        vectors, weights = [], []
        for window in reference.windows(text):
            states = reference.outputs(window).last_hidden_state[0].double().numpy()
            vector = states.mean(axis=0) if pooling == "mean" else states[-1]
            vectors.append(vector / np.linalg.norm(vector) if normalized else vector)
            weights.append(len(states))
        expected = np.average(vectors, axis=0, weights=weights)
        if normalized:
            expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(found["embedding"][row], expected, rtol=0, atol=1e-4)
        assert not normalized or np.linalg.norm(found["embedding"][row]) == pytest.approx(1)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_score_takes_the_best_window_of_the_document(made_model: Made, architecture: str) -> None:
    folder = made_model(architecture, HEAD, num_labels=1)
    queries = SHORT[:3]
    documents = [[LONG[0], SHORT[5], LONG[3]], [], [LONG[1], LONG[2]]]
    table = {"text": queries, "d": pa.array(documents, pa.list_(pa.string()))}
    found = ask(folder, table, "score", text_pair_column="d")
    reference = Reference(folder)
    differ = 0
    for row, query in enumerate(queries):
        scores = [sigmoid(reference.logits(query, d, slides=1))[:, 0] for d in documents[row]]
        assert found["scores"][row] == pytest.approx([s.max() for s in scores], abs=1e-4)
        differ += sum(s.argmax() > 0 for s in scores)
        whole = [len(reference.tokenizer(query, d)["input_ids"]) for d in documents[row]]
        assert found["_num_tokens"][row] == sum(whole)
    assert differ, "the first window is always the best"
    single = {"text": queries, "d": [LONG[0], SHORT[5], LONG[1]]}
    alone = ask(folder, single, "score", text_pair_column="d")["score"]
    assert [alone[0], alone[2]] == pytest.approx([found["scores"][0][0], found["scores"][2][0]])


@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot_takes_the_mean_of_the_logits(made_model: Made, multi_label: bool) -> None:
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    folder = made_model("bert", HEAD, id2label=names, label2id={n: i for i, n in names.items()})
    labels = ("bada", "go fi di ba", "ke")  # as long as windows differ in number
    table = {"text": TEXTS[:10]}
    how = {"labels": labels, "hypothesis": "{}.", "multi_label": multi_label}
    found = ask(folder, table, "zero-shot", **how)
    reference = Reference(folder)
    for row, text in enumerate(TEXTS[:10]):
        logits = np.stack([
            reference.logits(text, f"{label}.")[:, [0, 2]].mean(axis=0)
            for label in labels
        ])  # fmt: skip
        scores = softmax(logits)[:, 1] if multi_label else softmax(logits[:, 1])
        expected = dict(zip(labels, scores, strict=True))
        names_found = dict(zip(found["labels"][row], found["scores"][row], strict=True))
        assert names_found == pytest.approx(expected, abs=1e-4)


LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
ENTITY_TEXTS = [*TEXTS, "🙂 Ωmega e\u0301te\u0301 東京 " * 9, "naïve-co-op(maybe)don't" * 5]


@pytest.mark.parametrize(
    ("architecture", "stride"),
    [
        *(("bert", stride) for stride in (None, 0, 1, 15, ROOM - 1)),
        *((kind, stride) for kind in ("roberta", "xlm-roberta") for stride in (None, 0)),
    ],
)
def test_entities_are_those_of_tokens_farther_from_the_edge(
    made_model: Made, architecture: str, stride: int | None
) -> None:
    folder = made_model(architecture, "ForTokenClassification", id2label=dict(enumerate(LABELS)),
                        label2id={name: i for i, name in enumerate(LABELS)})  # fmt: skip
    reference = Reference(folder, AutoModelForTokenClassification)
    shared = SHARED if stride is None else stride
    expected = [_entities_by_hand(reference, text, shared) for text in ENTITY_TEXTS]
    for strategy in ("simple", "average"):
        found = ask(
            folder, {"text": ENTITY_TEXTS}, "token-classify", stride=stride, aggregation=strategy
        )
        pipe: Any = pipeline("token-classification", model=str(folder))
        for row, text in enumerate(ENTITY_TEXTS):
            rows = _grouped(pipe, expected[row], text, strategy)
            assert [
                (e["label"], e["start"], e["end"], e["text"]) for e in found["entities"][row]
            ] == [
                (e["entity_group"], e["start"], e["end"], text[e["start"] : e["end"]]) for e in rows
            ]
            np.testing.assert_allclose(
                [e["score"] for e in found["entities"][row]], [e["score"] for e in rows], atol=1e-4
            )
            assert found["_num_tokens"][row] == len(reference.tokenizer(text)["input_ids"])
    assert sum(map(len, found["entities"])) > len(ENTITY_TEXTS)


def _entities_by_hand(reference: Reference, text: str, shared: int) -> list[tuple[Any, ...]]:
    """Of each token of the text: its id, characters and scores, as it is answered by one window."""
    if not text:
        return []
    windows = reference.windows(text, stride=shared)
    # Characters as of the whole text: byte-level tokenizers count the space before a window's first token.
    characters = reference.tokenizer(text, return_offsets_mapping=True)["offset_mapping"][1:-1]
    best: dict[int, tuple[float, tuple[Any, ...]]] = {}
    for index, window in enumerate(windows):
        logits = reference.outputs(window).logits[0].double().numpy()[1:-1]
        start = index * (ROOM - shared)
        for within, score in enumerate(softmax(logits)):
            left = within if index else np.inf
            right = len(logits) - 1 - within if index < len(windows) - 1 else np.inf
            token = (window["input_ids"][1 + within], characters[start + within], score)
            if start + within not in best or min(left, right) > best[start + within][0]:
                best[start + within] = (min(left, right), token)
    assert sorted(best) == list(range(len(reference.ids(text))))
    return [best[place][1] for place in sorted(best)]


def _grouped(pipe: Any, tokens: list[tuple[Any, ...]], text: str, strategy: str) -> list[Any]:
    """Entities of one long text out of its tokens, by the pipeline's own rules."""
    import warnings

    if not tokens:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that its rule for words is a guess
        kind = AggregationStrategy[strategy.upper()]
        pieces = pipe.gather_pre_entities(
            text,
            np.array([token for token, _, _ in tokens]),
            np.stack([scores for _, _, scores in tokens]),
            np.array([place for _, place, _ in tokens]),
            np.zeros(len(tokens), np.int64),
            kind,
        )
        return [e for e in pipe.aggregate(pieces, kind) if e["entity_group"] != "O"]


# -- pairs ------------------------------------------------------------------------------------------


def test_of_a_pair_the_first_text_slides_and_the_second_is_in_each(made_model: Made) -> None:
    folder = made_model("bert", HEAD, num_labels=2)
    pairs = [SHORT[3], LONG[2], "di", SHORT[4]]
    table = {"text": [LONG[0], SHORT[0], LONG[1], SHORT[1]], "pair": pairs}
    found = ask(folder, table, "classify", text_pair_column="pair")
    reference = Reference(folder)
    for row in (0, 2, 3):
        scores = softmax(reference.logits(table["text"][row], pairs[row])).mean(axis=0)
        assert found["predicted_score"][row] == pytest.approx(scores.max(), abs=1e-4)
        whole = reference.tokenizer(table["text"][row], pairs[row])["input_ids"]
        assert found["_num_tokens"][row] == len(whole)
    assert found["predicted_label"][1] is None
    assert found["_error"][1].startswith("no room for windows: ")
    assert [error is None for error in found["_error"]] == [True, False, True, True]


# -- what fits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "head", "given"),
    [
        ("classify", HEAD, {}),
        ("classify", HEAD, {"top_k": 2}),
        ("embed", "Model", {"normalize": True}),
        ("embed", "Model", {"truncate_dim": 8}),
        ("token-classify", "ForTokenClassification", {}),
        ("token-classify", "ForTokenClassification", {"aggregation": "average"}),
        ("score", HEAD, {"text_pair_column": "pair"}),
        ("zero-shot", HEAD, {"labels": ("ba", "fi go")}),
    ],
)
def test_texts_that_fit_are_answered_as_without_windows(
    made_model: Made, task: str, head: str, given: dict[str, Any]
) -> None:
    folder = made_model("bert", head, **{"num_labels": 1 if task == "score" else 3})
    pairs = {"pair": [SHORT[0]] * len(SHORT)} if task == "score" else {}
    table = {"text": SHORT, **pairs}
    cut_off = ask(folder, table, task, long="truncate", max_length=100, **given)
    strided = ask(folder, table, task, max_length=100, **given)
    assert strided == cut_off, "to the last bit"
    # Beside long ones, too; only that batches are others may change the last bits.
    more = {name: [*column, LONG[3] * 2] for name, column in table.items()}
    if pairs:
        more["pair"][-1], more["text"][-1] = LONG[3] * 2, SHORT[0]
    beside = ask(folder, more, task, max_length=100, **given)
    for name, values in cut_off.items():
        assert _rounded(beside[name][:-1]) == pytest.approx(_rounded(values), abs=1e-5), name
    assert beside["_num_tokens"][-1] > 100 and beside["_error"][-1] is None


def _rounded(values: Any) -> list[Any]:
    """Values as a flat list: numbers to compare with a tolerance, all else to the letter."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        return [flat for value in values for flat in _rounded(value)]
    return [values]


# -- a whole run ------------------------------------------------------------------------------------


def rows(count: int = 30) -> list[dict[str, Any]]:
    return [{"id": i, "text": f"row {i} " * (1 + 17 * (i % 3))} for i in range(count)]


@pytest.mark.parametrize(
    "given",
    [
        {"task": "classify"},
        {"task": "embed"},
        {"task": "token-classify"},
        {"task": "zero-shot", "labels": ("a", "b")},
        {"task": "score", "text_pair_column": "text"},
    ],
)
def test_reports_and_shards_count_the_tokens_of_the_texts(
    given: dict[str, Any], tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows())
    whole = run(config(source, tmp_path / "whole", max_length=10_000, **given))
    # Windows of one text may be alike, and are then asked once: here, all are.
    job = config(source, tmp_path / "out", max_length=16, long="stride", dedup="off", **given)
    report = run(job)
    assert (report.num_errors, report.num_truncated) == (0, 0)
    assert report.num_tokens == report.new_tokens == whole.num_tokens
    found, expected = (read_output(tmp_path / name) for name in ("out", "whole"))
    assert found["_num_tokens"].equals(expected["_num_tokens"])
    assert found["id"].to_pylist() == list(range(30))
    assert found["_error"].null_count == 30


def test_a_window_that_fails_fails_its_row_which_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows())
    job = config(source, tmp_path / "out", max_length=16, long="stride", task="embed")
    run(job.model_copy(update={"output": str(tmp_path / "whole")}))
    whole = read_output(tmp_path / "whole")
    answer = FakeEngine.answer

    def fail(engine: FakeEngine, batch: Batch) -> Answers:
        if 3 in batch.indices:  # one of several windows of a row in each chunk
            raise RuntimeError("ill")
        return answer(engine, batch)

    monkeypatch.setattr(FakeEngine, "answer", fail)
    report = run(job)
    broken = read_output(tmp_path / "out")
    wrong = [i for i, error in enumerate(broken["_error"].to_pylist()) if error]
    assert len(wrong) == report.num_errors == 3
    assert all(broken["embedding"][i].as_py() is None for i in wrong)
    monkeypatch.setattr(FakeEngine, "answer", answer)
    resume(tmp_path / "out", retry_errors=True)
    assert read_output(tmp_path / "out").equals(whole)


def test_infer_takes_windows(made_model: Made) -> None:
    folder = made_model("bert", HEAD, num_labels=3)
    found = infer(TEXTS, str(folder), dtype="float32", max_length=LENGTH, long="stride", stride=3)
    expected = ask(folder, {"text": TEXTS}, "classify", stride=3)
    assert found["predicted_label"].tolist() == expected["predicted_label"]
    assert found["_num_tokens"].tolist() == expected["_num_tokens"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"stride": 3}, "--stride: add --long stride, or leave it out"),
        ({"long": "stride", "stride": 16, "max_length": 16}, "--stride 16: "),
        ({"long": "stride", "stride": -1}, "--stride: "),
        ({"long": "strides"}, "--long: "),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    given: dict[str, Any], why: str, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows())
    with pytest.raises(UsageError, match=why):
        job = RunConfig.load(
            {"inputs": [str(source)], "output": str(tmp_path / "out"), "engine": "fake", **given},
            environ={},
        )
        run(job)
    assert not (tmp_path / "out").exists()


def test_a_stride_without_room_is_told_with_the_model_at_hand(made_model: Made) -> None:
    folder = made_model("bert", HEAD, num_labels=2)
    assert ask(folder, {"text": LONG[:1]}, "classify", stride=ROOM - 1)["_error"] == [None]
    with pytest.raises(UsageError, match=f"--stride {ROOM}: .*give {ROOM - 1} or less"):
        ask(folder, {"text": LONG[:1]}, "classify", stride=ROOM)


def test_a_tokenizer_in_python_is_told_before_a_run_folder_is_begun(
    made_model: Made, tmp_path: Path
) -> None:
    model = with_slow_tokenizer(made_model("bert", HEAD, num_labels=3), tmp_path / "slow")
    source = write_jsonl(tmp_path / "in.jsonl", rows())
    job = config(source, tmp_path / "out", engine="local", model=str(model), device="cpu")
    with pytest.raises(UsageError, match="--long stride: .*no fast tokenizer"):
        run(job.model_copy(update={"long": "stride"}))
    assert run(job).finished, "the folder is free for it"


def test_the_plan_holds_what_long_texts_become(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", rows())
    run(config(source, tmp_path / "out", max_length=16, long="stride", stride=4))
    plan = json.loads((tmp_path / "out" / "_batchinfer" / "plan.json").read_text())
    assert (plan["config"]["long"], plan["config"]["stride"]) == ("stride", 4)
