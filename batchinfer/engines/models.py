"""What a model is: its files, its task, its limits and its tokenizer; no weights are loaded here.

    hub id or folder ──find──▶ folder ──describe──▶ ModelSpec ──make_encoder──▶ TextEncoder

A hub model is fetched once, as one commit; from then on everything is a local folder. transformers
and huggingface_hub are imported inside the functions: they take seconds, and loader processes use
neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchinfer.core import ModelSpec
from batchinfer.errors import BatchInferError, ModelError, UsageError, one_line
from batchinfer.readers.base import shown
from batchinfer.tokenization import TextEncoder

logger = logging.getLogger("batchinfer")

#: What a model consists of; the rest of a repository (readme, pickles, other formats) stays there.
_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_CODE = "*.py"
_SAFE_WEIGHTS = "*.safetensors"
_PICKLED_WEIGHTS = "pytorch_model*.bin"
_FOREIGN = ("onnx/*", "openvino/*", "coreml/*", "tf/*", "flax/*", "original/*", "checkpoint-*/*")

#: Position embeddings of these begin behind the padding index: the first ones hold no token.
_OFFSET_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "lilt",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
#: Tokenizers without a limit say 1e30; nobody's is beyond this.
_NO_LIMIT = 1 << 30
#: The limit where neither tokenizer nor configuration names one (T5: relative positions).
_DEFAULT_LENGTH = 512

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
_SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
)


def describe(
    model: str,
    *,
    revision: str | None = None,
    task: str = "auto",
    max_length: int | None = None,
    pairs: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[ModelSpec, Path]:
    """Find a model, and say what it is: its spec, and the folder with its weights and tokenizer.

    Its code runs only with `trust_remote_code`, and pickled weights count only with `allow_pickle`.
    Raises ModelError where it cannot be had or cannot do the task, UsageError where `max_length`
    is more than the model takes or leaves no room for text.
    """
    quiet()
    root, identity = find(model, revision, trust_remote_code, allow_pickle)
    try:
        return _describe(
            model, root, identity, task, max_length, pairs, trust_remote_code, allow_pickle
        )
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        # Files that are JSON, but not of the shape that they have in a model.
        raise ModelError(
            f"{model}: its files cannot be understood: {type(error).__name__}: {one_line(error)}"
        ) from None


def _describe(
    model: str,
    root: Path,
    identity: str,
    task: str,
    max_length: int | None,
    pairs: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> tuple[ModelSpec, Path]:
    name = root.name if identity.startswith("sha256:") else model
    modules = _modules(root, model)
    folder = root / modules[0]["path"] if modules else root
    config = _config(folder, model, trust_remote_code)
    architecture = (config.architectures or [""])[0]
    task = _task(task, config, architecture, bool(modules), model)
    _require_weights(folder, model, task, allow_pickle)
    tokenizer = _tokenizer(folder, model, trust_remote_code)
    settings = _settings(folder, model) if modules and task == "embed" else {}
    if settings.get("do_lower_case") and "owercase" not in _normalizer(tokenizer):
        raise ModelError(f"{model}: do_lower_case of {_SENTENCE_CONFIGS[0]} is not supported")

    limit = _limit(config, tokenizer)
    default = min(limit or _DEFAULT_LENGTH, settings.get("max_seq_length") or _NO_LIMIT)
    if max_length and limit and max_length > limit:
        raise UsageError(f"--max-length {max_length} is more than {model} takes: {limit} tokens")
    length = max_length or default
    if length <= (specials := tokenizer.num_special_tokens_to_add(pairs)):
        raise UsageError(
            f"--max-length {length} leaves no room for text: {specials} tokens of {model} are"
            f" special; give {specials + 1} or more"
        )

    if task == "classify":
        labels = _labels(config)
        spec = ModelSpec(
            name, identity, architecture, task, length,
            labels=labels, activation=_activation(config, len(labels)),
        )  # fmt: skip
        return spec, folder
    if _loses_head(architecture):
        logger.warning(
            "%s is a %s: as an embedder it is used without its head", model, architecture
        )
    dimension = int(config.get_text_config().hidden_size)
    pooling, prompt = "mean", ""
    if modules:
        pooling, prompt = _pooling(root, modules, dimension, model), _prompt(root, model)
    spec = ModelSpec(
        name, identity, architecture, task, length,
        dimension=dimension, pooling=pooling, normalize=len(modules) == 3, prompt=prompt,
    )  # fmt: skip
    return spec, folder


def make_encoder(folder: Path, spec: ModelSpec, *, trust_remote_code: bool = False) -> TextEncoder:
    """A model's tokenizer, cut at the spec's length. Raises ModelError where it has no fast one."""
    quiet()
    tokenizer = _tokenizer(folder, spec.name, trust_remote_code)
    return TextEncoder(
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        max_length=spec.max_length,
        truncation_side=tokenizer.truncation_side,
        takes_type_ids="token_type_ids" in tokenizer.model_input_names,
    )


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
        if not (path / "config.json").is_file() and not (path / "modules.json").is_file():
            raise ModelError(f"{model}: not a model: the folder has no config.json")
        if revision is not None:
            raise UsageError(f"--revision is of hub models; {model} is a local folder")
        return path.resolve(), _digest(path.resolve(), trust_remote_code, allow_pickle)
    if path.exists():
        raise ModelError(f"{model}: a model is a folder or a hub id, this is a file")
    if "://" in model:
        raise ModelError(f"{model}: an address; give a hub id (OWNER/NAME) or a folder")
    if model.startswith((".", "~", os.sep)) or model.count("/") > 1:
        raise ModelError(f"{model}: no such model folder")
    patterns = _patterns(trust_remote_code)
    path, commit = _snapshot(model, revision, patterns)
    if allow_pickle and not any(path.rglob(_SAFE_WEIGHTS)):
        return _snapshot(model, revision, [*patterns, _PICKLED_WEIGHTS])
    return path, commit


def _patterns(trust_remote_code: bool) -> list[str]:
    return [*_FILES, _CODE] if trust_remote_code else list(_FILES)


def quiet() -> None:
    """Switch off the progress bars and advice of transformers and huggingface_hub."""
    import huggingface_hub.utils
    import transformers.utils.logging

    hub: Any = huggingface_hub.utils
    library: Any = transformers.utils.logging
    hub.disable_progress_bars()
    library.disable_progress_bar()
    library.set_verbosity_error()


def _snapshot(model: str, revision: str | None, patterns: list[str]) -> tuple[Path, str]:
    from huggingface_hub import errors, snapshot_download

    at = f" at revision {revision}" if revision else ""
    try:
        folder = snapshot_download(
            model, revision=revision, allow_patterns=patterns, ignore_patterns=list(_FOREIGN)
        )
    except errors.GatedRepoError:
        raise ModelError(
            f"{model}: the model is gated: accept its terms on its page, then log in"
            " (`hf auth login`)"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{model}: the hub has no revision {revision}") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{model}: no such folder, and no such model on the hub"
            " (a private one needs `hf auth login`)"
        ) from None
    except errors.HFValidationError:
        raise ModelError(f"{model}: no such folder, and not a hub id (OWNER/NAME)") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set" if _is_offline() else "the hub cannot be reached"
        raise ModelError(
            f"{model}{at}: no such folder, not in the local cache, and {why}:"
            f" fetch it where there is a network (`hf download {model}`), or give a local folder"
        ) from None
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        raise ModelError(f"{model}{at}: cannot be fetched: {one_line(error)}") from None
    path = Path(folder)
    if not (path / "config.json").exists() and not (path / "modules.json").exists():
        raise ModelError(
            f"{model}{at}: not a model, or only part of it is in the local cache: no config.json"
        )
    return path, path.name


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _digest(folder: Path, trust_remote_code: bool, allow_pickle: bool) -> str:
    """A digest of the names and contents of a model's files: equal folders are the same model.

    Code and pickled weights count where they are loaded.
    """
    patterns = _patterns(trust_remote_code)
    parts = _json(folder / "modules.json", str(folder))
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
    digest = hashlib.sha256()
    for file in found:
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


def _config(folder: Path, model: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ModelError(f"{model}: not a model: the folder has no config.json")
    with _explained(f"{model}: config.json cannot be used", trust_remote_code):
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    stated = (config, _json(folder / "config.json", model))
    kernel = next((name for name in _attentions(stated) if "/" in name), None)
    if kernel is not None and not trust_remote_code:  # transformers would fetch it and run it
        raise ModelError(
            f"{model}: config.json names code to compute attention with, {shown(kernel[:100])}; read "
            "it, then give --trust-remote-code"
        )
    return config


def _attentions(part: Any, *, named: bool = False) -> Iterator[str]:
    """The implementations of attention that a configuration names, for any part of the model.

    Looked for everywhere: which parts a model has, and whose word counts for each, is transformers'
    affair and changes.
    """
    from transformers import PretrainedConfig

    if isinstance(part, str):
        yield from [part] if named else []
    elif isinstance(part, list | tuple):
        for one in part:
            yield from _attentions(one, named=named)
    elif isinstance(part, dict | PretrainedConfig):
        for name, one in (part if isinstance(part, dict) else vars(part)).items():
            yield from _attentions(one, named=named or "attn_implementation" in str(name))


def _tokenizer(folder: Path, model: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    with _explained(f"{model}: the tokenizer cannot be loaded", trust_remote_code):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(
            f"{model}: it has no fast tokenizer (tokenizer.json), only {type(tokenizer).__name__},"
            " which is written in Python: convert it first"
        )
    return tokenizer


@contextlib.contextmanager
def _explained(what: str, trust_remote_code: bool) -> Iterator[None]:
    """Turn whatever transformers raises into one line."""
    try:
        yield
    except BatchInferError:
        raise
    except Exception as error:
        text = one_line(error)
        if "trust_remote_code" in str(error) and not trust_remote_code:
            text = "it comes with its own Python code; read it, then give --trust-remote-code"
        raise ModelError(f"{what}: {text}") from None


def _require_weights(folder: Path, model: str, task: str, allow_pickle: bool) -> None:
    """See that there are safetensors; pickled weights can run code, so they need consent."""
    if any(folder.glob(_SAFE_WEIGHTS)):
        return
    loadable = any(folder.glob(_PICKLED_WEIGHTS))
    if loadable and allow_pickle:
        return
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


def _task(task: str, config: Any, architecture: str, has_modules: bool, model: str) -> str:
    """The task by the user's word or by the model's files. Raises ModelError where it cannot be."""
    from transformers.models.auto import modeling_auto

    own_code = getattr(config, "auto_map", None) or {}
    classifiers = set(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())
    classifies = architecture in classifiers or (
        "AutoModelForSequenceClassification" in own_code
        and architecture.endswith("ForSequenceClassification")
    )
    shown = f"a {architecture}" if architecture else "without an architecture in its config.json"
    if task == "auto" and (has_modules or classifies):
        task = "embed" if has_modules else "classify"
    if task == "auto":
        raise ModelError(
            f"{model} is {shown}: its files do not say what to do; choose --task embed"
            " (or --task classify with a model that has a classification head)"
        )
    if task == "classify" and not classifies:
        raise ModelError(
            f"{model} is {shown}: it has no classification head, only random numbers would answer;"
            " take a model that was trained to classify, or --task embed"
        )
    if config.model_type == "xlnet":
        raise ModelError(
            f"{model} is {shown}: it reads padding on the right as text; not supported"
        )
    if task == "embed":
        known = config.model_type in modeling_auto.MODEL_MAPPING_NAMES or "AutoModel" in own_code
        if config.is_encoder_decoder or not known:
            raise ModelError(f"{model} is {shown}: embeddings of it are not supported")
    return task


def _loses_head(architecture: str) -> bool:
    """Whether a head trained for something is left out; those of pretraining are no loss."""
    return "For" in architecture and not architecture.endswith(
        ("ForMaskedLM", "ForCausalLM", "ForPreTraining")
    )


def _limit(config: Any, tokenizer: Any) -> int | None:
    """Tokens that the model can take, or None where nothing says so."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    limits = [int(tokenizer.model_max_length)]
    if isinstance(positions, int) and positions > 0:  # XLNet says -1
        offset = 0
        if text.model_type in _OFFSET_POSITIONS:
            padding = text.pad_token_id
            offset = (1 if padding is None or text.model_type == "mpnet" else padding) + 1
        limits.append(positions - offset)
    limit = min(limits)
    return limit if limit < _NO_LIMIT else None


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[i]) for i in range(config.num_labels))


def _activation(config: Any, num_labels: int) -> str:
    """The rule of transformers' TextClassificationPipeline.postprocess."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or num_labels == 1:
        return "sigmoid"
    return "softmax"


def _modules(root: Path, model: str) -> list[dict[str, str]]:
    """The parts of a sentence-transformers model: transformer, pooling, perhaps normalisation."""
    parts = _json(root / "modules.json", model)
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


def _settings(folder: Path, model: str) -> dict[str, Any]:
    """Sentence-transformers' settings of the transformer."""
    found = (_json(folder / name, model) for name in _SENTENCE_CONFIGS)
    settings: dict[str, Any] = next(filter(None, found), {})
    how = settings.get("transformer_task", "feature-extraction")
    if how != "feature-extraction":
        raise ModelError(f"{model}: transformer_task {how} is not supported")
    if "message" in settings.get("modality_config", {}):
        raise ModelError(f"{model}: it embeds chat messages, which is not supported")
    return settings


def _pooling(root: Path, modules: list[dict[str, str]], dimension: int, model: str) -> str:
    """The pooling by old and new keys of sentence-transformers."""
    file = root / modules[1]["path"] / "config.json"
    settings = _json(file, model)
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_POOLING_KEYS.items() if settings.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ModelError(
            f"{model}: pooling {' + '.join(modes)} is not supported, only mean, cls and lasttoken"
        )
    if not settings.get("include_prompt", True) and _prompt(root, model):
        raise ModelError(f"{model}: pooling without the prompt (include_prompt) is not supported")
    size = settings.get("embedding_dimension", settings.get("word_embedding_dimension", dimension))
    if size != dimension:
        raise ModelError(
            f"{file}: the pooling takes {size} dimensions, the model gives {dimension}"
        )
    return _POOLINGS[modes[0]]


def _prompt(root: Path, model: str) -> str:
    """The text that sentence-transformers puts before each text by default."""
    settings = _json(root / "config_sentence_transformers.json", model)
    prompts = settings.get("prompts") or {}
    return str(prompts.get(settings.get("default_prompt_name"), ""))


def _normalizer(tokenizer: Any) -> str:
    return json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"])


def _json(file: Path, model: str) -> Any:
    """A JSON file's content; {} where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{model}: {file.name} cannot be read: {one_line(error)}") from None
