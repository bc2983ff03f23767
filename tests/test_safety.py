"""What others wrote is data: no code of theirs runs, nothing is written where they say, no secret leaks."""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchinfer import RunConfig, errors, resume, run, verify
from batchinfer.attempts import Attempts
from batchinfer.config import RunConfig as Config
from batchinfer.core import Answers, Batch, ChunkId
from batchinfer.engines import files, models
from batchinfer.engines.fake import FakeEngine
from batchinfer.errors import (
    BatchInferError,
    JobMismatchError,
    ModelError,
    StorageError,
    UsageError,
    without_secrets,
)
from batchinfer.plan import Plan
from batchinfer.reporting.failures import read_failures
from batchinfer.reporting.status import read_status
from batchinfer.writers.footer import read_columns, read_pages
from batchinfer.writers.holders import describe_holder, is_locked
from tests.conftest import ROOT, Cli, read_output
from tests.test_run import NUM_ROWS, config, rows, run_partly, write_jsonl

MODEL = ROOT / "sample_data" / "tiny-sentiment"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in" / "rows.jsonl", rows())


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that lies below a folder, with the content of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# -- models: no code without consent ---------------------------------------------------------------


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies a model's code before it imports it: here, and for this test alone."""
    place = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", place)
    monkeypatch.setattr(sys, "path", [*sys.path])


def model_with_code(folder: Path) -> tuple[Path, Path]:
    """A model whose code leaves a mark when it runs; the mark's place."""
    model, mark = folder / f"evil{len(str(folder))}", folder / "the-code-ran"
    shutil.copytree(MODEL, model)
    settings = json.loads((model / "config.json").read_text())
    name = "OwnForSequenceClassification"
    settings |= {
        "model_type": "own",
        "architectures": [name],
        "auto_map": {
            "AutoConfig": "own.OwnConfig",
            "AutoModelForSequenceClassification": f"own.{name}",
        },
    }
    (model / "config.json").write_text(json.dumps(settings))
    (model / "own.py").write_text(
        f"""
import pathlib
from transformers import BertConfig, BertForSequenceClassification
pathlib.Path({str(mark)!r}).touch()
class OwnConfig(BertConfig):
    model_type = "own"
class {name}(BertForSequenceClassification):
    config_class = OwnConfig
"""
    )
    return model, mark


@pytest.mark.usefixtures("own_modules")
def test_code_of_a_model_runs_with_consent_alone(source: Path, tmp_path: Path) -> None:
    model, mark = model_with_code(tmp_path)
    job = config(source, tmp_path / "out", engine="local", model=str(model))
    with pytest.raises(ModelError, match="its own Python code.*--trust-remote-code") as error:
        run(job)
    one_line(error.value)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    assert run(job.model_copy(update={"trust_remote_code": True})).num_rows == NUM_ROWS
    assert mark.exists(), "the model of this test does run its code"


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_code_that_known_architectures_bring_along_is_not_run(
    file: str, source: Path, tmp_path: Path
) -> None:
    model, mark = model_with_code(tmp_path)
    shutil.copy(MODEL / "config.json", model / "config.json")
    settings = json.loads((model / file).read_text())
    settings["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForSequenceClassification": "own.OwnForSequenceClassification",
        "AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"],
    }
    (model / file).write_text(json.dumps(settings))
    job = config(source, tmp_path / "out", engine="local", model=str(model))
    try:
        run(job)
    except ModelError as error:
        one_line(error)
    assert not mark.exists()


def test_attention_from_the_hub_is_code_of_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    settings = json.loads((model / "config.json").read_text())
    settings["attn_implementation"] = "stranger/kernel"
    (model / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="stranger/kernel.*--trust-remote-code") as error:
        models.describe(str(model))
    one_line(error.value)
    assert models.describe(str(model), trust_remote_code=True)[0].task == "classify"


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": {"text_config": "stranger/kernel"}},
        {"attn_implementation": {"text_config": {"": "stranger/kernel"}}},
        {"attn_implementation": {"": "stranger/kernel@main"}},
        {"text_config": {"attn_implementation": "stranger/kernel"}},
        {"vision_config": {"_attn_implementation": "paged|stranger/kernel:f"}},
        {"attribute_map": {"x": "_attn_implementation"}, "x": "stranger/kernel"},
        {"attn_implementation": "stranger/\nkernel\u001b[2J" + "x" * 999},
    ],
)
def test_attention_from_the_hub_for_a_part_of_a_model_is_code_too(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    nested = {"model_type": "gemma3", "architectures": ["Gemma3Model"], **settings}
    (model / "config.json").write_text(json.dumps(nested))
    with pytest.raises(ModelError, match="stranger/.*kernel.*--trust-remote-code") as error:
        models.describe(str(model), task="embed")
    assert one_line(error.value).isprintable()
    assert len(str(error.value)) < 1000
    assert models.describe(str(model), task="embed", trust_remote_code=True)[0].task == "embed"


@pytest.mark.parametrize("settings", [{}, {"attn_implementation": {"text_config": "eager"}}])
def test_attention_of_the_library_needs_no_consent(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    nested = {"model_type": "gemma3", "architectures": ["Gemma3Model"], **settings}
    (model / "config.json").write_text(json.dumps(nested))
    assert models.describe(str(model), task="embed")[0].architecture == "Gemma3Model"


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def pickled(folder: Path) -> Path:
    """The sample model with its weights as pytorch_model.bin."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(MODEL, folder)
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    return folder


def test_pickled_weights_are_loaded_with_consent_alone(source: Path, tmp_path: Path) -> None:
    model = pickled(tmp_path / "pickled")
    job = config(source, tmp_path / "out", engine="local", model=str(model))
    with pytest.raises(ModelError, match="only pytorch_model.bin.*--allow-pickle") as error:
        run(job)
    one_line(error.value)
    run(job.model_copy(update={"allow_pickle": True}))
    safe = config(source, tmp_path / "safe", engine="local", model=str(MODEL))
    run(safe)
    assert read_output(tmp_path / "out").equals(read_output(tmp_path / "safe"))


def test_objects_in_pickled_weights_are_never_made(source: Path, tmp_path: Path) -> None:
    import torch

    model = pickled(tmp_path / "pickled")
    mark = tmp_path / "the-pickle-ran"
    job = config(
        source,
        tmp_path / "out",
        engine="local",
        model=str(model),
        allow_pickle=True,
        dtype="float32",
    )
    torch.save({"bert": Evil(mark)}, model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="are not loaded") as error:
        run(job)
    one_line(error.value)
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(ModelError, match="are not loaded"):
        run(job)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists(), "the pickle of this test does what it should not"


def test_pickled_weights_are_part_of_what_a_model_is(tmp_path: Path) -> None:
    model = pickled(tmp_path / "pickled")
    before = models.describe(str(model), allow_pickle=True)[0]
    with (model / "pytorch_model.bin").open("ab") as file:
        file.write(b"\0")
    assert models.describe(str(model), allow_pickle=True)[0].identity != before.identity
    # Where there are safetensors, pickles beside them are not loaded and do not count.
    safe = tmp_path / "safe"
    shutil.copytree(MODEL, safe)
    spec = models.describe(str(safe))[0]
    (safe / "pytorch_model.bin").write_bytes(b"whatever")
    assert models.describe(str(safe), allow_pickle=True)[0] == spec


def test_pickled_weights_of_a_hub_model_are_fetched_with_consent_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pickled(tmp_path / "pickled")
    asked: list[list[str]] = []

    def snapshot_download(model: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    files.find("maker/tiny", None, trust_remote_code=False)
    assert not any("bin" in pattern or "py" in pattern for pattern in asked.pop())
    files.find("maker/tiny", None, trust_remote_code=False, allow_pickle=True)
    assert ["pytorch_model*.bin" in patterns for patterns in asked] == [False, True]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[]"),
        ("config.json", "null"),
        ("config.json", '{"model_type": ["bert"]}'),
        ("config.json", "[" * 100_000),
        ("config.json", '{"model_type": "bert", "id2label": 5}'),
        ("config.json", '{"model_type": "bert", "architectures": 5}'),
        ("config.json", '{"model_type": "bert", "max_position_embeddings": "many"}'),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer_config.json", '{"model_max_length": "x"}'),
        ("modules.json", '{"a": 1}'),
        ("modules.json", "[1]"),
        ("modules.json", "null"),
        ("modules.json", "5"),
        ("modules.json", "[" * 100_000),
        ("modules.json", '[{"type": "Transformer", "path": "../elsewhere"}]'),
        ("modules.json", '[{"type": "Transformer", "path": "/etc"}]'),
        ("modules.json", '[{"type": "Transformer", "path": 5}, {"type": "Pooling", "path": ""}]'),
        ("sentence_bert_config.json", "[1]"),
        ("1_Pooling/config.json", '{"pooling_mode": 5}'),
        ("1_Pooling/config.json", "[]"),
        ("config_sentence_transformers.json", '{"prompts": 5}'),
    ],
)
def test_a_model_folder_of_any_shape_is_one_line(
    file: str, content: str, source: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    if file not in os.listdir(MODEL) and file != "modules.json":
        pooling = '{"type": "x.Pooling", "path": "1_Pooling"}'
        parts = f'[{{"type": "x.Transformer", "path": ""}}, {pooling}]'
        (model / "modules.json").write_text(parts)
        (model / "1_Pooling").mkdir()
        (model / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    (model / file).write_text(content)
    job = config(source, tmp_path / "out", engine="local", model=str(model), task="embed")
    try:
        run(job)
    except ModelError as error:
        assert str(model) in one_line(error)


# -- a run folder of a stranger --------------------------------------------------------------------


def checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def plan_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "_batchinfer" / "plan.json").read_bytes())
    assert document.pop("checksum") == checksum(document), "the test forges as it is written"
    return document


def forge(folder: Path, document: dict[str, Any]) -> None:
    """Write a plan with the checksum that it should have, as anyone can."""
    sealed = {**document, "checksum": checksum(document)}
    (folder / "_batchinfer" / "plan.json").write_text(json.dumps(sealed))


@pytest.fixture
def stopped(source: Path, tmp_path: Path) -> Path:
    """A run folder with some of its rows answered."""
    run_partly(config(source, tmp_path / "out"), 15)
    return tmp_path / "out"


def test_resume_writes_below_the_folder_that_was_named_and_nowhere_else(
    stopped: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    document = plan_of(stopped)
    document["config"]["output"] = str(victim)
    forge(stopped, document)
    before = tree(tmp_path / "in")
    report = resume(stopped)
    assert (report.finished, report.output) == (True, str(stopped))
    assert tree(victim) == {} and tree(tmp_path / "in") == before
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "victim"]


@pytest.mark.parametrize("name", ["data", "_batchinfer", "tmp", "quarantine", "lock"])
def test_a_folder_that_leads_elsewhere_is_refused(
    name: str, stopped: Path, source: Path, tmp_path: Path
) -> None:
    place = stopped / name if name in ("data", "_batchinfer") else stopped / "_batchinfer" / name
    victim = tmp_path / "victim"
    if place.is_dir():
        shutil.move(place, victim)
    elif place.exists():
        place.rename(victim)
    else:
        victim.mkdir()
    place.symlink_to(victim)
    (shard,) = list(stopped.glob("data/part-000000-000000.parquet"))
    os.truncate(shard, 100)  # it would be moved into quarantine/
    before = tree(tmp_path)
    for attempt in (
        lambda: resume(stopped),
        lambda: run(config(source, stopped), resume=True),
        lambda: run(config(source, stopped), overwrite=True),
    ):
        with pytest.raises(JobMismatchError, match=rf"{name}: a link") as error:
            attempt()
        one_line(error.value)
    assert tree(tmp_path) == before


def test_links_among_the_temporary_files_are_not_written_through(
    stopped: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("years of work")
    temporary = stopped / "_batchinfer" / "tmp"
    names = ("holder", "plan", "success", "report", "budget", "attempt-part-000000-000004.parquet")
    for name in names:
        (temporary / name).symlink_to(victim)
    for name in ("report.json", "holder.json"):
        (stopped / "_batchinfer" / name).unlink(missing_ok=True)
        (stopped / "_batchinfer" / name).symlink_to(victim)
    absent = tmp_path / "absent.txt"
    (temporary / "attempt-part-000000-000003.parquet").symlink_to(absent)
    assert resume(stopped).finished
    assert victim.read_text() == "years of work"
    assert not absent.exists()


# -- what is no file waits for nobody --------------------------------------------------------------


in_time = pytest.mark.timeout(60)


def make_fifo(place: Path) -> None:
    os.mkfifo(place)


def make_device(place: Path) -> None:
    place.symlink_to("/dev/null")


def make_socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix, contextlib.chdir(place.parent):  # paths are short
        unix.bind(place.name)


STRANGE = pytest.mark.parametrize("make", [make_fifo, make_device, make_socket, Path.mkdir])


def refuse_file(attempt: Callable[[], Any], name: str) -> None:
    with pytest.raises(JobMismatchError, match=rf"{re.escape(name)}: no regular file") as error:
        attempt()
    assert one_line(error.value).endswith("move it out of the run folder")


@STRANGE
@in_time
def test_a_shard_that_is_no_file_is_a_strangers(
    make: Callable[[Path], None], stopped: Path
) -> None:
    name = "part-000000-000004.parquet"
    make(stopped / "data" / name)
    refuse_file(lambda: read_status(str(stopped)), name)
    refuse_file(lambda: list(read_failures(str(stopped))), name)
    refuse_file(lambda: resume(stopped), name)
    refuse_file(lambda: resume(stopped, verify=True), name)
    refuse_file(lambda: read_pages(stopped / "data" / name), name)
    refuse_file(lambda: read_columns(stopped / "data" / name, ["_error"]), name)
    assert name in verify(stopped, inputs=False).to_text()


@STRANGE
@in_time
def test_a_plan_that_is_no_file_is_a_strangers(make: Callable[[Path], None], stopped: Path) -> None:
    plan = stopped / "_batchinfer" / "plan.json"
    plan.unlink()
    make(plan)
    refuse_file(lambda: resume(stopped), "plan.json")
    refuse_file(lambda: verify(stopped), "plan.json")
    refuse_file(lambda: read_status(str(stopped)), "plan.json")


@STRANGE
@in_time
def test_a_budget_that_is_no_file_is_a_strangers(
    make: Callable[[Path], None], source: Path, tmp_path: Path
) -> None:
    run_partly(config(source, tmp_path / "out", max_batch_tokens=None), 15)
    budget = tmp_path / "out" / "_batchinfer" / "budget-cpu.json"
    budget.unlink()
    make(budget)
    refuse_file(lambda: resume(tmp_path / "out"), "budget-cpu.json")


@STRANGE
@in_time
def test_a_holder_or_lock_that_is_no_file_is_not_waited_for(
    make: Callable[[Path], None], stopped: Path
) -> None:
    for name in ("holder.json", "lock"):
        (stopped / "_batchinfer" / name).unlink(missing_ok=True)
        make(stopped / "_batchinfer" / name)
    assert describe_holder(stopped) == "its holder did not say who it is"
    assert not is_locked(stopped)


@in_time
def test_marks_and_temporary_files_that_are_no_files_go(stopped: Path) -> None:
    temporary = stopped / "_batchinfer" / "tmp"
    for number in range(5):
        os.mkfifo(temporary / f"attempt-part-000000-{number:06d}.parquet")
    for name in ("holder", "plan", "success", "report", "budget"):
        os.mkfifo(temporary / name)
    assert resume(stopped).finished
    assert os.listdir(temporary) == []


@in_time
def test_a_mark_is_written_through_nothing(tmp_path: Path) -> None:
    attempts, chunk = Attempts(tmp_path), ChunkId(0, 3)
    mark = tmp_path / "attempt-part-000000-000003.parquet"
    os.mkfifo(mark)
    attempts.begin(chunk)
    attempts.end(chunk)
    mark.symlink_to(tmp_path / "absent")
    attempts.begin(chunk)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "more.txt"])
@in_time
def test_a_model_with_a_part_that_is_no_file_is_one_line(name: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    says = "has no config.json" if name == "config.json" else rf"{name}: no regular file"
    with pytest.raises(ModelError, match=says) as error:
        models.describe(str(model))
    one_line(error.value)


def test_a_plan_cannot_consent_to_code(stopped: Path, source: Path, tmp_path: Path) -> None:
    model, mark = model_with_code(tmp_path)
    document = plan_of(stopped)
    document["config"] |= {"engine": "local", "model": str(model), "trust_remote_code": True}
    forge_as_its_own(stopped, document)
    with pytest.raises(UsageError, match="Python code.*--trust-remote-code") as error:
        resume(stopped)
    assert str(model) in one_line(error.value)
    with pytest.raises(UsageError, match="--trust-remote-code"):
        resume(stopped, allow_pickle=True)
    assert not mark.exists()


def test_a_plan_cannot_consent_to_pickles(stopped: Path, tmp_path: Path) -> None:
    document = plan_of(stopped)
    document["config"] |= {"engine": "local", "model": str(MODEL), "allow_pickle": True}
    forge_as_its_own(stopped, document)
    with pytest.raises(UsageError, match="pickled weights.*--allow-pickle") as error:
        resume(stopped)
    one_line(error.value)


def forge_as_its_own(folder: Path, document: dict[str, Any]) -> None:
    """Forge a plan with the id that it should have; the shards of the plan before go."""
    for shard in (folder / "data").glob("*.parquet"):
        shard.unlink()
    document["plan_id"] = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "ids", property(lambda self: (self.identity and "",)))
        forge(folder, document)
        plan = Plan.from_json((folder / "_batchinfer" / "plan.json").read_bytes(), "plan.json")
    document["plan_id"] = plan.id
    forge(folder, document)
    Plan.from_json((folder / "_batchinfer" / "plan.json").read_bytes(), "plan.json")


@pytest.mark.usefixtures("own_modules")
def test_a_job_that_trusts_its_model_is_resumed_with_the_consent_given_again(
    source: Path, tmp_path: Path
) -> None:
    model, _ = model_with_code(tmp_path)
    job = config(
        source, tmp_path / "out", engine="local", model=str(model), trust_remote_code=True,
        dtype="float32",
    )  # fmt: skip
    run_partly(job, 15)
    with pytest.raises(UsageError, match="--trust-remote-code"):
        resume(tmp_path / "out")
    assert resume(tmp_path / "out", trust_remote_code=True).finished
    assert resume(tmp_path / "out").finished, "nothing is loaded where nothing is left to do"
    # A consent that nobody needs changes nothing.
    run_partly(config(source, tmp_path / "other"), 15)
    assert resume(tmp_path / "other", trust_remote_code=True, allow_pickle=True).finished


def test_the_command_line_names_the_consent_that_is_missing(
    stopped: Path, cli: Cli, tmp_path: Path
) -> None:
    document = plan_of(stopped)
    document["config"] |= {"allow_pickle": True}
    forge(stopped, document)
    done = cli("resume", "out")
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith("`batchinfer resume out --allow-pickle`\n")
    assert cli("resume", "out", "--allow-pickle", "--workers", "0").returncode == 0


STRANGE: tuple[Any, ...] = (
    "auto", -1, 0, 2**31, 2**63, 2**70, 1.5, float("nan"), float("inf"), True, None, "", "x", "7",
    "../../victim", "a\nb\x1b[2J", "\udce9", "\0", "9" * 5000, [], {}, [[]], {"a": None}, ["x"],
)  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each value in a document, of those that hold others too."""
    if path:
        yield path
    items: Any = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, item in items:
        yield from leaves(item, (*path, key))


def put(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed: Any = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is leaves:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return dict(changed)


def test_a_plan_of_any_values_is_understood_or_one_line(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = plan_of(stopped)
    # Whoever forges a plan forges its id in the shards' footers too.
    monkeypatch.setattr(
        Plan, "ids", property(lambda self: (self.identity and document["plan_id"],))
    )
    places = list(leaves(document))
    assert {place[0] for place in places} == document.keys() and len(places) > 60
    refused = accepted = resumed = 0
    safe = {"workers": 0, "device": "cpu", "deadline": None, "batch_timeout": None}
    for number, place in enumerate(places):
        for value in (*STRANGE, leaves):  # `leaves`: it is not there at all
            forge(stopped, put(document, place, value))
            content = (stopped / "_batchinfer" / "plan.json").read_bytes()
            try:
                plan = Plan.from_json(content, "plan.json")
            except BatchInferError as error:
                one_line(error)
                assert len(str(error)) < 400
                refused += 1
                continue
            accepted += 1
            if plan.config.engine == "local" or (place[0] == "config" and accepted % 6):
                continue  # knobs have tests of their own: some will do here
            output = tmp_path / f"{number}"
            shutil.copytree(stopped, output, dirs_exist_ok=True)
            try:
                resume(output, **safe)
                found = read_output(output)["_row"].to_pylist()
                assert found == list(range(len(found))), "each row once, also up to another limit"
                read_status(str(output))
            except BatchInferError as error:
                assert len(error.args[0]) < 6000
            shutil.rmtree(output)
            resumed += 1
    assert refused > 1000 and accepted > 200 and resumed > 60, (refused, accepted, resumed)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("engine", "auto"),
        ("dtype", "auto"),
        ("max_length", None),
        ("chunk_rows", None),
        ("chunk_rows", 1 << 60),
        ("unknown", 1),
        ("inputs", 5),
        ("task", "auto"),
    ],
)
def test_a_plan_that_leaves_something_open_is_refused(
    name: str, value: Any, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = plan_of(stopped)
    monkeypatch.setattr(Plan, "ids", property(lambda self: (document["plan_id"],)))
    document["config"][name] = value
    forge(stopped, document)
    with pytest.raises(JobMismatchError, match=f"config.*{name}") as error:
        resume(stopped)
    one_line(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{}", b"[" * 200_000, b"\xff\xfe", b'{"checksum": 5}', b"9" * 5000],
)
def test_what_is_no_plan_is_damaged(content: bytes, stopped: Path) -> None:
    (stopped / "_batchinfer" / "plan.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"plan\.json: damaged") as error:
        resume(stopped)
    one_line(error.value)


@pytest.mark.parametrize(
    "content",
    ["[]", "5", '{"pid": {}}', '{"pid": "' + "x" * 9999 + '", "host": "\\u001b[2J"}', "["],
)
def test_what_a_holder_says_of_itself_is_shown_as_text(content: str, stopped: Path) -> None:
    (stopped / "_batchinfer" / "holder.json").write_text(content)
    assert len(describe_holder(stopped)) <= 200


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"max_batch_tokens": "x", "max_batch_rows": 1}', "[" * 200_000]
    + [f'{{"max_batch_tokens": {n}, "max_batch_rows": 5}}' for n in ("-1", "0", "1.5", "true")],
)
def test_a_budget_that_is_none_is_one_line(content: str, source: Path, tmp_path: Path) -> None:
    run_partly(config(source, tmp_path / "out", max_batch_tokens=None), 15)
    (tmp_path / "out" / "_batchinfer" / "budget-cpu.json").write_text(content)
    with pytest.raises(StorageError, match=r"budget-cpu\.json: damaged"):
        resume(tmp_path / "out")


def test_names_of_strangers_cannot_write_to_the_terminal(stopped: Path, cli: Cli) -> None:
    document = plan_of(stopped)
    document["model"]["name"] = "\x1b]0;owned\x07\x1b[2J\r\u202e"
    document["segments"][0]["files"][0]["path"] = "/nowhere/\x1b[31m\na\rb.jsonl"
    forge(stopped, document)
    for arguments, code in ((("status", "out"), 0), (("resume", "out", "-v"), 73)):
        done = cli(*arguments)
        assert done.returncode == code, done.stderr
        shown = (done.stdout + done.stderr).replace("\n", "")
        assert shown.isprintable(), ascii(shown)
    assert len(done.stderr.splitlines()) == 1


def test_a_shard_of_a_segment_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchinfer.readers.listing.MAX_SMALL_FILE_BYTES", 0)
    bad = [{"text": "a"}, {"text": None}]
    for name in ("a", "b"):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", bad)
    output = tmp_path / "out"
    run(config(tmp_path / "in", output))
    document = plan_of(output)
    assert len(document["segments"]) == 2
    document["segments"].pop()
    monkeypatch.setattr(Plan, "ids", property(lambda self: (document["plan_id"],)))
    forge(output, document)
    with pytest.raises(JobMismatchError, match="part-000001-000000"):
        resume(output, retry_errors=True)


def as_json(*fields: tuple[str, pa.DataType]) -> dict[str, Any]:
    """A schema as plan.json has it."""
    schema = pa.schema(list(fields))
    ipc = base64.b64encode(schema.serialize().to_pybytes()).decode()
    return {"columns": [f"{field.name}: {field.type}" for field in schema], "arrow_ipc": ipc}


TEXT, ID = ("text", pa.string()), ("id", pa.int64())


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [ID],
        [TEXT, TEXT],
        [TEXT, ID, ("_row", pa.int64())],
        [TEXT, ID, ("predicted_label", pa.string())],
        [TEXT, ID, ("more", pa.string())],
        [TEXT, ("id", pa.string())],
        [TEXT, ("id", pa.dense_union([pa.field("a", pa.int8())]))],
        [TEXT, ("id", pa.list_view(pa.int8()))],
        [TEXT, ("id", pa.duration("s"))],
        [("text", pa.int64()), ID],
        [("text", pa.null()), ID],
        [TEXT, ("\n", pa.int64())],
    ],
    ids=lambda fields: ",".join(f"{name}:{kind}" for name, kind in fields),
)
def test_schemas_that_the_job_does_not_give_are_refused(
    fields: list[tuple[str, pa.DataType]], stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = plan_of(stopped)
    monkeypatch.setattr(Plan, "ids", property(lambda self: (document["plan_id"],)))
    for changed in (("input_schema",), ("output_schema",)):
        forge(stopped, {**document, **dict.fromkeys(changed, as_json(*fields))})
        with pytest.raises(JobMismatchError, match="not written by") as error:
            resume(stopped)
        one_line(error.value)
    # Also where both say the same, and the readers are handed types that no input gives.
    added = [(f.name, f.type) for f in pa.ipc.read_schema(ipc_of(document, "output_schema"))][4:]
    both = [("_source", pa.string()), ("_row", pa.int64()), *fields, *added]
    forge(
        stopped,
        {**document, "input_schema": as_json(*fields), "output_schema": as_json(*both)},
    )
    try:
        resume(stopped)
    except BatchInferError as error:
        one_line(error)


def ipc_of(document: dict[str, Any], name: str) -> pa.Buffer:
    return pa.py_buffer(base64.b64decode(document[name]["arrow_ipc"]))


# -- secrets ---------------------------------------------------------------------------------------

SECRETS = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "HF_HUB_TOKEN": "hf_ZyXwVuTsRqPoNmLkJiHgFeDcBa543210",
    "OPENAI_API_KEY": "sk-proj-qwertzuiop1234567890",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "MY_ENDPOINT_PASSWORD": "correct-horse-battery",
}
IN_URL = "tok-in-the-url-0815"
URL = f"https://user:{IN_URL}@host.example/maker/tiny?revision=main&X-Amz-Signature={IN_URL}"


def leaks(text: str) -> list[str]:
    return [secret for secret in (*SECRETS.values(), IN_URL) if secret in text]


def job_of(*arguments: str) -> list[str]:
    return ["run", *arguments, "--workers", "0", "--no-progress", "--verbose"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (job_of("in/rows.jsonl", "--engine", "fake", "-o", "out"), 0),
        (job_of("in/rows.jsonl", "--model", str(MODEL), "-o", "out"), 0),
        (job_of("in/rows.jsonl", "--model", URL, "-o", "out"), 69),
        (job_of("in/rows.jsonl", "--model", "maker/no-such-model", "-o", "out"), 69),
        (job_of(URL, "--engine", "fake", "-o", "out"), 66),
        (job_of("in/rows.jsonl", "--engine", "fake", "-o", "out", "--text-column", URL), 2),
        (job_of("in/rows.jsonl", "--engine", "fake", "-o", "out", "--device", URL), 2),
    ],
)
def test_no_secret_of_the_environment_or_a_url_is_written_or_said(
    arguments: list[str], code: int, source: Path, cli: Cli, tmp_path: Path
) -> None:
    done = cli(*arguments, HF_HUB_OFFLINE="1", **SECRETS)
    assert done.returncode == code, done.stderr
    assert leaks(done.stdout + done.stderr) == []
    out = tmp_path / "out"
    if code == 0:
        cli("status", "out", **SECRETS)
        for path in out.rglob("*"):
            if path.is_file():
                assert leaks(path.read_bytes().decode("latin-1")) == [], path


def test_an_internal_error_tells_where_it_happened_and_no_secret(
    source: Path, tmp_path: Path
) -> None:
    program = f"""
import os, sys
import batchinfer.runner
def fails(*_, **__):
    try:
        raise OSError("GET {URL} with Bearer " + os.environ["HF_TOKEN"])
    except OSError as error:
        raise RuntimeError("key " + os.environ["OPENAI_API_KEY"]) from error
batchinfer.runner.run = fails
from batchinfer.cli import main
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *job_of(str(source), "--engine", "fake", "-o", "out")],
        cwd=tmp_path, env={**os.environ, **SECRETS}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "in fails" in done.stderr
    assert "host.example" in done.stderr
    assert leaks(done.stderr) == []


@pytest.mark.parametrize("kind", [OSError, ValueError])
def test_what_the_hub_says_of_its_addresses_holds_no_secret(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise kind(f"403 for {URL}, token {SECRETS['HF_TOKEN']}")

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ModelError, match="403") as error:
        models.describe("maker/tiny")
    assert leaks(str(error.value)) == []
    assert "host.example/maker/tiny?revision=main" in str(error.value), "the rest is told"


class Leaky(FakeEngine):
    """Says in its errors what it knows."""

    def answer(self, batch: Batch) -> Answers:
        raise OSError(f"403 for {URL}\n" + " ".join(os.environ[name] for name in SECRETS))


def test_what_a_row_failed_of_holds_no_secret(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("batchinfer.engines.fake.FakeEngine", Leaky)
    monkeypatch.setattr("batchinfer.engines.base.HOPELESS", NUM_ROWS + 1)
    run(config(source, tmp_path / "out"))
    errors = read_output(tmp_path / "out")["_error"].to_pylist()
    assert len(errors) == NUM_ROWS and all("host.example/maker/tiny" in why for why in errors)
    assert leaks(" ".join(errors)) == []


def test_what_a_tokenizer_says_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def num_special_tokens_to_add(self, is_pair: bool) -> int:
            return 2

        def encode_batch_fast(self, texts: list[str], *, is_pretokenized: bool) -> list[Any]:
            raise RuntimeError(f"no {URL}")

    spec, folder = models.describe(str(MODEL))
    encoder = models.make_encoder(folder, spec)
    monkeypatch.setattr(type(encoder), "_tokenizer", Fails())
    tokens = encoder.encode(pa.array(["one"], pa.large_string()), None)
    assert "host.example/maker/tiny" in tokens.errors[0]
    assert leaks(tokens.errors[0]) == []


def test_a_foreign_error_is_one_short_line_without_half_a_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    for start in range(290, 310):
        said = errors.one_line(OSError("x" * start + SECRETS["HF_TOKEN"]))
        assert len(said) <= 300 and set(said) <= {"x", "*"}
    assert errors.one_line(OSError(" two\nlines ")) == "two lines"
    assert errors.one_line(ValueError()) == "ValueError"
    assert errors.one_line(ValueError("abcdef"), limit=3) == "abc"


@in_time
@pytest.mark.parametrize("part", ["?", "&", "?token", "?a=", "://", "Bearer ", "hf_", " "])
def test_secrets_are_looked_for_in_long_texts_too(part: str) -> None:
    errors.one_line(OSError(part * (200_000 // len(part))))


def test_ordinary_words_are_not_taken_for_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = {
        "GIT_AUTHOR_NAME": "reviews and more",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_TOKEN_PATH": "/home/me/token-file",
        "KEYBOARD_LAYOUT": "internationals",
    }
    for name, value in ordinary.items():
        monkeypatch.setenv(name, value)
    for text in (
        *ordinary.values(),
        "s3://bucket/key.jsonl",
        "a/b@main: no such file; see https://docs.example/?page=2&lang=en",
        "the tokenizer's key=value and hf_hub",
    ):
        assert without_secrets(text) == text


# -- values are values -----------------------------------------------------------------------------

FORMULAS = (
    "=1+1", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "{{7*7}}", "${7*7}", "`id`",
    "$(id)", "__import__('os').system('id')", "%s%n", "{0.__class__}", "!!python/object:os.system",
    "<script>", "'; DROP TABLE x; --", "NaN", "Infinity", "1e999", "0x1F", "1_000", "٣", "true",
    "null", "None",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_values_come_through_as_they_stand(kind: str, tmp_path: Path) -> None:
    import csv

    path = tmp_path / f"rows.{kind}"
    odd = "__class__"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["text", odd], *((text, text) for text in FORMULAS)])
    else:
        write_jsonl(path, [{"text": text, odd: text} for text in FORMULAS])
    report = run(config(path, tmp_path / "out"))
    table = read_output(tmp_path / "out")
    assert table["text"].to_pylist() == table[odd].to_pylist() == list(FORMULAS)
    assert report.num_errors == 0


def test_what_json_does_not_have_is_an_error_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0x10", "01", "+1", ".5", "1.", "'a'"]
    lines = [f'{{"text": "a", "n": {value}}}' for value in ["0.5", *bad, "1e308"]]
    path.write_text("\n".join(lines) + "\n")
    run(config(path, tmp_path / "out"))
    table = read_output(tmp_path / "out")
    assert table["n"].to_pylist() == [0.5, *[None] * len(bad), 1e308]
    errors = table["_error"].to_pylist()
    assert [error is None for error in errors] == [True, *[False] * len(bad), True]
    assert all(re.match(r"line \d+: not valid JSON", error) for error in errors[1:-1])


def test_numbers_in_csv_are_what_they_are_or_rescued(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,n\n" + "".join(f"a,{v}\n" for v in ("1.5", "1e999", "=2", "1_0", "0x1F")))
    run(config(path, tmp_path / "out", types={"n": "float64"}))
    table = read_output(tmp_path / "out")
    assert table["n"].to_pylist() == [1.5, None, None, None, None]
    rescued = [json.loads(value)["n"] for value in table["_rescued_data"].to_pylist()[1:]]
    assert rescued == ["1e999", "=2", "1_0", "0x1F"]


def test_the_last_of_two_equal_keys_counts_throughout(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "first", "text": "last"}\n{"text": 1, "text": "last"}\n')
    run(config(path, tmp_path / "out"))
    table = read_output(tmp_path / "out")
    assert table["text"].to_pylist() == ["last"] * 2
    assert table["_error"].null_count == 2


def anchors(depth: int) -> str:
    """YAML of a few hundred bytes whose value would be 9**depth words, written out."""
    parts = ["l: &l0 [x]"]
    parts += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "{" + ", ".join(parts) + "}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("engine: !!python/object/apply:os.mkdir [MARK]", "job.yaml:1: not valid YAML"),
        ("engine: !!python/object/new:os.mkdir [MARK]", "job.yaml:1: not valid YAML"),
        ("model: !!python/name:os.mkdir", "job.yaml:1: not valid YAML"),
        ("model: !!python/module:os", "job.yaml:1: not valid YAML"),
        ("? !!python/tuple [a]\n: 1", "job.yaml:1: not valid YAML"),
        ("output: a\noutput: b", "job.yaml:2: 'output' stands twice, first in line 1"),
        ("limit: .inf", "job.yaml:1: limit"),
        ("limit: .nan", "job.yaml:1: limit"),
        ("limit: " + "9" * 5000, "not valid YAML"),
        ("model: 2020-13-45", "not valid YAML"),
        ("model: !!int x", "not valid YAML"),
        ("model: !!timestamp x", "not valid YAML"),
        ("model: &a [*a]", "job.yaml:1: model"),
        ("model: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("max_errors: " + anchors(12), "job.yaml:1: max_errors"),
        ("model: " + anchors(12), "job.yaml:1: model"),
        ("types: [" + anchors(12) + "]", "job.yaml:1: types"),
        ("keep: [" + anchors(12) + "]", "job.yaml:1: keep"),
        ("max_length: 1000000000000000000000000", "job.yaml:1: max_length"),
    ],
)
def test_a_configuration_file_holds_plain_values(text: str, says: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "job.yaml", tmp_path / "the-tag-ran"
    path.write_text(text.replace("MARK", f"'{mark}'"))
    with pytest.raises(UsageError) as error:
        Config.load({}, path, {})
    assert says in one_line(error.value)
    assert len(str(error.value)) < 500
    assert not mark.exists()


@pytest.mark.parametrize("value", ["9" * 5000, "9" * 5000 + "%", "1." + "9" * 5000 + "%"])
def test_an_allowance_without_end_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="--max-errors"):
        RunConfig.load({"max_errors": value}, None, {})


@pytest.mark.parametrize("name", ["output_prefix", "text_pair_column", "delimiter", "types"])
def test_a_name_that_is_no_unicode_is_refused(name: str) -> None:
    value: Any = "\udcff=int64"
    with pytest.raises(UsageError, match="UTF-8") as error:
        RunConfig.load({name: value}, None, {})
    one_line(error.value).encode()
