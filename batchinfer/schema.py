"""The JSON schema of a configuration file: editors complete and check keys and values with it.

It is made of RunConfig, so it says what `--help` says. What it marks, RunConfig refuses, too, but for what
YAML writers rarely mean: numbers and truth values in quotes. What RunConfig refuses beyond it is no matter
of one value by itself: settings that do not go together, names of columns, files that are not there.
"""

from __future__ import annotations

from typing import Any

import annotated_types

from batchinfer.config import RunConfig, flag_name

#: Of pydantic's titles, and of what `knob` notes for the command line, an editor has no use.
_LEFT_OUT = ("title", "panel", "flag", "free")
_LIMITS = {
    annotated_types.Ge: ("ge", "minimum"),
    annotated_types.Gt: ("gt", "exclusiveMinimum"),
    annotated_types.Le: ("le", "maximum"),
    annotated_types.Lt: ("lt", "exclusiveMaximum"),
}


def json_schema() -> dict[str, Any]:
    """The schema, in JSON Schema's draft 2020-12."""
    made = RunConfig.model_json_schema()
    properties = {name: _property(name, one) for name, one in made["properties"].items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A job of batchinfer",
        "description": "What `batchinfer run --config FILE` reads; each key is also a flag and a "
        "variable BATCHINFER_…",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _property(name: str, made: dict[str, Any]) -> dict[str, Any]:
    """One key: pydantic's schema, with the limits that it leaves out where a value may also be a word."""
    field = RunConfig.model_fields[name]
    kept = {key: value for key, value in made.items() if key not in _LEFT_OUT}
    for branch in kept.get("anyOf", [kept]):
        if branch.get("type") in ("integer", "number"):
            for limit in field.metadata:
                if type(limit) in _LIMITS:
                    attribute, word = _LIMITS[type(limit)]
                    branch[word] = getattr(limit, attribute)
    if kept.get("default") in (None, "", [], {}):  # the description says what then holds
        kept.pop("default", None)
    description = kept.pop("description")
    flag = "INPUT..." if name == "inputs" else flag_name(name)
    return {"description": f"{description} ({flag})", **kept}
