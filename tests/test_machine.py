"""What there is on a machine: cores, its CPU, a place for what is kept."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from batchinfer import machine

ONE = """processor\t: 0
model name\t: Some CPU @ 2.70GHz
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16

processor\t: 1
model name\t: Another CPU
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd bf16 i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home folder, as a container may run one."""

    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", refuse)


def test_a_container_with_a_quota_gets_no_more_cores_than_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.usable_cores(tmp_path) == 64
    for line, cores in [("250000 100000", 3), ("50000 100000", 1), ("max 100000", 64), ("?", 64)]:
        (tmp_path / "cpu.max").write_text(line + "\n")
        assert machine.usable_cores(tmp_path) == cores


def test_a_container_with_a_limit_gets_no_more_memory_than_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 20}
    monkeypatch.setattr(machine.os, "sysconf", facts.__getitem__)
    assert machine.usable_memory(tmp_path) == 4 << 30
    for line, memory in [("1073741824", 1 << 30), ("99999999999999", 4 << 30), ("max", 4 << 30)]:
        (tmp_path / "memory.max").write_text(line + "\n")
        assert machine.usable_memory(tmp_path) == memory

    def unknown(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(machine.os, "sysconf", unknown)
    assert machine.usable_memory(tmp_path) == 8 << 30


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (ONE, "Some CPU @ 2.70GHz avx2 avx512f avx512_bf16 amx_bf16"),
        (ONE.replace(" amx_bf16", ""), "Some CPU @ 2.70GHz avx2 avx512f avx512_bf16"),
        (ARM, "0x41 0xd40 bf16 i8mm"),
    ],
)
def test_a_cpu_is_named_by_its_model_and_by_what_it_can(
    content: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(content)
    assert machine.cpu_name(tmp_path / "cpuinfo") == f"{platform.machine()} {name}"


def test_where_a_system_says_nothing_a_cpu_is_named_by_its_architecture(tmp_path: Path) -> None:
    assert machine.cpu_name(tmp_path / "nothing") == platform.machine()


def test_what_is_kept_lies_below_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine.cache_folder() == tmp_path / "batchinfer"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert machine.cache_folder() == Path.home() / ".cache" / "batchinfer"
    no_home(monkeypatch)
    with pytest.raises(RuntimeError):
        machine.cache_folder()
