"""What a sentence-transformers folder says beside its transformer: parts, pooling, limits, prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchinfer.engines.files import read_json
from batchinfer.errors import ModelError

_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: Sentence-transformers' settings of the transformer itself; old releases named it by architecture.
CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
)


def modules(root: Path, model: str) -> list[dict[str, str]]:
    """The parts of a sentence-transformers model: transformer, pooling, perhaps normalisation."""
    parts = read_json(root / "modules.json", model)
    if not parts:
        return []
    if any(Path(part["path"]).is_absolute() or ".." in Path(part["path"]).parts for part in parts):
        raise ModelError(f"{model}: its modules.json names a folder outside of the model")
    kinds = [str(part["type"]).rpartition(".")[2] for part in parts]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(
            f"{model}: its modules.json chains {', '.join(kinds)};"
            " supported are Transformer, Pooling and Normalize"
        )
    return [dict(part) for part in parts]


def settings(folder: Path, model: str) -> dict[str, Any]:
    """Sentence-transformers' settings of the transformer."""
    found = (read_json(folder / name, model) for name in CONFIGS)
    stated: dict[str, Any] = next(filter(None, found), {})
    how = stated.get("transformer_task", "feature-extraction")
    if how != "feature-extraction":
        raise ModelError(f"{model}: transformer_task {how} is not supported")
    if "message" in stated.get("modality_config", {}):
        raise ModelError(f"{model}: it embeds chat messages, which is not supported")
    return stated


def pooling(root: Path, modules: list[dict[str, str]], dimension: int, model: str) -> str:
    """The pooling by old and new keys of sentence-transformers."""
    file = root / modules[1]["path"] / "config.json"
    stated = read_json(file, model)
    modes = stated.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_POOLING_KEYS.items() if stated.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ModelError(
            f"{model}: pooling {' + '.join(modes)} is not supported, only mean, cls and lasttoken"
        )
    if not stated.get("include_prompt", True) and prompt(root, model):
        raise ModelError(f"{model}: pooling without the prompt (include_prompt) is not supported")
    size = stated.get("embedding_dimension", stated.get("word_embedding_dimension", dimension))
    if size != dimension:
        raise ModelError(
            f"{file}: the pooling takes {size} dimensions, the model gives {dimension}"
        )
    return _POOLINGS[modes[0]]


def prompt(root: Path, model: str) -> str:
    """The text that sentence-transformers puts before each text by default."""
    stated = read_json(root / "config_sentence_transformers.json", model)
    prompts = stated.get("prompts") or {}
    return str(prompts.get(stated.get("default_prompt_name"), ""))
