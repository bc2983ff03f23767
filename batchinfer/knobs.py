"""What RunConfig's fields are declared with: `knob`, and the types of their values.

A value may come from a flag, an environment variable, YAML or Python: each type takes all four.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

#: As the JSON schema has them, too.
DEVICE = r"auto|cpu|mps|cuda(:\d{1,3})?"
COUNT_OR_PERCENTAGE = r"\d{1,18}|(100(\.0{1,18})?|\d{1,2}(\.\d{1,18})?)%"
_DEVICES = r"auto|cpu:[1-9]\d{0,2}|\d{1,3}(,\d{1,3})*"
_MEMORY_OF = r"\d{1,3}|cpu"
_BYTES = r"(\d{1,9}(?:\.\d{1,3})?)\s*([KMGT]i?B)"
_SIZE = r"\d{1,9}(\.\d{1,3})?[KMG]i?B"
_ACTORS = r"([1-9]\d{0,5})(?::([1-9]\d{0,5}))?"
_DURATION = r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?"

#: What a value may be where few words are meant, though others are taken: for hints.
USUAL: Mapping[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "encoding": (
        "utf-8", "utf-16", "utf-16-le", "utf-8-sig", "latin-1", "cp1252", "shift_jis", "gb18030",
    ),
}  # fmt: skip

#: Panels of `run --help`, in this order.
MODEL, TASK, INPUT, OUTPUT, SPEED, CONDUCT = "Model", "Task", "Input", "Output", "Speed", "Conduct"


def knob(
    default: Any, description: str, panel: str, *, flag: str = "", free: bool = False, **limits: Any
) -> Any:
    """Declare one field: its default, its help text, its panel in the help.

    `free` knobs say how a job is run, not what it answers: they may change at `resume`.
    """
    extra: dict[str, Any] = {"panel": panel, "flag": flag, "free": free}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def _listed(value: Any) -> Any:
    """A single value stands for a list of one; names may hold commas."""
    return [value] if isinstance(value, str) else value


def columns_of(value: Any) -> Any:
    """Names of columns: one text has commas between them; in a list each stands as it is."""
    if not isinstance(value, str):
        return value
    names = map(str.strip, value.split(",")) if "," in value else [value]
    return [name for name in names if name]


def _assignments(value: Any) -> Any:
    """Mappings may be written NAME=TYPE, one or several."""
    if isinstance(value, Mapping):
        return value
    parts = _listed(value)
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise ValueError("should be a mapping of names to types")
    pairs = [part.partition("=") for part in parts]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"'{wrong[0]}' should be written NAME=TYPE")
    return {name: type_name for name, _, type_name in pairs}


def split_variable(value: str) -> list[str]:
    """An environment variable holds a list as `a,b`; commas within brackets separate nothing."""
    return [part.strip() for part in re.split(r",(?![^\[(]*[\])])", value) if part.strip()]


def _no_truth_value(value: Any) -> Any:
    """In YAML, `on` and `yes` are no numbers, though Python takes True for 1."""
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def _auto_number(value: Any) -> Any:
    return _auto_is_none(_no_truth_value(value))


def _known_device(value: str) -> str:
    if not re.fullmatch(DEVICE, value):
        raise ValueError("should be auto, cpu, cuda, cuda:N or mps")
    return value


def _known_encoding(value: str) -> str:
    """The one name of an encoding, whichever of its names was given."""
    try:
        name = codecs.lookup(value).name
    except LookupError:
        name = ""
    if not name or name in ("idna", "punycode"):  # those are of host names
        raise ValueError("is no text encoding that Python knows")
    return name


def _unicode(value: str) -> str:
    """A text that ends up in a file; what the shell passes may be any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid UTF-8") from None
    return value


def _auto_is_none(value: Any) -> Any:
    return None if value == "auto" else value


def _none_is_none(value: Any) -> Any:
    return None if value == "none" else value


def to_seconds(value: Any) -> Any:
    """Seconds from 90, 45s, 30m, 2h, 1h30m, 1d; None from none."""
    if not isinstance(value, str):
        return value
    if value == "none":
        return None
    found = re.fullmatch(_DURATION, value.strip())
    if not found or not any(found.groups()):
        raise ValueError("should be a time such as 45s, 30m, 2h or 1h30m")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def to_bytes(value: Any) -> Any:
    """Bytes from 500MB, 10GiB or a whole number."""
    if not isinstance(value, str) or value.strip().isdecimal():
        return value
    found = re.fullmatch(_BYTES, value.strip())
    if not found:
        raise ValueError("should be a size such as 500MB or 10GiB")
    base = 1024 if "i" in found[2] else 1000
    return int(float(found[1]) * base ** (" KMGT".index(found[2][0])))


def _on_disk(value: str) -> str:
    if "://" in value:
        raise ValueError("should be a folder on a disk of this machine")
    return value


def _false_is_off(value: Any) -> Any:
    """YAML takes a bare `off` for false."""
    return "off" if value is False else value


def _several_devices(value: Any) -> str | None:
    """Devices of one machine as one text; YAML may have a list of numbers, or one."""
    if value is None or value == "none":
        return None
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    text = ",".join(str(part).strip() for part in parts)
    if isinstance(value, (bool, Mapping)) or not re.fullmatch(_DEVICES, text):
        raise ValueError("should be auto, numbers of GPUs such as 0,1,3, or cpu:N")
    if len(set(text.split(","))) < text.count(",") + 1:
        raise ValueError("names a GPU twice")
    return text


def _memories(value: Any) -> str | None:
    """Memory by device as one text; YAML may have a mapping."""
    if value is None:
        return None
    parts = [f"{key}={size}" for key, size in value.items()] if isinstance(value, Mapping) else (
        str(value).split(",")
    )  # fmt: skip
    parts = [part.strip() for part in parts]
    if not all(re.fullmatch(f"({_MEMORY_OF})={_SIZE}", part) for part in parts):
        raise ValueError("should be memory by device such as 0=20GiB,1=20GiB,cpu=60GiB")
    devices = [part.partition("=")[0] for part in parts]
    if len(set(devices)) < len(devices):
        raise ValueError("names a device twice")
    return ",".join(parts)


def _actor_count(value: Any) -> str | None:
    """Actors of a cluster as one text: N or MIN:MAX."""
    if value is None or value == "auto":
        return None
    found = None if isinstance(value, bool) else re.fullmatch(_ACTORS, str(value)[:20])
    if not found or int(found[2] or found[1]) < int(found[1]):
        raise ValueError("should be a number, or MIN:MAX such as 2:16")
    return found[0]


def _count_or_percentage(value: Any) -> str:
    is_simple = isinstance(value, (str, int, float))  # what else YAML makes may be endless as text
    if not is_simple or not re.fullmatch(COUNT_OR_PERCENTAGE, str(value)):
        raise ValueError("should be a whole number, or a percentage such as 1% and 100% at most")
    return str(value)


def _matching(pattern: str, *examples: str) -> Any:
    """The type, for the JSON schema, of texts that are like a pattern as a whole."""
    return Annotated[str, Field(pattern=f"^({pattern})$", examples=list(examples))]


#: What YAML may hold, where that is not the type of the value: the JSON schema has it.
_TIME = _matching(rf"none|(?=[\s\S]*[1-9]){_DURATION}", "45s", "30m", "2h", "1h30m")
_COUNT = Annotated[int, Field(ge=0)]
_BY_DEVICE = {"type": "object", "additionalProperties": False, "patternProperties": {
    f"^({_MEMORY_OF})$": {"type": "string", "pattern": f"^({_SIZE})$", "examples": ["20GiB"]}
}}  # fmt: skip
_LIST = str | list[str]

Text = Annotated[str, AfterValidator(_unicode)]
Paths = Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=_LIST)]
Names = Annotated[tuple[Text, ...], BeforeValidator(_listed, json_schema_input_type=_LIST)]
Columns = Annotated[tuple[Text, ...], BeforeValidator(columns_of, json_schema_input_type=_LIST)]
Types = Annotated[
    dict[Text, Text],
    BeforeValidator(
        _assignments,
        json_schema_input_type=dict[str, str]
        | _matching("[^=]*=[^,]+", "id=int64")
        | list[_matching("[^=]*=.+", "id=int64")],  # type: ignore[misc]
    ),
]
Whole = Annotated[int, BeforeValidator(_no_truth_value, json_schema_input_type=int)]
_AUTO = Literal["auto"] | None
AutoInt = Annotated[int | None, BeforeValidator(_auto_number, json_schema_input_type=int | _AUTO)]
AutoFloat = Annotated[
    float | None, BeforeValidator(_auto_number, json_schema_input_type=float | _AUTO)
]
AutoBool = Annotated[
    bool | None, BeforeValidator(_auto_is_none, json_schema_input_type=bool | _AUTO)
]
Device = Annotated[
    str,
    AfterValidator(_known_device),
    WithJsonSchema({"type": "string", "pattern": f"^({DEVICE})$", "examples": ["cuda:1"]}),
]
Devices = Annotated[
    str | None,
    BeforeValidator(
        _several_devices,
        json_schema_input_type=_matching(f"none|{_DEVICES}", "auto", "0,1", "cpu:4")
        | _COUNT | list[_COUNT] | None,
    ),
]  # fmt: skip
_Map = Literal["auto", "balanced", "sequential"]
DeviceMap = Annotated[
    _Map | None,
    BeforeValidator(_none_is_none, json_schema_input_type=_Map | Literal["none"] | None),
]
Memories = Annotated[
    str | None,
    BeforeValidator(
        _memories,
        json_schema_input_type=_matching(
            f"({_MEMORY_OF})={_SIZE}(, *({_MEMORY_OF})={_SIZE})*", "0=20GiB,cpu=60GiB"
        )
        | Annotated[dict[str, str], WithJsonSchema(_BY_DEVICE)]
        | None,
    ),
]
ActorCount = Annotated[
    str | None,
    BeforeValidator(
        _actor_count,
        json_schema_input_type=_matching(f"auto|{_ACTORS}", "2:16")
        | Annotated[int, Field(ge=1, le=999_999)]
        | None,
    ),
]
Duration = Annotated[
    float | None, BeforeValidator(to_seconds, json_schema_input_type=_TIME | float | None)
]
CountOrPercentage = Annotated[
    str,
    BeforeValidator(
        _count_or_percentage,
        json_schema_input_type=_matching(COUNT_OR_PERCENTAGE, "1%") | _COUNT,
    ),
]
Encoding = Annotated[
    str, AfterValidator(_known_encoding), Field(examples=["utf-16", "latin-1", "cp1252"])
]
Folder = Annotated[Text, AfterValidator(_on_disk)]
Size = Annotated[
    int,
    BeforeValidator(to_bytes, json_schema_input_type=_matching(_BYTES, "500MB", "10GiB") | _COUNT),
]
_Dedup = Literal["auto", "off", "chunk"]
Dedup = Annotated[
    _Dedup, BeforeValidator(_false_is_off, json_schema_input_type=_Dedup | Literal[False])
]
