"""How tokens are chosen: the settings of a job, and draws that belong to a row alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process

from batchinfer.errors import ModelError, UsageError, one_line
from batchinfer.hints import did_you_mean

#: Where neither the model nor the user says how long an answer may be; transformers' own 20 cuts
#: nearly every answer short.
DEFAULT_NEW_TOKENS = 256
#: What only says how to draw; without drawing, transformers warns of it.
DRAWING = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
#: Settings of a file that say nothing of an answer, or that would change what `generate` returns.
_IGNORED = (
    "transformers_version", "_from_model_config", "max_length", "use_cache", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "cache_implementation", "num_assistant_tokens", "compile_config", "cache_config",
)  # fmt: skip
#: Settings that are whole numbers, and the least that they may be.
_COUNTS = {
    "max_new_tokens": 1, "min_new_tokens": 0, "num_beams": 1, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
}  # fmt: skip
#: What generates otherwise than a row at a time, or several answers a row.
_REFUSED = {
    "num_return_sequences": 1, "num_beam_groups": 1, "penalty_alpha": None, "constraints": None,
    "force_words_ids": None, "prompt_lookup_num_tokens": None, "assistant_early_exit": None,
    "top_h": None, "watermarking_config": None, "guidance_scale": None, "max_time": None,
}  # fmt: skip


def resolve(
    model_config: Any,
    folder: Path,
    given: Mapping[str, Any],
    more: str,
    model: str,
    limit: int | None,
) -> dict[str, Any]:
    """The settings of a job, by transformers' names: the model's, those of a file, and what was given.

    `given`: settings by the names of RunConfig, None where they are left open. `more`: further ones by
    transformers' names, as JSON. `limit`: tokens that the model takes. Raises UsageError for settings that
    there are not, that contradict each other or that are not supported; ModelError where the model's own
    cannot be read.
    """
    try:
        if (folder / "generation_config.json").is_file():
            own = GenerationConfig.from_pretrained(folder)
        else:
            own = GenerationConfig.from_model_config(model_config)
    except Exception as error:  # OSError, and whatever validation raises
        raise ModelError(
            f"{model}: its generation_config.json cannot be used: {one_line(error)}"
        ) from None
    stated = _stated(more) if more else {}
    if "max_length" in stated and not model_config.is_encoder_decoder:
        raise UsageError(
            "--generation-config: max_length would count the prompt; give max_new_tokens instead"
        )
    settings = {**own.to_diff_dict(), **stated}
    longest = settings.get("max_length")
    settings = {
        # transformers takes no whole number for a penalty, and says so when it writes.
        name: float(value) if name.endswith("_penalty") and type(value) is int else value
        for name, value in settings.items()
        if name not in _IGNORED and value is not None
    }
    for name, harmless in _REFUSED.items():
        if settings.get(name) not in (None, harmless):
            raise UsageError(
                f"{model}: the setting {name} is not supported; set another with --generation-config"
            )
    temperature = given.get("temperature")
    for name in ("top_k", "top_p"):
        if given.get(name) is not None and temperature == 0:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag}: means nothing with --temperature 0; leave one of them out")
    if temperature == 0:
        settings["do_sample"] = False
    elif any(given.get(name) is not None for name in ("temperature", "top_k", "top_p")):
        settings["do_sample"] = True
    for name in ("temperature", "top_k", "top_p", "max_new_tokens"):
        if given.get(name) is not None:
            settings[name] = given[name]
    if given.get("stop"):
        settings["stop_strings"] = list(given["stop"])
    elif isinstance(settings.get("stop_strings"), str):
        settings["stop_strings"] = [settings["stop_strings"]]
    if not settings.get("do_sample"):
        settings = {name: value for name, value in settings.items() if name not in DRAWING}
        settings.pop("do_sample", None)
    usual = DEFAULT_NEW_TOKENS
    # Of the decoder's positions, the token that it starts with has one.
    most = (getattr(model_config, "max_position_embeddings", None) or 2 << 30) - 1
    if not model_config.is_encoder_decoder:
        usual = min(usual, (limit or 2 * usual) // 2)
    elif type(longest) is int and longest > 1:  # it counts the token that the decoder starts with
        usual = longest - 1
    settings.setdefault("max_new_tokens", min(usual, most))
    _check(settings, model)
    if model_config.is_encoder_decoder and (asked := settings["max_new_tokens"]) > most:
        raise UsageError(f"--max-new-tokens {asked}: {model} writes no more than {most:,}")
    return dict(sorted(settings.items()))


def _stated(text: str) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(text)
    known = GenerationConfig().to_dict()  # type: ignore[no-untyped-call]
    if unknown := [name for name in settings if name not in known and name not in _IGNORED]:
        hint = did_you_mean(unknown[0], known) or "; leave it out"
        raise UsageError(f"--generation-config: transformers knows no setting '{unknown[0]}'{hint}")
    return settings


def _check(settings: Mapping[str, Any], model: str) -> None:
    """See that values are what they must be: transformers looks at some of them, and late."""
    for name, value in settings.items():
        least, wanted = _COUNTS.get(name), ""
        if least is not None and (type(value) is not int or value < least):
            wanted = f"a whole number of {least} or more"
        elif name.endswith("_token_id"):
            ids = value if isinstance(value, (list, tuple)) else [value]
            if not all(type(token) is int for token in ids):
                wanted = "the number of a token, or a list of them"
        if wanted:
            raise UsageError(
                f"{model}: the generation setting {name} is {value!r:.100}, and should be {wanted}; set "
                "another with --generation-config"
            )
    try:
        GenerationConfig(**settings)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever its validation raises
        raise UsageError(
            f"{model}: the generation settings cannot be used: {one_line(error)}"
        ) from None


def warpers(settings: Mapping[str, Any]) -> LogitsProcessorList:
    """What transformers does to scores before it draws, in its order; its defaults where unset."""
    found = LogitsProcessorList()
    kinds: tuple[tuple[str, Any, Any, type[LogitsProcessor]], ...] = (
        ("temperature", 1.0, 1.0, logits_process.TemperatureLogitsWarper),
        ("top_k", 50, 0, logits_process.TopKLogitsWarper),
        ("top_p", 1.0, 1.0, logits_process.TopPLogitsWarper),
        ("min_p", None, None, logits_process.MinPLogitsWarper),
        ("typical_p", 1.0, 1.0, logits_process.TypicalLogitsWarper),
        ("epsilon_cutoff", 0.0, 0.0, logits_process.EpsilonLogitsWarper),
        ("eta_cutoff", 0.0, 0.0, logits_process.EtaLogitsWarper),
    )
    for name, usual, idle, kind in kinds:
        value = settings.get(name)
        value = usual if value is None else value
        if value not in (None, idle):
            found.append(kind(value))  # type: ignore[call-arg]
    return found


class Numbers(LogitsProcessor):
    """Leaves scores as they are, and remembers rows that had one that is no number: `failed` bool[b]."""

    def __init__(self) -> None:
        self.failed = torch.zeros(0, dtype=torch.bool)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        failed = scores.isnan().any(dim=-1)
        self.failed = failed if not len(self.failed) else self.failed | failed
        return scores


class Draw(LogitsProcessor):
    """Draws the next token of each row, and leaves it as the only choice.

    One uniform number a row and step, from the row's own seed and the number of tokens that it has,
    picks the token in the cumulated probabilities: other rows of the batch have no part in it.
    """

    def __init__(self, seeds: npt.NDArray[np.uint32], prompt_length: int) -> None:
        self._seeds, self._prompt_length = seeds, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1] - self._prompt_length
        # Apple's GPUs compute nothing in float64.
        device = "cpu" if scores.device.type == "mps" else scores.device
        drawn = torch.from_numpy(uniform(self._seeds, step)).to(device)
        cumulated = scores.to(device).double().softmax(dim=-1).cumsum(dim=-1)
        # Of the whole, which rounding leaves near 1; "right": a token of probability 0 is never met.
        target = drawn[:, None] * cumulated[:, -1:]
        token = torch.searchsorted(cumulated, target, right=True)
        token.clamp_(max=scores.shape[-1] - 1)
        chosen = torch.full_like(scores, -torch.inf).scatter_(1, token.to(scores.device), 0.0)
        return chosen  # type: ignore[return-value]


def uniform(seeds: npt.NDArray[np.uint32], step: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each seed, by step, float64[b]; SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        state = (seeds.astype(np.uint64) << np.uint64(32)) + np.uint64(step + 1)
        state *= np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) / float(1 << 53)
