"""What tasks have in common whose answer is a text that the model writes, a token at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.config import RunConfig
from batchinfer.core import AnsweredChunk, Chunk, ModelSpec, Requests
from batchinfer.errors import UsageError, one_line
from batchinfer.tasks.base import AnswerField, Head, Task, scatter, valid_rows
from batchinfer.tokenization import Encoder

#: Why an answer ends, by its code in `finish`.
FINISHES = ("length", "stop")
LENGTH, STOP = range(2)
#: The field that holds a row's seed, once for each of its tokens: batches carry fields alone.
SEED = "seed"


def with_settings(config: RunConfig) -> RunConfig:
    """The configuration with what the file of `generation_config` says in its place, as JSON.

    Raises UsageError for a file that cannot be read, and for what is no JSON object.
    """
    if not (stated := config.generation_config.strip()):
        return config
    where, text = "--generation-config", stated
    try:
        if not stated.startswith("{"):
            where += f" {stated}"
            text = Path(stated).read_text(encoding="utf-8")
        settings = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: cannot be read: {one_line(error)}") from None
    if not isinstance(settings, dict):
        raise UsageError(f"{where}: should be a JSON object of settings")
    return config.model_copy(update={"generation_config": json.dumps(settings, sort_keys=True)})


class Generation(Task):
    """A text a row: the tokens that the model adds to it, or makes of it.

    The settings are those of the model's own generation configuration, of `--generation-config`, and of
    flags, the later ones first; they were resolved when the job was planned (`ModelSpec.generation`).
    Where they draw at random, each row draws by itself, from a seed made of `--seed` and the row's
    place in the input: neither the batch nor an interruption changes what it draws.
    """

    #: The transformers class that loads the model.
    auto_class: ClassVar[str]
    head: ClassVar[Head] = "tokens"
    writes_tokens: ClassVar[bool] = True
    word_columns: ClassVar[tuple[str, ...]] = (
        "generated_text", "finish_reason", "num_generated_tokens",
    )  # fmt: skip
    knobs: ClassVar[frozenset[str]] = frozenset(
        {"max_new_tokens", "temperature", "top_k", "top_p", "stop", "seed", "generation_config"}
    )

    def __init__(
        self, spec: ModelSpec, config: RunConfig | None = None, schema: pa.Schema | None = None
    ) -> None:
        super().__init__(spec, config, schema)
        if self.text_pair_column is not None:
            raise UsageError(
                f"--text-pair-column: means nothing to --task {self.name}; leave it out"
            )
        #: As transformers' GenerationConfig names them.
        self.settings: Mapping[str, Any] = json.loads(spec.generation or "{}")
        if self.draws and self.num_beams > 1:
            raise UsageError(
                f"{self.num_beams} beams and sampling together are not supported: take --temperature 0, "
                "or a --generation-config with num_beams 1"
            )
        if self.config.dedup == "chunk" and self.obstacle_to_sharing:
            raise UsageError(
                f"--dedup chunk: {self.obstacle_to_sharing}; leave it out, or take --temperature 0"
            )
        if not all(self.stop):
            raise UsageError("--stop: is empty, and would end every answer where it begins")
        if self.stop and self.num_beams > 1:
            raise UsageError(
                f"--stop: not with {self.num_beams} beams; take a --generation-config with num_beams 1"
            )

    @property
    def max_new_tokens(self) -> int:
        """Tokens that an answer may have."""
        return int(self.settings.get("max_new_tokens") or 1)

    @property
    def tokens_ahead(self) -> int:
        return self.max_new_tokens

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random."""
        return bool(self.settings.get("do_sample"))

    @property
    def obstacle_to_sharing(self) -> str:
        return "each row draws its own answer" if self.draws else ""

    @property
    def num_beams(self) -> int:
        return int(self.settings.get("num_beams") or 1)

    @property
    def stop(self) -> Sequence[str]:
        """Texts that end an answer, and are no part of it."""
        return tuple(self.settings.get("stop_strings") or ())

    @property
    def columns(self) -> list[pa.Field[Any]]:
        return [
            pa.field("generated_text", pa.string()),
            pa.field("finish_reason", pa.string()),
            pa.field("num_generated_tokens", pa.int32()),
        ]

    @property
    def answers(self) -> Mapping[str, AnswerField]:
        """The tokens of each request, why they end, and `check`, NaN where scores were no numbers."""
        return {
            "check": AnswerField(np.float32),
            "count": AnswerField(np.int32, high=min(9, self.max_new_tokens + 1)),
            "finish": AnswerField(np.int8, high=len(FINISHES)),
            "tokens": AnswerField(np.int32, high=256, counted_by="count"),
        }

    def decode(self, answered: AnsweredChunk) -> list[pa.Array[Any]]:
        missing = ~valid_rows(answered)
        count, finish = (scatter(answered, name) for name in ("count", "finish"))
        texts = np.full(len(missing), None, dtype=object)
        texts[answered.requests.row] = self._texts(answered)
        reasons = pa.DictionaryArray.from_arrays(
            pa.array(finish, mask=missing), pa.array(FINISHES, pa.string())
        )
        return [
            pa.array(texts, pa.string(), mask=missing),
            reasons.cast(pa.string()),
            pa.array(count, mask=missing),
        ]

    def _texts(self, answered: AnsweredChunk) -> list[str]:
        """The text of each request's tokens, up to where a stop begins."""
        assert self.detokenizer is not None, "whoever decodes has prepared for it"
        ends = np.cumsum(answered.values["count"], dtype=np.int64)[:-1]
        tokens = np.split(answered.values["tokens"], ends) if len(answered.requests) else []
        ids = [run.tolist() for run in tokens]
        texts = self.detokenizer.decode(ids, skips_special=True)
        return [self._before_stop(text) for text in texts] if self.stop else texts

    def _before_stop(self, text: str) -> str:
        places = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text

    def seeded(self, requests: Requests, chunk: Chunk) -> Requests:
        """The requests with the seeds of their rows, where tokens are drawn."""
        if not self.draws:
            return requests
        place = (self.config.seed, chunk.id.segment, chunk.id.chunk)
        seeds = np.random.SeedSequence(place).generate_state(chunk.num_rows).astype(np.int32)
        repeated = np.repeat(seeds[requests.row], requests.cost)
        return requests.with_field(SEED, repeated)

    def encode(self, chunk: Chunk, encoder: Encoder) -> Requests:
        return self.seeded(super().encode(chunk, encoder), chunk)


def seeds_of(fields: Mapping[str, Any], lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
    """The seed of each row of a batch, uint32[b]."""
    ends = np.cumsum(lengths, dtype=np.int64)
    seeds: npt.NDArray[np.uint32] = np.asarray(fields[SEED])[ends - 1].astype(np.uint32)
    return seeds
