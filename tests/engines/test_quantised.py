"""A quantised checkpoint is loaded as transformers loads it, and answers as it does there.

torchao's 8 bits run on a CPU; what needs another library or a GPU is refused in one line, before anything
is planned.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TorchAoConfig

from batchinfer import RunConfig, audit, infer, run
from batchinfer.engines import attention, cpu, create_engine, describe_model, weights
from batchinfer.engines.models import describe
from batchinfer.engines.quantised import is_quantised
from batchinfer.errors import BatchInferError, ModelError, UsageError
from batchinfer.planning import make_plan
from batchinfer.tasks import create_task
from tests.conftest import Cli
from tests.engines import made
from tests.engines.conftest import Made
from tests.engines.test_models import edit
from tests.test_run import write_jsonl

HEAD = "ForSequenceClassification"
TEXTS = [*made.texts(60, seed=11), ""]
KINDS = {"weights": "Int8WeightOnlyConfig", "states": "Int8DynamicActivationInt8WeightConfig"}


def with_tokenizer(base: Path, folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder)
    return folder


@pytest.fixture
def quantise(made_model: Made, tmp_path: Path) -> Any:
    """Save a made classifier as torchao quantises it; `what`: its weights, or the states too."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")

    def make(what: str = "weights", dtype: str = "float32") -> Path:
        base = made_model("bert", HEAD, num_labels=3)
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            dtype=getattr(torch, dtype),
            quantization_config=TorchAoConfig(getattr(quantization, KINDS[what])()),
        )
        model.save_pretrained(tmp_path / "model")
        return with_tokenizer(base, tmp_path / "model")

    return make


def by_transformers(folder: Path) -> Any:
    """The probabilities of each row alone, float32[n, labels]."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = (tokenizer(t, truncation=True, max_length=128, return_tensors="pt") for t in TEXTS)
    with torch.inference_mode():
        return torch.cat([model(**row).logits for row in rows]).float().softmax(dim=-1).numpy()


# -- what can be run -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", KINDS)
def test_answers_are_those_of_transformers_one_row_at_a_time(
    quantise: Any, made_model: Made, what: str
) -> None:
    folder = quantise(what)
    expected = by_transformers(folder)
    found = infer(TEXTS, str(folder), device="cpu")
    assert found["_error"].isna().all()
    assert found["predicted_label"].tolist() == [f"LABEL_{i}" for i in expected.argmax(axis=1)]
    np.testing.assert_allclose(found["predicted_score"], expected.max(axis=1), atol=1e-5)
    plain = infer(TEXTS, str(made_model("bert", HEAD, num_labels=3)), device="cpu", dtype="float32")
    assert abs(plain["predicted_score"] - found["predicted_score"]).max() > 1e-3


def test_its_layers_stay_and_take_one_batch_at_a_time(quantise: Any) -> None:
    folder = quantise()
    job = RunConfig(model=str(folder), engine="local", device="cpu", threads=4)
    spec, place = describe_model(job)
    engine: Any = create_engine(job, create_task(spec), place)
    assert is_quantised(engine.model)
    assert {type(m).__module__ for m in engine.model.modules()}.isdisjoint({cpu.__name__})
    layer = engine.model.bert.encoder.layer[0].attention.self.query
    assert type(layer.weight).__name__ == "Int8Tensor"
    assert (engine.is_packed, engine.streams, engine.dtype) == (True, 1, "float32")
    engine.close()
    with pytest.raises(UsageError, match="--streams 2: .* one batch at a time: it is quantised"):
        create_engine(job.model_copy(update={"streams": 2}), create_task(spec), place)


def test_it_computes_in_the_precision_of_its_checkpoint(quantise: Any, tmp_path: Path) -> None:
    folder = quantise(dtype="bfloat16")
    spec, _ = describe(str(folder))
    assert (spec.quantization, spec.dtype) == ("torchao", "bfloat16")
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS])
    job = RunConfig(
        inputs=(str(source),), output=str(tmp_path / "out"), model=str(folder), device="cpu",
        workers=0,
    )  # fmt: skip
    assert make_plan(job)[0].config.dtype == "bfloat16"
    assert make_plan(job.model_copy(update={"dtype": "bfloat16"}))[0].config.dtype == "bfloat16"
    for update, message in (
        (
            {"dtype": "float32"},
            r"--dtype float32: model is quantised \(torchao\) and computes in bf",
        ),
        (
            {"engine": "openvino"},
            r"--engine openvino: model is quantised \(torchao\), which cannot",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            make_plan(job.model_copy(update=update))
    with pytest.raises(UsageError, match="leave --dtype out"):
        infer(["a"], str(folder), dtype="float16")


def test_a_run_says_what_it_is_and_an_audit_takes_it_as_it_is(
    quantise: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = quantise()
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS])
    job = RunConfig(
        inputs=(str(source),), output=str(tmp_path / "out"), model=str(folder), device="cpu",
        workers=0,
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="batchinfer"):
        run(job)
    assert "classify by model (float32, quantised by torchao): about 61 rows" in caplog.text
    found = audit(tmp_path / "out", device="cpu")
    score = found.columns[1].largest_difference
    assert (found.exit_code, found.reference) == (0, "float32")
    assert score is not None and score < 1e-5


def test_what_transformers_undoes_on_a_cpu_is_a_model_like_any_other(
    made_model: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8-bit floats need a GPU; elsewhere transformers makes plain weights of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base = made_model("bert", HEAD, num_labels=3)
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    held, stored = load_file(folder / "model.safetensors"), {}
    for name, weight in held.items():
        stored[name] = weight
        if weight.dim() == 2 and "embed" not in name and "classifier" not in name:
            scale = weight.abs().max() / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale.reshape(1, 1)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    edit(
        folder / "config.json",
        quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
    )
    job = RunConfig(model=str(folder), engine="local", device="cpu")
    spec, place = describe_model(job)
    assert (spec.quantization, spec.dtype) == ("fp8", "float32")
    engine: Any = create_engine(job, create_task(spec), place)
    assert not is_quantised(engine.model)
    assert any(isinstance(m, cpu.PrepackedLinear) for m in engine.model.modules())
    engine.close()
    found = infer(TEXTS, str(folder), device="cpu")
    np.testing.assert_allclose(
        found["predicted_score"], by_transformers(folder).max(axis=1), atol=1e-5
    )


# -- how it is loaded ------------------------------------------------------------------------------


def test_it_is_loaded_onto_its_device_at_once(
    quantise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every quantised layer can be moved or cast."""
    spec, folder = describe(str(quantise()))
    asked = {}
    real = AutoModelForSequenceClassification.from_pretrained

    def watched(place: Path, **options: Any) -> Any:
        asked.update(options)
        model, report = real(place, **options)
        monkeypatch.setattr(type(model), "to", None)
        return model, report

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", watched)
    device = torch.device("cpu")
    weights.load(
        create_task(spec), folder, dtype="float32", device=device, attention="",
        trust_remote_code=False, allow_pickle=False,
    )  # fmt: skip
    assert asked["device_map"] == {"": device}


def test_a_head_without_plain_weights_is_not_widened() -> None:
    """compressed-tensors leaves layers without a weight until they are first called."""

    class Wrapped(torch.nn.Module):
        base_model_prefix, config = "base", SimpleNamespace(num_labels=3)

        def __init__(self, head: torch.nn.Linear) -> None:
            super().__init__()
            self.classifier = head

    packed, wrapped, whole = (torch.nn.Linear(4, 3, dtype=torch.bfloat16) for _ in range(3))
    del packed.weight
    wrapped.forward = lambda states: states  # type: ignore[method-assign]
    numbers = torch.nn.Linear(4, 3, dtype=torch.bfloat16)
    numbers.weight = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
    for head in (packed, wrapped, numbers):
        weights._widen_head(Wrapped(head))
        assert head.bias.dtype == torch.bfloat16 and not head._forward_pre_hooks
    weights._widen_head(Wrapped(whole))
    assert whole.weight.dtype == torch.float32


def test_only_layers_that_are_not_quantised_are_put_faster_ones_in_place_of() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    model.hf_quantizer = object()  # type: ignore[assignment]
    assert cpu.optimize(model, fuses=False) == "its own, which are quantised"
    assert type(model[0]) is torch.nn.Linear
    assert "it is quantised" in attention.obstacle_to_streams(model, is_packed=True)


# -- what cannot be loaded here --------------------------------------------------------------------

MISSING = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    "gptqmodel": ({"quant_method": "gptq", "bits": 4}, "optimum"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32}, "gptqmodel"),
    "compressed_tensors": ({"quant_method": "compressed-tensors"}, "compressed"),
    "optimum": ({"quant_method": "quanto", "weights": "int8"}, "optimum-quanto"),
    "hqq": ({"quant_method": "hqq", "quant_config": {}}, "HQQ"),
    "aqlm": ({"quant_method": "aqlm"}, "aqlm"),
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_library_is_named_before_anything_is_planned(
    made_model: Made, tmp_path: Path, package: str
) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    stated, library = MISSING[package]
    folder = Path(shutil.copytree(made_model("bert", HEAD, num_labels=3), tmp_path / "model"))
    edit(folder / "config.json", quantization_config=stated)
    method = stated["quant_method"]
    what = rf"its weights are quantised \({method}\), and cannot be loaded here: .*{library}"
    with pytest.raises(ModelError, match=what) as error:
        describe(str(folder), device="cpu")
    assert "\n" not in str(error.value) and error.value.exit_code == 69


def test_the_command_says_it_in_one_line(made_model: Made, cli: Cli, tmp_path: Path) -> None:
    if importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    folder = Path(shutil.copytree(made_model("bert", HEAD, num_labels=3), tmp_path / "model"))
    edit(folder / "config.json", quantization_config=MISSING["bitsandbytes"][0])
    write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    done = cli("run", "in.jsonl", "-m", "./model", "-o", "out")
    [line] = done.stderr.splitlines()
    assert done.returncode == 69 and "pip install" in line and "bitsandbytes" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"quant_method": "by magic\x1b"}, "does not know"),
        ({"bits": 4}, r"quantised \(unknown\)"),
    ],
)
def test_a_way_to_quantise_that_nobody_knows_is_refused(
    made_model: Made, tmp_path: Path, stated: dict[str, Any], message: str
) -> None:
    """transformers would leave it out, and load what it can."""
    folder = Path(shutil.copytree(made_model("bert", HEAD, num_labels=3), tmp_path / "model"))
    edit(folder / "config.json", quantization_config=stated)
    with pytest.raises(ModelError, match=message) as error:
        describe(str(folder), device="cpu")
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)


def test_an_adapter_is_not_merged_into_quantised_weights(
    made_model: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = made_model("bert", HEAD, num_labels=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.PreTrainedModel.is_gradient_checkpointing", False)
        model = AutoModelForSequenceClassification.from_pretrained(base)
        config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
        peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    stated = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    edit(folder / "config.json", quantization_config=stated)
    with pytest.raises(BatchInferError, match="an adapter cannot be merged into them"):
        describe(str(folder), adapter=str(tmp_path / "lora"))


def test_settings_that_are_none_are_as_if_not_stated(made_model: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made_model("bert", HEAD, num_labels=3), tmp_path / "model"))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "quantization_config": {}}))
    assert describe(str(folder))[0].quantization == ""
