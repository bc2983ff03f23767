"""Modules from where they are: exported programs (.pt2), and factories that Python code holds.

Both are code. A factory is imported; an exported program may hold pickled objects, and names what it calls
in words that PyTorch looks up. So neither is touched before the user has said so: engines/modules.py asks.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from batchinfer.engines.base import reason
from batchinfer.engines.bound import Loaded
from batchinfer.engines.signature import Parameter, Signature
from batchinfer.errors import BatchInferError, ModelError, one_line
from batchinfer.hints import did_you_mean

#: Beyond this a bound of a batch is none.
_NO_BOUND = 1 << 40
#: Types that an exported program may take; a batch holds them, or what they are made from.
_TAKEN = (
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool",
)  # fmt: skip

#: Folders that packages are installed into.
_INSTALLED = frozenset({"site-packages", "dist-packages"})


def load_program(path: Path, device: torch.device) -> Loaded:
    """An exported program on a device. Raises ModelError where it is none, or takes no batches of rows."""
    model = path.name
    with path.open("rb") as file:
        identity = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    with _explained(f"{model}: cannot be loaded as an exported program"), _quietly():
        program = torch.export.load(path)
        weights = [*program.state_dict.values(), *program.constants.values()]
        tensors = [one for one in weights if isinstance(one, torch.Tensor)]
        if device.type != "cpu" or any(one.device != device for one in tensors):
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(device))
        call = program.module()
    parameters, least, most = _parameters(program, model)
    signature, mutated = Signature(model, parameters), program.graph_signature
    return Loaded(
        call=call,
        kind="ExportedProgram",
        signature=signature,
        identity=identity,
        least=least,
        most=most,
        is_pure=not (mutated.buffers_to_mutate or mutated.user_inputs_to_mutate),
    )


def _parameters(program: Any, model: str) -> tuple[tuple[Parameter, ...], int, int | None]:
    """What an exported program takes, and of how many rows: at least, and at most (None: any)."""
    positional, keywords = program.call_spec.in_spec.children()
    children = [*positional.children(), *keywords.children()]
    if not all(child.is_leaf() for child in children):
        raise ModelError(
            f"{model} takes tensors in a list, tuple or dict; export a module whose forward takes each by "
            "itself, or one of all columns"
        )
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    placeholders = {node.name: node.meta.get("val") for node in nodes}
    keys = [None] * positional.num_children + list(keywords.context or ())
    parameters: list[Parameter] = []
    least, most = 1, _NO_BOUND
    for name, key in zip(program.graph_signature.user_inputs, keys, strict=True):
        value = placeholders.get(name)
        if not isinstance(value, torch.Tensor) or not value.dim():
            raise ModelError(
                f"{model} takes '{key or name}', which is no tensor with an axis of rows"
            )
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in _TAKEN:
            raise ModelError(f"{model} takes '{key or name}' as {dtype}, which no column gives")
        shape = tuple(size if isinstance(size, int) else None for size in value.shape[1:])
        parameters.append(Parameter(key or name, dtype, shape, is_keyword=key is not None))
        low, high = _bounds(value.shape[0], program.range_constraints)
        least, most = max(least, low), min(most, high)
    if least > most:
        raise ModelError(f"{model} was exported with inputs of different numbers of rows")
    return tuple(parameters), least, None if most >= _NO_BOUND else most


def _bounds(size: Any, constraints: Mapping[Any, Any]) -> tuple[int, int]:
    """How many rows an axis of this size may have, at least and at most."""
    if isinstance(size, int):
        return size, size
    found = constraints.get(size.node.expr)
    if found is None:  # made of other sizes: the program itself will say what it does not take
        return 1, _NO_BOUND
    low, high = (
        int(bound) if getattr(bound, "is_Integer", False) else None
        for bound in (found.lower, found.upper)
    )
    return max(1, low or 1), _NO_BOUND if high is None else min(high, _NO_BOUND)


def load_factory(name: str, dtype: str, device: torch.device) -> tuple[Loaded, Path]:
    """The module that `package.module:factory` makes, on a device, and the file that says how.

    A class, or a callable that takes nothing, is called; of an instance a copy is taken. In "float32" it
    keeps its own precision, in a lower one it is converted. Raises ModelError where it cannot be had.
    """
    place, _, attribute = name.partition(":")
    source = _imported(name, place)
    found: Any = source
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, vars(found)) or "; name what makes the module"
            raise ModelError(f"{name}: {place} has no '{part}'{hint}")
        found = getattr(found, part)
    with _explained(f"{name}: cannot be made"):
        if isinstance(found, torch.nn.Module):
            made: Any = copy.deepcopy(
                found
            )  # it may be moved and converted, and be asked for again
        else:
            made = found() if callable(found) else None
    if not isinstance(made, torch.nn.Module):
        kind = type(found).__name__ if made is None else type(made).__name__
        raise ModelError(f"{name}: gives a {kind}, not an nn.Module")
    with _explained(f"{name}: cannot be used"):
        files = _files(source, found, made)
        identity = _identity(name, files, made)
        made = made.to(device).eval()
        if dtype != "float32":
            made = made.to(getattr(torch, dtype))
        parameters, takes_any = _forward(made)
    floating = (one.dtype for one in made.parameters() if one.is_floating_point())
    loaded = Loaded(
        call=made,
        kind=type(made).__name__,
        signature=Signature(name, parameters, takes_any),
        identity=identity,
        precision=next(floating, getattr(torch, dtype)),
    )
    return loaded, files[0] if files else Path()


def _imported(name: str, place: str) -> Any:
    """The Python module that is named, also where it lies in the current folder, as with `python -m`."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            raise ModelError(
                f"{name}: there is no module '{error.name}' in {here} or among what is installed; start "
                "where it lies, or set PYTHONPATH"
            ) from None
        raise ModelError(f"{name}: importing {place} fails: {reason(error)}") from None


def _files(source: Any, found: Any, made: torch.nn.Module) -> list[Path]:
    """The files with the factory and the classes of what it makes, and of its parts; none of PyTorch's own.

    Classes count with their bases. Of parts and bases, those that come with another installed package are
    left out: like PyTorch's, its version may change between a run and its resume.
    """
    package = source.__name__.partition(".")[0]
    places = [source, *(_module_of(one) for one in (found, type(made)))]
    kinds = dict.fromkeys(kind for part in made.modules() for kind in type(part).__mro__)
    places += [one for one in map(_module_of, kinds) if not _is_installed(one, package)]
    files = []
    for module in places:
        own = module is not None and module.__name__.partition(".")[0] not in ("torch", "builtins")
        file = getattr(module, "__file__", None) if own else None
        if file and Path(file) not in files:
            files.append(Path(file))
    return files


def _module_of(one: Any) -> Any:
    """The Python module that something is from; None where nobody knows."""
    return sys.modules.get(getattr(one, "__module__", None) or "")


def _is_installed(module: Any, package: str) -> bool:
    """Whether a Python module is the interpreter's, or of another installed package than this one."""
    top = module.__name__.partition(".")[0] if module else ""
    place = Path(getattr(module, "__file__", None) or "")
    is_foreign = not _INSTALLED.isdisjoint(place.parts) and top != package
    return is_foreign or top in sys.stdlib_module_names


def _identity(name: str, files: list[Path], made: torch.nn.Module) -> str:
    """A digest of the factory's name, these files and the weights: by name, type, shape and value.

    Two factories in one file may make modules that differ in a plain attribute alone.
    """
    digest = hashlib.sha256(f"{name}\0".encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for key, value in {**dict(made.named_buffers()), **made.state_dict()}.items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{key}:{value.dtype}:{tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        else:
            digest.update(f"{key}:{value!r}".encode())
    return "sha256:" + digest.hexdigest()


def _forward(made: torch.nn.Module) -> tuple[tuple[Parameter, ...], bool]:
    """What a module's forward takes, and whether it takes any number of inputs."""
    parameters, takes_any = [], False
    for one in inspect.signature(made.forward).parameters.values():
        if one.kind is one.VAR_POSITIONAL:
            takes_any = True
        elif one.kind is not one.VAR_KEYWORD:
            is_required = one.default is one.empty
            is_keyword = one.kind is one.KEYWORD_ONLY
            parameters.append(Parameter(one.name, is_required=is_required, is_keyword=is_keyword))
    return tuple(parameters), takes_any


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever is raised into one line."""
    try:
        yield
    except BatchInferError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{what}: {one_line(error)}") from None


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep PyTorch's remarks on a file that it reads to itself: what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
