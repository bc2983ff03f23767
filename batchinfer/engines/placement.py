"""A model that no single device holds: its layers spread over GPUs, memory and disk, by accelerate.

Before a layer computes, accelerate brings its weights to where it computes, if they are not there already,
and takes them away behind it. So two batches at a time would pull weights from under each other, and a
layer that is not there cannot be packed or compiled: such a model has one stream and its own layers.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchinfer.errors import UsageError

if TYPE_CHECKING:
    from batchinfer.config import RunConfig


@dataclass(frozen=True, slots=True)
class Placement:
    """`device_map` as transformers calls it; `max_memory`: by GPU's number or "cpu", "20GiB".

    `offload_folder`: where a folder is made for weights that go to disk; None: among temporary files.
    """

    device_map: str
    max_memory: Mapping[int | str, str] | None = None
    offload_folder: str | None = None

    @classmethod
    def of(cls, config: RunConfig) -> Placement | None:
        """What the job asks for; None: the model is on one device."""
        if config.device_map is None:
            return None
        return cls(config.device_map, _by_device(config.max_memory), config.offload_folder)

    def make_folder(self) -> Path:
        """A folder of its own for weights that go to disk. Raises UsageError where none can be made."""
        try:
            if self.offload_folder is not None:
                Path(self.offload_folder).mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix="batchinfer-offload-", dir=self.offload_folder))
        except OSError as error:
            where = self.offload_folder or tempfile.gettempdir()
            raise UsageError(
                f"--offload-folder {where}: cannot be written to: {error.strerror or error}"
            ) from None

    def loading(self, folder: Path) -> dict[str, Any]:
        """What `from_pretrained` takes."""
        options: dict[str, Any] = {"device_map": self.device_map, "offload_folder": str(folder)}
        if self.max_memory is not None:
            options["max_memory"] = dict(self.max_memory)
        return options


def described(model: Any) -> str:
    """Where the weights of a spread model are, in a few words."""
    sizes: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        prefixes = [name.rsplit(".", cut)[0] for cut in range(name.count(".") + 1)]
        place = next((p for p in prefixes if p in model.hf_device_map), "")
        sizes[str(model.hf_device_map[place])] += weight.numel() * weight.element_size()
    parts = [f"{size / (1 << 20):,.1f} MiB on {place}" for place, size in sizes.items()]
    return f"the model is spread: {', '.join(parts)}"


def require(config: RunConfig) -> None:
    """See that what is asked goes with a model that is spread, or needs one. Raises UsageError."""
    if config.device_map is None:
        for flag, given in (
            ("--max-memory", config.max_memory),
            ("--offload-folder", config.offload_folder),
        ):
            if given is not None:
                raise UsageError(f"{flag}: is for --device-map; give that too, or leave it out")
        return
    for other, is_given in (
        (f"--device {config.device}", config.device != "auto"),
        (f"--devices {config.devices}", config.devices is not None),
        ("--engine openvino", config.engine == "openvino"),
        ("--task module", config.task == "module"),
        ("--adapter", config.adapter is not None),
        ("--compile", config.compile),
        (f"--streams {config.streams}", (config.streams or 1) > 1),
        (f"--profile {config.profile}", config.profile not in ("auto", "none")),
    ):
        if is_given:
            raise UsageError(f"--device-map {config.device_map}: not with {other}; leave one out")
    if config.executor == "ray":  # the GPUs are those of other machines
        return
    named = [device for device in _by_device(config.max_memory) or () if isinstance(device, int)]
    if named:
        import torch

        found = torch.cuda.device_count()
        if missing := [device for device in named if device >= found]:
            raise UsageError(
                f"--max-memory {config.max_memory}: GPU {missing[0]} is not available: {found} were found, "
                "counted from 0"
            )


def _by_device(max_memory: str | None) -> dict[int | str, str] | None:
    if max_memory is None:
        return None
    pairs = (part.split("=") for part in max_memory.split(","))
    return {int(device) if device.isdecimal() else device: size for device, size in pairs}
