"""The tokens of a gap are those of transformers' fill-mask pipeline, however rows are batched."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, pipeline

from batchinfer import RunConfig, controller, infer, resume, run
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
from batchinfer.detokenization import TextDetokenizer
from batchinfer.engines import attention, cpu, fake, prepare_to_decode
from batchinfer.engines.fake import FakeEngine
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe, make_detokenizer, make_encoder
from batchinfer.errors import ModelError, UsageError
from batchinfer.gathering import Gathering
from batchinfer.planning import make_plan
from batchinfer.tasks import create_task
from batchinfer.tuning.accuracy import compare
from batchinfer.tuning.tune import tune
from tests.engines import made
from tests.engines.conftest import Made, ask

HEAD = "ForMaskedLM"
PACKED = [kind for kind, heads in attention._HEADS.items() if "masks" in heads]
ARCHITECTURES = [*PACKED, "mpnet", "deberta-v2"]
BUDGET = BatchBudget(900, 40)


def masked(mask: str, count: int = 50) -> list[str]:
    """Texts of very mixed length with one to three masks; of the longest, some are cut off."""
    draw = random.Random(5)
    texts = []
    for text in made.texts(count, seed=41, longest=90):
        words = text.split(" ")
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            words[draw.randrange(len(words))] = mask
        texts.append(" ".join(words))
    return [
        *texts,
        mask,
        f"🙂 Ωmega 👩‍👩‍👧 {mask} naïve café",
        f"e\u0301te\u0301 {mask} a\u0308 日本 東京 \u200d{mask}{mask} x",
        f"tabs\tand\nlines{mask}  and   spaces ",
        f"don't co-op ({mask}) $7 E=mc2!",
    ]


def filled(folder: Path, answered: AnsweredChunk, **settings: Any) -> list[list[Any]]:
    """The four columns of an answered chunk."""
    spec, place = describe(str(folder), task="fill-mask")
    task = create_task(spec, RunConfig(**settings))
    prepare_to_decode(task, RunConfig(), place)
    columns = task.decode(answered)
    assert [c.type for c in columns] == [field.type for field in task.columns]
    return [column.to_pylist() for column in columns]


def of_pipeline(folder: Path, texts: list[str], top_k: int = 5) -> list[Any]:
    """What transformers' pipeline says: tokens and scores by mask; None: there is none, or one is lost."""
    pipe: Any = pipeline("fill-mask", model=str(folder), top_k=top_k)
    tokenizer = pipe.tokenizer
    tokenizer.model_max_length = describe(str(folder), task="fill-mask")[0].max_length
    expected: list[Any] = []
    for text in texts:
        there, kept = (
            tokenizer(text, truncation=cut)["input_ids"].count(tokenizer.mask_token_id)
            for cut in (False, True)
        )
        if not there or kept < there:
            expected.append(None)
            continue
        found = pipe(text, tokenizer_kwargs={"truncation": True})
        rows = found if there > 1 else [found]
        expected.append([[(one["token_str"], one["score"]) for one in row] for row in rows])
    return expected


def assert_same_fillings(columns: list[list[Any]], expected: list[Any]) -> None:
    for row, (best, score, tokens, scores, wanted) in enumerate(
        zip(*columns, expected, strict=True)
    ):
        if wanted is None:
            assert best is score is tokens is scores is None, row
            continue
        assert tokens == [[token for token, _ in mask] for mask in wanted], row
        np.testing.assert_allclose(
            scores, [[score for _, score in mask] for mask in wanted], rtol=0, atol=1e-4
        )
        assert (best, score) == (tokens[0][0], scores[0][0])


def mask_of(folder: Path) -> str:
    return describe(str(folder), task="fill-mask")[0].mask_token


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_and_scores_are_those_of_the_pipeline(made_model: Made, architecture: str) -> None:
    folder = made_model(architecture, HEAD)
    texts = masked(mask_of(folder))
    expected = of_pipeline(folder, texts)
    answers = [row for row in expected if row is not None]
    assert len(answers) > 40 and any(len(row) > 1 for row in answers)
    assert len(answers) < len(texts)
    assert len({row[0][0][0] for row in answers}) > 10, "the model fills every mask alike"
    for way in ("auto", "eager"):
        answered = ask(folder, texts, task="fill-mask", budget=BUDGET, attention=way)
        assert_same_fillings(filled(folder, answered), expected)
        assert set(answered.requests.errors) == {i for i, row in enumerate(expected) if row is None}


@pytest.mark.parametrize(
    ("architecture", "config"),
    [("deberta-v2", {"legacy": False}), ("bert", {"tie_word_embeddings": False})],
)
def test_heads_of_other_shapes_are_those_of_the_pipeline_too(
    made_model: Made, architecture: str, config: dict[str, Any]
) -> None:
    folder = made_model(architecture, HEAD, **config)
    texts = masked(mask_of(folder), count=30)
    expected = of_pipeline(folder, texts, top_k=1)
    answered = ask(folder, texts, task="fill-mask", budget=BUDGET, top_k=1)
    assert_same_fillings(filled(folder, answered, top_k=1), expected)


def test_a_swap_of_two_rows_fails_the_parity_check(made_model: Made) -> None:
    folder = made_model("bert", HEAD)
    texts = masked("[MASK]", count=20)
    expected = of_pipeline(folder, texts)
    answered = ask(folder, texts, task="fill-mask")
    assert_same_fillings(filled(folder, answered), expected)
    tokens = answered.values["token"]
    other = next(i for i in range(1, len(tokens)) if tokens[i][0] != tokens[0][0])
    for values in answered.values.values():
        values[[0, other]] = values[[other, 0]]
    with pytest.raises(AssertionError):
        assert_same_fillings(filled(folder, answered), expected)


# -- what goes through the model ------------------------------------------------------------------


def engine_of(folder: Path, **options: Any) -> LocalEngine:
    spec, place = describe(str(folder), task="fill-mask")
    return LocalEngine(create_task(spec), place, dtype="float32", device="cpu", **options)


def batch_of(*lengths: int) -> Batch:
    """Rows of so many tokens, of which the second and the last are masks."""
    ids = np.concatenate([np.arange(6, 6 + length, dtype=np.int32) for length in lengths])
    marks = [(np.arange(length) == 1) | (np.arange(length) == length - 1) for length in lengths]
    fields = {"input_ids": ids, "is_mask": np.concatenate(marks).astype(np.int32)}
    indices = np.arange(len(lengths), dtype=np.int64)
    return Batch(ChunkId(0, 0), indices, np.array(lengths, np.int32), fields)


@pytest.mark.parametrize(
    ("architecture", "attention"), [*((kind, "auto") for kind in ARCHITECTURES), ("bert", "eager")]
)
def test_the_layer_of_the_vocabulary_sees_mask_tokens_alone(
    made_model: Made, architecture: str, attention: str
) -> None:
    engine = engine_of(made_model(architecture, HEAD), attention=attention)
    assert engine.is_packed == (attention == "auto" and architecture in PACKED)
    seen = []
    vocabulary = max(
        (m for m in engine.model.modules() if getattr(m, "out_features", 0) > 400),
        key=lambda module: module.out_features,
    )
    vocabulary.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    answers = engine.answer(batch_of(60, 50, 40, 30, 20, 10))
    assert [tuple(shape[:-1]) for shape in seen] == [(1, 12)]
    assert answers.values["token"].shape == (12, 5)


@pytest.mark.parametrize("architecture", PACKED)
def test_streams_change_no_bit_of_an_answer(made_model: Made, architecture: str) -> None:
    folder = made_model(architecture, HEAD)
    texts, budget = masked(mask_of(folder)), BatchBudget(96, 64)
    expected, found = (
        ask(folder, texts, task="fill-mask", budget=budget, threads=n).values for n in (1, 4)
    )
    assert len(set(expected["token"][:, 0].tolist())) > 10
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_model_whose_head_needs_every_state_is_left_as_it_is(
    made_model: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it takes the mean of all states off: no hook may take those away."""
    from transformers import BertForMaskedLM
    from transformers.models.bert.modeling_bert import BertOnlyMLMHead

    folder = made_model("bert", HEAD)
    monkeypatch.setattr(
        BertOnlyMLMHead,
        "forward",
        lambda self, states: self.predictions(states - states.mean(dim=1, keepdim=True)),
    )
    engine = engine_of(folder, attention="eager")
    assert isinstance(engine.model, BertForMaskedLM)
    batch = batch_of(9)
    found = engine.answer(batch).values["token"]
    with torch.inference_mode():
        ids = torch.from_numpy(batch.fields["input_ids"]).long()[None]
        expected = engine.model(input_ids=ids).logits[0, [1, 8]].topk(5).indices
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("architecture", PACKED)
def test_a_packed_forward_asks_the_device_for_nothing(
    made_model: Made, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """A meta tensor has no values: whatever would wait for one raises."""
    monkeypatch.setattr(cpu, "optimize", lambda model, fuses: "")  # its weights are of a CPU alone
    engine = engine_of(made_model(architecture, HEAD), attention="packed")
    engine.device, engine.model = torch.device("meta"), engine.model.to("meta")
    monkeypatch.setattr(attention, "attend_in_groups", lambda query, *_: torch.empty_like(query))
    for value in engine._forward(batch_of(7, 5, 3)).values():
        assert value.is_meta
        assert tuple(value.shape) == (6, 5)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "electra"])
def test_in_bfloat16_the_best_are_told_apart_in_float32(
    made_model: Made, architecture: str
) -> None:
    folder = made_model(architecture, HEAD)
    spec, place = describe(str(folder), task="fill-mask")
    engine = LocalEngine(create_task(spec), place, dtype="bfloat16", device="cpu")
    vocabulary = engine.model.get_output_embeddings()
    states: list[torch.Tensor] = []
    vocabulary.register_forward_pre_hook(lambda module, args: states.append(args[0][0]))
    found = engine.answer(batch_of(*range(90, 4, -2))).values
    with torch.inference_mode():
        halves = torch.nn.functional.linear(states[0], vocabulary.weight, vocabulary.bias)
        bias = 0.0 if vocabulary.bias is None else vocabulary.bias.float()
        exact = states[0].float() @ vocabulary.weight.float().T + bias
    best = exact.topk(5)
    assert (halves.topk(5).indices != best.indices).any(), "it makes no difference here"
    np.testing.assert_array_equal(found["token"], best.indices.numpy())
    wanted = exact.softmax(dim=-1).gather(1, best.indices).numpy()
    np.testing.assert_allclose(found["score"], wanted, atol=2e-3)


def test_an_answer_that_is_no_number_is_its_rows_error(made_model: Made) -> None:
    folder = made_model("bert", HEAD)
    spec, place = describe(str(folder), task="fill-mask")
    task = create_task(spec)
    table = pa.table({"text": ["ba [MASK] be", "[MASK] [MASK]", "bi [MASK]"]})
    chunk = Chunk(ChunkId(0, 0), table, {}, Position(), Position(), True, "")
    requests = task.encode(chunk, make_encoder(place, spec))
    assert requests.masks is not None and requests.masks.tolist() == [1, 2, 1]
    batches = make_batches(chunk.id, requests, BatchBudget(1000, 10))
    gathering = Gathering.of(LoadedChunk(chunk, requests, batches), task.answers)
    token = np.tile(np.arange(5, dtype=np.int32), (4, 1))
    score = np.full((4, 5), 0.1, np.float32)
    second = int(np.flatnonzero(batches[0].indices == 1)[0])  # of the batch, the row with two
    score[second + 1, 3] = np.nan  # of its second mask
    gathering.add(batches[0], Answers({"token": token, "score": score}))
    answered = gathering.result()
    assert answered.errors == {1: "the model's answer is NaN or infinite"}
    best, _, tokens, _ = filled(folder, answered)
    assert best[1] is None and tokens[1] is None
    assert [len(row) for row in (tokens[0], tokens[2])] == [1, 1]


# -- rows that cannot be filled, and settings that make no sense -----------------------------------


def test_a_text_without_a_mask_or_that_loses_one_is_an_error(made_model: Made) -> None:
    folder = made_model("roberta", HEAD)
    long = " ".join(made.words()[:200])
    texts = ["ba be", "ba [MASK]", f"<mask> {long}", f"<mask> {long} <mask>", f"{long}<mask>"]
    answered = ask(folder, [*texts, "<mask>"], task="fill-mask")
    missing, cut = "no <mask> in this text", "<mask> is cut off: the text has more than 128 tokens"
    assert answered.requests.errors == {
        0: missing, 1: missing, 3: f"{cut} (--max-length)", 4: f"{cut} (--max-length)"
    }  # fmt: skip
    assert answered.requests.row.tolist() == [2, 5]
    assert answered.requests.truncated.tolist() == [True, False]
    tokens = filled(folder, answered)[2]
    assert [row is None for row in tokens] == [True, True, False, True, True, False]
    nothing = ask(folder, ["ba"], task="fill-mask")
    assert filled(folder, nothing) == [[None]] * 4


def test_settings_that_make_no_sense_are_refused(made_model: Made, tmp_path: Path) -> None:
    spec, place = describe(str(made_model("bert", HEAD)), task="fill-mask")
    with pytest.raises(UsageError, match=r"--top-k 5000: .* has \d+ tokens"):
        create_task(spec, RunConfig(top_k=5000))
    with pytest.raises(UsageError, match="--text-pair-column: means nothing to --task fill-mask"):
        create_task(spec, RunConfig(text_pair_column="b"))
    with pytest.raises(UsageError, match="--pooling: means nothing to --task fill-mask"):
        create_task(spec, RunConfig(pooling="cls"))
    with pytest.raises(ModelError, match="it has no head for fill-mask, only random numbers"):
        describe(str(made_model("bert")), task="fill-mask")
    openvino = pytest.importorskip("batchinfer.engines.openvino", reason="not there")
    with pytest.raises(UsageError, match="--engine openvino: not for --task fill-mask; use"):
        openvino.OpenVinoEngine(create_task(spec), place)


def test_a_tokenizer_without_a_mask_token_is_told_at_the_start(tmp_path: Path) -> None:
    folder = made.make_model(tmp_path / "m", "bert", HEAD)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["mask_token"]
    file.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="its tokenizer has no mask token"):
        describe(str(folder), task="fill-mask")


# -- token ids back to text ------------------------------------------------------------------------


@pytest.mark.parametrize("cleans", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta"])
def test_tokens_are_written_as_the_tokenizer_decodes_them(
    made_model: Made, tmp_path: Path, architecture: str, cleans: bool
) -> None:
    folder = made.make_model(tmp_path / "m", architecture, HEAD)
    file = folder / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), "clean_up_tokenization_spaces": cleans}
    file.write_text(json.dumps(settings))
    spec, place = describe(str(folder), task="fill-mask")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    detokenizer = make_detokenizer(place, spec)
    every = [[id] for id in range(spec.vocab_size + 3)]  # models may have more than the tokenizer
    assert detokenizer.decode(every) == [tokenizer.decode(ids) for ids in every]
    sentences = tokenizer(["It is 'x', don ' t you 've it . ba ?", *made.texts(20)])["input_ids"]
    for skips in (False, True):
        assert detokenizer.decode(sentences, skips_special=skips) == [
            tokenizer.decode(ids, skip_special_tokens=skips) for ids in sentences
        ]


def test_a_detokenizer_travels_without_what_it_has_loaded(made_model: Made) -> None:
    spec, place = describe(str(made_model("bert", HEAD)), task="fill-mask")
    detokenizer = make_detokenizer(place, spec)
    before = pickle.dumps(detokenizer)
    assert detokenizer.decode([[5], []]) == [detokenizer.decode([[5]])[0], ""]
    assert pickle.dumps(detokenizer) == before
    assert pickle.loads(before) == detokenizer
    assert isinstance(detokenizer, TextDetokenizer)


# -- whole runs ------------------------------------------------------------------------------------


def job(tmp_path: Path, texts: list[str], **settings: Any) -> RunConfig:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "in.jsonl").write_text(rows)
    return RunConfig(
        inputs=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "out"),
        **{"engine": "fake", "task": "fill-mask", "chunk_rows": 4, **settings},
    )  # fmt: skip


def test_a_run_writes_what_the_pipeline_says(made_model: Made, tmp_path: Path) -> None:
    folder = made_model("roberta", HEAD)
    texts = [*masked("<mask>", count=10), "none"]
    report = run(job(tmp_path, texts, engine="local", model=str(folder), dtype="float32", top_k=3,
                     device="cpu", max_errors="100%"))  # fmt: skip
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    names = ("predicted_token", "predicted_score", "tokens", "scores")
    expected = of_pipeline(folder, texts, top_k=3)
    assert_same_fillings([[row[name] for row in rows] for name in names], expected)
    assert report.num_errors == sum(row["_error"] is not None for row in rows) >= 1
    assert rows[-1]["_error"] == "no <mask> in this text" and rows[-1]["tokens"] is None


def test_the_fake_engine_fills_masks_and_failed_rows_are_tried_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"row {i} is [MASK]" + " or [MASK]" * (i % 3) for i in range(6)]
    texts += ["no gap", "x" * 2040 + "[MASK]"]
    whole = job(tmp_path, texts, max_errors="2")
    run(whole.model_copy(update={"output": str(tmp_path / "whole")}))
    expected = pq.read_table(tmp_path / "whole" / "data").to_pylist()
    assert [row["tokens"] and len(row["tokens"]) for row in expected] == [
        1,
        2,
        3,
        1,
        2,
        3,
        None,
        None,
    ]
    assert all(len(mask) == 5 for row in expected[:6] for mask in row["tokens"])
    assert [row["_error"] for row in expected[6:]] == [
        "no [MASK] in this text",
        "[MASK] is cut off: the text has more than 512 tokens (--max-length)",
    ]
    answer = FakeEngine.answer

    def fail(engine: FakeEngine, batch: Batch) -> Answers:
        if 2 in batch.indices:
            raise RuntimeError("ill")
        return answer(engine, batch)

    monkeypatch.setattr(FakeEngine, "answer", fail)
    run(whole.model_copy(update={"max_errors": "100%"}))
    broken = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert sum(row["_error"] is not None for row in broken) == 3
    monkeypatch.setattr(FakeEngine, "answer", answer)
    resume(whole.output, retry_errors=True)
    assert pq.read_table(tmp_path / "out" / "data").to_pylist() == expected


def test_texts_in_memory_are_filled_too(made_model: Made) -> None:
    folder = made_model("bert", HEAD)
    frame = infer(["ba [MASK]", "be"], str(folder), task="fill-mask", dtype="float32", top_k=2)
    [[(token, score), (second, _)]] = of_pipeline(folder, ["ba [MASK]"], top_k=2)[0]
    assert frame["predicted_token"][0] == token
    assert frame["predicted_score"][0] == pytest.approx(score, abs=1e-4)
    assert [list(mask) for mask in frame["tokens"][0]] == [[token, second]]
    assert frame["_error"].isna().tolist() == [True, False]


def test_a_suspected_chunk_is_filled_in_a_process_of_its_own(
    made_model: Made, tmp_path: Path
) -> None:
    texts = masked("[MASK]", count=8)
    settings = {"engine": "local", "model": str(made_model("bert", HEAD)), "dtype": "float32",
                "max_errors": "100%", "device": "cpu", "threads": 1}  # fmt: skip
    run(job(tmp_path, texts, **settings).model_copy(update={"output": str(tmp_path / "own")}))
    run(job(tmp_path, texts, batch_timeout=60.0, **settings))
    own, other = (pq.read_table(tmp_path / name / "data") for name in ("own", "out"))
    assert own.equals(other)


def test_tune_measures_it_and_probes_hold_masks(tmp_path: Path) -> None:
    texts = [f"[MASK] {'y' * i}" for i in range(40)]
    wanted = job(tmp_path, texts, profile="none")
    assert tune(wanted, max_seconds=1.0).num_rows == 40
    plan, _ = make_plan(wanted)
    engine = FakeEngine(create_task(plan.model, plan.config, plan.input_schema))
    assert len(controller._harmless(plan, None, engine)) == 40


@pytest.mark.parametrize(
    ("token", "score", "complains"),
    [
        ([7, 8], [0.41, 0.40], False),
        ([8, 7], [0.41, 0.40], False),  # two that are near each other
        ([7, 8], [0.35, 0.34], True),
        ([9, 8], [0.80, 0.10], True),  # the best one is gone
        ([9, 8], [0.41, 0.40], True),
        ([7, 8], [np.nan, np.nan], True),
    ],
)
def test_tune_tells_answers_that_moved_from_near_ties(
    token: list[int], score: list[float], complains: bool
) -> None:
    spec = fake.describe("fill-mask", None)
    right = {"token": np.array([[7, 8]]), "score": np.array([[0.41, 0.40]])}
    found = {"token": np.array([token]), "score": np.array([score])}
    assert bool(compare(spec, right, found).complaint) == complains


def test_another_token_alone_is_a_complaint() -> None:
    spec = fake.describe("fill-mask", None)
    right, found = ({"token": np.array([[id]]), "score": np.array([[0.9]])} for id in (7, 8))
    assert "a score moved by 0.800" in compare(spec, right, found).complaint
