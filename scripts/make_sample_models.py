"""Train the small sample models, one a task, from nothing, in about a minute each.

    python scripts/make_sample_models.py --output sample_data [NAME]...

Each is a real architecture with a tokenizer of its own, for demonstrations and tests. They learn from
text that `sample_text.py` and `make_sample_reviews.py` compose; no public data set and no pretrained
weights are used. What a model is examined on is in its card, and computed by its `scores`. Weights are
stored in bfloat16, which halves the files; the scores are those of the stored weights, in float32.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from make_sample_reviews import Composer, Dice, whole_reviews
from sample_text import (
    QUERIES,
    RELEVANCE,
    Entity,
    EntityText,
    reviews,
    searches,
    sum_text,
)
from sample_training import (
    BERT_TOKENS,
    SAMPLES,
    Score,
    bert_tokenizer,
    logits_of,
    num_parameters,
    optimize,
    save,
    table,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerFast as Tokens

SEED = 7
#: Texts of the examinations come from other seeds than those of the training.
EXAM_SEED = 1007
MAX_LENGTH = 128
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
PUNCTUATION = ".,!?'\"-:;()$%&/"
#: What there are reviews of.
PRODUCTS = tuple(Composer(Dice(SEED)).products)
#: No loss at these places.
IGNORED = -100

#: What a model takes, `labels` among it, from which it computes its loss.
Inputs = dict[str, torch.Tensor]


class Recipe(ABC):
    """How one sample model is made, and how it is examined."""

    name: ClassVar[str]
    pipeline_tag: ClassVar[str]
    steps: ClassVar[int] = 1500
    peak_rate: ClassVar[float] = 2e-3
    #: What it does, and what it gets wrong, for its card.
    does: ClassVar[str]
    fails: ClassVar[str]

    @abstractmethod
    def tokenizer(self) -> Tokens:
        """The tokenizer, which is not trained further."""

    @abstractmethod
    def model(self, tokenizer: Tokens) -> Model:
        """The untrained model."""

    @abstractmethod
    def batches(self, tokenizer: Tokens, dice: Dice) -> Iterator[Inputs]:
        """Batches of newly composed text, without end."""

    @abstractmethod
    def scores(self, model: Model, tokenizer: Tokens) -> dict[str, Score]:
        """How well the trained model does, by what it is examined on."""


# --- Encoders -----------------------------------------------------------------------------------


def bert_config(tokenizer: Tokens, hidden: int, **more: Any) -> BertConfig:
    """Two layers of this width."""
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        **more,
    )


def named(*labels: str) -> dict[str, Any]:
    """The labels of a configuration."""
    ids = {label: index for index, label in enumerate(labels)}
    return {"id2label": dict(enumerate(labels)), "label2id": ids}


def word_tokenizer(words: Iterable[str], max_length: int) -> Tokens:
    """Lower-cased: these words, and letters for every other one."""
    single = [*PUNCTUATION, *DIGITS, *LETTERS]
    pieces = [f"##{letter}" for letter in DIGITS + LETTERS]
    known = sorted(set(words).difference(single))
    normalizer = normalizers.BertNormalizer(lowercase=True)
    return bert_tokenizer([*BERT_TOKENS, *single, *pieces, *known], normalizer, max_length)


def words_of(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, lower-cased."""
    splitter = pre_tokenizers.BertPreTokenizer()
    return Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower()))


def review_tokenizer(texts: Iterable[str]) -> Tokens:
    """For the usual words of reviews, and those of these texts."""
    words = words_of(text for _, text in islice(reviews(Dice(SEED)), 6000))
    common = [word for word, count in words.items() if count > 4]
    return word_tokenizer([*common, *words_of(texts)], MAX_LENGTH)


class Entities(Recipe):
    """Persons, places and products."""

    name = "tiny-entities"
    pipeline_tag = "token-classification"
    does = "finds persons (`PER`), places (`LOC`) and products (`PROD`) in an English sentence"
    fails = (
        "Sentences of other kinds than its patterns: it goes by capital letters and by the words next to a\n"
        "name, so it may call a nationality or the first word of a sentence a name, and it misses names in\n"
        "lower case. There are no organisations among its labels."
    )
    labels = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-PROD", "I-PROD")

    def tokenizer(self) -> Tokens:
        text = EntityText(Dice(SEED))
        texts = " ".join(text.example()[0] for _ in range(4000))
        words = Counter(re.findall("[a-z]{2,}", texts)).most_common(500)
        # Names are left to their pieces: a model that knows them by heart reads no others.
        pieces = Counter(
            ("##" if at else "") + name[at : at + length]
            for name in re.findall("[A-Z][a-z]+", texts)
            for length in (2, 3)
            for at in range(len(name) - length + 1)
        ).most_common(300)
        letters = LETTERS + LETTERS.upper() + DIGITS
        single = [*PUNCTUATION, *letters, *(f"##{letter}" for letter in letters)]
        tokens = [*BERT_TOKENS, *single, *sorted({piece for piece, _ in [*words, *pieces]})]
        return bert_tokenizer(tokens, normalizers.BertNormalizer(lowercase=False), MAX_LENGTH)

    def model(self, tokenizer: Tokens) -> Model:
        return BertForTokenClassification(bert_config(tokenizer, 64, **named(*self.labels)))

    def batches(self, tokenizer: Tokens, dice: Dice) -> Iterator[Inputs]:
        text = EntityText(dice)
        while True:
            texts, entities = zip(*(text.example() for _ in range(48)), strict=True)
            encoded = tokenizer(
                list(texts),
                padding=True,
                truncation=True,
                return_tensors="pt",
                return_offsets_mapping=True,
            )
            labels = torch.full(encoded["input_ids"].shape, IGNORED)
            for row, offsets in enumerate(encoded.pop("offset_mapping").tolist()):
                for column, (start, end) in enumerate(offsets):
                    if start < end:
                        labels[row, column] = self._label(start, end, entities[row])
            yield {**encoded, "labels": labels}

    def _label(self, start: int, end: int, entities: Sequence[Entity]) -> int:
        for first, last, label in entities:
            if first <= start and end <= last:
                return self.labels.index(("B-" if start == first else "I-") + label)
        return 0

    def scores(self, model: Model, tokenizer: Tokens) -> dict[str, Score]:
        find = pipeline(self.pipeline_tag, model, tokenizer=tokenizer, aggregation_strategy="first")
        text = EntityText(Dice(EXAM_SEED), held_out=True)
        right = there = called = 0
        for _ in range(300):
            example, entities = text.example()
            wanted = set(entities)
            found = {(one["start"], one["end"], one["entity_group"]) for one in find(example)}
            right += len(wanted & found)
            there += len(wanted)
            called += len(found)
        return {
            "entities found exactly, of names and sentences not in training": Score(right, there),
            "right ones of those that it names": Score(right, called),
        }


class Reranker(Recipe):
    """Whether a review answers a query."""

    name = "tiny-reranker"
    pipeline_tag = "text-ranking"
    steps = 2000
    does = "scores how well a review answers a query such as `looking for a hotel`"
    fails = (
        f"Queries for anything but one of its {len(PRODUCTS)} products, and for properties of these:\n{', '.join(PRODUCTS)}.\n"
        "Its training had every sentence of the sample reviews: others it knows by single words only."
    )

    def tokenizer(self) -> Tokens:
        return review_tokenizer([*QUERIES, *PRODUCTS])

    def model(self, tokenizer: Tokens) -> Model:
        config = bert_config(tokenizer, 48, num_labels=1)
        config.problem_type = "multi_label_classification"  # of one label: a sigmoid
        return BertForSequenceClassification(config)

    def batches(self, tokenizer: Tokens, dice: Dice) -> Iterator[Inputs]:
        drawn = searches(dice)
        labels = torch.tensor(RELEVANCE).repeat(16)[:, None]
        while True:
            pairs = [(query, text) for query, texts in islice(drawn, 16) for text in texts]
            encoded = tokenizer(pairs, padding=True, truncation=True, return_tensors="pt")
            yield {**encoded, "labels": labels}

    def scores(self, model: Model, tokenizer: Tokens) -> dict[str, Score]:
        exam = list(islice(searches(Dice(EXAM_SEED)), 400))
        pairs = [(query, text) for query, texts in exam for text in texts]
        best = logits_of(model, tokenizer, pairs).view(len(exam), -1).argmax(dim=1)
        return {"the right one of four reviews first": Score(int((best == 0).sum()), len(exam))}


class Entailment(Recipe):
    """Whether a review is about a product, as natural language inference."""

    name = "tiny-entailment"
    pipeline_tag = "zero-shot-classification"
    steps = 2000
    does = (
        "says whether a hypothesis such as `This example is about hotel.` follows from an English\n"
        "review (`entailment`) or not (`not_entailment`)"
    )
    fails = (
        f"Every hypothesis that names none of its {len(PRODUCTS)} products:\n{', '.join(PRODUCTS)}.\n"
        "That it answers labels which it has never seen, as large models do, nobody should expect of it.\n"
        "Its training had every sentence of the sample reviews: others it knows by single words only."
    )
    hypotheses = (
        "This example is {}.", "This example is about {}.", "This text is about {}.",
        "The subject is {}.", "It is about {}.",
    )  # fmt: skip

    def tokenizer(self) -> Tokens:
        return review_tokenizer([*self.hypotheses, *PRODUCTS])

    def model(self, tokenizer: Tokens) -> Model:
        labels = named("entailment", "not_entailment")
        return BertForSequenceClassification(bert_config(tokenizer, 48, **labels))

    def batches(self, tokenizer: Tokens, dice: Dice) -> Iterator[Inputs]:
        texts = reviews(dice)
        labels = torch.tensor([0, 1] * 24)
        while True:
            pairs = []
            for product, text in islice(texts, 24):
                other = dice.pick([one for one in PRODUCTS if one != product])
                pairs += [(text, dice.pick(self.hypotheses).format(it)) for it in (product, other)]
            encoded = tokenizer(pairs, padding=True, truncation="only_first", return_tensors="pt")
            yield {**encoded, "labels": labels}

    def scores(self, model: Model, tokenizer: Tokens) -> dict[str, Score]:
        with (SAMPLES / "reviews.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["product"] in PRODUCTS][:300]
        asked = [f"This example is about {product}." for product in PRODUCTS]
        pairs = [(row["text"][:2000], hypothesis) for row in rows for hypothesis in asked]
        logits = logits_of(model, tokenizer, pairs)[:, 0].view(len(rows), -1)
        found = [PRODUCTS[index] for index in logits.argmax(dim=1).tolist()]
        right = sum(one == row["product"] for one, row in zip(found, rows, strict=True))
        what = f"the right one of {len(asked)} products, 300 of `sample_data/reviews.csv`"
        return {what: Score(right, len(rows))}


# --- Language models ----------------------------------------------------------------------------


class ReviewModel(Recipe):
    """A language model of reviews."""

    shift: ClassVar[int]
    task: ClassVar[str]

    @abstractmethod
    def inputs(self, texts: Iterable[tuple[str, str]], tokenizer: Tokens, seed: int) -> Inputs:
        """A batch: what the model is shown of these reviews, and what it should say."""

    def batches(self, tokenizer: Tokens, dice: Dice) -> Iterator[Inputs]:
        texts = reviews(dice)
        for seed in itertools.count():
            yield self.inputs(islice(texts, 32), tokenizer, seed)

    def scores(self, model: Model, tokenizer: Tokens) -> dict[str, Score]:
        made = {}
        for what, texts in (
            ("reviews of sentences that it knows", islice(reviews(Dice(EXAM_SEED)), 300)),
            ("reviews not in training", [(one.product, one.text) for one in whole_reviews()]),
        ):
            inputs = self.inputs(texts, tokenizer, EXAM_SEED)
            labels = inputs["labels"][:, self.shift :]
            with torch.inference_mode():
                guessed = model(**inputs).logits[:, : labels.shape[1]].argmax(dim=-1)
            there = labels != IGNORED
            right = int((guessed == labels)[there].sum())
            made[f"{self.task}, {what}"] = Score(right, int(there.sum()))
        return made


class Gaps(ReviewModel):
    """Words in gaps of reviews."""

    name = "tiny-gaps"
    pipeline_tag = "fill-mask"
    steps = 2500
    peak_rate = 3e-3
    does = "fills the gaps, `[MASK]`, of English reviews"
    fails = (
        "Nearly everything but the sentences of the sample reviews, which it knows by heart: elsewhere it\n"
        "often gets no further than the kind of word that is missing. Words that are not among its tokens\n"
        "are spelled in letters, and it does not fill a gap with those."
    )
    shift = 0
    task = "the missing token, a fifth of them missing"

    def tokenizer(self) -> Tokens:
        counted = words_of(text for _, text in islice(reviews(Dice(SEED)), 4000))
        return word_tokenizer([word for word, _ in counted.most_common(1350)], 64)

    def model(self, tokenizer: Tokens) -> Model:
        return BertForMaskedLM(bert_config(tokenizer, 64))

    def inputs(self, texts: Iterable[tuple[str, str]], tokenizer: Tokens, seed: int) -> Inputs:
        encoded = tokenizer(
            [text for _, text in texts], padding=True, truncation=True, return_tensors="pt"
        )
        ids = encoded["input_ids"]
        drawn = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
        missing = (drawn < 0.2) & (ids >= len(BERT_TOKENS))
        labels = ids.masked_fill(~missing, IGNORED)
        encoded["input_ids"] = ids.masked_fill(missing, tokenizer.mask_token_id)
        return {**encoded, "labels": labels}


def byte_tokenizer(
    texts: Iterable[str], size: int, special: Sequence[str], pattern: str, **more: Any
) -> Tokens:
    """Byte-level BPE; each digit is a token. `pattern`: where special tokens stand around a text, $A."""
    tokenizer = Tokenizer(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=pattern,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in special],
    )
    return Tokens(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        pad_token="<pad>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
        **more,
    )


class Writer(ReviewModel):
    """Goes on writing a review."""

    name = "tiny-writer"
    pipeline_tag = "text-generation"
    peak_rate = 4e-3
    does = (
        "goes on writing where an English review stops; it has no chat template and follows no\n"
        "instruction"
    )
    fails = (
        "It knows the sentences of the sample reviews by heart and goes on with the nearest one; what one\n"
        "sentence says has little to do with the one before it. A beginning that no review has leads\n"
        "nowhere."
    )
    shift = 1
    task = "the next token"

    def tokenizer(self) -> Tokens:
        texts = [text for _, text in islice(reviews(Dice(SEED)), 3000)]
        special = ("<pad>", "<s>", "</s>")
        return byte_tokenizer(texts, 1100, special, "<s> $A", bos_token="<s>", padding_side="left")

    def model(self, tokenizer: Tokens) -> Model:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_LENGTH,
            initializer_range=0.05,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return LlamaForCausalLM(config)

    def inputs(self, texts: Iterable[tuple[str, str]], tokenizer: Tokens, seed: int) -> Inputs:
        ended = [text + tokenizer.eos_token for _, text in texts]
        encoded = tokenizer(
            ended, padding=True, padding_side="right", truncation=True, return_tensors="pt"
        )
        ids = encoded["input_ids"]
        return {**encoded, "labels": ids.masked_fill(ids == tokenizer.pad_token_id, IGNORED)}


class Translator(Recipe):
    """Numerals in words into digits."""

    name = "tiny-translator"
    pipeline_tag = "text2text-generation"
    peak_rate = 3e-3
    does = (
        "translates sentences with numerals in words into digits: `forty-two apples cost nine dollars`\n"
        "into `42 apples cost $9`"
    )
    fails = (
        "Sentences of other patterns than the five that it has seen, and things other than its 12 kinds of\n"
        "goods: it has no way to copy a word that it never learned. Numbers from 100 on."
    )

    def tokenizer(self) -> Tokens:
        dice = Dice(SEED)
        texts = [" ".join(sum_text(dice)) for _ in range(3000)]
        return byte_tokenizer(texts, 400, ("<pad>", "</s>"), "$A </s>")

    def model(self, tokenizer: Tokens) -> Model:
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
        return T5ForConditionalGeneration(config)

    def batches(self, tokenizer: Tokens, dice: Dice) -> Iterator[Inputs]:
        while True:
            words, answers = zip(*(sum_text(dice) for _ in range(48)), strict=True)
            encoded = tokenizer(list(words), padding=True, return_tensors="pt")
            ids = tokenizer(list(answers), padding=True, return_tensors="pt")["input_ids"]
            yield {**encoded, "labels": ids.masked_fill(ids == tokenizer.pad_token_id, IGNORED)}

    def scores(self, model: Model, tokenizer: Tokens) -> dict[str, Score]:
        dice = Dice(EXAM_SEED)
        pairs = [sum_text(dice, held_out=True) for _ in range(200)]
        encoded = tokenizer([words for words, _ in pairs], padding=True, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**encoded, max_new_tokens=30, do_sample=False)
        found = tokenizer.batch_decode(ids, skip_special_tokens=True)
        right = sum(one == answer for one, (_, answer) in zip(found, pairs, strict=True))
        return {"sentences without a mistake, numbers not in training": Score(right, len(pairs))}


# --- Making them --------------------------------------------------------------------------------

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (Entities(), Reranker(), Entailment(), Gaps(), Writer(), Translator())
}

CARD = """---
license: apache-2.0
language: en
pipeline_tag: {pipeline_tag}
library_name: transformers
---

# {name}

A tiny model that {does}.
It is a real model of a real architecture, small enough to live in a repository: for demonstrations and tests
of batchinfer, and for nothing that matters to anybody.

| | |
|---|---|
{table}

`scripts/make_sample_models.py` trains it from nothing, on text that is composed for it. No public data set and
no pretrained weights are involved. The scores are those of the stored weights, computed in float32.

## What it gets wrong

{fails}

Licence: Apache-2.0.
"""


def make(recipe: Recipe, output: Path) -> None:
    """Train a sample model, examine it, and write its folder."""
    torch.set_num_threads(1)  # one thread gives the same weights whatever the number of cores
    torch.manual_seed(SEED)
    tokenizer = recipe.tokenizer()
    model = recipe.model(tokenizer)
    batches = recipe.batches(tokenizer, Dice(SEED))
    seconds = optimize(
        model,
        lambda _: model(**next(batches)).loss,
        steps=recipe.steps,
        peak_rate=recipe.peak_rate,
    )
    model = model.to(torch.bfloat16)
    scores = recipe.scores(copy.deepcopy(model).float(), tokenizer)
    config = model.config
    facts = {
        "architecture": f"`{type(model).__name__}`, {config.num_hidden_layers} layers, hidden size "
        f"{config.hidden_size}, {num_parameters(model):,} parameters, bfloat16",
        "tokenizer": f"{len(tokenizer):,} tokens, at most {tokenizer.model_max_length} a text",
        "training": f"{recipe.steps:,} steps, seed {SEED}, {seconds:.0f} s of one core",
        **scores,
    }
    print(table(facts))
    card = CARD.format(
        name=recipe.name,
        pipeline_tag=recipe.pipeline_tag,
        does=recipe.does,
        fails=recipe.fails,
        table=table(facts),
    )
    save(output / recipe.name, model, tokenizer, card)


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Train the sample models from nothing.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or: {', '.join(RECIPES)}")
    parser.add_argument("--output", type=Path, default=SAMPLES)
    settings = parser.parse_args()
    for name in settings.names:
        if name not in RECIPES:
            parser.error(f"{name}: no such model; there are: {', '.join(RECIPES)}")
    for name in settings.names or RECIPES:
        print(f"\n{name}")
        make(RECIPES[name], settings.output)


if __name__ == "__main__":
    main()
