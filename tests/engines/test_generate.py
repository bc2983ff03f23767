"""Tasks generate and seq2seq: token for token what `generate` makes of each row alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from transformers import AutoTokenizer, GenerationConfig, LogitsProcessorList

from batchinfer import RunConfig, infer, resume, run
from batchinfer.core import Batch, ChunkId
from batchinfer.engines import cpu, sampling, supervised
from batchinfer.engines.generation import GenerationEngine
from batchinfer.engines.kv_cache import RoomyLayer
from batchinfer.engines.models import describe, make_encoder
from batchinfer.errors import Interrupted, ModelError, UsageError
from batchinfer.stop import StopSignal
from batchinfer.tasks import create_task
from batchinfer.tasks.generation import with_settings
from tests.engines import made

NEW_TOKENS = 12
CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
DECODERS = ("gpt2", "llama", "qwen2")
ENCODER_DECODERS = ("t5", "bart", "marian")
Writer = Callable[..., Path]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """Make a model that writes, or hand out the one that an earlier test made."""
    known: dict[str, Path] = {}

    def make(architecture: str, **settings: Any) -> Path:
        key = json.dumps([architecture, settings], sort_keys=True)
        if key not in known:
            folder = tmp_path_factory.mktemp(architecture)
            known[key] = made.make_writer(folder, architecture, **settings)
        return known[key]

    return make


def load(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()


def answers(
    tmp_path: Path, folder: Path, texts: list[Any], **settings: Any
) -> list[dict[str, Any]]:
    """A whole run, file to file."""
    chosen: dict[str, Any] = {
        "dtype": "float32", "max_new_tokens": NEW_TOKENS, "max_batch_rows": 8, "chunk_rows": 32,
        "threads": 1,
        **settings,
    }  # fmt: skip
    number = len(list(tmp_path.iterdir()))
    source = tmp_path / f"in-{number}.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    output = tmp_path / f"out-{number}"
    run(RunConfig(inputs=(str(source),), model=str(folder), output=str(output), **chosen))
    return pq.read_table(output / "data").drop_columns(["_source"]).to_pylist()


def alone(
    folder: Path, prompts: list[list[int]], new_tokens: int = NEW_TOKENS, **settings: Any
) -> list[dict[str, Any]]:
    """What transformers makes of each prompt alone."""
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    ends = model.generation_config.eos_token_id
    start = 1 if model.config.is_encoder_decoder else 0
    found = []
    for ids in prompts:
        made_ids = model.generate(
            torch.tensor([ids]), max_new_tokens=new_tokens, pad_token_id=1, **settings
        )[0, start or len(ids) :].tolist()
        found.append(
            {
                "generated_text": tokenizer.decode(made_ids, skip_special_tokens=True),
                "finish_reason": "stop" if made_ids[-1] in ends else "length",
                "num_generated_tokens": len(made_ids),
            }
        )
    return found


def differences(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> int:
    assert len(rows) == len(expected)
    return sum(
        any(row[name] != value for name, value in other.items())
        for row, other in zip(rows, expected, strict=True)
    )


def prompts_of(folder: Path, texts: list[str]) -> list[list[int]]:
    return AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODER_DECODERS])
def test_every_row_is_what_generate_makes_of_it_alone(
    writer: Writer, tmp_path: Path, architecture: str
) -> None:
    folder, texts = writer(architecture), made.texts(70, longest=60)
    rows = answers(tmp_path, folder, texts)
    expected = alone(folder, prompts_of(folder, texts))
    assert differences(rows, expected) == 0
    # What makes that worth something: rows differ, some stop, and two that change places are seen.
    assert len({row["generated_text"] for row in expected}) > 30
    assert {row["finish_reason"] for row in expected} == {"stop", "length"}
    swapped = [expected[1], expected[0], *expected[2:]]
    assert differences(rows, swapped) == 2


@pytest.mark.parametrize("architecture", ["llama", "bart"])
def test_beams_and_penalties_are_those_of_generate(
    writer: Writer, tmp_path: Path, architecture: str
) -> None:
    folder, texts = writer(architecture), made.texts(24, longest=40)
    prompts = prompts_of(folder, texts)
    for settings in ({"num_beams": 3}, {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2}):
        file = tmp_path / "generation.json"
        file.write_text(json.dumps(settings))
        rows = answers(tmp_path, folder, texts, generation_config=str(file))
        expected = alone(folder, prompts, **settings)
        assert differences(rows, expected) == 0, settings
        assert differences(rows, alone(folder, prompts)) > 0, f"{settings} changes nothing"


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        *((architecture, {}) for architecture in DECODERS),
        ("llama", {"repetition_penalty": 1.7}),
        ("llama", {"min_new_tokens": 4}),
    ],
)
def test_rows_that_have_ended_leave_the_batch(
    writer: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    settings: dict[str, Any],
) -> None:
    folder, texts = writer(architecture), made.texts(64, longest=60)
    file = tmp_path / "generation.json"
    file.write_text(json.dumps(settings))
    sizes = watched_sizes(monkeypatch)
    rows = answers(
        tmp_path, folder, texts, max_batch_rows=40, max_new_tokens=30, generation_config=str(file)
    )
    assert sizes[:2] == [32, 16]
    assert len(sizes) < 12, "a batch that failed is taken again in parts"
    expected = alone(folder, prompts_of(folder, texts), 30, **settings)
    assert differences(rows, expected) == 0


def watched_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the engine to `generate` has, as they come."""
    sizes: list[int] = []
    real = GenerationEngine._generate

    def watch(engine: GenerationEngine, inputs: Any, *args: Any) -> torch.Tensor:
        sizes.append(len(inputs["input_ids"]))
        return real(engine, inputs, *args)

    monkeypatch.setattr(GenerationEngine, "_generate", watch)
    return sizes


def test_a_batch_stays_whole_where_settings_look_at_where_the_prompt_ends(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, texts = writer("llama"), made.texts(32, longest=40)
    settings = {"begin_suppress_tokens": list(range(20, 200))}
    file = tmp_path / "generation.json"
    file.write_text(json.dumps(settings))
    sizes = watched_sizes(monkeypatch)
    rows = answers(tmp_path, folder, texts, max_batch_rows=40, generation_config=str(file))
    assert sizes == [32]
    expected = alone(folder, prompts_of(folder, texts), **settings)
    assert differences(rows, expected) == 0
    assert differences(expected, alone(folder, prompts_of(folder, texts))) > 0


# -- draws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_what_a_row_draws_depends_on_no_other(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    folder, texts = writer(architecture), made.texts(40, longest=40)
    drawn = answers(tmp_path, folder, texts, temperature=2.0, max_new_tokens=40)
    sizes = watched_sizes(monkeypatch)
    for rows in (3, 40):
        found = answers(
            tmp_path, folder, texts, temperature=2.0, max_new_tokens=40, max_batch_rows=rows
        )
        assert found == drawn
    if architecture == "llama":
        assert sizes[-3:] == [32, 16, 8], "half of the 32 leave; a batch that failed comes in parts"
    drawn = answers(tmp_path, folder, texts, temperature=2.0)
    other = answers(tmp_path, folder, texts, temperature=2.0, seed=1)
    assert differences(other, [{"generated_text": row["generated_text"]} for row in drawn]) > 30
    same = answers(tmp_path, folder, ["the same"] * 40, temperature=2.0)
    assert len({row["generated_text"] for row in same}) > 30


def test_draws_follow_the_probabilities() -> None:
    scores = torch.tensor([[1.0, 3.0, -torch.inf, 2.0, 0.0]])
    seeds = np.arange(40_000, dtype=np.uint32)
    for step in (0, 7):
        draw = sampling.Draw(seeds, prompt_length=5)
        ids: Any = torch.zeros(len(seeds), 5 + step, dtype=torch.int64)
        chosen = draw(ids, scores.expand(len(seeds), -1)).argmax(dim=1)
        shares = torch.bincount(chosen, minlength=5) / len(seeds)
        torch.testing.assert_close(shares, scores[0].softmax(0), atol=0.01, rtol=0)
        assert shares[2] == 0


def test_numbers_of_a_seed_and_of_a_step_are_independent() -> None:
    seeds = np.arange(2000, dtype=np.uint32)
    drawn = np.stack([sampling.uniform(seeds, step) for step in range(50)])
    assert drawn.min() >= 0 and drawn.max() < 1
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.1
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.5
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.5}, {"top_k": 0, "min_p": 0.2},
        {"typical_p": 0.6, "epsilon_cutoff": 0.01}, {"eta_cutoff": 0.02, "temperature": 1.5},
    ],
)  # fmt: skip
def test_scores_are_warped_as_generate_warps_them(writer: Writer, settings: dict[str, Any]) -> None:
    model = load(writer("llama"))
    ids = torch.tensor([[7, 8, 9, 10]])
    config = GenerationConfig(
        do_sample=True, max_new_tokens=1, pad_token_id=1, eos_token_id=5, **settings
    )
    made_of = model.generate(
        ids, generation_config=config, return_dict_in_generate=True, output_scores=True,
        output_logits=True,
    )  # fmt: skip
    found = LogitsProcessorList(sampling.warpers({"do_sample": True, **settings}))(
        ids, made_of.logits[0].clone()
    )
    torch.testing.assert_close(found, made_of.scores[0])
    assert torch.isinf(found).any() or settings == {"top_k": 0}


# -- prompts ---------------------------------------------------------------------------------------


def test_prompts_go_through_the_chat_template(writer: Writer, tmp_path: Path) -> None:
    folder, texts = writer("llama", chat_template=CHAT), made.texts(20, longest=30)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def chat(messages: list[dict[str, str]]) -> list[int]:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )

    asked = [[{"role": "user", "content": text}] for text in texts]
    plain = answers(tmp_path, folder, texts)
    assert differences(plain, alone(folder, [chat(one) for one in asked])) == 0
    assert differences(answers(tmp_path, folder, asked), plain_columns(plain)) == 0
    bare = answers(tmp_path, folder, texts, chat=False)
    assert differences(bare, alone(folder, prompts_of(folder, texts))) == 0
    assert differences(bare, plain_columns(plain)) > 10

    told = [{"role": "system", "content": "be brief"}]
    system = answers(tmp_path, folder, texts, system="be brief")
    assert differences(system, alone(folder, [chat([*told, *one]) for one in asked])) == 0


def plain_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"generated_text": row["generated_text"]} for row in rows]


def test_conversations_that_are_none_are_errors_of_their_rows(
    writer: Writer, tmp_path: Path
) -> None:
    folder = writer("llama", chat_template=CHAT)
    good = [{"role": "user", "content": "bade"}, {"role": "assistant", "content": "lo"}]
    rows = answers(
        tmp_path, folder, [good, [], None, [{"role": "user", "content": None}], good],
        max_errors="100%",
    )  # fmt: skip
    assert [row["_error"] is None for row in rows] == [True, False, False, False, True]
    assert rows[0]["generated_text"] == rows[4]["generated_text"]
    assert "is empty" in rows[1]["_error"] and "lacks 'role' or 'content'" in rows[3]["_error"]


def test_a_message_has_the_fields_that_it_was_given(writer: Writer, tmp_path: Path) -> None:
    """Arrow gives every message the fields of all others; templates ask what a message has."""
    template = CHAT.replace("</s>", "{% if 'calls' in m %}{{ m.calls | tojson }}{% endif %}</s>", 1)
    folder = writer("llama", chat_template=template)
    plain = [[{"role": "user", "content": text}] for text in made.texts(6, longest=20)]
    plain[1] += [{"role": "assistant", "content": "lo", "calls": [{"given": {"a": 1}}]}]
    calls = [{"given": {"a": 1}}, {"given": {"b": "two"}}]
    calling = [*plain[0], {"role": "assistant", "content": "lo", "calls": calls}]
    rows = answers(tmp_path, folder, [*plain, calling])
    assert differences(rows[:-1], plain_columns(answers(tmp_path, folder, plain))) == 0
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        calling, add_generation_prompt=True, return_dict=False
    )
    assert differences(rows[-1:], alone(folder, [ids])) == 0


def test_a_conversation_that_cannot_be_read_is_an_error_of_its_row(tmp_path: Path) -> None:
    contents: Any = pa.array([b"good", b"bad \xff", b"good", b"good"], pa.binary())
    fields = {
        "role": pa.array(["user"] * 4),
        "content": contents.view(pa.string()),
        "price": pa.array([None, None, "1.5", None]).cast(pa.decimal128(4, 1)),
        "image": pa.array([None, None, None, b"\x89PNG"], pa.binary()),
    }
    messages = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    conversations = pa.ListArray.from_arrays(pa.array(range(5), pa.int32()), messages)
    pq.write_table(pa.table({"text": conversations}), tmp_path / "in.parquet")
    run(
        RunConfig(
            inputs=(str(tmp_path / "in.parquet"),), output=str(tmp_path / "out"), engine="fake",
            task="generate", max_errors="100%", keep=(),
        )
    )  # fmt: skip
    good, *bad = pq.read_table(tmp_path / "out" / "data")["_error"].to_pylist()
    assert good is None
    expected = (
        "row 1: column 'text' is not valid UTF-8",
        "column 'text' cannot be read: Type is not JSON serializable: decimal.Decimal",
        "column 'text' cannot be read: 'utf-8' codec can't decode byte 0x89 in position 0",
    )
    for error, said in zip(bad, expected, strict=True):
        assert error.startswith(said) and "\n" not in error


def test_a_template_that_fails_is_an_error_of_its_row(writer: Writer, tmp_path: Path) -> None:
    template = (
        "{% if 'zu' in messages[0].content %}{{ raise_exception('no zu') }}{% endif %}" + CHAT
    )
    rows = answers(
        tmp_path, writer("llama", chat_template=template), ["bade", "zuzu", "lo"], max_errors="1"
    )
    assert [row["_error"] for row in rows] == [None, "the model's chat template fails: no zu", None]


def test_a_prompt_that_leaves_no_room_is_an_error_of_its_row(
    writer: Writer, tmp_path: Path
) -> None:
    texts = ["bade lo", "ma " * 400, "zu"]
    rows = answers(tmp_path, writer("gpt2"), texts, max_errors="1")
    assert [row["_error"] is None for row in rows] == [True, False, True]
    assert "more than 244 tokens (--max-length)" in rows[1]["_error"]
    assert rows[1]["generated_text"] is None
    expected = alone(writer("gpt2"), prompts_of(writer("gpt2"), ["bade lo", "zu"]))
    assert differences([rows[0], rows[2]], expected) == 0


def test_a_long_text_of_an_encoder_decoder_is_cut(writer: Writer, tmp_path: Path) -> None:
    folder, texts = writer("t5"), ["ma " * 400, "zu"]
    rows = answers(tmp_path, folder, texts, max_length=40)
    assert [row["_truncated"] for row in rows] == [True, False]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cut = tokenizer(texts, truncation=True, max_length=40)["input_ids"]
    assert differences(rows, alone(folder, cut)) == 0


def test_an_answer_ends_before_a_stop(writer: Writer, tmp_path: Path) -> None:
    folder, texts = writer("llama"), made.texts(40, longest=30)
    whole = answers(tmp_path, folder, texts)
    stops = [" ", "a"]
    rows = answers(tmp_path, folder, texts, stop=tuple(stops))
    stopped = 0
    for row, before in zip(rows, whole, strict=True):
        text = before["generated_text"]
        cut = min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))
        assert row["generated_text"] == text[:cut]
        if cut < len(text):
            stopped += 1
            assert row["finish_reason"] == "stop"
            assert row["num_generated_tokens"] <= before["num_generated_tokens"]
    assert stopped > 10


def test_a_tokenizer_in_python_does_too(tmp_path: Path) -> None:
    folder = tmp_path / "byt5"
    made.make_writer(folder, "t5", vocab_size=384)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    transformers.ByT5Tokenizer().save_pretrained(folder)
    texts = made.texts(12, longest=12)
    rows = answers(tmp_path, folder, texts)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert differences(rows, alone(folder, tokenizer(texts)["input_ids"])) == 0


# -- what else -------------------------------------------------------------------------------------


def test_models_that_know_no_padding_get_rows_of_one_length(
    writer: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, texts = writer("gpt2"), made.texts(30, longest=30)
    right = answers(tmp_path, folder, texts)
    inputs = GenerationEngine._inputs

    def unmasked(engine: GenerationEngine, batch: Batch, **how: Any) -> dict[str, torch.Tensor]:
        found = inputs(engine, batch, **how)
        return {**found, "attention_mask": torch.ones_like(found["attention_mask"])}

    monkeypatch.setattr(GenerationEngine, "_inputs", unmasked)
    assert answers(tmp_path, folder, texts) == right
    assert "prompts of different lengths are answered apart" in caplog.text


@pytest.mark.parametrize("architecture", ["llama", "bart"])
def test_layers_that_change_the_model_as_a_whole_stay_out(
    writer: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    architecture: str,
) -> None:
    folder, texts = writer(architecture), made.texts(20, longest=20)
    right = answers(tmp_path, folder, texts)
    assert "own layers are used" not in caplog.text

    def spoil(model: Any, **how: Any) -> str:
        with torch.inference_mode():
            model.get_output_embeddings().weight.mul_(torch.linspace(0, 2, 64))
        return "spoilt"

    monkeypatch.setattr(cpu, "optimize", spoil)
    assert answers(tmp_path, folder, texts) == right
    assert "the model's own layers are used: putting in faster layers changes the answers" in (
        caplog.text
    )


def test_keys_and_values_have_room_and_overflow_it() -> None:
    from transformers.cache_utils import DynamicLayer

    ours, theirs = RoomyLayer(capacity=6), DynamicLayer()
    for tokens in (3, 1, 1, 1, 1, 2):
        states = torch.randn(2, 2, 2, tokens, 4)
        found, expected = ours.update(*states), theirs.update(*states)
        assert all(map(torch.equal, found, expected))
        assert ours.get_seq_length() == theirs.get_seq_length()
    for layer in (ours, theirs, fresh := RoomyLayer(capacity=6)):
        layer.batch_select_indices(torch.tensor([1]))
    assert torch.equal(ours.keys, theirs.keys) and fresh.get_seq_length() == 0


def test_the_settings_of_the_model_of_a_file_and_of_flags(writer: Writer, tmp_path: Path) -> None:
    folder = writer("llama", temperature=0.6, do_sample=True, top_p=0.9, max_new_tokens=5)

    def settings(generation_config: str = "", **given: Any) -> dict[str, Any]:
        more = with_settings(RunConfig(generation_config=generation_config)).generation_config
        writing = {**given, "generation_config": more}
        return json.loads(describe(str(folder), writing=writing)[0].generation)

    own = settings()
    assert own.pop("eos_token_id")[0] == 5
    own = {name: value for name, value in own.items() if not name.endswith("token_id")}
    assert own == {"do_sample": True, "max_new_tokens": 5, "temperature": 0.6, "top_p": 0.9}
    assert "temperature" not in settings(temperature=0)
    file = tmp_path / "settings.json"
    file.write_text('{"top_k": 3, "max_new_tokens": 7}')
    found = settings(generation_config=str(file), max_new_tokens=9)
    assert (found["top_k"], found["max_new_tokens"]) == (3, 9)
    for content, why in (
        ('{"topk": 3}', "transformers knows no setting 'topk'"),
        ("[1]", "should be a JSON object"),
        ("{", "cannot be read"),
        ('{"num_return_sequences": 3}', "num_return_sequences is not supported"),
        ('{"max_length": 50}', "give max_new_tokens instead"),
        ('{"max_new_tokens": 0}', "max_new_tokens is 0, and should be a whole number of 1 or more"),
        ('{"max_new_tokens": "100"}', "max_new_tokens is '100', and should be a whole number"),
        ('{"eos_token_id": "</s>"}', "eos_token_id is '</s>', and should be the number of a token"),
        ('{"early_stopping": "x"}', "the generation settings cannot be used: .*early_stopping"),
    ):
        file.write_text(content)
        with pytest.raises(UsageError, match=why):
            settings(generation_config=str(file))
    unset = settings('{"max_new_tokens": null, "top_k": 9}')["max_new_tokens"]
    assert unset == 128, "half of what the model takes, as if nobody had said"
    with pytest.raises(UsageError, match="means nothing with --temperature 0"):
        settings(temperature=0, top_p=0.5)


def test_a_file_of_settings_is_part_of_the_job_and_not_asked_again(
    writer: Writer, tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"repetition_penalty": 1.5, "max_new_tokens": 4}')
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in made.texts(9)))
    job = RunConfig(
        inputs=(str(source),), model=str(writer("llama")), output=str(tmp_path / "out"),
        dtype="float32", generation_config=str(file), workers=0,
    )  # fmt: skip
    run(job)
    inline = '{"max_new_tokens": 4, "repetition_penalty": 1.5}'
    again = run(job.model_copy(update={"generation_config": inline}))
    assert (again.new_rows, again.num_rows) == (0, 9), "the same settings are the same job"
    file.unlink()
    assert resume(tmp_path / "out").num_rows == 9


def test_an_encoder_decoder_writes_as_many_tokens_as_generate(
    writer: Writer, tmp_path: Path
) -> None:
    """Its `max_length` counts the token that the decoder starts with."""
    folder, texts = writer("bart", max_length=9), made.texts(12, longest=20)
    rows = answers(tmp_path, folder, texts, max_new_tokens=None)
    model, expected = load(folder), []
    for ids in prompts_of(folder, texts):
        tokens = model.generate(torch.tensor([ids]), pad_token_id=1)[0, 1:].tolist()
        expected.append({"num_generated_tokens": len(tokens)})
    assert differences(rows, expected) == 0
    assert max(row["num_generated_tokens"] for row in rows) == 8
    with pytest.raises(UsageError, match="--max-new-tokens 256: .* writes no more than 255"):
        describe(str(folder), writing={"max_new_tokens": 256})


def test_scores_that_are_no_numbers_are_an_error_of_their_row(
    writer: Writer, tmp_path: Path
) -> None:
    folder, texts = tmp_path / "llama", made.texts(40, longest=30)
    shutil.copytree(writer("llama"), folder)
    sick = next(i for i, ids in enumerate(prompts_of(folder, texts)) if len(ids) > 8)
    poison = prompts_of(folder, texts)[sick][4]
    model = load(folder)
    with torch.inference_mode():
        model.get_input_embeddings().weight[poison] = torch.nan
    model.save_pretrained(folder)
    hit = [poison in ids for ids in prompts_of(folder, texts)]
    assert 0 < sum(hit) < 40
    rows = answers(tmp_path, folder, texts, max_batch_rows=40)
    for row, is_hit in zip(rows, hit, strict=True):
        if is_hit:
            assert row["_error"] == "the model's answer is NaN or infinite"
    healthy = [row for row, is_hit in zip(rows, hit, strict=True) if not is_hit]
    assert sum(row["_error"] is None for row in healthy) > 0.5 * len(healthy)


def test_a_stop_that_cannot_be_is_told(writer: Writer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--stop: is empty"):
        answers(tmp_path, writer("llama"), ["a"], stop=("",))
    with pytest.raises(UsageError, match="--stop: the model cannot write '☃'"):
        answers(tmp_path, writer("t5"), ["a"], stop=("☃",))


@pytest.mark.parametrize("architecture", ["gpt2", "bart"])
def test_settings_that_look_at_padding_keep_lengths_apart(
    writer: Writer, tmp_path: Path, architecture: str
) -> None:
    folder = writer(architecture)
    setting = "no_repeat_ngram_size" if architecture == "gpt2" else "encoder_repetition_penalty"
    settings: dict[str, Any] = {setting: 2}
    file = tmp_path / "generation.json"
    file.write_text(json.dumps(settings))
    texts = [*made.texts(20, longest=30), "ba", "ba ba", "la"]
    rows = answers(tmp_path, folder, texts, generation_config=str(file))
    asked = settings if architecture == "gpt2" else {setting: 2.0}
    assert differences(rows, alone(folder, prompts_of(folder, texts), **asked)) == 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"max_new_tokens": 500}, "leaves 0 for the prompt"),
        ({"max_new_tokens": 100, "max_length": 200}, "leaves 156 for the prompt, not 200"),
        ({"chat": True}, "has no chat template"),
        ({"system": "be brief"}, "--system: means nothing here"),
        ({"attention": "packed"}, "--attention packed: not with --task generate"),
        ({"streams": 2}, "--streams 2: not with --task generate"),
        ({"engine": "openvino"}, "--engine openvino: not with --task generate"),
        ({"pooling": "cls"}, "--pooling: means nothing to --task generate"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    writer: Writer, tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        answers(tmp_path, writer("llama"), ["bade"], **settings)


def test_a_model_without_the_head_is_refused(writer: Writer) -> None:
    with pytest.raises(ModelError, match="it has no head for seq2seq"):
        describe(str(writer("llama")), task="seq2seq")
    spec, _ = describe(str(writer("llama")))
    assert spec.task == "generate"
    # Half of its 256 positions are left to the prompt, as nobody has said how long answers are.
    assert (json.loads(spec.generation)["max_new_tokens"], spec.max_length) == (128, 128)
    assert describe(str(writer("marian")))[0].task == "seq2seq"


def test_texts_in_memory(writer: Writer) -> None:
    folder, texts = writer("qwen2"), made.texts(9, longest=20)
    frame = infer(texts, str(folder), max_new_tokens=NEW_TOKENS, dtype="float32")
    rows = frame.to_dict("records")
    assert differences(rows, alone(folder, prompts_of(folder, texts))) == 0


def test_failed_rows_are_generated_again_alone(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, texts = writer("llama"), made.texts(20, longest=20)
    whole = answers(tmp_path, folder, texts, temperature=1.5)
    answer = GenerationEngine.answer

    def fail(engine: GenerationEngine, batch: Batch) -> Any:
        if 3 in batch.indices:
            raise RuntimeError("ill")
        return answer(engine, batch)

    monkeypatch.setattr(GenerationEngine, "answer", fail)
    broken = answers(tmp_path, folder, texts, temperature=1.5)
    assert [row["_error"] for row in broken if row["_error"]] == ["RuntimeError: ill"]
    assert differences(broken, plain_columns(whole)) == 1
    monkeypatch.undo()
    outputs = sorted(tmp_path.glob("out-*"), key=lambda path: int(path.name.partition("-")[2]))
    resume(str(outputs[-1]), retry_errors=True)
    cured = pq.read_table(outputs[-1] / "data").drop_columns(["_source"])
    assert cured.to_pylist() == whole


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.5}, {"num_beams": 3}], ids=["greedy", "draws", "beams"]
)
def test_a_stop_is_heard_within_a_batch(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    folder, stop, steps = writer("llama"), StopSignal(), 0
    texts, chosen = made.texts(20, longest=20), dict(settings)
    if "num_beams" in settings:
        (tmp_path / "generation.json").write_text(json.dumps(settings))
        chosen = {"generation_config": str(tmp_path / "generation.json")}
    whole = answers(tmp_path, folder, texts, **chosen)
    answer = GenerationEngine.answer

    def watched(engine: GenerationEngine, batch: Batch) -> Any:
        # In the second batch, behind a few tokens.
        seen.append(batch)
        if len(seen) == 2:
            engine.model.register_forward_pre_hook(count)
        return answer(engine, batch)

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            stop.set()
            stop._grace_ends = 0.0  # the few seconds are over

    seen: list[Batch] = []
    monkeypatch.setattr(GenerationEngine, "answer", watched)
    output = tmp_path / "stopped"
    with pytest.raises(Interrupted) as stopped:
        run(
            RunConfig(
                inputs=(str(next(tmp_path.glob("in-*"))),),
                model=str(folder), output=str(output), dtype="float32",
                max_new_tokens=NEW_TOKENS, max_batch_rows=8, chunk_rows=32, threads=1, **chosen,
            ),
            stop=stop,
        )  # fmt: skip
    assert stopped.value.exit_code == 75
    assert (len(seen), steps) == (2, 3), "no token more"
    monkeypatch.undo()
    report = resume(str(output))
    assert report.new_rows == 20 - len(seen[0]) and report.num_errors == 0
    found = pq.read_table(output / "data").drop_columns(["_source"]).to_pylist()
    assert found == whole


@pytest.mark.parametrize(
    ("architecture", "made_of", "writing"),
    [
        ("llama", {}, {}),
        ("t5", {}, {}),
        ("llama", {"chat_template": CHAT}, {}),
        ("llama", {}, {"temperature": 1.5}),
    ],
)
def test_two_tokens_warm_a_model_up(
    writer: Writer, architecture: str, made_of: dict[str, Any], writing: dict[str, Any]
) -> None:
    spec, folder = describe(
        str(writer(architecture, **made_of)), writing={"max_new_tokens": NEW_TOKENS, **writing}
    )
    engine = GenerationEngine(create_task(spec), folder, dtype="float32")
    steps: list[int] = []
    engine.model.register_forward_pre_hook(lambda *_: steps.append(1))
    supervised._warm_up(engine, make_encoder(folder, spec))
    assert len(steps) == 2
    assert not engine.stopped()
    engine.close()


def test_a_bare_engine_answers_a_batch(writer: Writer) -> None:
    spec, folder = describe(str(writer("llama")), writing={"max_new_tokens": NEW_TOKENS})
    engine = GenerationEngine(create_task(spec), folder, dtype="float32")
    tokens = make_encoder(folder, spec).encode(pa.array(["bade lo"], pa.large_string()), None)
    lengths = np.diff(tokens.offsets).astype(np.int32)
    answer = engine.answer(Batch(ChunkId(0, 0), np.zeros(1, np.int64), lengths, tokens.fields))
    assert answer.values["count"][0] == len(answer.values["tokens"])
    engine.close()
