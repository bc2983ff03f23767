"""The engine of models that write: transformers' `generate`, over batches of prompts of about one length.

What makes it fast is before it: prompts are sorted, so that little is padded and rows of a batch start
alike. Here, keys and values are kept in memory that is there from the start (transformers' own cache is
copied for each new token), rows that have ended leave the batch as soon as they are half of it, and a CPU
gets faster layers.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from batchinfer.core import Answers, Batch, BatchBudget
from batchinfer.engines import cpu, sampling, weights
from batchinfer.engines.base import StoppedError, reason
from batchinfer.engines.canary import distance, joined, sample_rows
from batchinfer.engines.devices import resolve_dtype
from batchinfer.engines.encoders import load_tokenizer
from batchinfer.engines.kv_cache import bytes_a_token, make_cache
from batchinfer.engines.placement import Placement
from batchinfer.engines.torch_engine import TorchEngine
from batchinfer.errors import UsageError, one_line
from batchinfer.machine import usable_memory
from batchinfer.tasks.generation import LENGTH, STOP, Generation, seeds_of

log = logging.getLogger("batchinfer")

#: Rows of a batch on a CPU and on a GPU, where nobody says otherwise. Weights are read once a step,
#: whatever the batch: on two cores a token of a model with 135 M weights took 4.7 ms in batches of 8,
#: 3.2 ms of 16, 2.2 ms of 32 and 1.8 ms of 64.
_ROWS = {"cpu": 64, "mps": 64, "cuda": 256}
#: Tokens of such a row, prompt and answer, beyond which a batch has fewer rows.
_TOKENS_A_ROW = 2048
#: The share of memory that keys and values may take: of what is free on a GPU, of all elsewhere.
_CACHE_SHARE = {"cpu": 0.25, "mps": 0.25, "cuda": 0.6}
#: A batch of as many rows is not made smaller: a step takes hardly less time with fewer.
_FEWEST = 8
#: Settings that look at the tokens so far, wherever the prompt ends, or are counted down below.
#: With others, a batch is not answered in parts: each begins where the last one ends.
_STEADY = frozenset({
    "max_new_tokens", "min_new_tokens", "eos_token_id", "pad_token_id", "bos_token_id", "do_sample",
    "stop_strings", "num_beams", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids",
    "suppress_tokens", "sequence_bias", "renormalize_logits", "remove_invalid_values", *sampling.DRAWING,
})  # fmt: skip
#: Prompts together may be answered by other first scores than alone by this share; see engines/local.py.
_TOLERANCE = {"float32": 1e-3}
_TOLERANCE_OF_HALVES = 0.05


#: Settings that look at padding, of decoders (on the left) and of encoders with decoders (on the right).
_LOOKS_AT_PADDING = {
    False: ("no_repeat_ngram_size",),
    True: ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty"),
}


class GenerationEngine(TorchEngine):
    """Answers with the text that a transformers model writes.

    `attention`: "auto" (the model's own) or one of transformers' implementations. `threads`: of a CPU;
    None: as many as it has cores. `plain`: the model as transformers has it, with its own layers and
    its own cache: slow, and what other answers are judged by. Raises UsageError for a device that is not
    there and for what does not go with writing (packed attention, compiling, several streams), and
    ModelError for weights that are missing, broken, or not those of the task.
    """

    def __init__(
        self,
        task: Generation,
        folder: Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        attention: str = "auto",
        threads: int | None = None,
        streams: int | None = None,
        compile: bool = False,
        adapter: Path | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        placement: Placement | None = None,
        plain: bool = False,
    ) -> None:
        super().__init__(task, device, placement)
        for flag, given in (
            ("--attention packed", attention == "packed"),
            ("--compile", compile),
            (f"--streams {streams}", (streams or 1) > 1),
        ):
            if given:
                raise UsageError(f"{flag}: not with --task {task.name}; leave it out")
        self.dtype = task.spec.dtype or resolve_dtype(dtype, device)
        load = partial(
            weights.load,
            task,
            folder,
            dtype=self.dtype,
            device=self.device,
            attention="" if attention == "auto" else attention,
            adapter=adapter,
            spread=self.spread,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        self.generation = task
        self.model = load()
        self._pad_token_id = weights.pad_token_id(self.model.config, folder, trust_remote_code)
        self._takes_mask = "attention_mask" in inspect.signature(self.model.forward).parameters
        self._settings = self._generation_config(task)
        self._eos = _as_list(self._settings.eos_token_id)
        self._stops: StopStringCriteria | None = None
        if task.stop:
            tokenizer = load_tokenizer(folder, trust_remote_code)
            self._stops = _stop_criteria(tokenizer, task.stop)
        if self.device.type == "cpu":
            self._take_threads(threads)
            if not plain and not self.spread:
                self._speed_up(load)
        self._is_plain = plain
        #: Whether prompts of several lengths may share a batch.
        self.pads = True
        self._judge_padding()
        self.default_budget = self._budget()

    def answer(self, batch: Batch) -> Answers:
        """Answer a batch of at least one request; may raise whatever the model raises."""
        if self.pads or batch.max_length == int(batch.lengths[-1]):
            return self._answer(batch)
        parts = [self._answer(part) for part in _by_length(batch)]
        names = parts[0].values
        return Answers(
            {name: np.concatenate([part.values[name] for part in parts]) for name in names}
        )

    def tokens_computed(self, batch: Batch) -> int:
        """The tokens of prompts that the model computes for a batch, padding and all."""
        return len(batch) * batch.max_length if self.pads else batch.num_tokens

    @torch.inference_mode()
    def _answer(self, batch: Batch) -> Answers:
        task, encodes = self.generation, self.model.config.is_encoder_decoder
        inputs = self._inputs(batch, on_the_left=not encodes)
        start = 1 if encodes else batch.max_length
        seeds = seeds_of(batch.fields, batch.lengths) if task.draws else None
        failed = np.zeros(len(batch), np.bool_)
        cache = None
        if task.num_beams == 1 and not self._is_plain:
            cache = make_cache(self.model, start + task.max_new_tokens)
        # Of a spread model, each layer keeps its part of the cache on a device of its own.
        shrinks = cache is not None and not self.spread and task.settings.keys() <= _STEADY
        rows = np.arange(len(batch))
        found = np.zeros((len(batch), task.max_new_tokens), np.int32)
        ended = np.zeros(len(batch), np.int64)
        written = 0
        while len(rows):
            few = len(rows) // 2 if shrinks and len(rows) > _FEWEST else 0
            ends = _Ends(self._eos, self._stops, start, few)
            numbers = sampling.Numbers()
            tokens = self._generate(inputs, cache, seeds, ends, numbers, start, written)
            failed[rows] |= numbers.failed.cpu().numpy().reshape(len(rows), -1).any(axis=1)
            fresh = tokens[:, start:].cpu().numpy()
            written = fresh.shape[1]
            found[rows, :written] = fresh
            if task.num_beams > 1:
                is_end = np.isin(fresh, self._eos)
                ended = np.where(is_end.any(axis=1), is_end.argmax(axis=1) + 1, 0)
                break
            ended[rows] = ends.at.cpu().numpy()
            going = np.flatnonzero(ended[rows] == 0)
            if written == task.max_new_tokens:
                break
            rows, left = rows[going], torch.from_numpy(going).to(self.device)
            if cache is not None and len(rows):
                cache.batch_select_indices(left)
                inputs = {"input_ids": tokens[left], **self._mask_of(inputs, left, tokens.shape[1])}
                seeds = None if seeds is None else seeds[going]
        count = np.where(ended > 0, ended, written).astype(np.int32)
        is_answer = np.arange(found.shape[1]) < count[:, None]
        finish = np.where(ended > 0, STOP, LENGTH).astype(np.int8)
        check = np.where(failed, np.nan, 0).astype(np.float32)
        return Answers(
            {"check": check, "count": count, "finish": finish, "tokens": found[is_answer]}
        )

    def _generate(
        self,
        inputs: dict[str, torch.Tensor],
        cache: Any,
        seeds: Any,
        ends: _Ends,
        numbers: sampling.Numbers,
        start: int,
        written: int,
    ) -> torch.Tensor:
        """Go on from `written` new tokens until enough rows have ended: int64[b, t], prompts before."""
        task = self.generation
        processors = LogitsProcessorList([numbers])
        if seeds is not None:
            processors.extend(sampling.warpers(task.settings))
            processors.append(sampling.Draw(seeds, start))
        settings = self._settings
        if written:
            settings = copy.copy(settings)
            settings.max_new_tokens = task.max_new_tokens - written
            # Not None, which would be the model's own.
            settings.min_new_tokens = max(0, (settings.min_new_tokens or 0) - written)
        tokens: torch.Tensor = self.model.generate(
            **inputs,
            **({} if cache is None else {"past_key_values": cache}),
            generation_config=settings,
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList(
                [_Stop(self.stopped), *([ends] if task.num_beams == 1 else [])]
            ),
        )
        return tokens

    @staticmethod
    def _mask_of(
        inputs: dict[str, torch.Tensor], rows: torch.Tensor, length: int
    ) -> dict[str, torch.Tensor]:
        """The attention mask of some rows, as far as they are written now."""
        if (mask := inputs.get("attention_mask")) is None:
            return {}
        kept = mask[rows]
        return {
            "attention_mask": torch.nn.functional.pad(kept, (0, length - mask.shape[1]), value=1)
        }

    def _inputs(self, batch: Batch, *, on_the_left: bool) -> dict[str, torch.Tensor]:
        """Packed fields to int64[b, t] on the device, padded, with an attention mask.

        What pads a prompt on the left is its own first token: nobody attends to it, but a penalty for
        repetition looks at it, and finds what it would have found anyway.
        """
        rows, width = len(batch), batch.max_length
        flat = np.asarray(batch.fields["input_ids"])
        starts = np.cumsum(batch.lengths, dtype=np.int64) - batch.lengths
        if on_the_left:
            place = np.arange(width) - (width - batch.lengths[:, None].astype(np.int64))
            is_token = place >= 0
            ids = flat[starts[:, None] + np.maximum(place, 0)]
        else:
            is_token = np.arange(width) < batch.lengths[:, None]
            ids = np.full((rows, width), self._pad_token_id, np.int64)
            ids[is_token] = flat
        inputs = {"input_ids": torch.from_numpy(ids.astype(np.int64)).to(self.device)}
        if self._takes_mask:
            mask = torch.from_numpy(is_token.astype(np.int64))
            inputs["attention_mask"] = mask.to(self.device)
        return inputs

    def _generation_config(self, task: Generation) -> GenerationConfig:
        """The job's settings, and those of the model that say which tokens are special."""
        settings = dict(task.settings)
        if task.draws:  # sampling.Draw draws: what is left to do is to take the likeliest
            for name in ("do_sample", *sampling.DRAWING):
                settings.pop(name, None)
        settings.pop("stop_strings", None)  # they are looked for by _Ends
        own = self.model.generation_config
        settings.setdefault("eos_token_id", own.eos_token_id)
        settings["pad_token_id"] = self._pad_token_id
        config = GenerationConfig(**settings)  # type: ignore[no-untyped-call]
        self.model.generation_config = config
        return config

    def _speed_up(self, load: Callable[[], Any]) -> None:
        """Put a CPU's faster layers in, where the first scores of a few prompts stay what they were."""
        cpu.tune_allocator()
        rows = self._sample_rows()
        try:
            before = self._first_scores(rows)
        except Exception as error:
            self._refuse_to_judge(error)
            log.debug(f"the model fails on random tokens ({reason(error)}), and is left as it is")
            return

        def objection(what: str) -> str:
            difference = distance(self._first_scores(rows), before)
            if difference <= _TOLERANCE.get(self.dtype, _TOLERANCE_OF_HALVES):
                return ""
            return f"{what} changes the answers by {difference:.2g}"

        def load_again() -> Any:
            model = load()
            model.generation_config = self._settings
            return model

        joins = not self.model.config.is_encoder_decoder
        optimize = partial(cpu.optimize, self.model, joins=joins)
        done = self._put_in_layers(optimize, objection, load_again)
        log.debug(f"layers put in place of the model's own: {done}")

    def _judge_padding(self) -> None:
        """See on a few prompts whether the model knows what is padded; else lengths are kept apart.

        So they are where a setting looks at runs of tokens, or counts them, and would find the padding.
        """
        encodes = self.model.config.is_encoder_decoder
        if any(self.generation.settings.get(name) for name in _LOOKS_AT_PADDING[encodes]):
            self.pads = False
            return
        if encodes:
            return
        rows = self._sample_rows()
        try:
            alone = torch.cat([self._first_scores([row]) for row in rows])
            together = self._first_scores(rows)
        except Exception as error:
            self._refuse_to_judge(error)
            log.debug(f"the model fails on random tokens ({reason(error)}), and is left as it is")
            return
        difference = distance(together, alone)
        tolerance = _TOLERANCE.get(self.dtype, _TOLERANCE_OF_HALVES)
        if difference > tolerance:
            self.pads = False
            log.warning(
                f"{self.task.spec.name} answers padded prompts otherwise (by {difference:.2g}): prompts of "
                "different lengths are answered apart"
            )

    def _sample_rows(self) -> list[Batch]:
        vocab = self.model.config.get_text_config().vocab_size
        return sample_rows(vocab, min(64, self.task.spec.max_length), self._pad_token_id)

    @torch.inference_mode()
    def _first_scores(self, rows: list[Batch]) -> torch.Tensor:
        """The scores of the first new token of each prompt, float32[b, vocabulary]."""
        found: Any = self.model.generate(
            **self._inputs(joined(rows), on_the_left=not self.model.config.is_encoder_decoder),
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=1, pad_token_id=self._pad_token_id, do_sample=False
            ),
            return_dict_in_generate=True,
            output_logits=True,
        )
        scores: torch.Tensor = found.logits[0].float().cpu()
        return scores

    def _budget(self) -> BatchBudget:
        """Rows by the kind of device, as long as their keys and values fit into its memory."""
        rows, kind = _ROWS[self.device.type], self.device.type
        if kind == "cuda":
            memory, _ = torch.cuda.mem_get_info(self.device)
        else:
            memory = usable_memory()
        a_token = bytes_a_token(self.model) * self.generation.num_beams
        fitting = int(_CACHE_SHARE[kind] * memory / a_token)
        tokens = fitting if kind == "cuda" else min(fitting, rows * _TOKENS_A_ROW)
        return BatchBudget(max_batch_tokens=max(1, tokens), max_batch_rows=rows)


class _Ends(StoppingCriteria):
    """Tells which rows have ended, and remembers after how many tokens: `at` int64[b], 0: not yet.

    Once no more than `few` rows are left, it says that all have.
    """

    def __init__(
        self, eos: list[int], stops: StopStringCriteria | None, start: int, few: int
    ) -> None:
        self._eos, self._stops, self._start, self._few = eos, stops, start, few
        self.at = torch.zeros(0, dtype=torch.int64)

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        fresh: Any = input_ids[:, self._start :]
        if not len(self.at):
            self.at = torch.zeros(len(fresh), dtype=torch.int64, device=fresh.device)
            self._is_over = torch.zeros((), dtype=torch.bool, device=fresh.device)
            self._ids = torch.tensor(self._eos, dtype=fresh.dtype, device=fresh.device)
        ends = torch.isin(fresh[:, -1], self._ids)
        if self._stops is not None:
            ends |= self._stops(fresh, scores)
        # Where transformers asks behind the end (it may put its own question off), nothing changes.
        is_fresh = (self.at == 0) & ends & ~self._is_over
        self.at = torch.where(is_fresh, fresh.shape[1], self.at)
        going = self.at == 0
        self._is_over = going.sum() <= self._few
        return ~going | self._is_over  # type: ignore[return-value]


class _Stop(StoppingCriteria):
    """Ends no row; raises StoppedError, behind each token, once the run was told to stop."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        if self._stopped():
            raise StoppedError
        ends: Any = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return ends  # type: ignore[no-any-return]


def _by_length(batch: Batch) -> list[Batch]:
    """The rows of a batch by their length, longest first, as they stand."""
    bounds = np.flatnonzero(np.diff(batch.lengths)) + 1
    parts, begin, first = [], 0, 0
    for end in (*bounds.tolist(), len(batch)):
        lengths = batch.lengths[begin:end]
        last = first + int(lengths.sum())
        fields = {name: values[first:last] for name, values in batch.fields.items()}
        parts.append(Batch(batch.chunk, batch.indices[begin:end], lengths, fields))
        begin, first = end, last
    return parts


def _stop_criteria(tokenizer: Any, stops: Sequence[str]) -> StopStringCriteria:
    """What finds stops in tokens. Raises UsageError for one that no token of the model ends."""
    try:
        return StopStringCriteria(tokenizer, list(stops))
    except Exception as error:  # whatever it raises for a text that its vocabulary cannot write
        raise UsageError(
            f"--stop: the model cannot write {' or '.join(map(repr, stops))}: {one_line(error)}"
        ) from None


def _as_list(tokens: Any) -> list[int]:
    if tokens is None:
        return []
    return [int(token) for token in tokens] if isinstance(tokens, (list, tuple)) else [int(tokens)]
