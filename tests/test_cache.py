"""Answers kept between runs: found again, never wrong, never the reason that a run fails."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batchinfer import RunConfig, infer, resume, run
from batchinfer.auditing import audit
from batchinfer.caching import store
from batchinfer.caching.answers import FILE, AnswerCache
from batchinfer.caching.keys import identity_of, keys_of
from batchinfer.caching.store import Store
from batchinfer.core import Answers, Batch, ModelSpec, Requests
from batchinfer.engines import fake
from batchinfer.engines.fake import FakeEngine
from batchinfer.errors import UsageError
from batchinfer.tasks import create_task
from batchinfer.writers.run_folder import require_plan
from tests.conftest import ROOT, read_output
from tests.test_dedup import MODELS, TASKS, alike, counted, ill_and_well, job, requests_of

TEXTS = [f"row {i} " * (i % 9 + 1) + "[MASK]" for i in range(30)]


def cached(tmp_path: Path, name: str = "out", texts: list[str] = TEXTS, **others: Any) -> RunConfig:
    return job(tmp_path, texts, name, cache=str(tmp_path / "cache"), **others)


def database(tmp_path: Path) -> sqlite3.Connection:
    return sqlite3.connect(tmp_path / "cache" / FILE)


def num_entries(tmp_path: Path) -> int:
    return int(database(tmp_path).execute("SELECT count(*) FROM entries").fetchone()[0])


# -- what was answered is found again --------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in TASKS if case not in ("module", "score")])
def test_another_run_asks_nothing_and_answers_the_same(tmp_path: Path, case: str) -> None:
    chosen = {"task": case.split(" ")[0], **TASKS[case]}
    run(cached(tmp_path, **chosen))
    with counted() as asked:
        report = run(cached(tmp_path, "again", **chosen))
    assert (asked.rows, report.new_tokens, report.cached_rows) == (0, 0, len(TEXTS))
    assert read_output(tmp_path / "again").equals(read_output(tmp_path / "out"))
    assert f"{len(TEXTS)} have theirs from the cache" in report.to_text()


def test_only_what_is_new_is_asked(tmp_path: Path) -> None:
    run(cached(tmp_path, texts=TEXTS[:20]))
    with counted() as asked:
        report = run(cached(tmp_path, "more", chunk_rows=30))
    assert (asked.rows, report.cached_rows) == (10, 20)
    assert asked.calls == 4, "batches of what is left are full"
    run(job(tmp_path, TEXTS, "without"))
    assert read_output(tmp_path / "more").equals(read_output(tmp_path / "without"))


def test_a_model_answers_the_same_from_the_cache(tmp_path: Path) -> None:
    model = str(ROOT / "sample_data" / "tiny-entities")
    chosen = {"engine": "local", "model": model, **MODELS["tiny-entities"], "dtype": "float32"}
    texts = ["Ann Lee of Kent came", "The train from Bath was late", "Ann Lee of Kent came"]
    first, second = (run(cached(tmp_path, name, texts, **chosen)) for name in ("a", "b"))
    assert (first.cached_rows, second.cached_rows) == (0, 3)
    assert alike(read_output(tmp_path / "b").to_pylist(), read_output(tmp_path / "a").to_pylist())


def test_duplicates_of_what_is_there_are_answered_by_it(tmp_path: Path) -> None:
    run(cached(tmp_path, texts=["a", "b"]))
    report = run(cached(tmp_path, "more", ["a", "c", "a", "c", "b"]))
    assert (report.new_rows, report.duplicate_rows, report.cached_rows) == (5, 1, 3)


def test_a_resumed_run_is_given_the_folder_again(tmp_path: Path) -> None:
    """A plan, which may be a stranger's, names no place to write to."""
    run(cached(tmp_path))
    shard = sorted((tmp_path / "out" / "data").glob("*.parquet"))[1]
    before = shard.read_bytes()
    for given, rows in (({}, 8), ({"cache": tmp_path / "cache"}, 0)):
        shard.unlink()
        (tmp_path / "out" / "data" / "_SUCCESS").unlink()
        entries = num_entries(tmp_path)
        with counted() as asked:
            resume(tmp_path / "out", **{name: str(path) for name, path in given.items()})
        assert asked.rows == rows and num_entries(tmp_path) == entries
        assert shard.read_bytes() == before


def test_processes_share_it(tmp_path: Path) -> None:
    run(cached(tmp_path, devices="cpu:2", threads=1))
    report = run(cached(tmp_path, "again", devices="cpu:2", threads=1))
    assert (num_entries(tmp_path), report.cached_rows) == (len(TEXTS), len(TEXTS))


def test_it_travels_to_loader_processes(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    requests = requests_of([[1, 2], [3]])
    cache.look_up(requests)
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.look_up(requests).keys == cache.look_up(requests).keys
    cache.close()
    copy.close()


# -- what is kept, and under which name ------------------------------------------------------------


def cache_of(tmp_path: Path, **settings: Any) -> AnswerCache:
    config = RunConfig(cache=str(tmp_path / "cache"), engine="fake", dtype="float32", **settings)
    made = AnswerCache.of(config, create_task(fake.describe("classify", None), config))
    assert made is not None
    return made


SPEC = ModelSpec("name", "commit", "Bert", "classify", 512)


@pytest.mark.parametrize(
    ("settings", "spec"),
    [
        ({"dtype": "bfloat16"}, SPEC),
        ({"engine": "openvino"}, SPEC),
        ({"top_k": 3}, SPEC),
        ({"pooling": "cls"}, SPEC),
        ({}, ModelSpec("name", "another", "Bert", "classify", 512)),
        ({}, ModelSpec("name", "commit", "Bert", "embed", 512)),
        ({}, ModelSpec("name", "commit", "Bert", "classify", 512, generation='{"num_beams": 2}')),
    ],
)
def test_another_model_or_setting_has_answers_of_its_own(
    settings: dict[str, Any], spec: ModelSpec
) -> None:
    plain = RunConfig(engine="local", dtype="float32")
    assert identity_of(plain.model_copy(update=settings), spec) != identity_of(plain, SPEC)


@pytest.mark.parametrize(
    "settings",
    [
        {"device": "cuda"}, {"max_batch_rows": 3}, {"attention": "eager"}, {"keep": ()},
        {"labels": ("a",)}, {"text_column": "body"}, {"dedup": "off"}, {"chunk_rows": 4},
    ],
)  # fmt: skip
def test_what_moves_last_bits_or_nothing_at_all_shares_them(settings: dict[str, Any]) -> None:
    plain = RunConfig(engine="local", dtype="float32")
    here = ModelSpec("elsewhere", "commit", "Bert", "classify", 512)
    assert identity_of(plain.model_copy(update=settings), here) == identity_of(plain, SPEC)


def test_other_versions_have_answers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = RunConfig(engine="local", dtype="float32")
    before = identity_of(plain, SPEC)
    monkeypatch.setattr("batchinfer.caching.keys._version", lambda name: f"{torch.__version__}x")
    assert identity_of(plain, SPEC) != before


def test_keys_tell_tokens_and_fields_apart() -> None:
    def keys(requests: Requests) -> list[bytes]:
        return keys_of(requests, requests.asked, b"identity")

    plain = keys(requests_of([[1, 2], [1], [2], [2, 1], [1, 2]]))
    assert len(set(plain)) == 4 and plain[0] == plain[4]
    typed = keys(requests_of([[1, 2], [1, 2]], token_type_ids=[[0, 0], [0, 1]]))
    assert len({*typed, *plain}) == 6
    assert keys_of(requests_of([[1, 2]]), np.array([0]), b"other")[0] not in plain


def test_errors_are_not_kept(tmp_path: Path) -> None:
    texts = ["a", "ill ill", "b", "ill ill"]
    with counted() as asked:
        asked.fails = ill_and_well
        assert run(cached(tmp_path, texts=texts)).num_errors == 2
    assert num_entries(tmp_path) == 2
    with counted() as asked:
        assert run(cached(tmp_path, "again", texts)).num_errors == 0
    assert asked.rows == 1


def test_what_is_no_number_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = FakeEngine.answer

    def broken(engine: FakeEngine, batch: Batch) -> Answers:
        values = dict(answer(engine, batch).values)
        values["embedding"][batch.lengths == 3] = np.nan
        return Answers(values)

    monkeypatch.setattr(FakeEngine, "answer", broken)
    run(cached(tmp_path, texts=["a", "ill ill"], task="embed"))
    assert num_entries(tmp_path) == 1


def test_what_is_drawn_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = str(ROOT / "sample_data" / "tiny-writer")
    chosen = {"engine": "local", "model": place, "temperature": 2.0, "max_new_tokens": 4}
    with caplog.at_level("INFO", "batchinfer"):
        run(cached(tmp_path, texts=["The hotel"] * 2, **chosen))
    assert "--cache is not used: each row draws its own answer" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_an_audit_does_not_look_there(tmp_path: Path) -> None:
    run(cached(tmp_path))
    with counted() as asked:
        audit(tmp_path / "out", sample=10)
    assert asked.rows == 10


def test_a_store_is_no_place_for_it() -> None:
    with pytest.raises(UsageError, match="--cache: should be a folder on a disk"):
        RunConfig.load({"cache": "s3://bucket/cache"}, environ={})


@pytest.mark.parametrize(
    ("given", "size"),
    [("10GiB", 10 << 30), ("500MB", 500_000_000), ("1.5 GiB", 3 << 29), ("2000000", 2_000_000)],
)
def test_its_size_is_read_with_a_unit(given: str, size: int) -> None:
    assert RunConfig.load({"cache_size": given}, environ={}).cache_size == size


@pytest.mark.parametrize("given", ["10", "many", "3 apples", "1e9GiB", "5B"])
def test_a_size_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="--cache-size"):
        RunConfig.load({"cache_size": given}, environ={})


# -- whatever happens to it ------------------------------------------------------------------------


def flip(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.parametrize(
    "harm",
    [
        lambda rows: [(flip(content), key) for key, content in rows],
        lambda rows: [(content[:-1], key) for key, content in rows],
        lambda rows: [(b"", key) for key, _ in rows],
        lambda rows: [("text", key) for key, _ in rows],
        lambda rows: [(rows[i - 1][1], key) for i, (key, _) in enumerate(rows)],
    ],
    ids=["flipped", "torn", "empty", "of another type", "another's"],
)
def test_an_entry_that_is_not_whole_is_none(
    tmp_path: Path, harm: Callable[[list[tuple[bytes, bytes]]], list[tuple[Any, bytes]]]
) -> None:
    run(cached(tmp_path))
    with database(tmp_path) as opened:
        rows = opened.execute("SELECT key, content FROM entries").fetchall()
        opened.executemany("UPDATE entries SET content = ? WHERE key = ?", harm(rows))
    opened.close()
    with counted() as asked:
        run(cached(tmp_path, "again"))
    assert asked.rows == len(TEXTS)
    assert read_output(tmp_path / "again").equals(read_output(tmp_path / "out"))
    assert run(cached(tmp_path, "mended")).cached_rows == len(TEXTS)


def test_an_entry_of_another_shape_is_none(tmp_path: Path) -> None:
    run(cached(tmp_path))
    with database(tmp_path) as opened:
        keys = [key for (key,) in opened.execute("SELECT key FROM entries")]
    opened.close()
    kept = Store(tmp_path / "cache" / FILE, 1 << 30)
    kept.put({key: b"whole, but not an answer" for key in keys})
    kept.close()
    with counted() as asked:
        run(cached(tmp_path, "again"))
    assert asked.rows == len(TEXTS)


@pytest.mark.parametrize("harm", ["overwritten", "cut", "no database", "a folder"])
def test_a_damaged_database_costs_the_cache_alone(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(cached(tmp_path))
    path = tmp_path / "cache" / FILE
    content = path.read_bytes()
    if harm == "overwritten":
        path.write_bytes(content[:4096] + os.urandom(len(content) - 4096))
    elif harm == "cut":
        path.write_bytes(content[:5000])
    elif harm == "no database":
        path.write_bytes(b"not a database" * 500)
    else:
        path.unlink()
        path.mkdir()
    run(cached(tmp_path, "again"))
    assert read_output(tmp_path / "again").equals(read_output(tmp_path / "out"))
    [warning, *_] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "goes on without the cache" in warning.message and str(path) in warning.message


def test_a_database_that_another_holds_costs_the_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "_WAIT_SECONDS", 0.1)
    run(cached(tmp_path, texts=TEXTS[:5]))
    other = database(tmp_path)
    other.execute("BEGIN IMMEDIATE")
    report = run(cached(tmp_path, "again"))
    assert (report.num_errors, report.cached_rows) == (0, 5), "reading goes on while another writes"
    assert "database is locked; this run goes on without the cache" in caplog.text
    other.rollback()
    other.close()


def test_a_full_disk_costs_the_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepare = Store._prepare

    def limited(own: Store) -> None:
        prepare(own)
        own._database.execute("PRAGMA max_page_count = 8")

    monkeypatch.setattr(Store, "_prepare", limited)
    texts = [f"text {i}" for i in range(600)]
    report = run(cached(tmp_path, texts=texts, task="embed", chunk_rows=300, max_batch_rows=64))
    assert report.finished and report.num_errors == 0
    assert "disk is full; this run goes on without the cache" in caplog.text
    assert num_entries(tmp_path) == 0, "of a chunk that does not fit, nothing is left"


def test_a_folder_that_cannot_be_made_costs_the_cache_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert run(job(tmp_path, TEXTS, cache=str(tmp_path / "file" / "cache"))).finished
    assert "goes on without the cache" in caplog.text


# -- how much it holds -----------------------------------------------------------------------------


def key_of(number: int) -> bytes:
    return number.to_bytes(24, "big")


def test_the_oldest_make_room(tmp_path: Path) -> None:
    kept = Store(tmp_path / "store", 1 << 20)
    for start in range(0, 4000, 100):
        kept.put({key_of(i): bytes([i % 256]) * 1000 for i in range(start, start + 100)})
        assert kept._used() <= 1 << 20
    there = sorted(int.from_bytes(key) for key in kept.get([key_of(i) for i in range(4000)]))
    assert there == list(range(there[0], 4000)) and 500 < len(there) < 1050
    kept.close()
    assert (tmp_path / "store").stat().st_size <= 1.05 * (1 << 20)


def test_a_lower_limit_gives_the_disk_back(tmp_path: Path) -> None:
    path = tmp_path / "store"
    kept = Store(path, 8 << 20)
    kept.put({key_of(i): bytes(1000) for i in range(3000)})
    kept.close()
    assert path.stat().st_size > 3 << 20
    kept = Store(path, 1 << 20)
    kept.put({key_of(-1 % (1 << 60)): b"new"})
    assert list(kept.get([key_of(-1 % (1 << 60))]).values()) == [b"new"]
    kept.close()
    assert path.stat().st_size <= 1 << 20


def test_of_more_than_there_is_room_for_some_is_kept(tmp_path: Path) -> None:
    kept = Store(tmp_path / "store", 1 << 20)
    kept.put({key_of(i): bytes(1000) for i in range(5000)})
    assert 300 < len(kept.get([key_of(i) for i in range(5000)])) < 600
    kept.close()


# -- several at once, and kills --------------------------------------------------------------------

WRITER = """
import sys, zlib
from pathlib import Path
from batchinfer.caching.store import Store
kept = Store(Path(sys.argv[1]), int(sys.argv[3]))
for start in range(int(sys.argv[2]), 1 << 30, 50):
    kept.put({i.to_bytes(24, "big"): b"%d " % i * 40 for i in range(start, start + 50)})
    print(start + 50, flush=True)
    if start + 50 >= int(sys.argv[2]) + int(sys.argv[4]): break
"""


def writer(path: Path, first: int, count: int, limit: int = 1 << 30) -> subprocess.Popen[str]:
    arguments = [str(path), str(first), str(limit), str(count)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], env=environ, stdout=subprocess.PIPE, text=True
    )


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store"
    writers = [writer(path, first, 2000) for first in (0, 1000)]  # half of it is both's
    assert [one.wait(60) for one in writers] == [0, 0]
    for one in writers:
        assert one.stdout is not None
        one.stdout.close()
    kept = Store(path, 1 << 30)
    found = kept.get([key_of(i) for i in range(3000)])
    assert found == {key_of(i): b"%d " % i * 40 for i in range(3000)}
    kept.close()


@pytest.mark.parametrize("limit", [1 << 30, 1 << 20], ids=["growing", "making room"])
def test_a_writer_that_is_killed_leaves_what_it_had_committed(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "store"
    first = 0
    for delay in (0.0, 0.01, 0.03):
        killed = writer(path, first, 1 << 29, limit)
        assert killed.stdout is not None
        killed.stdout.readline()
        time.sleep(delay)
        killed.send_signal(signal.SIGKILL)
        said = killed.stdout.read().split()
        killed.stdout.close()
        killed.wait()
        kept = Store(path, limit)
        last = int(said[-1]) if said else first + 50
        found = kept.get([key_of(i) for i in range(last + 50)])
        assert all(content == b"%d " % int.from_bytes(k) * 40 for k, content in found.items())
        assert all(key_of(i) in found for i in range(last - 50, last))
        if limit > 1 << 20:
            assert all(key_of(i) in found for i in range(last))
        kept.close()
        first = last


def test_a_run_that_is_killed_leaves_a_cache_that_the_next_one_uses(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(1000)]
    config = cached(tmp_path, texts=texts, chunk_rows=25)
    command = [sys.executable, "-m", "batchinfer", "run", *config.inputs, "--output", config.output]
    command += ["--engine", "fake", "--chunk-rows", "25", "--cache", str(config.cache), "--quiet"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(command, env=environ)
    while len(list((tmp_path / "out" / "data").glob("*.parquet"))) < 3:
        assert killed.poll() is None, "it should be killed before it is done"
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "out" / "data" / "_SUCCESS").exists()
    entries = num_entries(tmp_path)
    assert 50 <= entries < len(texts)
    report = run(config.model_copy(update={"output": str(tmp_path / "other")}))
    assert report.cached_rows == entries
    assert resume(config.output, cache=config.cache).finished
    assert require_plan(config.output).id == require_plan(tmp_path / "other").id
    assert read_output(tmp_path / "out").equals(read_output(tmp_path / "other"))
    expected = infer(texts, engine="fake")["predicted_score"].tolist()
    assert read_output(tmp_path / "out")["predicted_score"].to_pylist() == expected
