"""Every task against its reference implementation: whole runs over real texts, on the usual architectures.

A comparison proves something only where it could fail. So each one also shows that its labels vary,
that rows differ, and that it fails as soon as two rows have changed places.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from transformers import AutoConfig, AutoTokenizer, pipeline

from batchinfer import RunConfig, run
from batchinfer.engines import attention
from tests.conftest import read_output
from tests.engines import made
from tests.engines.conftest import Made, ask, columns, corpus
from tests.engines.decided import decide
from tests.engines.test_models import as_sentence_transformer, edit
from tests.engines.test_token_classify import LABELS as TAGS
from tests.engines.test_token_classify import STRATEGIES, of_pipeline

TOLERANCE = 1e-4
#: Tokens that the made models take; a checkpoint says so in its tokenizer_config.json, too.
LIMIT = 64
ARCHITECTURES = [
    "bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "mpnet", "deberta-v2",
    "modernbert",
]  # fmt: skip
GSM8K = "gsm8k/grade_school_math/data/test.jsonl"
EDGES = [
    "",
    " ",
    "\t\n",
    "a",
    "🙂",
    "👩‍👩‍👧 Ωmega naïve café",
    "東京",
    "e\u0301te\u0301",
    "!" * 300,
    # What a tokenizer reads as its own tokens is part of a text all the same.
    "one <pad> two [PAD] three",
    "<pad>[PAD]",
    "a </s> b [SEP] c <s> d [CLS] e",
]
#: Tokens that models write, and characters that are read of most rows where a reference is slow.
NEW_TOKENS, READ = 4, 60
TOPICS = ("numbers, and how many of them there are", "the history of a country")
HYPOTHESIS = "All that was said here is about {}!"

#: Characters that are kept of most texts, so that few rows reach the limit, and tests are quick.
LENGTHS = (10, 20, 30, 40, 50, 60, 80, 100, 120, 400)
#: How embeddings of an architecture are usually pooled, and what follows; of the others, the mean.
POOLINGS = {
    "bert": ["cls", "Normalize"],
    "xlm-roberta": ["cls", "Normalize"],
    "mpnet": ["mean", "Normalize"],
    "modernbert": ["cls"],
}

#: A text, or a pair of them.
Row = Any
#: What is the same in two answers to a row, and numbers that are nearly the same.
Answer = tuple[tuple[Any, ...], list[float]]


# -- rows ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def texts() -> list[Row]:
    """Real texts of 0 to 26,000 characters, in several scripts, each one once."""
    draw = random.Random(5)
    questions = [row["question"] for row in _lines(GSM8K)]
    tasks = _lines("self-instruct/human_eval/user_oriented_instructions.jsonl")
    templates = "self-instruct/data/finetuning/t0_train_50k/data_per_template"
    articles = [row["prompt"] for row in _lines(f"{templates}/multi_news_summarize.jsonl")]
    strings = json.loads(corpus("naughty-strings/blns.json").read_text(encoding="utf-8"))
    real = [
        *draw.sample(questions, 60),
        *draw.sample(
            [f"{row['instruction']}\n{row['instances'][0]['input']}" for row in tasks], 40
        ),
        *(context for _, context in draw.sample(_questions_with_contexts(), 60)),
    ]
    chosen = [
        *EDGES,
        *draw.sample(articles, 5),
        *draw.sample(strings, 50),
        *(text[: draw.choice(LENGTHS)] for text in real),
    ]
    chosen = list(dict.fromkeys(chosen))
    draw.shuffle(chosen)
    assert len(chosen) >= 200
    return chosen


@pytest.fixture(scope="session")
def pairs(texts: list[Row]) -> list[Row]:
    """Questions with their contexts, and texts that have nothing to do with each other."""
    draw = random.Random(6)
    together = [
        (question[: draw.choice(LENGTHS)], context[: draw.choice(LENGTHS)])
        for question, context in draw.sample(_questions_with_contexts(), 170)
    ]
    return [*together, *itertools.pairwise(texts[:60])]


def _masked(text: str, mask: str) -> str:
    """A text with one gap or two, near enough to its start that none is cut off."""
    masks = f"{mask} and {mask}" if len(text) % 3 == 0 else mask
    place = len(text) % 12
    return f"{text[:place]} {masks} {text[place:]}"


def _questions_with_contexts() -> list[tuple[str, str]]:
    """XQuAD in four languages."""
    return [
        (qa["question"], paragraph["context"])
        for language in ("en", "zh", "th", "ar")
        for article in json.loads(corpus(f"xquad/xquad.{language}.json").read_bytes())["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def _lines(name: str) -> list[Any]:
    return [json.loads(line) for line in corpus(name).read_bytes().splitlines()]


# -- references ------------------------------------------------------------------------------------


def of_text_classification(folder: Path, rows: list[Row]) -> dict[str, list[Answer]]:
    pipe: Any = pipeline("text-classification", model=str(folder), device="cpu")
    answers = [pipe(row, truncation=True)[0] for row in rows]
    return {"": [((answer["label"],), [answer["score"]]) for answer in answers]}


def of_sentence_transformer(folder: Path, rows: list[Row]) -> dict[str, list[Answer]]:
    library = pytest.importorskip("sentence_transformers", reason="it is not installed")
    model = library.SentenceTransformer(str(folder), device="cpu")
    vectors = model.encode(rows, batch_size=32, show_progress_bar=False)
    return {"": [((), vector) for vector in vectors.tolist()]}


def of_token_classification(folder: Path, rows: list[Row]) -> dict[str, list[Answer]]:
    expected = of_pipeline(folder, rows)
    return {strategy: [_entities(row) for row in found] for strategy, found in expected.items()}


def of_cross_encoder(folder: Path, rows: list[Row]) -> dict[str, list[Answer]]:
    library = pytest.importorskip("sentence_transformers", reason="it is not installed")
    model = library.CrossEncoder(str(folder), device="cpu")
    scores = model.predict(rows, batch_size=32, show_progress_bar=False)
    return {"": [((), [score]) for score in scores.tolist()]}


def of_zero_shot(folder: Path, rows: list[Row]) -> dict[str, list[Answer]]:
    pipe: Any = pipeline("zero-shot-classification", model=str(folder), device="cpu")
    found: dict[str, list[Answer]] = {"one of them": [], "each for itself": []}
    for row in rows:
        inputs = pipe.preprocess(row, candidate_labels=TOPICS, hypothesis_template=HYPOTHESIS)
        outputs = [pipe.forward(one) for one in inputs]  # once for both settings
        for setting, answers in found.items():
            answer = pipe.postprocess(outputs, multi_label=setting == "each for itself")
            answers.append((tuple(answer["labels"]), answer["scores"]))
    return found


def of_fill_mask(folder: Path, rows: list[Row]) -> dict[str, list[Answer]]:
    pipe: Any = pipeline("fill-mask", model=str(folder), device="cpu")
    answers = []
    for row in rows:
        found = pipe(row, tokenizer_kwargs={"truncation": True})
        masks = found if isinstance(found[0], list) else [found]
        best = list(itertools.chain(*masks))
        answers.append((tuple(one["token_str"] for one in best), [one["score"] for one in best]))
    return {"": answers}


def of_generate(folder: Path, rows: list[Row]) -> dict[str, list[Answer]]:
    """One row at a time, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind = getattr(transformers, AutoConfig.from_pretrained(folder).architectures[0])
    model = kind.from_pretrained(folder).eval()
    ends = model.generation_config.eos_token_id
    answers: list[Answer] = []
    for row in rows:
        inputs = tokenizer(row, return_tensors="pt")
        skipped = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=1)[
            0, skipped:
        ].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        answers.append(((text, "stop" if ids[-1] in ends else "length", len(ids)), []))
    return {"": answers}


def _entities(entities: list[dict[str, Any]]) -> Answer:
    places = tuple((e["label"], e["start"], e["end"], e["text"]) for e in entities)
    return places, [e["score"] for e in entities]


# -- tasks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A task: its reference, by setting, and what a row of our output answers.

    `settings`: those of the run, by the name that the reference has for them.
    """

    reference: Callable[[Path, list[Row]], dict[str, list[Answer]]]
    read: Callable[[dict[str, Any]], Answer]
    head: str = "ForSequenceClassification"
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})


def named(*labels: str) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


_WRITING = Case(
    of_generate,
    lambda row: (
        (row["generated_text"], row["finish_reason"], row["num_generated_tokens"]),
        [],
    ),
    settings={"": {"max_new_tokens": NEW_TOKENS, "max_batch_rows": 8}},
)
_ZERO_SHOT = {"labels": TOPICS, "hypothesis": HYPOTHESIS}
CASES = {
    "classify": Case(
        of_text_classification,
        lambda row: ((row["predicted_label"],), [row["predicted_score"]]),
        config=named("bad", "neither", "good"),
    ),
    "embed": Case(of_sentence_transformer, lambda row: ((), row["embedding"]), head="Model"),
    "token-classify": Case(
        of_token_classification,
        lambda row: _entities(row["entities"]),
        head="ForTokenClassification",
        config=named(*TAGS),
        settings={strategy: {"aggregation": strategy} for strategy in STRATEGIES},
    ),
    "score": Case(
        of_cross_encoder,
        lambda row: ((), [row["score"]]),
        config={"num_labels": 1},
        settings={"": {"text_pair_column": "pair"}},
    ),
    "zero-shot": Case(
        of_zero_shot,
        lambda row: (tuple(row["labels"]), row["scores"]),
        config=named("contradiction", "neutral", "entailment"),
        settings={
            "one of them": _ZERO_SHOT,
            "each for itself": {**_ZERO_SHOT, "multi_label": True},
        },
    ),
    "fill-mask": Case(
        of_fill_mask,
        lambda row: (
            tuple(itertools.chain(*row["tokens"])),
            list(itertools.chain(*row["scores"])),
        ),
        head="ForMaskedLM",
    ),
    "generate": _WRITING,
    "seq2seq": _WRITING,
}
WRITING = {"generate": ("llama", "qwen2", "gpt2"), "seq2seq": ("t5", "bart", "marian")}
LABELLED = ("classify", "token-classify", "zero-shot")
#: What is compared: each task on each architecture, and encoders with decoders where users have them.
COMPARED = [
    pytest.param(task, architecture, marks=pytest.mark.xdist_group(architecture))
    for task, architecture in [
        *itertools.product([task for task in CASES if task not in WRITING], ARCHITECTURES),
        ("classify", "bart"), ("zero-shot", "bart"), ("classify", "t5"), ("token-classify", "t5"),
        *((task, one) for task, architectures in WRITING.items() for one in architectures),
    ]
]  # fmt: skip


class Bench:
    """Models, rows, and what runs answered; each is made once."""

    def __init__(self, folder: Path, texts: list[Row], pairs: list[Row]) -> None:
        self.folder = folder
        self.texts, self.pairs = texts, pairs

    def rows(self, task: str, architecture: str) -> list[Row]:
        if task == "score":
            return self.pairs
        if task in WRITING:  # nothing is no prompt
            return list(dict.fromkeys(text[:READ] for text in self.texts if text))
        if task == "fill-mask":
            wordpiece = architecture in ("bert", "distilbert", "electra", "albert", "deberta-v2")
            return [_masked(text, "[MASK]" if wordpiece else "<mask>") for text in self.texts]
        if task in ("zero-shot", "token-classify"):
            short = (text if i % 5 == 0 else text[:READ] for i, text in enumerate(self.texts))
            # The pipeline for zero-shot refuses an empty text.
            return [text for text in short if text or task != "zero-shot"]
        return self.texts

    @cache  # noqa: B019 - it lives as long as the session
    def checkpoint(self, task: str, architecture: str) -> Path:
        """A model as users have it, with a vocabulary of the texts."""
        case, folder = CASES[task], self.folder / f"{task}-{architecture}"
        config, lines = dict(case.config), [text[:500] for text in self.texts]
        if task in WRITING:
            return made.make_writer(folder, architecture, lines=lines)
        if architecture != "t5":
            config["max_position_embeddings"] = _positions(architecture)
        if architecture == "electra":
            config["embedding_size"] = (
                64  # as in ELECTRA-base: nothing between embedding and layers
            )
        made.make_model(folder, architecture, case.head, lines=lines, std=0.12, **config)
        special = {"model_input_names": ["input_ids", "attention_mask"]}
        edit(
            folder / "tokenizer_config.json",
            model_max_length=LIMIT,
            **(special if architecture == "distilbert" else {}),  # it takes no type ids
        )
        # BART's and T5's heads refuse a batch whose rows have more ends of text, or fewer.
        rows = [text for text in self.rows(task, architecture) if "</s>" not in text]
        if task in ("classify", "token-classify"):
            decide(folder, case.head, rows)
        if task == "zero-shot":
            asked = list(itertools.product(rows, map(HYPOTHESIS.format, TOPICS)))
            decide(folder, case.head, asked, topics=len(TOPICS))
        if task == "embed":
            pooling, *more = POOLINGS.get(architecture, ["mean"])
            whole = self.folder / f"sentence-{architecture}"
            return as_sentence_transformer(folder, whole, pooling, more_modules=more)
        return folder

    @cache  # noqa: B019
    def answered(
        self, task: str, architecture: str, setting: str, dtype: str = "float32"
    ) -> list[dict[str, Any]]:
        """A whole run, from JSON Lines to shards: what it says of each row, in order of the rows."""
        folder, rows = self.checkpoint(task, architecture), self.rows(task, architecture)
        output = self.folder / f"{task}-{architecture}-{setting}-{dtype}"
        names = ("text", "pair") if task == "score" else ("text",)
        lines = (
            {"id": i, **dict(zip(names, row if task == "score" else (row,), strict=True))}
            for i, row in enumerate(rows)
        )
        source = output.with_suffix(".jsonl")
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        report = run(
            RunConfig(
                inputs=(str(source),), output=str(output), model=str(folder), task=task,
                keep=("id",), dtype=dtype, device="cpu", threads=1, workers=0, profile="none",
                chunk_rows=90, max_batch_tokens=2048, **CASES[task].settings[setting],
            )
        )  # fmt: skip
        assert report.exit_code == 0 and len(list((output / "data").glob("*.parquet"))) == 3
        found = read_output(output).to_pylist()
        assert [row["id"] for row in found] == list(range(len(rows)))
        return found


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, texts: list[Row], pairs: list[Row]) -> Bench:
    return Bench(tmp_path_factory.mktemp("references"), texts, pairs)


# -- comparison ------------------------------------------------------------------------------------


def assert_same(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    assert [same for same, _ in found] == [same for same, _ in expected]
    numbers = [np.concatenate([numbers for _, numbers in side]) for side in (found, expected)]
    np.testing.assert_allclose(*numbers, rtol=0, atol=TOLERANCE)


def assert_can_fail(found: list[Answer], expected: list[Answer]) -> None:
    """Labels vary, rows differ by far more than the tolerance, and a swap of two rows is noticed."""
    labels = Counter(_labels_by_place(expected).values())
    assert not labels or max(labels.values()) <= 0.9 * labels.total(), labels
    differing = [_differ(*two) for two in itertools.pairwise(expected)]
    assert np.mean(differing) > 0.9, "the model answers nearly the same to many rows"
    first = differing.index(True)
    swapped = list(found)
    swapped[first], swapped[first + 1] = swapped[first + 1], swapped[first]
    with pytest.raises(AssertionError):
        assert_same(swapped, expected)


def _labels_by_place(answers: list[Answer]) -> dict[Any, str]:
    """The best label of each row; or of each of its entities, by where that stands."""
    found = {}
    for row, (same, _) in enumerate(answers):
        for one in same[:1] if same and isinstance(same[0], str) else same:
            label, *place = (one,) if isinstance(one, str) else one
            found[row, *place] = label
    return found


def _differ(one: Answer, other: Answer) -> bool:
    """Whether two answers differ by much more than the tolerance."""
    if one[0] != other[0] or len(one[1]) != len(other[1]):
        return True
    return bool(one[1]) and bool(np.abs(np.subtract(one[1], other[1])).max() > 10 * TOLERANCE)


# -- tests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "architecture"), COMPARED)
def test_answers_are_those_of_the_reference(bench: Bench, task: str, architecture: str) -> None:
    case, rows = CASES[task], bench.rows(task, architecture)
    assert len(rows) >= 200
    expected = case.reference(bench.checkpoint(task, architecture), rows)
    for setting in case.settings:
        found = [case.read(row) for row in bench.answered(task, architecture, setting)]
        assert_same(found, expected[setting])
        assert_can_fail(found, expected[setting])


@pytest.mark.parametrize(
    ("task", "architecture"), [each for each in COMPARED if each.values[0] in LABELLED]
)
def test_bfloat16_keeps_the_labels(bench: Bench, task: str, architecture: str) -> None:
    case, setting = CASES[task], next(iter(CASES[task].settings))
    full, half = (
        _labels_by_place([case.read(row) for row in bench.answered(task, architecture, setting, d)])
        for d in ("float32", "bfloat16")
    )
    kept = [full.get(place) == half.get(place) for place in full.keys() | half.keys()]
    assert len(kept) >= 200 and np.mean(kept) > 0.99


@pytest.mark.parametrize(
    ("task", "architecture"), [each for each in COMPARED if each.values[0] in ("classify", "score")]
)
def test_rows_are_cut_where_the_reference_cuts_them(
    bench: Bench, task: str, architecture: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bench.checkpoint(task, architecture))
    rows = bench.rows(task, architecture)
    sides = [list(side) for side in zip(*rows, strict=True)] if task == "score" else [rows]
    whole, cut = (
        [len(ids) for ids in tokenizer(*sides, truncation=truncates)["input_ids"]]
        for truncates in (False, True)
    )
    found = bench.answered(task, architecture, "")
    assert [row["_num_tokens"] for row in found] == cut
    assert [row["_truncated"] for row in found] == [count > LIMIT for count in whole]
    assert max(cut) == LIMIT and len(set(cut)) > 20


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "bart"])
def test_rows_at_the_limit_are_whole_and_those_one_token_longer_are_cut(
    made_model: Made, architecture: str
) -> None:
    """Here the configuration alone says how long a row may be."""
    folder = made_model(
        architecture, "ForSequenceClassification", num_labels=3,
        max_position_embeddings=_positions(architecture),
    )  # fmt: skip
    pipe: Any = pipeline("text-classification", model=str(folder), device="cpu")
    lengths = [LIMIT - 1, LIMIT, LIMIT + 1] * 3
    rows = [_of_length(pipe.tokenizer, tokens, seed) for seed, tokens in enumerate(lengths)]
    answered = ask(folder, rows)
    assert answered.requests.truncated.tolist() == [tokens > LIMIT for tokens in lengths]
    assert np.diff(answered.requests.offsets).tolist() == [min(tokens, LIMIT) for tokens in lengths]
    expected = [pipe(row, truncation=True, max_length=LIMIT)[0] for row in rows]
    labels, scores = columns(folder, answered)[:2]
    assert labels == [answer["label"] for answer in expected]
    np.testing.assert_allclose(
        scores, [answer["score"] for answer in expected], rtol=0, atol=TOLERANCE
    )
    if architecture not in (
        "deberta-v2",
        "modernbert",
    ):  # one position more, and the reference has none for it
        with pytest.raises((IndexError, RuntimeError)):
            pipe(rows[2])


def _positions(architecture: str) -> int:
    """Of position embeddings; some architectures have two that no token takes."""
    behind = architecture in attention._POSITIONS_BEHIND_PADDING or architecture == "mpnet"
    return LIMIT + 2 * behind


def _of_length(tokenizer: Any, tokens: int, seed: int) -> str:
    """A text of so many tokens, special ones counted."""
    draw, words = random.Random(seed), list[str]()
    while (count := len(tokenizer(" ".join(words))["input_ids"])) != tokens:
        if count > tokens:
            words = words[: -draw.randrange(1, 6)]
        words.append("".join(draw.choices("abdeiklmnorstuz", k=draw.randrange(1, 5))))
    return " ".join(words)


def test_minilm_embeds_gsm8k_as_sentence_transformers_does(minilm: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="it is not installed")
    file = corpus(GSM8K)
    run(
        RunConfig(
            inputs=(str(file),), output=str(tmp_path / "out"), model=str(minilm), limit=200,
            text_column="question", dtype="float32", device="cpu", workers=0, profile="none",
            chunk_rows=100, max_batch_tokens=4096,
        )
    )  # fmt: skip
    table = read_output(tmp_path / "out")
    rows = table["question"].to_pylist()
    assert rows == [line["question"] for line in _lines(GSM8K)][:200]
    model = library.SentenceTransformer(str(minilm), device="cpu")
    expected = model.encode(rows, batch_size=16, show_progress_bar=False)
    found = np.array(table["embedding"].to_pylist())
    between = expected @ expected.T
    assert np.median(between) < 0.5, "rows hardly differ"
    assert (found * expected).sum(axis=1).min() > 0.99999
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert (np.roll(found, 1, axis=0) * expected).sum(axis=1).max() < 0.999
