"""A model with an adapter answers as peft does, one row at a time; what does not fit is one line."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from batchinfer import RunConfig, audit, infer, resume, run
from batchinfer.engines import adapters, create_engine, describe_model, weights
from batchinfer.engines.cpu import PrepackedLinear
from batchinfer.engines.models import describe
from batchinfer.errors import JobMismatchError, ModelError, UsageError
from batchinfer.tasks import create_task
from tests.conftest import Cli, read_output
from tests.engines import made
from tests.engines.conftest import Made
from tests.engines.test_models import COMMIT, hub_cache, offline
from tests.test_run import write_jsonl

__all__ = ["offline"]

#: peft asks a model that it adapts by a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

HEAD = "ForSequenceClassification"
TEXTS = [*made.texts(60, seed=11), "", " a  b "]
#: The layers of each architecture that LoRA is put on here.
TARGETS = {
    "bert": ["query", "value"], "roberta": ["query", "dense"], "modernbert": ["Wqkv"],
    "distilbert": ["q_lin", "v_lin"],
}  # fmt: skip

#: Merged, a product of two weights is rounded before it is used, not behind it: 2e-5 was seen.
TOLERANCE = 1e-4


def auto(kind: str | None) -> Any:
    names = {"SEQ_CLS": "SequenceClassification", "TOKEN_CLS": "TokenClassification"}
    return getattr(transformers, f"AutoModelFor{names[kind]}" if kind in names else "AutoModel")


def make_adapter(
    folder: Path,
    base: Path,
    kind: str | None,
    targets: list[str],
    *,
    seed: int = 5,
    loads: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Save an adapter of seeded weights that turns the answers of its base; `loads`: as for its base."""
    model = auto(kind).from_pretrained(base, **(loads or {}))
    config = peft.LoraConfig(task_type=kind, r=4, lora_alpha=8, target_modules=targets, **settings)
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.3)
    if kind == "SEQ_CLS":  # what all rows have in common goes out of the last bias
        tokenizer = AutoTokenizer.from_pretrained(base, model_input_names=["input_ids"])
        with torch.no_grad():
            rows = [
                tokenizer(text, return_tensors="pt") for text in made.texts(50, seed=99, longest=30)
            ]
            logits = torch.cat([adapted.eval()(**row).logits for row in rows])
            last = [
                m for m in adapted.modules() if getattr(m, "out_features", 0) == logits.shape[1]
            ]
            last[-1].bias -= logits.mean(dim=0)
    adapted.save_pretrained(folder)
    return folder


def by_peft(base: Path, adapter: Path, kind: str | None, limit: int, **loads: Any) -> list[Any]:
    """What transformers with peft says of each row alone: logits, or the mean of the states."""
    model = auto(kind).from_pretrained(base, **loads)
    adapted = peft.PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    said = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
        if "distilbert" in type(model).__name__.lower():
            inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            out = adapted(**inputs)
        said.append(out.last_hidden_state[0].mean(dim=0) if kind is None else out.logits[0])
    return said


def ask(base: Path, adapter: Path | None, dtype: str = "float32", **settings: Any) -> Any:
    more = {} if adapter is None else {"adapter": str(adapter)}
    return infer(TEXTS, str(base), dtype=dtype, device="cpu", **more, **settings)


# -- the answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_classifier_with_an_adapter_and_its_head_is_that_of_peft(
    made_model: Made, tmp_path: Path, architecture: str
) -> None:
    base = made_model(architecture, HEAD, num_labels=3)
    adapter = make_adapter(tmp_path / "lora", base, "SEQ_CLS", TARGETS[architecture])
    limit = describe(str(base))[0].max_length
    expected = torch.stack(by_peft(base, adapter, "SEQ_CLS", limit)).softmax(dim=-1).numpy()
    assert np.bincount(expected.argmax(axis=1)).max() < 0.9 * len(TEXTS), "one label for all rows"
    found, plain = ask(base, adapter), ask(base, None)
    labels = [f"LABEL_{i}" for i in expected.argmax(axis=1)]
    assert found["predicted_label"].tolist() == labels
    np.testing.assert_allclose(found["predicted_score"], expected.max(axis=1), atol=TOLERANCE)
    assert (found["predicted_label"] != plain["predicted_label"]).mean() > 0.2


def test_an_adapter_may_bring_the_head_that_its_base_has_not(
    made_model: Made, tmp_path: Path
) -> None:
    base = made_model("bert")
    adapter = make_adapter(tmp_path / "lora", base, "SEQ_CLS", ["query"], loads={"num_labels": 4})
    spec, _ = describe(str(base), adapter=str(adapter))
    assert (spec.task, spec.architecture) == ("classify", "BertForSequenceClassification")
    assert spec.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    said = by_peft(base, adapter, "SEQ_CLS", spec.max_length, num_labels=4)
    expected = torch.stack(said).softmax(dim=-1).numpy()
    found = ask(base, adapter)
    np.testing.assert_allclose(found["predicted_score"], expected.max(axis=1), atol=TOLERANCE)
    assert found["predicted_label"].tolist() == [f"LABEL_{i}" for i in expected.argmax(axis=1)]


def test_a_head_of_other_labels_takes_the_place_of_the_bases(
    made_model: Made, tmp_path: Path
) -> None:
    base = made_model("bert", HEAD, num_labels=3)
    loads = {"num_labels": 5, "ignore_mismatched_sizes": True}
    adapter = make_adapter(tmp_path / "lora", base, "SEQ_CLS", ["query"], loads=loads)
    said = by_peft(base, adapter, "SEQ_CLS", 128, **loads)
    expected = torch.stack(said).softmax(dim=-1).numpy()
    np.testing.assert_allclose(
        ask(base, adapter)["predicted_score"], expected.max(axis=1), atol=TOLERANCE
    )


def test_embeddings_with_an_adapter_are_those_of_peft(made_model: Made, tmp_path: Path) -> None:
    base = made_model("bert")
    adapter = make_adapter(
        tmp_path / "lora", base, None, ["query", "value", "dense"], use_dora=True, bias="lora_only"
    )
    expected = torch.stack(by_peft(base, adapter, None, 128)).numpy()
    found, plain = (
        np.stack(ask(base, one, task="embed")["embedding"].to_list()) for one in (adapter, None)
    )
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert abs(found - plain).max() > 0.1


def test_tokens_are_labelled_as_by_peft(made_model: Made, tmp_path: Path) -> None:
    base = made_model("bert")
    adapter = make_adapter(tmp_path / "lora", base, "TOKEN_CLS", ["query"], loads={"num_labels": 3})
    said = by_peft(base, adapter, "TOKEN_CLS", 128, num_labels=3)
    found = ask(base, adapter, aggregation="none")["entities"]
    for row, logits in zip(found, said, strict=True):
        score, label = logits.softmax(dim=-1)[1:-1].max(dim=-1)
        assert [one["label"] for one in row] == [f"LABEL_{i}" for i in label.tolist()]
        np.testing.assert_allclose([one["score"] for one in row], score.numpy(), atol=TOLERANCE)


def test_labels_are_those_beside_the_adapter_or_else_the_bases(
    made_model: Made, tmp_path: Path
) -> None:
    names = {"0": "bad", "1": "fair", "2": "good"}
    base = made_model("bert", HEAD, num_labels=3, id2label=names)
    adapter = make_adapter(tmp_path / "lora", base, "SEQ_CLS", ["query"])
    assert describe(str(base), adapter=str(adapter))[0].labels == ("bad", "fair", "good")
    (adapter / "config.json").write_text(json.dumps({"id2label": {"0": "x", "1": "y", "2": "z"}}))
    spec, _ = describe(str(base), adapter=str(adapter))
    assert (spec.labels, spec.task) == (("x", "y", "z"), "classify")
    assert set(ask(base, adapter)["predicted_label"]) <= {"x", "y", "z"}


def test_the_model_is_as_fast_as_one_without(made_model: Made, tmp_path: Path) -> None:
    """Merged, it is a model like any other: packed, and with faster layers."""
    base = made_model("bert", HEAD, num_labels=3)
    adapter = make_adapter(tmp_path / "lora", base, "SEQ_CLS", ["query", "value"])
    job = RunConfig(
        model=str(base), adapter=str(adapter), engine="local", device="cpu", dtype="float32"
    )
    spec, folder = describe_model(job)
    engine: Any = create_engine(job, create_task(spec), folder)
    kinds = {type(module) for module in engine.model.modules()}
    assert engine.is_packed
    assert not [kind for kind in kinds if kind.__module__.startswith("peft")]
    assert PrepackedLinear in kinds
    engine.close()


def test_weights_are_rounded_once_and_buffers_not_at_all(made_model: Made, tmp_path: Path) -> None:
    base = made_model("modernbert")
    adapter = make_adapter(tmp_path / "lora", base, None, ["Wqkv"])
    spec, folder = describe(str(base), task="embed", adapter=str(adapter))

    def load(dtype: str, adapter: Path | None) -> Any:
        return weights.load(
            create_task(spec), folder, dtype=dtype, device=torch.device("cpu"), attention="",
            adapter=adapter, trust_remote_code=False, allow_pickle=False,
        )  # fmt: skip

    exact, rounded, plain = (load(d, a) for d, a in [
        ("float32", adapter), ("bfloat16", adapter), ("bfloat16", None)
    ])  # fmt: skip
    found = dict(rounded.named_parameters())
    assert len(found) == len(list(plain.parameters()))
    for name, parameter in exact.named_parameters():
        assert torch.equal(found[name], parameter.to(torch.bfloat16)), name
    buffers = dict(plain.named_buffers())
    assert any(buffer.dtype == torch.float32 for buffer in buffers.values())
    for name, buffer in rounded.named_buffers():
        assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers[name]), name


def test_an_export_has_the_adapter_in_it(made_model: Made, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    base = made_model("bert", HEAD, num_labels=3)
    adapter = make_adapter(tmp_path / "lora", base, "SEQ_CLS", ["query", "value"])
    local, exported = (ask(base, adapter, engine=engine) for engine in ("local", "openvino"))
    assert exported["predicted_label"].tolist() == local["predicted_label"].tolist()
    np.testing.assert_allclose(
        exported["predicted_score"], local["predicted_score"], atol=TOLERANCE
    )


# -- the job ---------------------------------------------------------------------------------------


def job(base: Path, adapter: Path, folder: Path) -> RunConfig:
    source = write_jsonl(folder / "in.jsonl", [{"text": text} for text in TEXTS[:30]])
    return RunConfig(
        inputs=(str(source),), output=str(folder / "out"), model=str(base), adapter=str(adapter),
        device="cpu", workers=0, chunk_rows=10, dtype="float32",
    )  # fmt: skip


def test_the_adapter_belongs_to_the_job(made_model: Made, tmp_path: Path) -> None:
    base = made_model("bert", HEAD, num_labels=3)
    adapter = make_adapter(tmp_path / "lora", base, "SEQ_CLS", ["query"])
    asked = job(base, adapter, tmp_path)
    run(asked)
    assert audit(tmp_path / "out", device="cpu").exit_code == 0
    (tmp_path / "out" / "data" / "part-000000-000001.parquet").unlink()
    before = read_output(tmp_path / "out").num_rows
    assert resume(tmp_path / "out").num_rows == 30 > before
    make_adapter(adapter, base, "SEQ_CLS", ["query"], seed=6)
    (tmp_path / "out" / "data" / "part-000000-000001.parquet").unlink()
    with pytest.raises(JobMismatchError, match=r"the adapter differs \(.* with .*lora then"):
        resume(tmp_path / "out")
    with pytest.raises(JobMismatchError, match="the adapter differs"):
        audit(tmp_path / "out")
    with pytest.raises(JobMismatchError, match=r"the adapter differs \(.* now\)"):
        run(asked.model_copy(update={"adapter": None}), resume=True)


def test_an_adapter_that_is_rewritten_before_it_is_loaded_is_told(
    made_model: Made, tmp_path: Path
) -> None:
    base = made_model("bert", HEAD, num_labels=3)
    adapter = make_adapter(tmp_path / "lora", base, "SEQ_CLS", ["query"])
    asked = job(base, adapter, tmp_path).model_copy(update={"engine": "local"})
    spec, folder = describe_model(asked)
    create_engine(asked, create_task(spec), folder).close()
    make_adapter(adapter, base, "SEQ_CLS", ["query"], seed=6)
    with pytest.raises(
        ModelError, match="lora: its files are others than when the job was planned"
    ):
        create_engine(asked, create_task(spec), folder)


def test_a_hub_adapter_is_identified_by_its_commit(
    made_model: Made, tmp_path: Path, offline: Path
) -> None:
    base = made_model("bert", HEAD, num_labels=3)
    adapter = make_adapter(tmp_path / "lora", base, "SEQ_CLS", ["query"])
    hub_cache(offline, adapter, "maker/lora")
    for name in ("maker/lora", "maker/lora@main", f"maker/lora@{COMMIT}"):
        spec, _ = describe(str(base), adapter=name)
        assert spec.identity.endswith(f"+{COMMIT}")
    (offline / "models--maker--lora" / "refs" / "main").unlink()
    found = ask(base, Path("maker/lora@" + COMMIT))
    assert found["predicted_score"].tolist() == ask(base, adapter)["predicted_score"].tolist()
    with pytest.raises(ModelError, match="maker/lora.*not in the local cache"):
        describe(str(base), adapter="maker/lora@v2")


# -- what does not fit -----------------------------------------------------------------------------


@pytest.fixture
def lora(made_model: Made, tmp_path: Path) -> tuple[Path, Path]:
    """A classifier and an adapter for it."""
    base = made_model("bert", HEAD, num_labels=3)
    return base, make_adapter(tmp_path / "lora", base, "SEQ_CLS", ["query"])


def refusal(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_an_adapter_given_as_a_model_is_told_what_to_type(lora: tuple[Path, Path]) -> None:
    base, adapter = lora
    with pytest.raises(ModelError, match="an adapter, not a model") as error:
        describe(str(adapter))
    assert refusal(error).endswith(f"--model {base} --adapter {adapter}")
    stated = json.loads((adapter / "adapter_config.json").read_text())
    stated["base_model_name_or_path"] = None
    (adapter / "adapter_config.json").write_text(json.dumps(stated))
    shutil.copy(base / "config.json", adapter)  # as some trainers leave it
    shutil.copy(base / "tokenizer.json", adapter)
    with pytest.raises(ModelError, match="an adapter, not a model.*--model ITS-BASE"):
        describe(str(adapter))


def test_an_adapter_beside_a_model_is_not_put_on_it_unasked(
    lora: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers would, wherever peft is installed."""
    base, adapter = lora
    both = Path(shutil.copytree(base, tmp_path / "both"))
    for file in adapter.iterdir():
        shutil.copy(file, both)
    with caplog.at_level(logging.WARNING, logger="batchinfer"):
        found = ask(both, None)
    assert f"the adapter in its folder is not used; to use it, give --adapter {both}" in caplog.text
    assert found["predicted_score"].tolist() == ask(base, None)["predicted_score"].tolist()
    assert found["predicted_score"].tolist() != ask(base, adapter)["predicted_score"].tolist()
    assert ask(both, both)["predicted_score"].tolist() == (
        ask(base, adapter)["predicted_score"].tolist()
    )


def test_an_adapter_of_another_base_is_refused(made_model: Made, lora: tuple[Path, Path]) -> None:
    _, adapter = lora
    others = [
        made_model("distilbert", HEAD, num_labels=3),
        made_model("bert", HEAD, num_labels=3, hidden_size=32),
        made_model("bert", HEAD, num_labels=3, num_hidden_layers=1),
        made_model("bert", HEAD, num_labels=3, num_hidden_layers=3),
    ]
    for other in others:
        with pytest.raises(ModelError, match="the adapter does not fit the model") as error:
            ask(other, adapter)
        assert len(refusal(error)) < 800


def test_an_adapter_for_another_task_is_refused(lora: tuple[Path, Path]) -> None:
    base, adapter = lora
    with pytest.raises(
        ModelError, match=r"does not fit the model for this task: base_model\.model\."
    ):
        ask(base, adapter, task="embed")


def test_a_head_that_neither_brings_is_told(made_model: Made, tmp_path: Path) -> None:
    base = made_model("bert")
    adapter = make_adapter(tmp_path / "lora", base, None, ["query"])
    with pytest.raises(ModelError, match="it has no head for classify"):
        describe(str(base), task="classify", adapter=str(adapter))


def test_what_the_head_needs_and_nobody_brings_is_told(made_model: Made, tmp_path: Path) -> None:
    """A pooler would be made of random numbers."""
    base = made_model("bert", "ForMaskedLM")
    adapter = make_adapter(tmp_path / "lora", base, "SEQ_CLS", ["query"], loads={"num_labels": 4})
    with pytest.raises(ModelError, match="the weights lack bert.pooler.dense.bias and 1 more"):
        ask(base, adapter)


def test_a_head_that_lacks_a_part_is_told(lora: tuple[Path, Path]) -> None:
    base, adapter = lora
    held = load_file(adapter / "adapter_model.safetensors")
    held = {key: value for key, value in held.items() if not key.endswith("classifier.bias")}
    save_file(held, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"does not fit the model: .*classifier\.bias"):
        ask(base, adapter)


def spoil(adapter: Path, **changes: Any) -> None:
    stated = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**stated, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING cannot be merged into a model's weights"),
        ({"peft_type": None}, "names no peft_type"),
        ({"peft_type": "NO\x1bSUCH"}, "the adapter does not fit the model"),
        ({"megatron_config": {"a": 1}}, "an adapter of Megatron"),
        ({"target_modules": ["nowhere"]}, "does not fit the model: No modules were targeted"),
        ({"r": -1}, "the adapter does not fit the model"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(
    lora: tuple[Path, Path], changes: dict[str, Any], message: str
) -> None:
    base, adapter = lora
    spoil(adapter, **changes)
    with pytest.raises(ModelError, match=message) as error:
        ask(base, adapter)
    assert "\x1b" not in repr(refusal(error).replace("\\x1b", ""))


def test_weights_that_are_not_there_or_pickled_or_broken_are_one_line(
    lora: tuple[Path, Path],
) -> None:
    base, adapter = lora
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="adapter_model.safetensors cannot be read"):
        describe(str(base), adapter=str(adapter))
    file.unlink()
    with pytest.raises(ModelError, match="needs adapter_model.safetensors, has none"):
        describe(str(base), adapter=str(adapter))
    (adapter / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="has only adapter_model.bin, which is pickled"):
        describe(str(base), adapter=str(adapter))
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="the folder has no adapter_config.json"):
        describe(str(base), adapter=str(adapter))


def test_without_peft_the_package_is_named(
    lora: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = lora
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'batchinfer\[peft\]'"):
        describe(str(base), adapter=str(adapter))


def test_the_command_takes_an_adapter(lora: tuple[Path, Path], cli: Cli, tmp_path: Path) -> None:
    base, adapter = lora
    write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    flags = ("-m", str(base), "--device", "cpu", "--dtype", "float32", "--workers", "0", "--quiet")
    done = cli("run", "rows.jsonl", "-o", "out", *flags, "--adapter", str(adapter))
    assert (done.returncode, done.stderr) == (0, "")
    found = read_output(tmp_path / "out").column("predicted_label").to_pylist()
    assert found == ask(base, adapter)["predicted_label"].tolist()
    done = cli("run", "rows.jsonl", "-o", "two", *flags, "--adapter", "./nothing")
    assert done.returncode == 69
    assert done.stderr.startswith("batchinfer: ./nothing: no such adapter folder; check the path")
