"""Profiles: written whole, read with suspicion, picked up by `run`, kept by what was planned."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from batchinfer import RunConfig, resume, run
from batchinfer.core import BatchBudget
from batchinfer.engines.fake import FakeEngine
from batchinfer.errors import Interrupted, JobMismatchError, StorageError, UsageError
from batchinfer.plan import Plan
from batchinfer.planning import make_plan
from batchinfer.profiles import Profile, Settings, Trial, kept_profile, key_of
from batchinfer.reporting.progress import Rates
from batchinfer.stop import StopSignal
from batchinfer.writers.run_folder import load_plan
from tests.conftest import ROOT, shard_bytes
from tests.test_machine import no_home

MODEL = str(ROOT / "sample_data" / "tiny-sentiment")
SETTINGS = Settings(max_batch_tokens=77, threads=2, workers=0, ceiling_tokens=900)
TRIAL = Trial("fake", "float32", SETTINGS, 1234.5, 0.25, 0.01, None, "chosen")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "batchinfer" / "profiles"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i} " * (i % 7)}) + "\n" for i in range(60)))
    return path


def config(source: Path, output: Path, **settings: Any) -> RunConfig:
    usual: dict[str, Any] = {"engine": "fake", "workers": 0, "chunk_rows": 10}
    return RunConfig(inputs=(str(source),), output=str(output), **{**usual, **settings})


def profile_of(job: RunConfig, settings: Settings = SETTINGS, **changes: Any) -> Profile:
    """A profile that fits a job but for these fields of its key."""
    plan, _ = make_plan(job.model_copy(update={"profile": "none"}))
    key = dataclasses.replace(key_of(job, plan.model, "cpu"), **changes)
    return Profile(key, "fake", "float32", settings, (TRIAL,), "2026-01-31T12:00:00Z")


def frozen_budget(output: Path) -> int:
    return int(
        json.loads((output / "_batchinfer" / "budget-cpu.json").read_text())["max_batch_tokens"]
    )


def stop_early(job: RunConfig) -> None:
    """Leave a job unfinished."""

    class Stops(Rates):
        def answered(self, num_rows: int, num_tokens: int) -> None:
            stop.set()

    stop = StopSignal()
    with pytest.raises(Interrupted):
        run(job, progress=Stops(), stop=stop)


def real(source: Path, tmp_path: Path, **settings: Any) -> RunConfig:
    """A job of a real model, with engine and precision left open."""
    usual: dict[str, Any] = {"model": MODEL, "device": "cpu", "output": str(tmp_path / "out")}
    return RunConfig(inputs=(str(source),), **{**usual, **settings})


def openvino_profile(job: RunConfig, dtype: str = "float32") -> Profile:
    """What tune may have made of a job on a CPU."""
    plan, _ = make_plan(job.model_copy(update={"profile": "none"}))
    key = key_of(job, plan.model, "cpu")
    return Profile(key, "openvino", dtype, SETTINGS, (), "2026-01-31T12:00:00Z")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# -- the file --------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(source: Path, tmp_path: Path) -> None:
    profile = profile_of(config(source, tmp_path / "out"))
    path = tmp_path / "deep" / "profile.json"
    profile.write(path)
    assert Profile.read(path) == profile
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


def test_a_failed_write_leaves_the_profile_that_was_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = profile_of(config(source, tmp_path / "out"))
    path = tmp_path / "profile.json"
    profile.write(path)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("batchinfer.machine.os.replace", full)
    with pytest.raises(StorageError, match="cannot be written: No space left.*--profile"):
        dataclasses.replace(profile, created="2026-02-01T12:00:00Z").write(path)
    assert Profile.read(path) == profile
    assert [p.name for p in tmp_path.glob("*profile*")] == ["profile.json"]


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda d: d.update(format=99), "format 99"),
        (lambda d: d.pop("key"), "'key' is missing"),
        (lambda d: d["key"].update(cores="two"), "cores"),
        (lambda d: d["key"].update(versions=[]), "versions"),
        (lambda d: d["key"].update(cpu=7), "cpu"),
        (lambda d: d["key"].pop("given"), "'given' is missing"),
        (lambda d: d["key"]["given"].update(attention="divided"), "attention"),
        (lambda d: d.update(engine="abacus"), "engine"),
        (lambda d: d.update(created="yesterday"), "created"),
        (lambda d: d["settings"].update(max_batch_tokens=0), "max_batch_tokens"),
        (lambda d: d["settings"].update(max_batch_tokens=True), "max_batch_tokens"),
        (lambda d: d["settings"].update(threads=-1), "threads"),
        (lambda d: d["settings"].update(streams=0), "streams"),
        (lambda d: d["settings"].update(compile="yes"), "compile"),
        (lambda d: d["settings"].update(attention="divided"), "attention"),
        (lambda d: d["settings"].update(magic=1), "magic"),
        (lambda d: d.update(trials={}), "trials"),
        (lambda d: d["trials"][0].update(latency="long"), "latency"),
    ],
)
def test_a_profile_that_holds_what_was_never_written_is_told_in_one_line(
    damage: Any, word: str, source: Path, tmp_path: Path
) -> None:
    document = profile_of(config(source, tmp_path / "out")).to_dict()
    document = json.loads(json.dumps(document))
    damage(document)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError) as caught:
        Profile.read(path)
    assert str(path) in str(caught.value)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * (5 << 20)]
)
def test_a_broken_cached_profile_is_one_warning_and_the_run_goes_on(
    content: bytes, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = config(source, tmp_path / "out")
    path = profile_of(job).key.path
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "batchinfer"):
        assert run(job).finished
    [record] = caplog.records
    assert str(path) in record.getMessage()
    assert "batchinfer tune" in record.getMessage()


# -- what run makes of it --------------------------------------------------------------------------


def test_a_cached_profile_is_used_and_the_run_says_so(
    source: Path, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = config(source, tmp_path / "out")
    profile = profile_of(job)
    profile.write(profile.key.path)
    assert profile.key.path.parent == cache
    with caplog.at_level(logging.INFO, "batchinfer"):
        report = run(job)
    assert report.max_batch_tokens == 77
    assert frozen_budget(tmp_path / "out") == 77
    said = f"settings of 2026-01-31 from {profile.key.path}: budget 77 tokens, 2 threads"
    assert f"fake in float32, {said}" in caplog.messages


def test_flags_win_over_the_profile(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    job = config(source, tmp_path / "out", profile=str(path), max_batch_tokens=50)
    profile_of(config(source, tmp_path / "out")).write(path)
    assert run(job).max_batch_tokens == 50
    settings = dataclasses.replace(SETTINGS, attention="packed", compile=True)
    given = RunConfig(engine="fake", threads=3, attention="sdpa", max_batch_tokens=5)
    left = settings.left_open_by(given)
    assert left == Settings(compile=True, workers=0, ceiling_tokens=900)
    assert left.fill(given).threads == 3
    assert Settings.decided_by(given) == Settings("sdpa", threads=3, max_batch_tokens=5)
    streams = Settings(streams=2)
    assert streams.fill(given).streams == 2 and streams.to_text() == "2 streams"
    assert streams.left_open_by(given.model_copy(update={"streams": 1})).streams is None
    assert settings.fill(RunConfig()).attention == "packed"


def test_none_uses_no_profile(source: Path, tmp_path: Path) -> None:
    job = config(source, tmp_path / "out", profile="none")
    profile = profile_of(config(source, tmp_path / "out"))
    profile.write(profile.key.path)
    assert run(job).max_batch_tokens == FakeEngine.default_budget.max_batch_tokens


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"versions": {"torch": "1.0"}}, "torch was 1.0, now"),
        ({"cores": 4096}, "cores was 4096, now"),
    ],
)
def test_a_stale_profile_is_not_used_and_the_run_says_why(
    change: dict[str, Any],
    words: str,
    source: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = config(source, tmp_path / "out")
    profile = profile_of(job, **change)
    profile.write(profile.key.path)
    with caplog.at_level(logging.WARNING, "batchinfer"):
        assert run(job).max_batch_tokens != 77
    [record] = caplog.records
    assert "stale and not used" in record.getMessage()
    assert words in record.getMessage()
    assert "run `batchinfer tune` again" in record.getMessage()


def test_a_named_profile_of_another_machine_is_used_with_a_warning(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.json"
    job = config(source, tmp_path / "out", profile=str(path))
    profile_of(job, device_kind="NVIDIA H200", cores=0).write(path)
    with caplog.at_level(logging.WARNING, "batchinfer"):
        assert run(job).max_batch_tokens == 77
    [message] = caplog.messages
    assert "device kind was NVIDIA H200, now cpu" in message


@pytest.mark.parametrize("change", [{"model": "another"}, {"task": "embed"}])
def test_a_named_profile_of_another_model_or_task_is_refused(
    change: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.json"
    job = config(source, tmp_path / "out", profile=str(path))
    profile_of(job, **change).write(path)
    with pytest.raises(UsageError, match=f"of another {next(iter(change))}"):
        run(job)
    assert not (tmp_path / "out").exists()


def test_a_profile_of_another_cpu_is_not_found(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = config(source, tmp_path / "out")
    path = tmp_path / "mine.json"
    monkeypatch.setattr("batchinfer.profiles.cpu_name", lambda: "Elder CPU")
    profile = profile_of(job)
    profile.write(profile.key.path)
    profile.write(path)
    assert profile.key.cpu == "Elder CPU"
    monkeypatch.setattr("batchinfer.profiles.cpu_name", lambda: "Newer CPU")
    with caplog.at_level(logging.WARNING, "batchinfer"):
        assert run(job).max_batch_tokens != 77
        assert not caplog.messages
        named = config(source, tmp_path / "named", profile=str(path))
        assert run(named).max_batch_tokens == 77
    [message] = caplog.messages
    assert "cpu was Elder CPU, now Newer CPU" in message


def test_the_cores_of_a_profile_are_those_that_an_engine_uses(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchinfer.profiles.usable_cores", lambda: 3)
    job = config(source, tmp_path / "out")
    assert profile_of(job).key.cores == 3
    plan, _ = make_plan(job)
    of_gpu = key_of(job, plan.model, "NVIDIA H200")
    assert (of_gpu.cpu, of_gpu.cores) == ("", 0)


@pytest.mark.parametrize(
    "flags",
    [
        {"max_batch_tokens": 512},
        {"max_batch_rows": 9},
        {"attention": "eager"},
        {"threads": 1},
        {"compile": True},
    ],
)
def test_what_tune_was_told_is_found_by_runs_that_are_told_the_same(
    flags: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    told, plain = (config(source, tmp_path / "out", **given) for given in (flags, {}))
    profile = profile_of(told)
    profile.write(profile.key.path)
    assert make_plan(plain)[0].tuned is None
    tuned = make_plan(told)[0].tuned
    assert tuned is not None and tuned.settings == SETTINGS
    assert Profile.read(profile.key.path).key == profile.key


def test_how_many_processes_load_ahead_makes_no_other_job(source: Path, tmp_path: Path) -> None:
    profile = profile_of(config(source, tmp_path / "out", workers=3))
    profile.write(profile.key.path)
    assert run(config(source, tmp_path / "out")).max_batch_tokens == 77


def test_without_a_home_a_run_goes_on_and_a_place_to_write_must_be_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_home(monkeypatch)
    job = config(source, tmp_path / "out")
    assert run(job).finished
    with pytest.raises(UsageError, match="neither a home folder nor XDG_CACHE_HOME.*--profile"):
        _ = profile_of(job).key.path


def test_a_named_profile_that_is_not_there_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere.json: no such file.*batchinfer tune"):
        run(config(source, tmp_path / "out", profile="nowhere.json"))


def test_a_profile_of_another_precision_than_the_job_is_not_used(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.json"
    job = config(source, tmp_path / "out", profile=str(path), dtype="float32")
    dataclasses.replace(profile_of(job), dtype="bfloat16").write(path)
    with caplog.at_level(logging.WARNING, "batchinfer"):
        assert run(job).max_batch_tokens != 77
    [message] = caplog.messages
    assert "chose fake in bfloat16, and this job runs float32; it is not used" in message


def test_the_profile_does_not_change_which_job_it_is(source: Path, tmp_path: Path) -> None:
    job = config(source, tmp_path / "out")
    without, _ = make_plan(job)
    profile = profile_of(job)
    profile.write(profile.key.path)
    tuned, _ = make_plan(job)
    assert tuned.tuned is not None
    assert tuned.id == without.id


# -- what was planned stays ------------------------------------------------------------------------


def test_a_resumed_run_keeps_what_its_plan_froze(source: Path, tmp_path: Path) -> None:
    job = config(source, tmp_path / "out")
    profile = profile_of(job)
    profile.write(profile.key.path)
    run(config(source, tmp_path / "whole"))
    stop_early(job)
    profile_of(job, dataclasses.replace(SETTINGS, max_batch_tokens=11)).write(profile.key.path)
    assert resume(tmp_path / "out").max_batch_tokens == 77
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")
    again = tmp_path / "again"
    stop_early(config(source, again))
    profile.key.path.unlink()
    assert run(config(source, again), resume=True).max_batch_tokens == 11
    plan = load_plan(again)
    assert plan is not None and plan.tuned is not None
    assert plan.tuned.settings.max_batch_tokens == 11


def test_a_resume_on_another_kind_of_device_uses_no_settings(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = config(source, tmp_path / "out")
    profile = profile_of(job)
    profile.write(profile.key.path)
    stop_early(job)
    monkeypatch.setattr("batchinfer.worker.kind_of_device", lambda config: "NVIDIA H200")
    monkeypatch.setattr(FakeEngine, "device_kind", "NVIDIA H200")
    usual = FakeEngine.default_budget.max_batch_tokens
    assert resume(tmp_path / "out").max_batch_tokens == usual


def test_resume_can_drop_the_profile_or_name_another(source: Path, tmp_path: Path) -> None:
    job = config(source, tmp_path / "out")
    profile = profile_of(job)
    profile.write(profile.key.path)
    for output in (tmp_path / "a", tmp_path / "b", tmp_path / "c"):
        stop_early(config(source, output))
        (output / "_batchinfer" / "budget-cpu.json").unlink()
    other = profile_of(job, dataclasses.replace(SETTINGS, max_batch_tokens=33))
    other.write(tmp_path / "other.json")
    assert resume(tmp_path / "a", profile=str(tmp_path / "other.json")).max_batch_tokens == 33
    usual = FakeEngine.default_budget.max_batch_tokens
    assert resume(tmp_path / "b", profile="none").max_batch_tokens == usual
    assert resume(tmp_path / "c").max_batch_tokens == 77


def test_a_ceiling_that_was_learned_holds_from_the_start(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(FakeEngine, "stay_below", lambda self, tokens: told.append(tokens))
    job = config(source, tmp_path / "out")
    profile = profile_of(job)
    profile.write(profile.key.path)
    run(job)
    assert told == [900]


def test_plans_of_earlier_versions_have_no_settings_and_forged_ones_are_refused(
    source: Path, tmp_path: Path
) -> None:
    from batchinfer.plan import checksum_of

    job = config(source, tmp_path / "out")
    profile = profile_of(job)
    profile.write(profile.key.path)
    plan, _ = make_plan(job)
    document = json.loads(plan.to_json())
    del document["checksum"]
    forged = json.loads(json.dumps(document))
    forged["tuned"]["settings"]["threads"] = 10**9
    forged["checksum"] = checksum_of(forged)
    with pytest.raises(JobMismatchError, match="threads"):
        Plan.from_json(json.dumps(forged).encode(), "plan.json")
    del document["tuned"]
    document["checksum"] = checksum_of(document)
    assert Plan.from_json(json.dumps(document).encode(), "plan.json").tuned is None


def test_a_key_that_differs_in_what_lasts_is_another_file(source: Path, tmp_path: Path) -> None:
    key = profile_of(config(source, tmp_path / "out")).key
    paths = {
        dataclasses.replace(key, **change).path
        for change in (
            {}, {"device_kind": "x"}, {"model": "x"}, {"task": "embed"}, {"max_length": 5},
            {"engine": "auto"}, {"dtype": "float32"}, {"cpu": "x"}, {"given": Settings(threads=1)},
        )
    }  # fmt: skip
    assert len(paths) == 9
    assert dataclasses.replace(key, cores=99, versions={}).path == key.path
    assert kept_profile(key) is None
    assert SETTINGS.budget(BatchBudget(1, 5)) == BatchBudget(77, 5)


def test_engine_and_precision_left_open_are_those_of_the_profile(
    source: Path, tmp_path: Path
) -> None:
    asked = real(source, tmp_path)
    plan, _ = make_plan(asked)
    usual, other = plan.config.dtype, {"float32": "bfloat16", "bfloat16": "float32"}
    profile = openvino_profile(asked, dtype=other[usual])
    profile.write(profile.key.path)
    tuned, _ = make_plan(asked)
    assert (tuned.config.engine, tuned.config.dtype) == ("openvino", other[usual])
    assert tuned.id != plan.id
    again, _ = make_plan(asked, previous=plan)
    assert (again.id, again.tuned) == (plan.id, None), "a job that was begun stays what it is"
    given, _ = make_plan(asked.model_copy(update={"engine": "local", "dtype": usual}))
    assert (given.id, given.tuned) == (plan.id, None)


@pytest.mark.parametrize(
    "flags", [{"attention": "sdpa"}, {"compile": True}, {"dtype": "float16"}, {"engine": "local"}]
)
def test_a_kept_profile_leaves_a_job_alone_that_its_engine_cannot_do(
    flags: dict[str, Any], source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    profile = openvino_profile(real(source, tmp_path))
    profile.write(profile.key.path)
    plan, _ = make_plan(real(source, tmp_path, **flags))
    assert (plan.config.engine, plan.tuned) == ("local", None)
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"attention": "sdpa"}, "which this job cannot run (--attention sdpa is of --engine local"),
        ({"compile": True}, "which this job cannot run (--compile is of --engine local"),
        ({"dtype": "float16"}, "and this job runs float16"),
        ({"engine": "local"}, "and this job runs local"),
    ],
)
def test_a_named_profile_whose_engine_does_not_fit_is_left_out_whole(
    flags: dict[str, Any],
    why: str,
    source: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "mine.json"
    job = real(source, tmp_path, **flags)
    usual, _ = make_plan(job)
    openvino_profile(real(source, tmp_path)).write(path)
    plan, _ = make_plan(job.model_copy(update={"profile": str(path)}))
    assert (plan.id, plan.tuned) == (usual.id, None)
    [message] = warnings(caplog)
    assert f"{path}: chose openvino in float32, {why}" in message
    assert message.endswith("it is not used")


def test_a_named_profile_of_the_cpu_is_used_where_there_is_a_gpu(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "mine.json"
    job = real(source, tmp_path, device="auto", profile=str(path))
    openvino_profile(real(source, tmp_path)).write(path)
    monkeypatch.setattr("batchinfer.engines.devices.device_kind", lambda device: "NVIDIA H200")
    plan, _ = make_plan(job)
    assert plan.config.engine == "openvino"
    assert plan.tuned is not None and plan.tuned.device_kind == "cpu"
    assert not warnings(caplog)


def test_a_run_says_which_budget_it_uses_where_the_folder_has_one(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = config(source, tmp_path / "out")
    stop_early(job)
    begun = frozen_budget(tmp_path / "out")
    path = tmp_path / "mine.json"
    profile_of(job).write(path)
    with caplog.at_level(logging.INFO, "batchinfer"):
        assert resume(tmp_path / "out", profile=str(path)).max_batch_tokens == begun != 77
    said = f"fake in float32, settings of 2026-01-31 from {path}: 2 threads; batches stay as"
    assert any(message.startswith(said) for message in caplog.messages)
    assert any(f"{begun:,} tokens" in message for message in caplog.messages)
    assert not any("77 tokens" in message for message in caplog.messages)


def test_a_resume_without_the_profile_keeps_the_budget_that_the_folder_began_with(
    source: Path, tmp_path: Path
) -> None:
    job = config(source, tmp_path / "out")
    profile = profile_of(job)
    profile.write(profile.key.path)
    stop_early(job)
    assert resume(tmp_path / "out", profile="none").max_batch_tokens == 77


def test_a_rehearsal_leaves_out_and_leaves_alone_what_lies_in_the_output(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "rows.jsonl").write_text('{"text": "one"}\n')
    run(config(inputs, inputs / "out"))
    before = sorted(inputs.rglob("*"))
    plan, _ = make_plan(config(inputs, inputs / "out", profile="none"), is_rehearsal=True)
    assert [file.source for segment in plan.segments for file in segment.files] == ["rows.jsonl"]
    assert sorted(inputs.rglob("*")) == before
