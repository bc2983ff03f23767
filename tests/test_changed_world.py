"""What changes between a run and its resume, or under way: told by name, or it makes no difference."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchinfer import resume, run
from batchinfer.engines import files
from batchinfer.errors import InputError, JobMismatchError, UsageError
from batchinfer.plan import IDENTITY_KNOBS
from batchinfer.reporting.progress import Rates
from batchinfer.reporting.status import read_status
from tests.conftest import ROOT, Cli, read_output, shard_bytes
from tests.test_run import NUM_ROWS, config, rows, run_partly, write_jsonl

MODEL = ROOT / "sample_data" / "tiny-sentiment"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in" / "rows.jsonl", rows())


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """The shards of a run that nothing disturbed."""
    run(config(source, tmp_path / "whole"))
    return shard_bytes(tmp_path / "whole")


# -- inputs ----------------------------------------------------------------------------------------


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"id": 99, "text": "late"}\n')


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def edit_the_start(path: Path) -> None:
    path.write_text(path.read_text().replace('"id": 3,', '"id": 4,'))


def edit_the_end(path: Path) -> None:
    path.write_text(path.read_text().replace('"id": 44,', '"id": 43,'))


def replace_by_as_many_bytes(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"x" * (path.stat().st_size - 1) + b"\n")
    other.replace(path)


def replace_by_a_copy(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_a_link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def move_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere.txt"))


CHANGES = (
    append,
    cut,
    edit_the_start,
    replace_by_as_many_bytes,
    replace_by_a_folder,
    replace_by_a_link_to_nowhere,
    move_away,
    Path.unlink,
)


class Keeps:
    """An input as it was, to be put back."""

    def __init__(self, path: Path) -> None:
        self.path, self.content, self.status = path, path.read_bytes(), path.stat()

    def put_back(self) -> None:
        if self.path.is_dir() and not self.path.is_symlink():
            self.path.rmdir()
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(self.content)
        os.utime(self.path, ns=(self.status.st_atime_ns, self.status.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_changed_before_resume_is_named_and_can_be_put_back(
    change: Callable[[Path], None], source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    job = config(source, tmp_path / "out")
    run_partly(job, 15)
    kept, stood = Keeps(source), shard_bytes(tmp_path / "out")
    change(source)
    with pytest.raises(JobMismatchError, match=r"rows\.jsonl") as error:
        resume(tmp_path / "out")
    assert "\n" not in str(error.value)
    with pytest.raises((JobMismatchError, InputError), match=r"rows\.jsonl|input columns differ"):
        run(job, resume=True)
    assert shard_bytes(tmp_path / "out") == stood, "nothing was done"
    kept.put_back()
    assert resume(tmp_path / "out").finished
    assert shard_bytes(tmp_path / "out") == whole


@pytest.mark.parametrize("change", [touch, replace_by_a_copy])
def test_an_input_with_the_same_content_is_the_same_input(
    change: Callable[[Path], None], source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    change(source)
    assert resume(tmp_path / "out").finished
    assert shard_bytes(tmp_path / "out") == whole
    assert run(config(source, tmp_path / "out")).new_rows == 0


def test_rows_that_were_not_answered_yet_may_be_edited(source: Path, tmp_path: Path) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    edit_the_end(source)
    assert resume(tmp_path / "out").finished
    assert read_output(tmp_path / "out")["id"].to_pylist() == [*range(NUM_ROWS - 1), 43]


def test_where_an_answered_chunk_begins_is_compared(tmp_path: Path) -> None:
    """Its rows and the place behind them, in the next file, are the same; its first line is not."""
    source = write_jsonl(tmp_path / "in" / "a.jsonl", rows(12))
    write_jsonl(tmp_path / "in" / "b.jsonl", rows(10))
    run(config(tmp_path / "in", tmp_path / "out"))
    (tmp_path / "out" / "data" / "part-000000-000000.parquet").unlink()
    size = source.stat().st_size
    source.write_text(source.read_text().replace(", ", ",", 1).replace("\n", "\n\n", 1))
    os.utime(source, (1, 1))
    assert source.stat().st_size == size
    with pytest.raises(JobMismatchError, match=r"a\.jsonl: changed .* from row 10 on"):
        resume(tmp_path / "out")


@pytest.mark.parametrize("change", [touch, edit_the_end, *CHANGES])
def test_an_input_that_changes_under_way_stops_the_run_and_can_be_put_back(
    change: Callable[[Path], None], source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    class ChangesUnderWay(Rates):
        def answered(self, num_rows: int, num_tokens: int) -> None:
            super().answered(num_rows, num_tokens)
            if self.num_rows > 12 and not changed:
                changed.append(True)
                change(source)

    changed: list[bool] = []
    kept = Keeps(source)
    with pytest.raises(JobMismatchError, match=r"rows\.jsonl") as error:
        run(config(source, tmp_path / "out"), progress=ChangesUnderWay())
    assert "\n" not in str(error.value)
    assert changed, "the fault did not fire"
    stood = shard_bytes(tmp_path / "out")
    assert 0 < len(stood) < len(whole) - 1 and "_SUCCESS" not in stood
    assert stood == {name: whole[name] for name in stood}, "no row of the changed file was answered"
    kept.put_back()
    assert resume(tmp_path / "out").finished
    assert shard_bytes(tmp_path / "out") == whole


@pytest.mark.parametrize("kind", ["csv", "jsonl.gz", "parquet"])
def test_every_format_is_compared(kind: str, tmp_path: Path) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / f"rows.{kind}"

    def write(third: str) -> None:
        texts = [f"text {i}" for i in range(NUM_ROWS)]
        texts[3] = third
        if kind == "parquet":
            pq.write_table(
                pa.table({"text": texts}), path, compression="none", use_dictionary=False
            )
        elif kind == "csv":
            path.write_text("\n".join(["text", *texts]) + "\n")
        else:
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            path.write_bytes(gzip.compress(lines.encode(), compresslevel=0, mtime=0))
        os.utime(path, ns=(0, next(times)))

    times = iter(range(10))
    write("text 3")
    size = path.stat().st_size
    run_partly(config(path, tmp_path / "out"), 15)
    write("text X")
    assert path.stat().st_size == size
    with pytest.raises(JobMismatchError, match=rf"rows\.{kind}: changed .* from row 0 on"):
        resume(tmp_path / "out")
    write("text 3")
    assert resume(tmp_path / "out").finished


def test_files_that_come_and_go_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a", "b"):
        write_jsonl(folder / f"{name}.jsonl", rows(20))
    run_partly(config(folder, tmp_path / "out"), 15)
    write_jsonl(folder / "c.jsonl", rows(1))
    with pytest.raises(JobMismatchError, match=r"c\.jsonl was not there"):
        run(config(folder, tmp_path / "out"), resume=True)
    (folder / "c.jsonl").unlink()
    (folder / "b.jsonl").rename(folder / "d.jsonl")
    with pytest.raises(JobMismatchError, match=r"d\.jsonl was not there"):
        run(config(folder, tmp_path / "out"), resume=True)
    with pytest.raises(JobMismatchError, match=r"b\.jsonl"):
        resume(tmp_path / "out")
    (folder / "d.jsonl").unlink()
    with pytest.raises(JobMismatchError, match=r"b\.jsonl is missing"):
        run(config(folder, tmp_path / "out"), resume=True)


# -- the job ---------------------------------------------------------------------------------------

#: For each knob that answers depend on, another value than the job below has.
OTHERWISE: dict[str, Any] = {
    "task": "embed",
    "engine": "local",
    "dtype": "float16",
    "max_length": 100,
    "text_column": "title",
    "text_pair_column": "title",
    "format": "csv",
    "encoding": "latin-1",
    "delimiter": ";",
    "header": False,
    "types": {"id": "int64"},
    "limit": 30,
    "max_line_bytes": 5000,
    "keep": ("id",),
    "output_prefix": "x_",
    "chunk_rows": 11,
    "top_k": 1,
    "all_scores": True,
    "pooling": "cls",
    "normalize": True,
    "prompt": "query: ",
    "truncate_dim": 4,
    "embedding_dtype": "float16",
    "aggregation": "first",
    "labels": ("a", "b"),
    "labels_column": "title",
    "hypothesis": "It is {}.",
    "multi_label": True,
    "template": "{{ title }}",
    "long": "stride",
    "stride": 3,
    "max_new_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.5,
    "stop": ("x",),
    "seed": 1,
    "generation_config": '{"repetition_penalty": 2.0}',
    "chat": False,
    "system": "be brief",
    "features": ("title",),
    "dedup": "off",
}
#: Jobs in which a knob means something, where the usual one is none.
_EMBED, _ZERO_SHOT = {"task": "embed"}, {"task": "zero-shot", "labels": ("a",)}
_GENERATE = {"task": "generate"}
KINDS: dict[str, dict[str, Any]] = {
    # The fake engine has but one precision. And a job of four batches is begun whole where four fly.
    "dtype": {"engine": "local", "model": str(MODEL), "dtype": "float32", "streams": 1},
    **dict.fromkeys(("pooling", "normalize", "prompt", "truncate_dim", "embedding_dtype"), _EMBED),
    "aggregation": {"task": "token-classify"},
    **dict.fromkeys(("labels", "labels_column", "hypothesis", "multi_label"), _ZERO_SHOT),
    "stride": {"long": "stride"},
    **dict.fromkeys(
        (
            "max_new_tokens",
            "temperature",
            "top_p",
            "stop",
            "seed",
            "generation_config",
            "chat",
            "system",
        ),
        _GENERATE,
    ),
    "features": {"task": "module", "features": ("id",)},
}


@pytest.mark.parametrize("name", IDENTITY_KNOBS)
def test_a_job_that_differs_in_any_knob_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    source = tmp_path / "in" / "rows.csv"
    source.parent.mkdir()
    lines = [f"{i},row {i},title {i};" for i in range(NUM_ROWS)]
    source.write_text("\n".join(["id,text,title", *lines]) + "\n")
    kind = KINDS.get(name, {})
    run_partly(config(source, tmp_path / "out", **kind), 15)
    other: dict[str, Any] = {name: OTHERWISE[name]}
    if name in ("delimiter", "header"):  # the columns have other names then
        other |= {"text_column": "column_1" if name == "header" else "id,text,title"}
    if name == "engine":
        other |= {"model": str(MODEL), "max_length": 100, "dtype": "float32"}
    stood = shard_bytes(tmp_path / "out")
    try:
        run(config(source, tmp_path / "out", **{**kind, **other}), resume=True)
    except UsageError:
        assert name == "labels_column", "CSV holds no lists, so there is no such job"
    except JobMismatchError as error:
        assert "holds another job: " in str(error) and "\n" not in str(error)
        told = str(error).split("another job: ")[1]
        assert told.startswith(f"{name} was ") or len(other) > 1
    else:
        raise AssertionError("another job was taken for the same")
    assert shard_bytes(tmp_path / "out") == stood


def model(folder: Path) -> Path:
    shutil.copytree(MODEL, folder)
    return folder


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def other_weights(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\1")


def other_labels(folder: Path) -> None:
    edit_json(folder / "config.json", id2label={"0": "bad", "1": "good"})


def another_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        text.replace('"lowercase":true', '"lowercase":false') + " "
    )


def a_shorter_length(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", model_max_length=64)


def another_activation(folder: Path) -> None:
    edit_json(folder / "config.json", problem_type="multi_label_classification")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_weights, "the model's files differ"),
        (another_tokenizer, "the model's files differ"),
        (other_labels, "labels was ['negative', 'positive'], now ['bad', 'good']"),
        (a_shorter_length, "--max-length 128 is more than"),
        (another_activation, "activation was softmax, now sigmoid"),
    ],
)
def test_a_model_that_changed_is_refused_by_what_changed(
    change: Callable[[Path], None], told: str, source: Path, tmp_path: Path
) -> None:
    folder = model(tmp_path / "model")
    job = config(source, tmp_path / "out", engine="local", model=str(folder), dtype="float32")
    run_partly(job, 15)
    stood = shard_bytes(tmp_path / "out")
    change(folder)
    for attempt in (lambda: resume(tmp_path / "out"), lambda: run(job, resume=True)):
        with pytest.raises((JobMismatchError, UsageError)) as error:
            attempt()
        assert told in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(JobMismatchError):
        resume(tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == stood
    shutil.rmtree(folder)
    model(folder)
    assert resume(tmp_path / "out").finished


def test_another_revision_of_a_hub_model_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = iter(["a" * 40, "a" * 40, "b" * 40, "b" * 40, "a" * 40])
    monkeypatch.setattr(files, "_snapshot", lambda *_: (MODEL, next(commits)))
    job = config(source, tmp_path / "out", engine="local", model="maker/tiny", dtype="float32")
    run_partly(job, 15)
    told = "revision was aaaaaaaaaaaa, now bbbbbbbbbbbb"
    assert next(commits) == "a" * 40
    for attempt in (lambda: resume(tmp_path / "out"), lambda: run(job, resume=True)):
        with pytest.raises(JobMismatchError, match=told):
            attempt()
    assert resume(tmp_path / "out").finished


def test_another_prompt_of_an_embedder_is_refused(source: Path, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    parts = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    settings = folder / "config_sentence_transformers.json"
    settings.write_text('{"prompts": {"q": "query: "}, "default_prompt_name": "q"}')
    job = config(source, tmp_path / "out", engine="local", model=str(folder), dtype="float32")
    run_partly(job, 15)
    settings.write_text('{"prompts": {"q": "passage: "}, "default_prompt_name": "q"}')
    with pytest.raises(JobMismatchError, match="prompt was query: , now passage: "):
        resume(tmp_path / "out")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    with pytest.raises(JobMismatchError, match="pooling was mean, now cls"):
        resume(tmp_path / "out")


def test_a_model_that_is_gone_is_one_line_and_can_be_put_back(source: Path, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    job = config(source, tmp_path / "out", engine="local", model=str(folder), dtype="float32")
    run_partly(job, 15)
    folder.rename(tmp_path / "moved")
    with pytest.raises(Exception, match="no such model folder") as error:
        resume(tmp_path / "out")
    assert "\n" not in str(error.value)
    (tmp_path / "moved").rename(folder)
    assert resume(tmp_path / "out").finished


def test_a_model_that_moved_is_the_same_model(source: Path, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    job = config(source, tmp_path / "out", engine="local", model=str(folder), dtype="float32")
    run_partly(job, 15)
    folder.rename(tmp_path / "moved")
    assert run(job.model_copy(update={"model": str(tmp_path / "moved")}), resume=True).finished


@pytest.mark.parametrize(
    "changes",
    [
        {"max_batch_tokens": 500, "max_batch_rows": 2},
        {"device": "cpu", "attention": "eager"},
        {"max_errors": "5%"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_how_a_job_is_run_may_change(
    changes: dict[str, Any], source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    assert resume(tmp_path / "out", **changes).finished
    expected = read_output(tmp_path / "whole")
    assert read_output(tmp_path / "out").equals(expected)
    if "max_batch_tokens" not in changes:
        assert shard_bytes(tmp_path / "out") == whole


def test_processes_that_load_may_be_added(
    source: Path, whole: dict[str, bytes], cli: Cli, tmp_path: Path
) -> None:
    """In a process of its own, as whoever starts loader processes is."""
    run_partly(config(source, tmp_path / "out"), 15)
    done = cli("resume", "out", "--workers", "1", "--quiet")
    assert done.returncode == 0, done.stderr
    assert shard_bytes(tmp_path / "out") == whole


# -- the clock -------------------------------------------------------------------------------------

DAY = 24 * 3600


@pytest.mark.parametrize("shift", [-DAY, 10 * 365 * DAY])
def test_a_clock_that_was_set_makes_no_difference(
    shift: int,
    source: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_partly(config(source, tmp_path / "out"), 15)
    real_time, real_strftime = time.time, time.strftime
    monkeypatch.setattr(time, "time", lambda: real_time() + shift)
    monkeypatch.setattr(
        time, "strftime", lambda form, t=None: real_strftime(form, t or time.localtime(time.time()))
    )
    # What the clock said when the files were written lies in the future now, or ten years back.
    for path in (tmp_path / "out").rglob("*"):
        status = path.stat()
        os.utime(path, (status.st_atime - shift, status.st_mtime - shift))
    leftover = tmp_path / "out" / "_batchinfer" / "tmp" / "part-000000-000003.parquet.x.inprogress"
    leftover.write_bytes(b"torn")
    assert read_status(str(tmp_path / "out")).state == "stopped"
    assert resume(tmp_path / "out").finished
    assert shard_bytes(tmp_path / "out") == whole
    assert not list((tmp_path / "out" / "_batchinfer" / "tmp").iterdir())
    assert run(config(source, tmp_path / "out")).new_rows == 0


@pytest.mark.parametrize("seconds", [-1, 0, 2**33])
def test_an_input_may_be_of_any_time(
    seconds: int, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    os.utime(source, (seconds, seconds))
    run_partly(config(source, tmp_path / "out"), 15)
    assert resume(tmp_path / "out").finished
    assert shard_bytes(tmp_path / "out") == whole


def test_a_clock_that_jumps_under_way_makes_no_difference(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_time = time.time
    jumps = iter([-DAY, 10 * 365 * DAY] * 10_000)
    monkeypatch.setattr(time, "time", lambda: real_time() + next(jumps))
    report = run(config(source, tmp_path / "out"))
    assert 0 <= report.seconds < 60, "durations are of the monotonic clock"
    assert shard_bytes(tmp_path / "out") == whole


def test_an_input_that_has_become_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("")
    run(config(source, tmp_path / "out"))
    for shard in (tmp_path / "out" / "data").iterdir():
        shard.unlink()
    source.unlink()
    os.mkfifo(source)
    with pytest.raises(JobMismatchError, match="no regular file any more"):
        resume(tmp_path / "out")
