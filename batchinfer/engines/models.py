"""What a model is: its files, its task, its limits and its tokenizer; no weights are loaded here.

    hub id or folder ──find──▶ folder ──describe──▶ ModelSpec ──make_encoder──▶ TextEncoder

A hub model is fetched once, as one commit; from then on everything is a local folder. transformers
and huggingface_hub are imported inside the functions: they take seconds, and loader processes use
neither.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from batchinfer.core import ModelSpec
from batchinfer.detokenization import Detokenizer, TextDetokenizer
from batchinfer.engines import quantised, sentence
from batchinfer.engines.adapters import Adapter
from batchinfer.engines.encoders import TransformersDetokenizer, TransformersEncoder
from batchinfer.engines.files import ADAPTER_CONFIG, find, no_model, read_json, require_weights
from batchinfer.errors import BatchInferError, ModelError, UsageError, one_line
from batchinfer.readers.base import shown
from batchinfer.tokenization import Encoder, TextEncoder

logger = logging.getLogger("batchinfer")

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
#: Classes of torch.nn that a cross-encoder may name, and what they do.
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Identity": "none"}
#: Tasks that need a head of their own: the end of its class's name, transformers' list of such classes, and
#: the class that loads one whose code comes with it. Of
#: those that a model can do, `auto` takes the first.
_TRAINED_FOR = {
    "classify": (
        "ForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "AutoModelForSequenceClassification",
    ),
    "token-classify": (
        "ForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        "AutoModelForTokenClassification",
    ),
    "score": (
        "ForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "AutoModelForSequenceClassification",
    ),
    "zero-shot": (
        "ForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "AutoModelForSequenceClassification",
    ),
    "generate": ("ForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "AutoModelForCausalLM"),
    "seq2seq": (
        "ForConditionalGeneration", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "AutoModelForSeq2SeqLM",
    ),
    "fill-mask": ("ForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", "AutoModelForMaskedLM"),
}  # fmt: skip
#: Tasks whose answer is text.
_WRITING = ("generate", "seq2seq")
#: Tasks that ask of a tokenizer where its tokens stand: one that is written in Python does not say.
_PLACING = ("token-classify", "fill-mask")
#: They warn of kernels for devices that are not there whenever torchao, which quantises, is imported, and
#: of weights that --device-map has put where they should be.
_CHATTY = ("torchao", "torch.utils._pytree", "accelerate.big_modeling")
#: Tokenizers without a limit say 1e30; nobody's is beyond this.
_NO_LIMIT = 1 << 30
#: The limit where neither tokenizer nor configuration names one (T5: relative positions).
_DEFAULT_LENGTH = 512


def describe(
    model: str,
    *,
    revision: str | None = None,
    task: str = "auto",
    max_length: int | None = None,
    pairs: bool = False,
    writing: Mapping[str, Any] | None = None,
    windows: bool = False,
    stride: int | None = None,
    adapter: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[ModelSpec, Path]:
    """Find a model, and say what it is: its spec, and the folder with its weights and tokenizer.

    `writing`: what RunConfig says of answers that are text, by its names; None of a name: left open.
    `windows`: long texts become windows.
    `adapter`: one of PEFT that is put on it. `device`: where a quantised model must be able to run. Its
    code runs only with `trust_remote_code`, and pickled weights count only with `allow_pickle`. Raises
    ModelError where it cannot be had or cannot do the task, UsageError where `max_length` is more than the
    model takes or leaves no room for text, or windows of it cannot be cut or cannot share `stride` tokens.
    """
    quiet()
    try:
        root, identity = find(model, revision, trust_remote_code, allow_pickle)
        on_top = None if adapter is None else Adapter.find(adapter)
        spec, folder = _describe(
            model, root, identity, on_top, task, max_length, pairs, writing or {}, windows, stride,
            trust_remote_code, allow_pickle,
        )  # fmt: skip
        return quantised.noted(spec, folder, model, device), folder
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        # Files that are JSON, but not of the shape that they have in a model.
        raise ModelError(
            f"{model}: its files cannot be understood: {type(error).__name__}: {one_line(error)}; fetch or "
            "save it again"
        ) from None


def _describe(
    model: str,
    root: Path,
    identity: str,
    adapter: Adapter | None,
    task: str,
    max_length: int | None,
    pairs: bool,
    writing: Mapping[str, Any],
    windows: bool,
    stride: int | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> tuple[ModelSpec, Path]:
    name = root.name if identity.startswith("sha256:") else model
    modules = sentence.modules(root, model)
    folder = root / modules[0]["path"] if modules else root
    config = _config(folder, model, trust_remote_code)
    if adapter is not None:
        name, identity = f"{name} with {adapter.name}", f"{identity}+{adapter.identity}"
        adapter.adapt(config, _TRAINED_FOR.get(task, ("", ""))[0], _heads_of(config.model_type))
    elif (folder / ADAPTER_CONFIG).is_file():
        logger.warning(
            "%s: the adapter in its folder is not used; to use it, give --adapter %s", model, folder
        )
    architecture = (config.architectures or [""])[0]
    brings_head = adapter is not None and bool(adapter.labels)
    task = _task(task, config, architecture, bool(modules) and not brings_head, model)
    require_weights(folder, model, task, allow_pickle)
    tokenizer = _tokenizer(folder, model, trust_remote_code)
    if task in _PLACING:
        _require_places(tokenizer, model)
    if windows and not _is_fast(tokenizer):
        raise UsageError(
            f"--long stride: {model} has no fast tokenizer (tokenizer.json), only "
            f"{type(tokenizer).__name__}, which is written in Python"
        )
    settings = sentence.settings(folder, model) if modules and task == "embed" else {}
    if settings.get("do_lower_case") and "owercase" not in _normalizer(tokenizer):
        raise ModelError(f"{model}: do_lower_case of {sentence.CONFIGS[0]} is not supported")

    limit = _limit(config, tokenizer)
    default = min(limit or _DEFAULT_LENGTH, settings.get("max_seq_length") or _NO_LIMIT)
    if max_length and limit and max_length > limit:
        raise UsageError(
            f"--max-length {max_length} is more than {model} takes: {limit} tokens; give {limit} or less"
        )
    generation: dict[str, Any] = {}
    if task in _WRITING:
        from batchinfer.engines import sampling

        generation = sampling.resolve(
            config, folder, writing, str(writing.get("generation_config") or ""), model, limit
        )
    if task == "generate" and limit:  # prompt and answer share the model's positions
        room = limit - generation["max_new_tokens"]
        if room < (max_length or 1):
            raise UsageError(
                f"{model} takes {limit:,} tokens, of which --max-new-tokens {generation['max_new_tokens']} "
                f"leaves {max(0, room):,} for the prompt{f', not {max_length:,}' if max_length else ''}"
            )
        default = min(default, room)
    length = max_length or default
    if length <= (specials := tokenizer.num_special_tokens_to_add(pairs)):
        raise UsageError(
            f"--max-length {length} leaves no room for text: {specials} tokens of {model} are"
            f" special; give {specials + 1} or more"
        )
    if stride is not None and stride >= length - specials:
        raise UsageError(
            f"--stride {stride}: windows have {length - specials} tokens of text, and must share fewer; "
            f"give {length - specials - 1} or less"
        )

    if task == "fill-mask":
        if not tokenizer.mask_token:
            raise ModelError(
                f"{model}: its tokenizer has no mask token, so there is nothing to fill"
            )
        spec = ModelSpec(
            name, identity, architecture, task, length,
            mask_token=str(tokenizer.mask_token), vocab_size=int(config.get_text_config().vocab_size),
        )  # fmt: skip
        return spec, folder
    if task in _WRITING:
        chat = task == "generate" and writing.get("chat") is not False
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if chat and writing.get("chat") and not has_template:
            raise UsageError(f"--chat: {model} has no chat template")
        spec = ModelSpec(
            name, identity, architecture, task, length,
            generation=json.dumps(generation, sort_keys=True), chat=chat and has_template,
        )  # fmt: skip
        return spec, folder
    if task in _TRAINED_FOR:
        labels = _labels(config)
        if task == "zero-shot" and not any(n.lower().startswith("entail") for n in labels):
            logger.warning(
                "%s has no label called entailment; its last one, %s, is taken for it",
                model,
                labels[-1],
            )
        choose = _cross_encoder_activation if task == "score" else _activation
        spec = ModelSpec(
            name, identity, architecture, task, length,
            labels=labels, activation=choose(config, len(labels)),
        )  # fmt: skip
        return spec, folder
    if _loses_head(architecture):
        logger.warning(
            "%s is a %s: as an embedder it is used without its head", model, architecture
        )
    dimension = int(config.get_text_config().hidden_size)
    pooling, prompt = "mean", ""
    if modules:
        pooling, prompt = (
            sentence.pooling(root, modules, dimension, model),
            sentence.prompt(root, model),
        )
    spec = ModelSpec(
        name, identity, architecture, task, length,
        dimension=dimension, pooling=pooling, normalize=len(modules) == 3, prompt=prompt,
    )  # fmt: skip
    return spec, folder


def make_encoder(
    folder: Path,
    spec: ModelSpec,
    *,
    trust_remote_code: bool = False,
    windows: bool = False,
    stride: int | None = None,
) -> Encoder:
    """A model's tokenizer, cut at the spec's length. Raises ModelError where it has none for the task.

    `windows`: long texts become windows instead; of a query and a document, the document. `stride` is that
    of TextEncoder.
    """
    quiet()
    tokenizer = _tokenizer(folder, spec.name, trust_remote_code)
    # What is asked must stay whole; the text gives way.
    truncation = "only_first" if spec.task == "zero-shot" else "longest_first"
    if spec.chat or not _is_fast(tokenizer):
        return TransformersEncoder(
            folder, spec.max_length, spec.chat, trust_remote_code, truncation
        )
    return TextEncoder(
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        max_length=spec.max_length,
        truncation_side=tokenizer.truncation_side,
        takes_type_ids="token_type_ids" in tokenizer.model_input_names,
        notes_places=spec.task == "token-classify",
        truncation=truncation,
        windowed=("second" if spec.task == "score" else "first") if windows else "",
        stride=stride,
        mask_token=spec.mask_token,
    )


def make_detokenizer(
    folder: Path, spec: ModelSpec, *, trust_remote_code: bool = False
) -> Detokenizer:
    """A model's tokenizer, for the way back."""
    quiet()
    tokenizer = _tokenizer(folder, spec.name, trust_remote_code)
    if not _is_fast(tokenizer):
        return TransformersDetokenizer(folder, trust_remote_code)
    text = tokenizer.backend_tokenizer.to_str()
    # transformers spares byte pairs, whose spaces are the text's own, unless it is told twice.
    is_told_twice = getattr(
        tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False
    )
    may_clean = json.loads(text)["model"]["type"] != "BPE" or is_told_twice
    return TextDetokenizer(
        text, cleans_up=bool(tokenizer.clean_up_tokenization_spaces and may_clean)
    )


def quiet() -> None:
    """Switch off the progress bars and advice of transformers, huggingface_hub and torchao."""
    import huggingface_hub.utils
    import transformers.utils.logging

    hub: Any = huggingface_hub.utils
    library: Any = transformers.utils.logging
    hub.disable_progress_bars()
    library.disable_progress_bar()
    library.set_verbosity_error()
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def _config(folder: Path, model: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise no_model(folder, model)
    with _explained(f"{model}: config.json cannot be used", trust_remote_code):
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    stated = (config, read_json(folder / "config.json", model))
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

    names = [path.name for path in folder.iterdir()]
    if not any(name.startswith(_TOKENIZERS) or name.endswith(_VOCABULARIES) for name in names):
        # transformers would make one without a vocabulary, to which every word is the same
        raise ModelError(
            f"{model}: has no tokenizer; save the one that it was trained with into its folder "
            "(tokenizer.save_pretrained), or fetch it again"
        )
    with _explained(f"{model}: the tokenizer cannot be loaded", trust_remote_code):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def _is_fast(tokenizer: Any) -> bool:
    """Whether a tokenizer is one of the tokenizers library, rather than written in Python."""
    return getattr(tokenizer, "backend_tokenizer", None) is not None


def _require_places(tokenizer: Any, model: str) -> None:
    if not _is_fast(tokenizer):
        raise ModelError(
            f"{model}: it has no fast tokenizer (tokenizer.json), only {type(tokenizer).__name__},"
            " which does not say where tokens stand: convert it first"
        )


#: What files of a tokenizer are called: their beginnings, and their ends.
_TOKENIZERS = ("token", "vocab", "merges", "spiece", "sentencepiece", "special_tokens_map")
_VOCABULARIES = (".model", ".tiktoken")


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
        elif found := re.search(r"model type `([^`]*)` but Transformers does not", str(error)):
            import transformers

            text = (
                f"transformers {transformers.__version__} knows no architecture '{found[1]}'; update it "
                "(`pip install -U transformers`), or take another model"
            )
        elif found := re.search(r"does not appear to have a file named ([\w./-]+)\.", str(error)):
            text = (
                f"{found[1]}, which holds code that it names, is not there; fetch the whole model"
            )
        elif "not a valid JSON file" in text:
            text = "it is not valid JSON; fetch or save the model again"
        raise ModelError(f"{what}: {text}") from None


def _task(task: str, config: Any, architecture: str, has_modules: bool, model: str) -> str:
    """The task by the user's word or by the model's files. Raises ModelError where it cannot be."""
    from transformers.models.auto import modeling_auto

    own_code = getattr(config, "auto_map", None) or {}
    can_do = [
        name
        for name, (suffix, mapping, auto_class) in _TRAINED_FOR.items()
        if (
            architecture in getattr(modeling_auto, mapping).values()
            # transformers' list of these has encoder-decoders, and models with several heads.
            and (name != "fill-mask" or architecture.endswith(suffix))
        )
        or (auto_class in own_code and architecture.endswith(suffix))
    ]
    shown = f"a {architecture}" if architecture else "without an architecture in its config.json"
    if task == "auto":
        task = "embed" if has_modules else next(iter(can_do), "auto")
        if task == "fill-mask":
            logger.warning(
                "%s is %s: taken for a model that fills masks; for embeddings give --task embed",
                model,
                shown,
            )
    if task == "auto":
        raise ModelError(
            f"{model} is {shown}: its files do not say what to do; choose --task embed"
            f" (or --task {' or '.join(_TRAINED_FOR)} with a model that has the head for it)"
        )
    if task in _TRAINED_FOR and task not in can_do:
        raise ModelError(
            f"{model} is {shown}: it has no head for {task}, only random numbers would answer;"
            f" take a model that was trained for it, or --task {next(iter(can_do), 'embed')}"
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


def _heads_of(model_type: str) -> dict[str, str]:
    """The classes of an architecture that have a head, by the end of their names."""
    from transformers.models.auto import modeling_auto

    found = {
        suffix: getattr(modeling_auto, mapping).get(model_type)
        for suffix, mapping, _ in _TRAINED_FOR.values()
    }
    return {suffix: name for suffix, name in found.items() if isinstance(name, str)}


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


def _cross_encoder_activation(config: Any, num_labels: int) -> str:
    """The rule of sentence-transformers' CrossEncoder: what the model names, else sigmoid."""
    stated = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    stated = stated or getattr(config, "sbert_ce_default_activation_function", None)
    if stated is None:
        return "sigmoid" if num_labels == 1 else "none"
    kind = str(stated).rpartition(".")[2]
    if kind not in _ACTIVATIONS:
        raise ModelError(f"{config._name_or_path}: its activation {stated} is not supported")
    return _ACTIVATIONS[kind]


def _normalizer(tokenizer: Any) -> str:
    if not _is_fast(tokenizer):
        return ""
    return json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"])
