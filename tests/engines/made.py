"""Small models of real architectures, made from a seed: the same weights on every machine.

Random weights answer nearly the same to every text, and a test that compares equal answers proves
nothing. So weights are spread until rows differ; the tests assert that before anything else.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

_LINE = "ba be bi da de di fa ga go ha ke la lo ma mi na no pa pe ra ri sa so ta ti to va ve zu"
SYLLABLES = [*_LINE.split()]
ODDITIES = [
    "naïve",
    "東京",
    "42",
    "3.50",
    "don't",
    "$7",
    "E=mc2",
    "Ωmega",
    "🙂",
    "(maybe)",
    "co-op",
    "x",
]


def words(count: int = 800) -> list[str]:
    """A made-up vocabulary."""
    draw = random.Random(7)
    return sorted({"".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(count)})


def texts(count: int, seed: int = 0, longest: int = 90) -> list[str]:
    """Sentences of made-up words, numbers and oddities; very mixed lengths."""
    draw = random.Random(seed)
    known = words()
    made = []
    for _ in range(count):
        length = min(longest, 1 + int(draw.expovariate(1 / 20)))
        parts = [draw.choice(ODDITIES if draw.random() < 0.1 else known) for _ in range(length)]
        made.append(" ".join(parts) + draw.choice(".!? "))
    return made


def wordpiece(lines: list[str] | None = None) -> Tokenizer:
    """As in BERT and DistilBERT."""
    tokenizer = _wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], lines)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def mpnet(lines: list[str] | None = None) -> Tokenizer:
    """As in MPNet: WordPiece between RoBERTa's special tokens."""
    tokenizer = _wordpiece(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"], lines)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B:1 </s>:1",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer


def _wordpiece(special: list[str], lines: list[str] | None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=_size(700, lines), special_tokens=special)
    tokenizer.train_from_iterator(lines or texts(500), trainer)
    return tokenizer


def byte_level(pattern: str | None = None, lines: list[str] | None = None) -> Tokenizer:
    """As in RoBERTa and GPT-2; with a pattern, as in Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    split: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern is not None:
        split = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=_size(900, lines),
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(lines or texts(500), trainer)
    return tokenizer


def roberta(lines: list[str] | None = None) -> Tokenizer:
    tokenizer = byte_level(lines=lines)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram(lines: list[str] | None = None) -> Tokenizer:
    """As in XLM-R."""
    tokenizer = _unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], lines)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=True
    )
    return tokenizer


def deberta(lines: list[str] | None = None) -> Tokenizer:
    """As in DeBERTa-v2: Unigram between BERT's special tokens."""
    tokenizer = _unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], lines)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return tokenizer


def t5(lines: list[str] | None = None) -> Tokenizer:
    """As in T5: nothing stands before a text."""
    tokenizer = _unigram(["<pad>", "</s>", "<s>", "<unk>"], lines)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def _unigram(special: list[str], lines: list[str] | None) -> Tokenizer:
    """The fourth special token stands for what is not in the vocabulary."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=_size(600, lines), special_tokens=special, unk_token=special[3]
    )
    tokenizer.train_from_iterator(lines or texts(500), trainer)
    return tokenizer


def _size(usual: int, lines: list[str] | None) -> int:
    """The size of a vocabulary: real texts need a larger one than made-up words."""
    return usual if lines is None else 4000


def sentencepiece_bpe() -> Tokenizer:
    """As in Llama 2: no pre-tokenizer, so merges reach across spaces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    common = ["of the " + text for text in texts(500, longest=10)]
    tokenizer.train_from_iterator(
        common, BpeTrainer(vocab_size=900, special_tokens=["<unk>", "<s>", "</s>"])
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


_BERT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
}  # fmt: skip
_ROBERTA = {**_BERT, "max_position_embeddings": 130, "type_vocab_size": 1, "pad_token_id": 1}
_MODERN = {
    "pad_token_id": 1, "cls_token_id": 0, "bos_token_id": 0, "sep_token_id": 2, "eos_token_id": 2,
    "global_attn_every_n_layers": 2, "local_attention": 16, "max_position_embeddings": 128,
    "norm_bias": True,
}  # fmt: skip
_GPT2 = {
    "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 5, "eos_token_id": 5,
}  # fmt: skip
#: name → tokenizer, class prefix, configuration
ARCHITECTURES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "bert": (wordpiece, "Bert", {**_BERT, "max_position_embeddings": 128}),
    "distilbert": (
        wordpiece,
        "DistilBert",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 128},
    ),
    "roberta": (roberta, "Roberta", _ROBERTA),
    "xlm-roberta": (unigram, "XLMRoberta", _ROBERTA),
    "modernbert": (roberta, "ModernBert", {**_BERT, **_MODERN}),
    "gpt2": (byte_level, "GPT2", _GPT2),
}
#: Further ones that attention can be packed in.
FURTHER: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "albert": (wordpiece, "Albert", {**_BERT, "embedding_size": 32, "max_position_embeddings": 128}),
    "camembert": (unigram, "Camembert", _ROBERTA),
    "electra": (
        wordpiece,
        "Electra",
        {**_BERT, "embedding_size": 32, "max_position_embeddings": 128},
    ),
    "eurobert": (
        roberta,
        "EuroBert",
        {
            **_BERT, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 1,
            "bos_token_id": 0, "eos_token_id": 2, "mask_token_id": 4,
        },
    ),
    "nomic_bert": (wordpiece, "NomicBert", {**_BERT, "max_position_embeddings": 128}),
    "qwen3": (
        byte_level,
        "Qwen3",
        {
            **_BERT, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
            "pad_token_id": 1, "bos_token_id": 5, "eos_token_id": 5,
        },
    ),
}  # fmt: skip
_LLAMA = {
    **_BERT, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 1,
    "bos_token_id": 5, "eos_token_id": 5,
}  # fmt: skip
_BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 256, "forced_eos_token_id": None,
}  # fmt: skip
#: Models that write: name → tokenizer, class, configuration.
WRITERS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "gpt2": (byte_level, "GPT2LMHeadModel", {**_GPT2, "n_positions": 256}),
    "llama": (byte_level, "LlamaForCausalLM", _LLAMA),
    "qwen2": (byte_level, "Qwen2ForCausalLM", _LLAMA),
    "t5": (
        unigram,
        "T5ForConditionalGeneration",
        {
            "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4,
            "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
        },
    ),
    "bart": (
        roberta, "BartForConditionalGeneration", {**_BART, "decoder_start_token_id": 2},
    ),
    "marian": (unigram, "MarianMTModel", {**_BART, "decoder_start_token_id": 1}),
}  # fmt: skip
#: Those whose rows are padded: told to attend packed, most of them say nothing and answer nonsense.
PADDED: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "bart": (
        roberta,
        "Bart",
        {
            "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
            "max_position_embeddings": 128,
        },
    ),
    "deberta-v2": (
        deberta,
        "DebertaV2",
        {
            **_BERT, "max_position_embeddings": 128, "type_vocab_size": 0, "relative_attention": True,
            "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
        },
    ),
    "mpnet": (mpnet, "MPNet", {**_BERT, "max_position_embeddings": 130}),
    "t5": (
        t5,
        "T5",
        {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4,
         "decoder_start_token_id": 0},
    ),
}  # fmt: skip
_SPECIAL = {
    "wordpiece": {
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    },
    "roberta": {
        "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>",
        "mask_token": "<mask>",
        "model_input_names": ["input_ids", "attention_mask"],
    },
    "byte_level": {
        "eos_token": "<|endoftext|>", "model_input_names": ["input_ids", "attention_mask"],
    },
}  # fmt: skip
_SPECIAL["unigram"] = _SPECIAL["roberta"]
_SPECIAL["mpnet"] = {**_SPECIAL["roberta"], "unk_token": "[UNK]"}
_SPECIAL["deberta"] = _SPECIAL["wordpiece"]
_SPECIAL["t5"] = {
    "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
    "model_input_names": ["input_ids", "attention_mask"],
}  # fmt: skip


def make_model(
    folder: Path,
    architecture: str,
    head: str = "Model",
    *,
    seed: int = 0,
    lines: list[str] | None = None,
    std: float = 0.4,
    **config: Any,
) -> Path:
    """Save a model with its tokenizer; `head`: Model, ForSequenceClassification, ForMaskedLM, …

    `lines`: what the tokenizer is trained on, and rows are spread for; None: made-up texts. `std`: how
    wide the weights of layers are; where they are wide, a state depends on every token, and rounding
    too grows from layer to layer.
    """
    make_tokenizer, prefix, settings = {**ARCHITECTURES, **FURTHER, **PADDED}[architecture]
    tokenizer = make_tokenizer(lines=lines)
    settings = {**settings, "vocab_size": tokenizer.get_vocab_size(), **config}
    torch.manual_seed(seed)
    model = getattr(transformers, prefix + head)(
        getattr(transformers, prefix + "Config")(**settings)
    )
    tokenizer.enable_truncation(60)
    sample = tokenizer.encode_batch((lines or texts(50, seed=99))[:50])
    _spread(model.eval(), [torch.tensor([e.ids]) for e in sample], std)
    tokenizer.no_truncation()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", **_SPECIAL[make_tokenizer.__name__]}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


@torch.inference_mode()
def _spread(model: Any, inputs: list[torch.Tensor], std: float) -> None:
    """Widen the weights, and take what all rows have in common out of the last bias."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=1.0 if "embed" in name or "wte" in name else std)
            parameter.copy_(parameter.bfloat16())  # as most checkpoints are published
    base = model.base_model
    norms = [m for m in base.modules() if isinstance(m, torch.nn.LayerNorm) and m.bias is not None]
    if norms:  # those that normalise by the root mean square have no bias
        states = [base(ids).last_hidden_state[0] for ids in inputs]
        norms[-1].bias -= torch.stack([s.mean(dim=0) for s in states]).mean(dim=0)
    if model is not base and "SequenceClassification" in type(model).__name__:
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        [head] = [m for m in linear if m.out_features == model.config.num_labels]
        logits = torch.cat([model(ids).logits for ids in inputs])
        if head.bias is not None:  # GPT-2's has none
            head.bias -= logits.mean(dim=0)
        for parameter in head.parameters():  # so that no score is all but 0 or 1
            parameter *= 1.5 / logits.std(dim=0).mean()


def make_writer(
    folder: Path,
    architecture: str,
    *,
    chat_template: str = "",
    vocab_size: int = 0,
    lines: list[str] | None = None,
    **generation: Any,
) -> Path:
    """Save a model that writes, with its tokenizer; `generation`: its generation configuration.

    Many a token ends an answer, so that some rows stop, and some go on. `lines` are those of make_model.
    """
    make_tokenizer, name, settings = WRITERS[architecture]
    tokenizer = make_tokenizer(lines=lines)
    size = vocab_size or tokenizer.get_vocab_size()
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(vocab_size=size, **settings)).eval()
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if (
                parameter.dim() == 2
            ):  # what is read must count, beside positions and what is written
                counts = "shared" in name or "encoder_attn" in name
                parameter.normal_(std=1.0 if counts else 0.3)
    every = 5 if architecture == "marian" else 20  # it says little, and that again and again
    ends = [model.config.eos_token_id, *range(20, size, every)]
    model.generation_config.update(eos_token_id=ends, **generation)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", **_SPECIAL[make_tokenizer.__name__]}
    if chat_template:
        special["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder
