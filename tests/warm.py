"""Commands of the pages, quickly: each in a process of its own, forked from one that is warm.

    Warm(folder, environ)    starts that one, and puts `batchinfer` and `python` into folder/bin, for a PATH

Importing torch and transformers takes four seconds a command, and answering a few rows less than one. What
a command is given is as ever: its arguments, folder, environment and streams; its exit code comes back.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

HEAVY = (
    "pandas",
    "torch",
    "batchinfer.api",
    "batchinfer.runner",
    "batchinfer.auditing",
    "batchinfer.engines.local",
    "batchinfer.engines.generation",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bart.modeling_bart",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
)
#: The small end: connects, hands its streams over, waits for the exit code.
CLIENT = """#!{python} -IS
import json, os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({path!r})
request = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(line, [len(request).to_bytes(8, "big")], [0, 1, 2])
line.sendall(request)
code = line.recv(1)
os._exit(code[0] if code else 255)
"""


class Warm:
    """The process that has imported everything, and where its commands lie."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.path = folder / "warm.sock"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("batchinfer", "python"):
            script = self.bin / name
            text = CLIENT.format(python=sys.executable, path=str(self.path), name=name)
            script.write_text(text, encoding="utf-8")
            script.chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(self.path)],
            env=environ,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def serve(path: str) -> None:
    """Take commands for ever; returns in the process that has done one."""
    for name in HEAVY:
        __import__(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    os.write(1, b"ready\n")
    while True:
        line, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            break
        line.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    header, streams, _, _ = socket.recv_fds(line, 8, 3)
    request = b""
    while len(request) < int.from_bytes(header, "big"):
        request += line.recv(1 << 16)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        line.sendall((code if code >= 0 else 128 - code).to_bytes(1, "big"))
        os._exit(0)
    line.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    work(*json.loads(request))


def work(name: str, arguments: list[str], folder: str, environ: dict[str, str]) -> NoReturn:
    """Be that command, to its end."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[0] = ""
    if name == "batchinfer":
        from batchinfer.cli import command

        sys.argv = [name, *arguments]
        command()
    try:
        run_python(arguments)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking down all that was imported would take a second


def run_python(arguments: list[str]) -> None:
    """What the interpreter does with these arguments: -c CODE, -m MODULE, or a file."""
    kind, *rest = arguments
    sys.argv = [kind, *rest[1:]] if kind == "-c" else rest if kind == "-m" else arguments
    if kind == "-c":
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(rest[0], "<string>", "exec"), names)
    elif kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
