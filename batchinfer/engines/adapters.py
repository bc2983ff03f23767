"""PEFT adapters (LoRA and its kin): what one is, from its files, and how it goes into a model's weights.

An adapter is merged when a model is loaded. From then on there is a model with other weights, and
packing, faster layers, an export and streams know nothing of it. So only what can be merged is
supported: no prompt tuning, which adds tokens instead.

peft is an extra, imported inside the function that merges.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchinfer.engines.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, find_adapter, read_json
from batchinfer.errors import ModelError, UsageError, one_line
from batchinfer.readers.base import shown

#: What an adapter says that it was trained for, and the end of the name of a class with such a head.
_HEADS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
#: The last layer of a head, by the names that models give it: the rows of its weights are the labels.
_LAST_LAYERS = (
    "classifier.out_proj", "classifier", "score", "classification_head.out_proj",
)  # fmt: skip
#: What stands before the names of a model's weights in an adapter's file.
_PREFIX = "base_model.model."
#: Kinds of adapter that are tokens or layers of their own: there are no weights to merge them into.
_UNMERGEABLE = frozenset(
    {
        "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "POLY", "PREFIX_TUNING",
        "PROMPT_TUNING", "P_TUNING", "XLORA",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Adapter:
    """What must be known of an adapter; its weights are not loaded.

    `identity`: a commit, or a digest of its files. `head`: the end of the name of a class with the head
    that it brings, "" where it brings none or does not say of what kind; `labels`: those of that head,
    by number where they have no names; none where it brings no head.
    """

    name: str
    folder: Path
    identity: str
    head: str
    labels: tuple[str, ...]

    @classmethod
    def find(cls, adapter: str) -> Adapter:
        """Find an adapter: a local folder, or a hub id (OWNER/NAME, perhaps with @REVISION).

        Raises UsageError where peft is not installed, ModelError where there is no adapter, or none that
        can be merged.
        """
        if importlib.util.find_spec("peft") is None:
            raise UsageError(
                "--adapter needs a package that is not installed: pip install 'batchinfer[peft]'"
            )
        folder, identity = find_adapter(adapter)
        return cls._described(adapter, folder, identity)

    @classmethod
    def _described(cls, adapter: str, folder: Path, identity: str) -> Adapter:
        name = f"--adapter {adapter}"
        stated = read_json(folder / ADAPTER_CONFIG, name)
        kind = stated.get("peft_type") if isinstance(stated, dict) else None
        if not isinstance(kind, str):
            raise ModelError(f"{name}: {ADAPTER_CONFIG} names no peft_type: not an adapter of PEFT")
        if kind.upper() in _UNMERGEABLE:
            raise ModelError(
                f"{name}: {shown(kind)} cannot be merged into a model's weights; LoRA and its kin can"
            )
        if stated.get("megatron_config"):  # peft would import the module that it names
            raise ModelError(f"{name}: an adapter of Megatron, which is not supported")
        shapes = _shapes(folder / ADAPTER_WEIGHTS, name)
        last = (shapes.get(f"{_PREFIX}{layer}.weight") for layer in _LAST_LAYERS)
        num_labels = next((shape[0] for shape in last if shape), 0)
        return cls(
            name=adapter,
            folder=folder,
            identity=identity,
            head=_HEADS.get(str(stated.get("task_type")), "") if num_labels else "",
            labels=_labels(read_json(folder / "config.json", name), num_labels),
        )

    def adapt(self, config: Any, head: str, class_names: dict[str, str]) -> None:
        """Put the head that the adapter brings into the configuration of its base.

        `head`: what the user's task needs. `class_names`: by the end of their names, the base's classes
        with a head. Where base and adapter have as many labels and only the base has names, they stay.
        """
        if not self.labels:
            return
        if class_name := class_names.get(self.head or head):
            config.architectures = [class_name]
        if len(self.labels) != config.num_labels or not self._has_numbers:
            config.id2label = dict(enumerate(self.labels))
            config.label2id = {label: i for i, label in enumerate(self.labels)}

    @property
    def _has_numbers(self) -> bool:
        return self.labels == _numbered(len(self.labels))


def supplied(folder: Path) -> frozenset[str]:
    """The names of the base's weights that an adapter brings whole, such as a head's."""
    return frozenset(
        key.removeprefix(_PREFIX)
        for key in _shapes(folder / ADAPTER_WEIGHTS, str(folder))
        if key.startswith(_PREFIX)
    )


def merge(model: Any, folder: Path, name: str) -> Any:
    """The model, on the CPU, with an adapter in its weights; it is changed in place.

    Raises ModelError where the two do not belong together: nothing of the adapter may be left over, and
    nothing of it may be missing.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of what is checked below
            adapted = PeftModel.from_pretrained(model, folder, torch_device="cpu")
            found = adapted.load_adapter(folder, "default", torch_device="cpu")
            wrong = [*found.unexpected_keys, *found.missing_keys]
            merged = None if wrong else adapted.merge_and_unload(safe_merge=True)
    except (
        Exception
    ) as error:  # ValueError, RuntimeError, KeyError, TypeError of its configuration, …
        raise ModelError(f"{name}: the adapter does not fit the model: {one_line(error)}") from None
    if wrong:
        what = "is nothing in the model" if found.unexpected_keys else "is not in the adapter"
        raise ModelError(
            f"{name}: the adapter does not fit the model for this task: {shown(wrong[0])} {what}"
        )
    return merged


def _shapes(file: Path, name: str) -> dict[str, list[int]]:
    """The names and shapes of an adapter's weights. Raises ModelError where there are none."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        pickled = (file.parent / "adapter_model.bin").is_file()
        held = (
            "only adapter_model.bin, which is pickled: save it again with peft"
            if pickled
            else "none"
        )
        raise ModelError(f"{name}: needs {ADAPTER_WEIGHTS}, has {held}")
    try:
        with safe_open(file, framework="numpy") as stored:
            return {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{name}: {ADAPTER_WEIGHTS} cannot be read: {one_line(error)}") from None


def _labels(config: Any, num_labels: int) -> tuple[str, ...]:
    """The labels that a configuration beside the adapter names, if it has one, else their numbers."""
    named = config.get("id2label") if isinstance(config, dict) else None
    if isinstance(named, dict) and set(named) == {str(i) for i in range(num_labels)}:
        return tuple(str(named[str(i)]) for i in range(num_labels))
    return _numbered(num_labels)


def _numbered(num_labels: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(num_labels))
