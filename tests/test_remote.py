"""Input from and output to a store: the same shards, the same promise, one line for what is wrong.

The store is moto's S3 server, a process of its own on this machine; what it holds is looked at over plain
HTTP, with nothing of what is tested.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, shard_bytes
from tests.store import Store

pytest.importorskip("s3fs", reason="s3:// needs s3fs: pip install 'batchinfer[s3]'")
pytest.importorskip("moto", reason="the tests' store is moto's", exc_type=ImportError)

ROWS = 600
JOB = ("--engine", "fake", "--chunk-rows", "20", "--max-batch-tokens", "64")
Call = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def serving(*flags: str) -> Iterator[Store]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store", *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        store = Store(f"http://127.0.0.1:{int(process.stdout.readline())}")
        store.create_bucket()
        yield store
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving() as found:
        for name, lines in inputs().items():
            found.put(f"in/{name}", lines)
        yield found


def inputs() -> dict[str, bytes]:
    """Three files of JSON lines."""
    return {
        f"{name}.jsonl": "".join(
            json.dumps({"id": i, "text": f"{name} {i} " * (i % 9)}) + "\n" for i in range(ROWS // 3)
        ).encode()
        for name in "abc"
    }


@pytest.fixture
def local(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name, content in inputs().items():
        (tmp_path / "in" / name).write_bytes(content)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "batchinfer", *arguments]


@pytest.fixture
def call(store: Store, tmp_path: Path) -> Call:
    """The command line with the store's credentials; `machine`: one with a cache of its own."""

    def ask(
        *arguments: str, machine: str = "one", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            cwd=tmp_path, env=environment(store, tmp_path, machine) | environ,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    return ask


def environment(store: Store, folder: Path, machine: str) -> dict[str, str]:
    cache = folder / "machines" / machine
    return {**os.environ, **store.environment, "XDG_CACHE_HOME": str(cache)}


@pytest.fixture
def expected(local: Path, call: Call) -> dict[str, bytes]:
    """What the same job leaves on a disk."""
    done = call("run", "in", *JOB, "-o", "expected", "--quiet")
    assert done.returncode == 0, done.stderr
    return shard_bytes(local / "expected")


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """A folder in the store that is the test's own."""
    return "out/" + "".join(c if c.isalnum() else "-" for c in request.node.name)


# -- the same as on a disk -------------------------------------------------------------------------


def test_a_run_from_a_store_into_a_store_leaves_the_bytes_that_it_leaves_on_a_disk(
    store: Store, call: Call, folder: str, expected: dict[str, bytes]
) -> None:
    out = f"s3://bucket/{folder}"
    done = call("run", "s3://bucket/in", *JOB, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["num_rows"], summary["output"]) == (ROWS, out)
    assert store.objects(f"{folder}/data/") == expected
    names = {key.removeprefix(f"{folder}/_batchinfer/") for key in store.keys(f"{folder}/_batch")}
    assert names == {"plan.json", "report.json", "budget-cpu.json"}, "no probe, no holder is left"

    status = call("status", out, "--json")
    assert json.loads(status.stdout)["state"] == "finished", status.stderr
    verified = call("verify", out)
    assert (verified.returncode, verified.stdout.split(":")[-1].strip()) == (0, "OK"), verified
    again = call("resume", out, machine="two")
    assert again.returncode == 0 and "nothing was left to do" in again.stdout, again.stderr


def test_the_report_of_a_folder_in_a_store_is_a_file_here(
    store: Store, call: Call, folder: str, local: Path
) -> None:
    out = f"s3://bucket/{folder}"
    assert call("run", "in", *JOB, "-o", out, "--quiet").returncode == 0
    before = store.objects(f"{folder}/")
    done = call("report", out)
    name = f"{folder.removeprefix('out/')}-report.html"
    assert done.stdout.splitlines()[1:] == [name], done.stderr
    assert f"{ROWS} of {ROWS} rows answered" in (local / name).read_text()
    assert store.objects(f"{folder}/") == before


def test_what_is_new_in_a_store_is_answered_by_any_machine(
    store: Store, call: Call, folder: str
) -> None:
    out, late = f"s3://bucket/{folder}", inputs()
    job = ("run", "s3://bucket/late/*.jsonl", *JOB, "-o", out, "--incremental", "--quiet")
    store.put("late/a.jsonl", late["a.jsonl"])
    assert call(*job).returncode == 0
    stood = store.objects(f"{folder}/data/")
    store.put("late/b.jsonl", late["b.jsonl"])
    done = call(*job, machine="two")
    assert (done.returncode, done.stderr) == (0, "")
    now = store.objects(f"{folder}/data/")
    assert stood.items() < now.items()  # _SUCCESS, too
    assert call("verify", out).stdout.startswith(f"{2 * ROWS // 3} rows in")
    store.put("late/a.jsonl", late["a.jsonl"] * 2)
    refused = call(*job)
    assert refused.returncode == 73 and "new rows into a file of their own" in refused.stderr
    assert store.objects(f"{folder}/data/") == now


@pytest.mark.parametrize("name", ["s3://bucket/in/", "s3://bucket/in/*.jsonl", "http"])
def test_what_is_named_is_read(
    store: Store, call: Call, local: Path, expected: dict[str, bytes], name: str
) -> None:
    names = [name]
    if name == "http":
        names = [f"{store.endpoint}/bucket/in/{file}?token=tell-nobody" for file in inputs()]
    done = call("run", *names, *JOB, "-o", "out", "--quiet")
    assert done.returncode == 0, done.stderr
    assert shard_bytes(local / "out") == expected


def test_a_run_in_a_store_is_exported_as_one_on_a_disk_is(
    call: Call, local: Path, expected: dict[str, bytes]
) -> None:
    done = call("run", "in", *JOB, "-o", "s3://bucket/exported", "--quiet")
    assert done.returncode == 0, done.stderr
    for run, to in (("s3://bucket/exported", "far.jsonl"), ("expected", "near.jsonl")):
        done = call("export", run, "--to", to, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["num_rows"] == ROWS
    assert (local / "far.jsonl").read_bytes() == (local / "near.jsonl").read_bytes()
    done = call("export", "expected", "--to", "s3://bucket/one.parquet")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "only files on a disk are written" in done.stderr


def test_other_formats_are_read_as_from_a_disk(store: Store, call: Call, local: Path) -> None:
    rows = [json.loads(line) for line in inputs()["a.jsonl"].splitlines()]
    table = pa.Table.from_pylist(rows)
    files = local / "files"
    files.mkdir()
    pq.write_table(table, files / "p.parquet", row_group_size=30)
    (files / "g.jsonl.gz").write_bytes(gzip.compress(inputs()["b.jsonl"]))
    lines = ["id,text", *(f'{row["id"]},"{row["text"]}"' for row in rows)]
    (files / "c.csv").write_text("\n".join(lines) + "\n")
    for file in files.iterdir():
        store.put(f"formats/{file.name}", file.read_bytes())
        store.put(f"formats/_hidden/{file.name}", b"not to be read")
    job = ("--engine", "fake", "--chunk-rows", "50", "--max-batch-tokens", "64", "--quiet")
    assert call("run", "files", *job, "-o", "disk").returncode == 0
    done = call("run", "s3://bucket/formats", *job, "--workers", "1", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert shard_bytes(local / "out") == shard_bytes(local / "disk")


def test_tune_looks_into_the_same_places_of_a_file(store: Store, call: Call, local: Path) -> None:
    content = b"".join(b'{"text": "row %d"}\n' % i for i in range(200_000))
    assert len(content) > 3 << 20
    (local / "places.jsonl").write_bytes(content)
    store.put("places.jsonl", content)
    (local / "places.py").write_text("""
from batchinfer.readers import list_inputs
from batchinfer.tuning.sample import _starts_of_lines
found = [
    [list(_starts_of_lines(file, 1 << 20)) for file in list_inputs([name])]
    for name in ("places.jsonl", "s3://bucket/places.jsonl")
]
assert found[0] == found[1] and len(found[0][0]) >= 2, found
""")
    done = subprocess.run(
        [sys.executable, "places.py"],
        cwd=local, env=environment(store, local, "one"), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("devices", [["--devices", "cpu:2"], []], ids=["devices", "parts"])
def test_several_processes_fill_one_folder(
    store: Store, call: Call, folder: str, expected: dict[str, bytes], devices: list[str]
) -> None:
    out = f"s3://bucket/{folder}"
    parts = [devices] if devices else [["--shard", f"{part}/2"] for part in range(2)]
    for number, flags in enumerate(parts):
        done = call("run", "in", *JOB, *flags, "-o", out, "--quiet", machine=str(number))
        assert done.returncode == 0, done.stderr
    assert store.objects(f"{folder}/data/") == expected
    assert not store.keys(f"{folder}/_batchinfer/holder"), "each takes back that it is there"


def test_who_answers_a_part_is_seen_by_who_would_change_shards(
    store: Store, call: Call, local: Path, folder: str
) -> None:
    out = f"s3://bucket/{folder}"
    process = subprocess.Popen(
        command("run", "in", *JOB, "--shard", "0/2", "-o", out, "--quiet"),
        cwd=local, env=environment(store, local, "one"),
    )  # fmt: skip
    while not store.keys(f"{folder}/data/part-") and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9, "it was done before it was killed"
    there = store.objects(f"{folder}/data/")
    refused = call("run", "in", *JOB, "-o", out, "--overwrite", "--quiet", machine="two")
    assert refused.returncode == 75 and "may be at work" in refused.stderr, refused.stderr
    assert store.objects(f"{folder}/data/") == there
    # Its own machine knows that it is dead.
    assert call("run", "in", *JOB, "-o", out, "--overwrite", "--quiet").returncode == 0


# -- whatever dies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_is_killed_is_resumed_anywhere(
    store: Store, call: Call, local: Path, folder: str, expected: dict[str, bytes], seed: int
) -> None:
    """By another machine, which knows nothing but the address."""
    out = f"s3://bucket/{folder}"
    draw = random.Random(seed)
    begun = len(store.keys(f"{folder}/"))
    process = subprocess.Popen(
        command("run", "s3://bucket/in", *JOB, "-o", out, "--quiet"),
        cwd=local, env=environment(store, local, "one"),
    )  # fmt: skip
    wanted = begun + draw.randrange(1, len(expected))
    while len(store.keys(f"{folder}/")) < wanted and process.poll() is None:
        time.sleep(draw.random() * 0.02)
    process.kill()
    assert process.wait() == -9, "it was done before it was killed"
    there = store.objects(f"{folder}/data/")
    assert there.items() <= expected.items(), "an object is there whole, or not at all"
    done = call("resume", out, "--quiet", machine="two")
    assert done.returncode == 0, done.stderr
    assert store.objects(f"{folder}/data/") == expected
    assert call("verify", out, machine="two").returncode == 0


def test_of_eight_writers_one_wins_each_of_thirty_shards(
    store: Store, call: Call, local: Path, folder: str, expected: dict[str, bytes]
) -> None:
    """Eight machines that know nothing of each other, and begin the same job at once."""
    assert len(expected) == 30 + 1, "and _SUCCESS"
    out = f"s3://bucket/{folder}"
    writers = [
        subprocess.Popen(
            command("run", "s3://bucket/in", *JOB, "-o", out, "--resume", "--json"),
            cwd=local, env=environment(store, local, f"writer-{number}"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(8)
    ]  # fmt: skip
    said = [writer.communicate(timeout=240) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 8, [error for _, error in said]
    assert {json.loads(text)["num_rows"] for text, _ in said} == {ROWS}
    assert store.objects(f"{folder}/data/") == expected
    assert store.versions(f"{folder}/data/") == dict.fromkeys(expected, 1)
    assert call("verify", out).returncode == 0


def test_a_large_object_is_created_once_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several parts, of which nothing is seen before the last."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    script = """
import sys
from batchinfer.storage import RemotePath
place = RemotePath("s3://bucket/large")
content = bytes(101 << 20)
print(place.create(content), place.create(content[:-1]), place.status().size == len(content))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False", "True"], done.stderr


def test_a_store_that_creates_twice_is_refused_before_anything_is_written(
    local: Path, tmp_path: Path
) -> None:
    with serving("--forgets") as forgetful:
        done = subprocess.run(
            command("run", "in", *JOB, "-o", "s3://bucket/out", "--quiet"),
            cwd=local, env=environment(forgetful, local, "one"),
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 74, done.stderr
        [line] = done.stderr.splitlines()
        assert "creates an object over one that is there" in line and "If-None-Match" in line
        assert forgetful.keys("out") == []


# -- a changed world -------------------------------------------------------------------------------


def test_an_object_that_was_replaced_ends_the_job_and_one_that_was_rewritten_does_not(
    store: Store, call: Call, folder: str
) -> None:
    source, out = f"{folder}-in/x.jsonl", f"s3://bucket/{folder}"
    content = inputs()["a.jsonl"]
    store.put(source, content)
    job = ("run", f"s3://bucket/{source}", *JOB, "-o", out, "--quiet")
    assert call(*job, "--limit", "100").returncode == 0
    shards = store.keys(f"{folder}/data/")
    for key in (shards[0], shards[2]):  # _SUCCESS, and the second shard
        store.remove(key)
    changed = content.replace(b"a 1 ", b"b 1 ", 1)
    assert len(changed) == len(content) and changed != content
    store.put(source, changed)
    done = call("resume", out, "--quiet")
    assert done.returncode == 73 and "was made from other rows" in done.stderr, done.stderr
    store.put(source, content)
    assert call("resume", out, "--quiet").returncode == 0


def test_who_may_be_at_work_elsewhere_is_not_disturbed(
    store: Store, call: Call, local: Path, folder: str, expected: dict[str, bytes]
) -> None:
    out = f"s3://bucket/{folder}"
    assert call("run", "in", *JOB, "-o", out, "--quiet").returncode == 0
    key = f"{folder}/_batchinfer/holder-x.json"
    word = {"pid": 17, "host": "far-away", "machine": "another"}
    store.put(key, json.dumps(word).encode())
    replaced = call("run", "in", *JOB, "--limit", "50", "-o", out, "--overwrite", "--quiet")
    assert replaced.returncode == 75, replaced.stderr
    assert (
        "pid 17 on far-away" in replaced.stderr and f"delete s3://bucket/{key}" in replaced.stderr
    )
    tried = call("resume", out, "--retry-errors", "--quiet")
    assert tried.returncode == 75 and "pid 17 on far-away" in tried.stderr
    assert store.objects(f"{folder}/data/") == expected
    store.remove(f"{folder}/data/_SUCCESS")
    store.remove(f"{folder}/data/part-000000-000003.parquet")
    assert call("resume", out).returncode == 0, "to add what is missing disturbs nobody"
    assert store.objects(f"{folder}/data/") == expected
    store.remove(key)
    assert call("run", "in", *JOB, "--limit", "50", "-o", out, "--overwrite").returncode == 0
    assert len(store.keys(f"{folder}/data/part-")) == 3


def test_a_damaged_shard_is_set_aside_and_made_again(
    store: Store, call: Call, folder: str, expected: dict[str, bytes], local: Path
) -> None:
    out = f"s3://bucket/{folder}"
    assert call("run", "in", *JOB, "-o", out, "--quiet").returncode == 0
    name = "part-000000-000004.parquet"
    store.put(f"{folder}/data/{name}", expected[name][:-100])
    assert call("verify", out).returncode != 0
    done = call("resume", out)
    assert done.returncode == 0, done.stderr
    assert store.objects(f"{folder}/data/") == expected
    assert len(store.keys(f"{folder}/_batchinfer/quarantine/{name}")) == 1


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["s3://nobody-has-this/in", "-o", "x"], 66, "s3://nobody-has-this/in: no such object"),
        (["s3://bucket/nothing", "-o", "x"], 66, "s3://bucket/nothing: no such object"),
        (["s3://bucket/in/*.csv", "-o", "x"], 66, "the pattern matches nothing"),
        (["in", "-o", "s3://nobody-has-this/x"], 74, "s3://nobody-has-this: no such bucket"),
        (["in", "-o", "https://example.org/x"], 2, "nothing can be written there"),
        (["ftp://example.org/x.jsonl", "-o", "x"], 2, "cannot be opened; besides files"),
        (["s3://bucket/in", "-o", "s3://bucket/in"], 73, "holds other files"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    call: Call, local: Path, arguments: list[str], code: int, says: str
) -> None:
    done = call("run", *arguments, *JOB, "--quiet")
    assert done.returncode == code, done.stderr
    [line] = done.stderr.splitlines()
    assert says in line
    assert not (local / "x").exists()


def test_no_credentials_and_no_server_are_said_in_one_line(call: Call, local: Path) -> None:
    job = ("run", "s3://bucket/in", *JOB, "-o", "x", "--quiet")
    nowhere = call(*job, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    empty = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    nobody = call(*job, AWS_SHARED_CREDENTIALS_FILE="/nowhere", **empty)
    for done, says in ((nowhere, "connect"), (nobody, "credentials")):
        assert done.returncode == 66, done.stderr
        [line] = done.stderr.splitlines()
        assert "s3://bucket/in" in line and says in line


def test_a_server_without_ranges_is_refused(call: Call, local: Path) -> None:
    """Such as Python's own: a resumed run could not begin in the middle of its files."""
    row = json.dumps({"text": "more than is read at once"}) + "\n"
    (local / "in" / "a.jsonl").write_text(row * ((9 << 20) // len(row)))
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"],
        cwd=local / "in", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port = process.stdout.readline().split("port ")[1].split()[0]
        done = call("run", f"http://127.0.0.1:{port}/a.jsonl", *JOB, "-o", "x", "--quiet")
    finally:
        process.kill()
        process.communicate()
    assert done.returncode == 66, done.stderr
    [line] = done.stderr.splitlines()
    assert "as a whole only" in line and "download" in line


def test_addresses_that_differ_in_queries_alone_are_refused(call: Call, store: Store) -> None:
    """Of their rows, `_source` could not say which is whose; nor may a password stand there."""
    host = store.endpoint.removeprefix("http://")
    one = f"http://bob:hunter22@{host}/bucket/in/a.jsonl"
    done = call("run", f"{one}?v=1", f"{one}?v=2", *JOB, "-o", "x", "--quiet")
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert "differ in their queries alone" in line and "hunter22" not in line


def test_a_library_that_is_missing_is_named(call: Call, local: Path) -> None:
    """gcsfs stands for all: a module of its name that cannot be imported."""
    (local / "gcsfs.py").write_text("raise ImportError('No module named gcsfs')\n")
    done = call("run", "in", *JOB, "-o", "gs://bucket/x", "--quiet", PYTHONPATH=str(local))
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert "pip install 'batchinfer[gs]'" in line
