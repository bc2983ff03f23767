"""A model's files: found, fetched once, and named by what is in them; no weights are loaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from batchinfer.errors import ModelError, UsageError, one_line
from batchinfer.hints import near_path
from batchinfer.readers.base import shown

#: What a model consists of; the rest of a repository (readme, pickles, other formats) stays there.
_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_CODE = "*.py"
_MODEL_MARKS = ("config.json", "modules.json")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: What an adapter consists of; the labels of its head may stand in a config.json.
_ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "config.json")
_HUB_PAGE = re.compile(r"https://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/tree/[^/]+)?/?$")
_SAFE_WEIGHTS = "*.safetensors"
_PICKLED_WEIGHTS = "pytorch_model*.bin"
_FOREIGN = ("onnx/*", "openvino/*", "coreml/*", "tf/*", "flax/*", "original/*", "checkpoint-*/*")


def find(
    model: str, revision: str | None, trust_remote_code: bool, allow_pickle: bool = False
) -> tuple[Path, str]:
    """A model's local folder, and its identity: the commit, or a digest of the folder's files.

    Raises ModelError where there is no such folder, or no such hub model, or no way to the hub.
    """
    if not model:
        raise ModelError("--model is empty: give a hub id or a folder")
    if "\0" in model:
        raise ModelError("--model holds a zero byte: give a hub id or a folder")
    path = Path(model).expanduser()
    if path.is_dir():
        if not any((path / mark).is_file() for mark in _MODEL_MARKS):
            raise no_model(path, model)
        if revision is not None:
            raise UsageError(
                f"--revision is of hub models; {model} is a local folder: leave --revision out"
            )
        return path.resolve(), _digest(path.resolve(), trust_remote_code, allow_pickle)
    _require_hub_id(model, path, "a model")
    patterns = _patterns(trust_remote_code)
    path, commit = _snapshot(model, revision, patterns)
    if allow_pickle and not any(path.rglob(_SAFE_WEIGHTS)):
        return _snapshot(model, revision, [*patterns, _PICKLED_WEIGHTS])
    return path, commit


def find_adapter(adapter: str) -> tuple[Path, str]:
    """An adapter's local folder, and its identity: the commit, or a digest of its files.

    `adapter`: a folder, or a hub id, perhaps with @REVISION. Raises ModelError as `find` does.
    """
    path = Path(adapter).expanduser()
    if path.is_dir():
        if not (path / ADAPTER_CONFIG).is_file():
            raise ModelError(
                f"--adapter {adapter}: the folder has no {ADAPTER_CONFIG}; name the one that PEFT's "
                "save_pretrained wrote"
            )
        files = sorted(path.resolve() / name for name in _ADAPTER_FILES)
        return path.resolve(), _digest_of(path.resolve(), files)
    name, _, revision = adapter.partition("@")
    _require_hub_id(name, path, "an adapter")
    return _snapshot(name, revision or None, list(_ADAPTER_FILES), marks=(ADAPTER_CONFIG,))


def find_again(adapter: str, identity: str) -> Path:
    """The folder of an adapter that was found before, as a part of a model of this identity.

    Of a hub adapter nothing is fetched: it is the same commit. Raises ModelError where it is gone, or
    is another by now.
    """
    commit = identity.partition("+")[2]
    if commit.startswith("sha256:"):
        folder, now = find_adapter(adapter)
        if now != commit:
            raise ModelError(
                f"--adapter {adapter}: its files are others than when the job was planned; put them back, "
                "or start anew"
            )
        return folder
    name, patterns = adapter.partition("@")[0], list(_ADAPTER_FILES)
    return _snapshot(name, commit, patterns, marks=(ADAPTER_CONFIG,), local_files_only=True)[0]


def no_model(folder: Path, model: str) -> ModelError:
    """The error for a folder that is no model; it may be an adapter for one."""
    stated = read_json(folder / ADAPTER_CONFIG, model)
    if not stated:
        inner = [entry.parent for entry in sorted(folder.glob("*/config.json"))]
        advice = f"did you mean {inner[0]}?" if inner else (
            "name the one that transformers' save_pretrained wrote, with the tokenizer in it"
        )  # fmt: skip
        return ModelError(f"{model}: not a model: the folder has no config.json; {advice}")
    base = stated.get("base_model_name_or_path") if isinstance(stated, dict) else None
    base = shown(base) if isinstance(base, str) and base else "ITS-BASE"
    return ModelError(
        f"{model}: an adapter, not a model; name the model that it was trained on, and the adapter beside "
        f"it: --model {base} --adapter {model}"
    )


def _require_hub_id(name: str, path: Path, what: str) -> None:
    """Raise ModelError for what is neither a folder nor may be a hub id."""
    if path.exists():
        hint = ""
        if (path.parent / "config.json").is_file():
            hint = f"; did you mean {path.parent}?"
        raise ModelError(f"{name}: {what} is a folder or a hub id, this is a file{hint}")
    if "://" in name:
        found = _HUB_PAGE.match(name)
        hint = f"; did you mean {found[1]}?" if found else ""
        raise ModelError(f"{name}: an address; give a hub id (OWNER/NAME) or a folder{hint}")
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        hint = near_path(path) or "; check the path, or give a hub id (OWNER/NAME)"
        raise ModelError(f"{name}: no such {what.split()[1]} folder{hint}")


def _patterns(trust_remote_code: bool) -> list[str]:
    return [*_FILES, _CODE] if trust_remote_code else list(_FILES)


def require_weights(folder: Path, model: str, task: str, allow_pickle: bool) -> None:
    """See that there are safetensors; pickled weights can run code, so they need consent.

    Raises ModelError where there are none.
    """
    if any(file.name != ADAPTER_WEIGHTS for file in folder.glob(_SAFE_WEIGHTS)):
        return
    loadable = any(folder.glob(_PICKLED_WEIGHTS))
    if loadable and allow_pickle:
        return
    if (folder / ADAPTER_CONFIG).is_file():
        raise no_model(folder, model)
    pickled = sorted(
        file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)
    )
    held = f"has no safetensors, only {pickled[0]}" if pickled else "has no safetensors weights"
    auto = "AutoModelForSequenceClassification" if task == "classify" else "AutoModel"
    raise ModelError(
        f"{model}: {held}; convert it once:"
        f' python -c "from transformers import {auto} as A, AutoTokenizer as T;'
        f" m='{model}'; A.from_pretrained(m).save_pretrained('converted');"
        " T.from_pretrained(m).save_pretrained('converted')\""
        + (", or, where you trust it, give --allow-pickle" if loadable else "")
    )


def read_json(file: Path, model: str) -> Any:
    """A JSON file's content; {} where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{model}: {file.name} cannot be read: {one_line(error)}") from None


def _snapshot(
    model: str,
    revision: str | None,
    patterns: list[str],
    marks: tuple[str, ...] = _MODEL_MARKS,
    **options: Any,
) -> tuple[Path, str]:
    from huggingface_hub import errors, snapshot_download

    at = f" at revision {revision}" if revision else ""
    try:
        folder = snapshot_download(
            model,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=list(_FOREIGN),
            **options,
        )
    except errors.GatedRepoError:
        raise ModelError(
            f"{model}: the model is gated: ask for access on its page ({_page(model)}), then log in with "
            "`hf auth login`, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(
            f"{model}: the hub has no revision {revision}; --revision takes a branch, a tag or a commit of "
            f"{_page(model)}/commits/main"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{model}: no such folder, and no such model on the hub"
            f" (a private one needs `hf auth login`, or HF_TOKEN){near_path(model) or _CHECK_NAME}"
        ) from None
    except errors.HFValidationError:
        raise ModelError(
            f"{model}: no such folder, and not a hub id (OWNER/NAME){near_path(model) or _CHECK_NAME}"
        ) from None
    except (OSError, ValueError, errors.HfHubHTTPError) as error:  # offline mode is an OSError, too
        raise ModelError(_unavailable(model, at, error)) from None
    path = Path(folder)
    if not any((path / mark).exists() for mark in marks):
        if (path / ADAPTER_CONFIG).exists():
            raise no_model(path, model)
        kind = "an adapter" if ADAPTER_CONFIG in marks else "a model"
        raise ModelError(
            f"{model}{at}: not {kind}, or only part of it is in the local cache: no {marks[0]}"
        )
    return path, path.name


_CHECK_NAME = "; check the name"


def _unavailable(model: str, at: str, error: BaseException) -> str:
    """Why a model cannot be fetched, and what to do, by what the hub or the cache's disk said."""
    from huggingface_hub import constants, errors

    code = _status_of(error)
    if code in (401, 403):
        return (
            f"{model}{at}: the hub refuses it to you (HTTP {code}): log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may read it"
        )
    if code is not None:
        return (
            f"{model}{at}: the hub cannot give it now (HTTP {code}); start it again later, or give a local "
            "folder"
        )
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        return (
            f"{model}{at}: no such folder, not in the local cache, and {why}: fetch it where there is a "
            f"network (`hf download {model}`), or give a local folder{near_path(model)}"
        )
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename or constants.HF_HUB_CACHE
        return (
            f"{model}{at}: cannot be fetched into the cache: {where}: {error.strerror}; make room, or set "
            "HF_HOME to a folder that can be written to"
        )
    return f"{model}{at}: cannot be fetched: {one_line(error)}"


def _status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an error of the hub's client came from, if any."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def _page(model: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{model}"


def _digest(folder: Path, trust_remote_code: bool, allow_pickle: bool) -> str:
    """A digest of the names and contents of a model's files: equal folders are the same model.

    Code and pickled weights count where they are loaded.
    """
    patterns = _patterns(trust_remote_code)
    parts = read_json(folder / "modules.json", str(folder))
    listed = [
        Path(str(part["path"])) for part in parts if isinstance(part, dict) and "path" in part
    ]
    named = (folder / path for path in listed if not (path.is_absolute() or ".." in path.parts))
    numbered = (path for path in folder.iterdir() if path.is_dir() and _is_module(path.name))
    places = {folder, *named, *numbered}
    if allow_pickle and not any(any(place.glob(_SAFE_WEIGHTS)) for place in places):
        patterns.append(_PICKLED_WEIGHTS)
    found = sorted(
        {file for place in places for pattern in patterns for file in place.glob(pattern)}
    )
    return _digest_of(folder, found)


def _digest_of(folder: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        if file.is_dir() or not file.exists():  # a link to nothing is nothing
            continue
        if not file.is_file():  # whoever reads a FIFO waits for its writer
            raise ModelError(f"{file}: no regular file, so no part of a model; remove it")
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()}\0{content}\n".encode())
    return "sha256:" + digest.hexdigest()


def _is_module(name: str) -> bool:
    """Whether a folder is a part of a sentence-transformers model: 0_Transformer, 1_Pooling."""
    return re.match(r"\d+_", name) is not None
