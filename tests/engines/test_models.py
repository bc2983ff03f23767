"""What a model is, from its files alone; and one line that says what to do where it cannot be used."""

from __future__ import annotations

import json
import logging
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from batchinfer.engines import files, models
from batchinfer.engines.local import LocalEngine
from batchinfer.engines.models import describe, make_encoder
from batchinfer.errors import ModelError, UsageError
from batchinfer.tasks import create_task
from tests.engines import made
from tests.engines.conftest import Made

HEAD = "ForSequenceClassification"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def as_sentence_transformer(
    source: Path, folder: Path, pooling: str | list[str] = "mean", **files: Any
) -> Path:
    """A copy of a model with the files that sentence-transformers adds."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    kinds = ["Transformer", "Pooling", *files.pop("more_modules", [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    settings = {"embedding_dimension": 64, "pooling_mode": pooling, **files.pop("pooling", {})}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.fixture
def copy(made_model: Made, tmp_path: Path) -> Any:
    """A copy of a made model that a test may spoil."""

    def make(*arguments: Any, **config: Any) -> Path:
        return Path(shutil.copytree(made_model(*arguments, **config), tmp_path / "model"))

    return make


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_minilm_is_described_by_its_own_files(minilm: Path) -> None:
    spec, folder = describe(str(minilm))
    assert folder == minilm
    assert (spec.task, spec.architecture, spec.pooling) == ("embed", "BertModel", "mean")
    assert (spec.dimension, spec.normalize, spec.max_length, spec.prompt) == (384, True, 256, "")
    assert spec.identity.startswith("sha256:")


def test_a_classifier_is_found_by_its_architecture(made_model: Made) -> None:
    labels = {"0": "refund", "1": "praise"}
    folder = made_model("bert", HEAD, num_labels=2, id2label=labels)
    spec, _ = describe(str(folder))
    assert (spec.task, spec.architecture) == ("classify", "BertForSequenceClassification")
    assert (spec.labels, spec.activation, spec.max_length) == (("refund", "praise"), "softmax", 128)


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({"num_labels": 1}, "sigmoid"),
        ({"num_labels": 1, "problem_type": "regression"}, "none"),
        ({"num_labels": 4, "problem_type": "multi_label_classification"}, "sigmoid"),
    ],
)
def test_the_activation_is_that_of_the_pipeline(
    made_model: Made, config: dict[str, Any], activation: str
) -> None:
    assert describe(str(made_model("bert", HEAD, **config)))[0].activation == activation


@pytest.mark.parametrize(
    ("architecture", "limit"),
    [("bert", 128), ("roberta", 128), ("xlm-roberta", 128), ("distilbert", 128), ("gpt2", 128)],
)
def test_the_limit_is_the_number_of_usable_positions(
    made_model: Made, architecture: str, limit: int
) -> None:
    # RoBERTa-like models of 130 positions take 128 tokens: the first two positions are padding's.
    assert describe(str(made_model(architecture)), task="embed")[0].max_length == limit


def test_the_users_limit_must_be_within_the_models(made_model: Made) -> None:
    folder = str(made_model("bert"))
    assert describe(folder, task="embed", max_length=17)[0].max_length == 17
    with pytest.raises(UsageError, match=r"--max-length 129 is more than .* takes: 128 tokens"):
        describe(folder, task="embed", max_length=129)
    with pytest.raises(UsageError, match=r"--max-length 2 leaves no room .* give 3 or more"):
        describe(folder, task="embed", max_length=2)


def test_the_limit_of_sentence_transformers_is_a_default(made_model: Made, tmp_path: Path) -> None:
    folder = as_sentence_transformer(
        made_model("bert"), tmp_path / "m", sentence_bert_config={"max_seq_length": 32}
    )
    assert describe(str(folder))[0].max_length == 32
    assert describe(str(folder), max_length=64)[0].max_length == 64


def test_a_bare_model_needs_a_task(made_model: Made) -> None:
    with pytest.raises(ModelError, match="choose --task embed") as error:
        describe(str(made_model("bert")))
    one_line(error)
    assert describe(str(made_model("bert")), task="embed")[0].pooling == "mean"


def test_a_masked_language_model_fills_masks_and_it_is_said(
    made_model: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Many embed with such models: who says nothing is told what was chosen."""
    folder = made_model("bert", "ForMaskedLM")
    spec, _ = describe(str(folder))
    assert (spec.task, spec.mask_token, spec.labels) == ("fill-mask", "[MASK]", ())
    assert "is a BertForMaskedLM: taken for a model that fills masks" in caplog.text
    caplog.clear()
    assert describe(str(folder), task="fill-mask")[0] == spec
    assert describe(str(folder), task="embed")[0].pooling == "mean"
    embedder = as_sentence_transformer(folder, tmp_path / "st")
    assert describe(str(embedder))[0].task == "embed"
    assert not caplog.text


def test_a_model_without_a_head_cannot_classify(made_model: Made) -> None:
    with pytest.raises(ModelError, match="it has no head for classify"):
        describe(str(made_model("bert")), task="classify")


def test_a_classifier_that_embeds_warns_of_its_lost_head(
    made_model: Made, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(made_model("bert", HEAD, num_labels=3))
    with caplog.at_level(logging.WARNING, logger="batchinfer"):
        assert describe(folder, task="embed")[0].task == "embed"
    assert "without its head" in caplog.text


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        ({"pooling_mode": None, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": None, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": None, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": None}, "mean"),
        ({"word_embedding_dimension": 64}, "mean"),
    ],
)
def test_poolings_are_read_by_old_and_new_keys(
    made_model: Made, tmp_path: Path, settings: dict[str, Any], pooling: str
) -> None:
    folder = as_sentence_transformer(made_model("bert"), tmp_path / "m")
    edit(folder / "1_Pooling" / "config.json", **settings)
    assert describe(str(folder))[0].pooling == pooling


def test_the_default_prompt_is_taken(made_model: Made, tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "query: ", "none": ""}, "default_prompt_name": "query"}
    folder = as_sentence_transformer(
        made_model("bert"),
        tmp_path / "m",
        config_sentence_transformers=prompts,
        more_modules=["Normalize"],
    )
    spec, _ = describe(str(folder))
    assert (spec.prompt, spec.normalize) == ("query: ", True)
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    with pytest.raises(ModelError, match="include_prompt"):
        describe(str(folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"more_modules": ["Dense", "Normalize"]}, "Dense"),
        ({"pooling": "max"}, "pooling max is not supported"),
        ({"pooling": ["mean", "cls"]}, r"pooling mean \+ cls is not supported"),
        ({"sentence_bert_config": {"transformer_task": "fill-mask"}}, "fill-mask"),
    ],
)
def test_what_is_not_supported_of_sentence_transformers_is_said(
    made_model: Made, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = as_sentence_transformer(made_model("bert"), tmp_path / "m", **options)
    with pytest.raises(ModelError, match=message) as error:
        describe(str(folder))
    one_line(error)


def test_models_that_sentence_transformers_saves_are_understood(
    made_model: Made, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    model = library.SentenceTransformer(str(made_model("bert")), device="cpu")
    model.max_seq_length = 40
    model.save(str(tmp_path / "saved"))
    spec, _ = describe(str(tmp_path / "saved"))
    assert (spec.task, spec.pooling, spec.normalize) == ("embed", "mean", False)
    assert (spec.max_length, spec.dimension) == (40, 64)


def test_equal_folders_are_the_same_model_and_others_are_not(copy: Any, made_model: Made) -> None:
    folder = copy("bert", HEAD, num_labels=3)
    original = describe(str(made_model("bert", HEAD, num_labels=3)))[0]
    (folder / "README.md").write_text("notes are not the model")
    assert describe(str(folder))[0].identity == original.identity
    weights = folder / "model.safetensors"
    spoiled = bytearray(weights.read_bytes())
    spoiled[-1] ^= 1
    weights.write_bytes(spoiled)
    assert describe(str(folder))[0].identity != original.identity


def test_what_is_no_model_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for model, message in [
        (str(tmp_path / "empty"), "no config.json"),
        (str(tmp_path / "file"), "this is a file"),
        (str(tmp_path / "nowhere"), "no such model folder"),
        ("./nowhere", "no such model folder"),
        ("", "--model is empty"),
    ]:
        with pytest.raises(ModelError, match=message) as error:
            describe(model)
        one_line(error)


def test_broken_files_are_said_in_one_line(copy: Any) -> None:
    folder = copy("bert", HEAD, num_labels=3)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer cannot be loaded") as error:
        describe(str(folder))
    one_line(error)
    (folder / "config.json").write_text('{"model_type": "of-tomorrow"}')
    with pytest.raises(ModelError, match=r"config\.json cannot be used") as error:
        describe(str(folder))
    one_line(error)


def test_pickled_weights_are_not_loaded(copy: Any) -> None:
    folder = copy("bert", HEAD, num_labels=3)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no safetensors weights"):
        describe(str(folder))
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin; convert it once") as error:
        describe(str(folder))
    one_line(error)


def test_code_of_the_model_needs_consent(copy: Any) -> None:
    folder = copy("bert", HEAD, num_labels=3)
    auto_map = {"AutoConfig": "own.OwnConfig"}
    edit(folder / "config.json", model_type="own", auto_map=auto_map)
    with pytest.raises(ModelError, match="--trust-remote-code") as error:
        describe(str(folder))
    one_line(error)


OWN_CODE = """
from transformers import BertConfig, BertForSequenceClassification
class OwnConfig(BertConfig):
    model_type = "own"
class OwnForSequenceClassification(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_code_of_the_model_runs_with_consent(
    copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = copy("bert", HEAD, num_labels=3)
    (folder / "own.py").write_text(OWN_CODE)
    name = "OwnForSequenceClassification"
    edit(
        folder / "config.json",
        model_type="own",
        architectures=[name],
        auto_map={"AutoConfig": "own.OwnConfig", f"AutoModel{HEAD}": f"own.{name}"},
    )
    spec, place = describe(str(folder), trust_remote_code=True)
    assert (spec.task, spec.architecture) == ("classify", name)
    task = create_task(spec)
    engine = LocalEngine(task, place, dtype="float32", device="cpu", trust_remote_code=True)
    assert type(engine.model).__name__ == name


def test_xlnet_is_refused(copy: Any) -> None:
    config = copy("bert", HEAD, num_labels=3) / "config.json"
    architecture = f"XLNet{HEAD}"
    sizes = {"d_head": 16, "max_position_embeddings": None}
    edit(config, model_type="xlnet", architectures=[architecture], **sizes)
    with pytest.raises(ModelError, match="padding on the right"):
        describe(str(config.parent))


def with_slow_tokenizer(source: Path, folder: Path) -> Path:
    """A BERT's copy, whose tokenizer of the same vocabulary is written in Python."""
    shutil.copytree(source, folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text(
        "".join(f"{t}\n" for t in sorted(vocabulary, key=vocabulary.get))
    )
    (folder / "tokenizer.json").unlink()
    settings = {
        "tokenizer_class": "BertJapaneseTokenizer", "do_lower_case": True,
        "word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece",
        "model_max_length": 128, "model_input_names": ["input_ids", "token_type_ids"],
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("truncation", ["longest_first", "only_first"])
def test_a_tokenizer_in_python_gives_what_a_fast_one_gives(
    truncation: str, made_model: Made, tmp_path: Path
) -> None:
    quick = made_model("bert", "ForSequenceClassification", num_labels=3)
    slow = with_slow_tokenizer(quick, tmp_path / "slow")
    task = "zero-shot" if truncation == "only_first" else "classify"
    known = made.words()
    draw = random.Random(3)
    lengths = [(draw.randint(0, 40), draw.randint(0, 9)) for _ in range(60)]
    texts, pairs = (
        pa.array([" ".join(draw.choices(known, k=pair[i])) for pair in lengths], pa.large_string())
        for i in (0, 1)
    )
    found = []
    for folder in (quick, slow):
        spec, _ = describe(str(folder), task=task, pairs=True, max_length=48)
        encoder = make_encoder(folder, spec)
        found.append([encoder.encode(texts, seconds) for seconds in (pairs, None)])
    assert type(encoder).__name__ == "TransformersEncoder"
    for expected, got in zip(*found, strict=True):
        assert expected.truncated.any() and not expected.truncated.all()
        np.testing.assert_array_equal(got.truncated, expected.truncated)
        np.testing.assert_array_equal(got.offsets, expected.offsets)
        assert got.fields.keys() == expected.fields.keys()
        for name, values in expected.fields.items():
            np.testing.assert_array_equal(got.fields[name], values)
    assert found[0][0].fields["token_type_ids"].any()


def test_a_tokenizer_in_python_does_not_say_where_tokens_stand(
    made_model: Made, tmp_path: Path
) -> None:
    folder = with_slow_tokenizer(
        made_model("bert", "ForTokenClassification", num_labels=3), tmp_path / "slow"
    )
    with pytest.raises(ModelError, match="no fast tokenizer") as error:
        describe(str(folder), task="token-classify")
    one_line(error)


def hub_cache(root: Path, model: Path, name: str = "maker/tiny") -> Path:
    """A cache of huggingface_hub as a download leaves it."""
    repository = root / ("models--" + name.replace("/", "--"))
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return root


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and a cache of our own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_model_is_identified_by_its_commit(made_model: Made, offline: Path) -> None:
    hub_cache(offline, made_model("bert", HEAD, num_labels=3))
    for revision in (None, "main", COMMIT):
        spec, folder = describe("maker/tiny", revision=revision)
        assert (spec.name, spec.identity) == ("maker/tiny", COMMIT)
        assert folder == offline / "models--maker--tiny" / "snapshots" / COMMIT


def test_a_hub_model_that_cannot_be_had_is_said_in_one_line(
    made_model: Made, offline: Path
) -> None:
    hub_cache(offline, made_model("bert", HEAD, num_labels=3))
    for model, revision in [("maker/unknown", None), ("maker/tiny", "v2")]:
        with pytest.raises(ModelError, match="not in the local cache, and HF_HUB_OFFLINE") as error:
            describe(model, revision=revision)
        assert f"hf download {model}" in one_line(error)
    (offline / "models--maker--tiny" / "snapshots" / COMMIT / "config.json").unlink()
    with pytest.raises(ModelError, match="only part of it is in the local cache"):
        describe("maker/tiny")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GatedRepoError", "gated"),
        ("RepositoryNotFoundError", "no such model on the hub"),
        ("RevisionNotFoundError", "no revision v2"),
        ("HFValidationError", "not a hub id"),
        ("LocalEntryNotFoundError", "cannot be reached"),
    ],
)
def test_refusals_of_the_hub_are_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    from huggingface_hub import errors

    refusal = getattr(errors, name)

    def refuse(*_: Any, **__: Any) -> str:
        raise refusal.__new__(refusal)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match=message) as error:
        describe("maker/secret", revision="v2")
    one_line(error)


def test_the_module_imports_neither_torch_nor_transformers() -> None:
    code = f"import sys, {models.__name__}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def test_the_weights_of_a_folder_that_modules_json_names_are_part_of_the_model(
    tmp_path: Path,
) -> None:
    (tmp_path / "encoder").mkdir()
    kinds = {"encoder": "Transformer", "pool": "Pooling"}
    parts = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (tmp_path / "modules.json").write_text(json.dumps(parts))
    identities = []
    for content in (b"a", b"b"):
        (tmp_path / "encoder" / "model.safetensors").write_bytes(content)
        identities.append(files.find(str(tmp_path), None, False)[1])
    assert identities[0] != identities[1]
