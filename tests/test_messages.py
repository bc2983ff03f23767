"""Every mistake of a user is one line that names the thing, the place and the way out; no traceback."""

from __future__ import annotations

import errno
import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from batchinfer import hints
from batchinfer.cli import main
from batchinfer.config import RunConfig
from batchinfer.readers import listing
from batchinfer.writers import durable, run_folder
from tests.conftest import ROOT

SAMPLES = ROOT / "sample_data"
SENTIMENT = str(SAMPLES / "tiny-sentiment")
FAKE = "--engine fake --workers 0 -o out"


class Mistake(NamedTuple):
    """A command line (in its folder), its exit code, and what the line must say."""

    command: str
    code: int
    says: tuple[str, ...]


def mistakes(*rows: tuple[str, int, str]) -> list[Mistake]:
    """What a line says is written with `|` between the parts that must stand in it, in any order."""
    return [Mistake(command, code, tuple(says.split("|"))) for command, code, says in rows]


COMMAND_LINES = mistakes(
    ("fly", 2, "'fly'|run, resume, plan, tune|batchinfer --help"),
    ("runn rows.jsonl", 2, "'runn'|did you mean 'run'?"),
    ("rows.jsonl", 2, "'rows.jsonl'|`batchinfer run rows.jsonl -m MODEL -o OUT`"),
    ("--versio", 2, "--versio|did you mean '--version'?"),
    (f"run rows.jsonl {FAKE} --max-batch-token 5", 2, "--max-batch-token;|'--max-batch-tokens'?"),
    (f"run rows.jsonl {FAKE} --outptu x", 2, "--outptu|did you mean '--output'?"),
    (f"run rows.jsonl {FAKE} --max_length 5", 2, "--max_length|did you mean '--max-length'?"),
    (f"run rows.jsonl {FAKE} --batch-size 5", 2, "--batch-size|did you mean '--max-batch-rows'?"),
    (f"run rows.jsonl {FAKE} -x", 2, "-x|batchinfer run --help"),
    ("run --input rows.jsonl", 2, "inputs stand without a flag|batchinfer run FILE"),
    ("resume out --model x", 2, "--model|one of run, plan, tune, init|batchinfer resume --help"),
    ("run rows.jsonl -o", 2, "-o needs a value|batchinfer run --help"),
    ("resume", 2, "'OUT'|batchinfer resume --help"),
    ("resume a b", 2, "(b)|batchinfer resume --help"),
    ("errors out --limit 0", 2, "'--limit'|should be|batchinfer errors --help"),
    (f"run rows.jsonl –keep id {FAKE}", 66, "–keep|two plain hyphens"),
)  # fmt: skip

VALUES = mistakes(
    (f"run rows.jsonl {FAKE} --task clasify", 2, "--task|'clasify'|did you mean 'classify'?"),
    (f"run rows.jsonl {FAKE} --task ner", 2, "--task|'ner'|did you mean 'token-classify'?"),
    (f"run rows.jsonl {FAKE} --dtype bf16", 2, "--dtype|'bf16'|did you mean 'bfloat16'?"),
    ("run rows.jsonl --engine locl -o out", 2, "--engine|'locl'|did you mean 'local'?"),
    (f"run rows.jsonl {FAKE} --attention flash", 2, "--attention|'flash'|'packed'?"),
    (f"run rows.jsonl {FAKE} --format json", 2, "--format|'json'|did you mean 'jsonl'?"),
    (f"run rows.jsonl {FAKE} --device gpu", 2, "--device|'gpu'|did you mean 'cuda'?"),
    (f"run rows.jsonl {FAKE} --devices cuda:0", 2, "--devices|0,1,3|'cuda:0'"),
    (f"run rows.jsonl {FAKE} --encoding utf-9", 2, "--encoding|'utf-9'|did you mean 'utf-8'?"),
    (f"run rows.jsonl {FAKE} --workers many", 2, "--workers|a whole number|'many'"),
    (f"run rows.jsonl {FAKE} --workers -1", 2, "--workers|0 or more|'-1'"),
    (f"run rows.jsonl {FAKE} --top-p 5", 2, "--top-p|1 or less|'5'"),
    (f"run rows.jsonl {FAKE} --max-errors 101%", 2, "--max-errors|100% at most|'101%'"),
    (f"run rows.jsonl {FAKE} --deadline soon", 2, "--deadline|1h30m|'soon'"),
    (f"run rows.jsonl {FAKE} --shard 8/8", 2, "--shard 8/8|such as 0/8"),
    (f"run rows.jsonl {FAKE} --long stirde", 2, "--long|'stirde'|did you mean 'stride'?"),
    (f"run rows.jsonl {FAKE} --stride 5", 2, "--stride|add --long stride"),
    (f"run rows.jsonl {FAKE} --temperature 5", 2, "--temperature|classify|leave it out"),
    (f"run rows.jsonl {FAKE} --profile no.json", 2, "--profile no.json|batchinfer tune"),
    (f"run rows.csv {FAKE} --delimiter ;;", 2, "--delimiter|one character"),
    ("tune rows.jsonl --engine fake --max-seconds soon", 2, "--max-seconds|1h30m|'soon'"),
    ("tune rows.jsonl --engine fake --plot x.pdf", 2, "--plot x.pdf|.png or .svg"),
)  # fmt: skip

COLUMNS = mistakes(
    (f"run rows.jsonl {FAKE} --text-column txt", 2, "'txt'|id, text|did you mean --text-column text?"),
    (f"run rows.jsonl {FAKE} --text-column TEXT", 2, "'TEXT'|did you mean --text-column text?"),
    (f"run rows.jsonl {FAKE} --text-column quux", 2, "'quux'|it has: id, text, my labels|--text-column"),
    (f"run rows.jsonl {FAKE} --text-pair-column txet", 2, "'txet'|did you mean --text-pair-column text?"),
    (f"run rows.jsonl {FAKE} --task zero-shot --labels-column my_labels", 2,
     "'my_labels'|did you mean --labels-column 'my labels'?"),
    (f"run rows.jsonl {FAKE} --keep idd", 2, "'idd'|did you mean --keep id?"),
    (f"run rows.jsonl {FAKE} --keep id,text", 2, "id,text|write --keep id --keep text"),
    (f"run rows.jsonl {FAKE} --task module --features idd", 2, "'idd'|did you mean --features id?"),
    (f"run rows.jsonl {FAKE} --task module", 2, "--features|the input has: id, text"),
    (f"run rows.jsonl {FAKE} --template {{{{txt}}}}", 2, "--template|'txt'|did you mean 'text'?"),
    (f"run rows.jsonl {FAKE} --template @prompt.jinj", 2, "@prompt.jinj|did you mean 'prompt.jinja'?"),
    (f"run rows.csv {FAKE} --schema idd=int64", 2, "'idd'|did you mean --schema id?"),
    (f"run rows.csv {FAKE} --schema id=integer", 2, "--schema|'integer'|did you mean 'int64'?"),
    (f"run rows.jsonl {FAKE} --text-column id", 2, "'id'|int64|--schema id=string"),
    (f"run rows.jsonl {FAKE} --task zero-shot", 2, "--labels|--labels-column"),
    (f"run rows.jsonl {FAKE} --task score", 2, "--text-column|--text-pair-column"),
)  # fmt: skip

INPUTS = mistakes(
    (f"run {FAKE}", 2, "no input|files, globs or folders"),
    (f"run row.jsonl {FAKE}", 66, "row.jsonl|did you mean 'rows.jsonl'?"),
    (f"run nowhere.jsonl {FAKE}", 66, "nowhere.jsonl|check the path"),
    (f"run no*.jsonl {FAKE}", 66, "no*.jsonl|matches nothing|quote it"),
    (f"run empty {FAKE}", 66, "empty|no usable file|--format"),
    (f"run empty/notes.md {FAKE}", 2, "notes.md|unknown extension|--format"),
    (f"run - {FAKE}", 66, "standard input|into a file"),
    (f"run image.jsonl {FAKE}", 2, "image.jsonl|is an image|name a file of rows"),
    (f"run sheet.csv {FAKE}", 2, "sheet.csv|an Office document|save the sheet as CSV"),
    (f"run table.jsonl {FAKE}", 2, "table.jsonl|.parquet file|rename it"),
    (f"run bad.parquet {FAKE}", 66, "bad.parquet|cannot be read as Parquet|check the file"),
    (f"run array.jsonl {FAKE}", 2, "array.jsonl|a JSON array|jq -c"),
    (f"run utf16.csv {FAKE}", 2, "utf16.csv|give --encoding utf-16"),
    (f"run latin.csv {FAKE}", 2, "latin.csv|cannot be decoded|--encoding latin-1"),
    (f"run ftp://x/y.jsonl {FAKE}", 2, "ftp://x/y.jsonl|s3://"),
)  # fmt: skip

MODELS = mistakes(
    ("run rows.jsonl -o out", 2, "no model|--model|--engine fake"),
    ("run rows.jsonl --engine fake", 2, "no run folder|--output"),
    ("run rows.jsonl -m ./models/sentimnt -o out", 69, "sentimnt|did you mean 'models/sentiment'?"),
    ("run rows.jsonl -m a/b/c -o out", 69, "a/b/c|check the path|OWNER/NAME"),
    ("run rows.jsonl -m https://huggingface.co/x/y -o out", 69, "an address|did you mean x/y?"),
    ("run rows.jsonl -m rows.jsonl -o out", 69, "rows.jsonl|this is a file|a folder or a hub id"),
    ("run rows.jsonl -m models -o out", 69, "models|no config.json|did you mean models/badjson?"),
    ("run rows.jsonl -m models/pickled -o out", 69, "pytorch_model.bin|save_pretrained|--allow-pickle"),
    ("run rows.jsonl -m models/pickled --allow-pickle -o out -q", 69, "more than tensors|safetensors"),
    ("run rows.jsonl -m models/code -o out", 69, "its own Python code|--trust-remote-code"),
    ("run rows.jsonl -m models/code --trust-remote-code -o out", 69, "conf.py|fetch the whole model"),
    ("run rows.jsonl -m models/strange -o out", 69, "'no_such_type'|pip install -U transformers"),
    ("run rows.jsonl -m models/wordless -o out", 69, "wordless|has no tokenizer|save_pretrained"),
    ("run rows.jsonl -m models/weightless -o out", 69, "weightless|no safetensors|convert it once"),
    ("run rows.jsonl -m models/torn -o out -q", 69, "torn|cannot be loaded|fetch or save them again"),
    ("run rows.jsonl -m models/badjson -o out", 69, "badjson|not valid JSON|fetch or save"),
    (f"run rows.jsonl -m {SENTIMENT} -o out --task generate", 69, "no head for generate|--task classify"),
    (f"run rows.jsonl -m {SENTIMENT} -o out --max-length 999", 2, "--max-length 999|give 128 or less"),
    (f"run rows.jsonl -m {SENTIMENT} -o out --top-k 50", 2, "--top-k 50|give 2 or less"),
    (f"run rows.jsonl -m {SENTIMENT} -o out --revision main", 2, "--revision|leave --revision out"),
    (f"run rows.jsonl -m {SENTIMENT} -o out --device mps", 2, "--device mps|--device auto"),
    ("run rows.jsonl -m json:nope --features id -o out", 69, "json has no 'nope'|name what makes"),
    ("run rows.jsonl -m no_such:make --features id -o out", 69, "'no_such'|set PYTHONPATH"),
    ("run rows.jsonl -m no.pt2 --features id -o out", 69, "no.pt2: no such file|check the path"),
)  # fmt: skip

FOLDERS = mistakes(
    ("run rows.jsonl --engine fake -o rows.csv", 73, "rows.csv|not a folder|--output"),
    ("run rows.jsonl --engine fake -o empty", 73, "empty|holds other files|new or empty folder"),
    ("run rows.jsonl --engine fake -o https://x/y", 2, "https://x/y|name a folder"),
    ("run rows.jsonl --engine fake -o done --max-length 3", 73, "done|another job|--overwrite"),
    ("resume nothing", 2, "nothing|not a run folder|check the path"),
    ("resume don", 2, "don:|did you mean 'done'?"),
    ("status done/data", 2, "not a run folder|did you mean|/done"),
    ("verify .", 2, ".: not a run folder|did you mean done?"),
    ("errors rows.jsonl", 2, "rows.jsonl|not a run folder|batchinfer run"),
    ("resume done --dtype float32", 2, "--dtype|one of run, plan, tune"),
    ("init ner", 2, "'ner'|did you mean 'token-classify'?"),
    ("init rows.csv", 2, "name the task|batchinfer init classify rows.csv"),
    ("init", 2, "name a task|classify, embed"),
    ("init embed -o taken.yaml", 2, "taken.yaml|--output|--force"),
    ("init embed -o nowhere/x.yaml", 74, "nowhere/x.yaml|No such file|--output"),
    ("init embed nowhere.jsonl", 66, "nowhere.jsonl|check the path"),
)  # fmt: skip

#: The content of a configuration file, and what is said of it; the line is that of the last key.
FILES = (
    ("engine: fake\nouptut: x\n", ":2: unknown key 'ouptut'|did you mean 'output'?"),
    ("max-length: 3\n", ":1: unknown key 'max-length'|did you mean 'max_length'?"),
    ("schema: {}\n", ":1: unknown key 'schema'|did you mean 'types'?"),
    ("quux: 1\n", ":1: unknown key 'quux'|batchinfer init"),
    ("engine: fak\n", ":1: engine|'fak'|did you mean 'fake'?"),
    ("threads: true\n", ":1: threads|a number|True"),
    ("seed: yes\n", ":1: seed|a number|True"),
    ("max_length: 2000000000\n", ":1: max_length|1,073,741,824 or less"),
    ("model: 3\n", ':1: model|should be a text|put it in quotes: "3"'),
    ("trust_remote_code: maybe\n", ":1: trust_remote_code|true or false|'maybe'"),
    ("keep: 3\n", ":1: keep|a list|3"),
    ("engine: [a\n", ":2: not valid YAML"),
    ("engine: fake\n\tx: y\n", ":2: not valid YAML"),
    ("- a\n", ":1: should be a mapping"),
    ("task: embed\ntask: score\n", ":2: 'task' stands twice, first in line 1"),
)


def place_models(folder: Path) -> None:
    """Models with one thing wrong each."""
    config = json.loads((SAMPLES / "tiny-sentiment" / "config.json").read_text())
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "conf.C", "AutoModel": "conf.M"}}
    changes: dict[str, dict[str, Any]] = {
        "code": code, "strange": {"model_type": "no_such_type"},
        "sentiment": {}, "pickled": {}, "wordless": {}, "weightless": {}, "torn": {}, "badjson": {},
    }  # fmt: skip
    for name, change in changes.items():
        place = folder / name
        shutil.copytree(SAMPLES / "tiny-sentiment", place)
        (place / "config.json").write_text(json.dumps({**config, **change}))
    for name in ("pickled", "weightless"):
        (folder / name / "model.safetensors").unlink()
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"no tensors")
    (folder / "torn" / "model.safetensors").write_bytes(b"torn")
    (folder / "badjson" / "config.json").write_text("{")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "wordless" / name).unlink()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of inputs, models and a finished run, as all mistakes are made in it."""
    folder = tmp_path_factory.mktemp("mistakes")
    rows = [{"id": i, "text": f"row {i}", "my labels": ["a", "b"]} for i in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.csv").write_text("id,text\n1,a\n")
    (folder / "prompt.jinja").write_text("{{ text }}")
    (folder / "taken.yaml").write_text("")
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.md").write_text("notes")
    (folder / "image.jsonl").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (folder / "sheet.csv").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    (folder / "table.jsonl").write_bytes(b"PAR1" + bytes(range(256)))
    (folder / "bad.parquet").write_bytes(b"PAR1 nonsense")
    (folder / "array.jsonl").write_text('[{"text": "a"}]')
    (folder / "utf16.csv").write_bytes("text\nnaïve\n".encode("utf-16"))
    (folder / "latin.csv").write_bytes("text,café\nnaïve,x\n".encode("latin-1"))
    place_models(folder / "models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "rows.csv", "--quiet", *FAKE.replace("out", "done").split()]) == 0
    return folder


@pytest.fixture(autouse=True)
def _in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    shutil.rmtree("out", ignore_errors=True)


def told(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str | tuple[str, ...]
) -> str:
    """The one line that a command ends with; it says all of this, and stdout says nothing."""
    capsys.readouterr()
    found = main(arguments)
    said = capsys.readouterr()
    assert (found, said.out) == (code, ""), said.err
    [line] = said.err.splitlines()
    assert line.startswith("batchinfer: ") and "Traceback" not in line
    for part in says.split("|") if isinstance(says, str) else says:
        assert part in line, line
    return line


@pytest.mark.parametrize(
    "mistake",
    [*COMMAND_LINES, *VALUES, *COLUMNS, *INPUTS, *MODELS, *FOLDERS],
    ids=lambda mistake: mistake.command.replace(SENTIMENT, "SENTIMENT").replace(FAKE, "FAKE"),
)
def test_a_mistake_is_told_with_what_where_and_what_to_do(
    mistake: Mistake, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    told(capsys, mistake.command.split(" "), mistake.code, mistake.says)
    assert not list(place.glob("out/data/*")), "nothing is answered"


@pytest.mark.parametrize(("content", "says"), FILES, ids=[repr(one) for one, _ in FILES])
def test_a_mistake_in_a_configuration_file_is_told_with_its_line(
    content: str, says: str, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    (place / "job.yaml").write_text(content)
    told(capsys, ["run", "rows.jsonl", "-c", "job.yaml"], 2, f"job.yaml{says}")


def test_a_configuration_file_that_cannot_be_read_is_told(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    (place / "odd.yaml").write_bytes("task: café".encode("latin-1"))
    for file, says in {
        "odd.yaml": "odd.yaml: is not UTF-8 (byte 10)|save it as UTF-8",
        "takn.yaml": "takn.yaml|did you mean 'taken.yaml'?",
        "none.yml": "none.yml|batchinfer init",
        "models": "models: cannot be read|Is a directory|name a YAML file",
    }.items():
        told(capsys, ["run", "rows.jsonl", "-c", file], 2, says)


def test_a_file_without_permission_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing.os, "access", lambda path, mode: False)  # root may read everything
    told(capsys, ["run", "rows.jsonl", *FAKE.split()], 66, "rows.jsonl|check its permissions")


@pytest.mark.parametrize(
    ("code", "exit_code", "says"),
    [
        (errno.ENOSPC, 75, "no space left|make room|start it again"),
        (errno.EACCES, 74, "Permission denied|permissions|--output"),
        (errno.EROFS, 74, "Read-only file system|another file system|--output"),
        (errno.EIO, 74, "Input/output error|mend that|start it again"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_told(
    code: int,
    exit_code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code), "out")

    monkeypatch.setattr(durable.os, "mkdir", refuse)
    told(capsys, ["run", "rows.jsonl", *FAKE.split(), "--quiet"], exit_code, f"out: |{says}")


def test_a_run_folder_that_cannot_be_written_to_any_more_is_told_with_its_resume(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "done/_batchinfer/lock")

    monkeypatch.setattr(run_folder.RunFolder, "__enter__", refuse)
    says = "done/_batchinfer/lock: Read-only file system|mend that, then `batchinfer resume done`"
    told(capsys, ["resume", "done", "--quiet"], 74, says)


#: What a hub answers: the name that is asked for, the status, and its own code for it.
HUB = {
    "gated": (403, "GatedRepo", "gated|ask for access on its page|/owner/gated|hf auth login|HF_TOKEN"),
    "missing": (404, "RepoNotFound", "no such model on the hub|private|hf auth login|check the name"),
    "private": (401, None, "refuses it to you (HTTP 401)|hf auth login|HF_TOKEN"),
    "refused": (403, None, "refuses it to you (HTTP 403)|hf auth login|HF_TOKEN"),
    "revised": (404, "RevisionNotFound", "no revision v9|a branch, a tag or a commit"),
    "broken": (500, None, "HTTP 500|start it again later|a local folder"),
}  # fmt: skip


class Hub(http.server.BaseHTTPRequestHandler):
    """Refuses every model as its name says."""

    def do_GET(self) -> None:
        name = next((name for name in HUB if f"/{name}" in self.path), "missing")
        status, code, _ = HUB[name]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", HUB)
def test_what_a_hub_refuses_is_told(
    name: str,
    hub: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    revision = ["--revision", "v9"] if name == "revised" else []
    arguments = ["run", "rows.jsonl", "-m", f"owner/{name}", "-o", "out", *revision]
    told(capsys, arguments, 69, f"owner/{name}|{HUB[name][2]}")


def test_a_hub_that_may_not_be_asked_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    says = "owner/model|HF_HUB_OFFLINE is set|hf download owner/model|a local folder"
    told(capsys, ["run", "rows.jsonl", "-m", "owner/model", "-o", "out"], 69, says)


def test_a_cache_that_is_full_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "hub/blobs/1")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    says = "owner/model|hub/blobs/1|No space left|HF_HOME"
    told(capsys, ["run", "rows.jsonl", "-m", "owner/model", "-o", "out"], 69, says)


@pytest.mark.parametrize(
    ("module", "flags", "package"),
    [
        ("openvino", "--engine openvino", "batchinfer[openvino]"),
        ("peft", "--adapter x/y", "batchinfer[peft]"),
        ("ray", "--executor ray", "batchinfer[ray]"),
    ],
)
def test_an_extra_that_is_not_installed_is_told_with_the_command_that_installs_it(
    module: str,
    flags: str,
    package: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name)
    )
    arguments = ["run", "rows.jsonl", "-m", SENTIMENT, "-o", "extra", "--quiet", *flags.split()]
    flag = flags.split()[0]
    told(capsys, arguments, 2, f"{flag}|not installed|pip install '{package}'")


def test_misspelt_variables_are_told_and_those_of_deployments_passed_over() -> None:
    environ = {
        "BATCHINFER_MAX_LENGHT": "1", "BATCHINFER_WORKER": "0", "BATCHINFER_SCHEMA": "a=int64",
        "BATCHINFER_MAX_LENGTH": "1", "BATCHINFER_VERSION": "1.2", "BATCHINFER_CORPORA": "x",
        "BATCHINFER_PORT_8080_TCP_ADDR": "10.0.0.1", "BATCHINFER_SERVICE_HOST": "10.0.0.1",
        "BATCHINFER_PORT": "tcp://10.0.0.1:80", "BATCHINFER_LOG": "x", "BATCHINFER_WORKER_ID": "3",
        "BATCHINFER_GIT_SHA": "abc", "MAX_LENGHT": "1",
    }  # fmt: skip
    assert RunConfig.misspelt_variables(environ) == {
        "BATCHINFER_MAX_LENGHT": "BATCHINFER_MAX_LENGTH",
        "BATCHINFER_SCHEMA": "BATCHINFER_TYPES",
        "BATCHINFER_WORKER": "BATCHINFER_WORKERS",
    }


def test_a_run_warns_of_a_misspelt_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BATCHINFER_LIMITS", "1")
    arguments = ["run", "rows.csv", "--engine", "fake", "--workers", "0", "-o", str(tmp_path / "o")]
    assert main([*arguments, "--quiet"]) == 0
    assert "BATCHINFER_LIMITS: no such variable" in (said := capsys.readouterr().err)
    assert "did you mean BATCHINFER_LIMIT?" in said


def test_a_type_for_a_column_that_no_sampled_row_has_is_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [
        "run",
        "rows.jsonl",
        "--engine",
        "fake",
        "--workers",
        "0",
        "-o",
        str(tmp_path / "o"),
    ]
    assert main([*arguments, "--schema", "idd=int64", "--quiet"]) == 0
    assert "'idd'; did you mean 'id'?" in capsys.readouterr().err


def test_what_is_meant_is_found_by_spelling_or_by_another_tools_word() -> None:
    tasks = ("classify", "embed", "token-classify", "zero-shot")
    assert hints.closest("Token_Classify", tasks) == "token-classify"
    assert hints.closest("embeddings", tasks) == "embed"
    assert hints.closest("zzz", tasks) == ""
    assert hints.closest("bf16", tasks) == "", "only words that are to choose from"
    assert hints.listed(map(str, range(30))).endswith("18, 19, … (30 in all)")


def test_a_path_is_like_another_by_its_name_and_not_by_its_ending(tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").touch()
    assert hints.near_path(tmp_path / "nowhere.jsonl") == ""
    assert "secret.jsonl" in hints.near_path(tmp_path / "secrets.jsonl")
    assert hints.near_path(tmp_path / "no" / "such") == ""
