"""Exports of models that are kept for the next run: each is whole, or it is not there.

An export is a folder below the user's cache, named by a digest of all that it depends on, with a
manifest of its files' digests. It is made beside its place and renamed into it, so that a kill leaves
nothing that is believed, and of two processes that make the same one either may win. What is damaged,
or of another release, is made again. Nothing here is precious: the whole folder may be removed at any
time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from batchinfer.errors import one_line
from batchinfer.machine import cache_folder

log = logging.getLogger("batchinfer")

#: The folder of exports in the user's cache.
_KIND = "openvino"
_MANIFEST = "export.json"
#: Folders in which exports are made; one that is this old was left behind by a process that died.
_MAKING = "making-"
_ABANDONED_SECONDS = 24 * 3600


def find(facts: Mapping[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The export that was made of these facts, and its notes; None where there is no whole one."""
    try:
        place = cache_folder() / _KIND / _name(facts)
        document = json.loads((place / _MANIFEST).read_bytes())
        digests, notes = document["files"], document["notes"]
        if document["facts"] == facts and digests == _digests(place) and type(notes) is dict:
            return place, notes
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        log.debug(f"a kept export cannot be read: {one_line(error)}")
        return None
    log.info(f"{place}: damaged; the model is exported again")
    return None


def keep(
    facts: Mapping[str, Any], notes: Mapping[str, Any], save: Callable[[Path], None]
) -> tuple[Path, dict[str, Any]] | None:
    """Have `save` write an export into a folder, and keep it: what `find` gives from then on.

    None where it cannot be kept; the log says why.

    `facts`: all that the export depends on. `notes`: what its reader wants to know. Both as JSON.
    """
    try:
        home = cache_folder() / _KIND
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        with tempfile.TemporaryDirectory(
            prefix=_MAKING, dir=home, ignore_cleanup_errors=True
        ) as making:
            made, place = Path(making) / "export", home / _name(facts)
            made.mkdir()
            save(made)
            manifest = {"facts": dict(facts), "notes": dict(notes), "files": _digests(made)}
            (made / _MANIFEST).write_text(json.dumps(manifest, indent=1))
            with suppress(FileNotFoundError):  # what stands there was found to be damaged
                if find(facts) is None:
                    place.rename(Path(making) / "damaged")
            with suppress(FileExistsError, OSError):  # another process was quicker
                made.rename(place)
    except (OSError, RuntimeError) as error:  # RuntimeError: OpenVINO's, where the disk is full
        log.info(f"the exported model is not kept for the next run: {one_line(error)}")
        return None
    return find(facts)


def _name(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of an export but the manifest, by name."""
    digests = {}
    for file in sorted(folder.iterdir()):
        if file.name != _MANIFEST:
            with file.open("rb") as stream:
                digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def _sweep(home: Path) -> None:
    """Remove what processes that died while they made an export left behind."""
    for making in home.glob(_MAKING + "*"):
        with suppress(OSError):
            if time.time() - making.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(making, ignore_errors=True)
