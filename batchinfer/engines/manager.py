"""transformers' continuous batching: what it can be asked, and its manager, running.

The manager computes in a thread of its own, and lets rows in as others end. It is young and its releases
differ (5.17 and 5.23 were tried, 5.10 cannot be used): an option that a release does not know is left out,
errors are taken wherever they show, and a thread that is gone is noticed.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import threading
from contextlib import nullcontext, suppress
from math import ceil
from typing import Any

import numpy as np
import torch

from batchinfer.engines.base import reason
from batchinfer.engines.quantised import is_quantised
from batchinfer.tasks.generation import Generation

#: Settings that the manager honours as `generate` does.
_HONOURED = ("max_new_tokens", "eos_token_id", "pad_token_id", "bos_token_id")
#: Others, where they change nothing. It drops nearly all that look at the tokens so far, with a warning.
_IDLE = {
    "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "min_new_tokens": 0, "min_length": 0, "length_penalty": 1.0, "early_stopping": False,
}  # fmt: skip
#: Layers whose keys and values it can keep in pages.
_LAYERS = ("full_attention", "sliding_attention")
#: Packages with flash attention: the implementation's name, the question whether it is there, and the
#: compute capabilities it is for.
_FLASH = (
    ("flash_attention_3", "is_flash_attn_3_available", (9, 0), (10, 0)),
    ("flash_attention_2", "is_flash_attn_2_available", (8, 0), (99, 0)),
)
#: Tokens of a page, transformers' own number, and of a step and rows of a step on a CPU, where the tests
#: run it.
_PAGE, _CPU_TOKENS, _CPU_ROWS = 256, 512, 16
#: How long a thread that was told to end may take for the step that it is in, in seconds.
STOP_SECONDS = 60.0


class ManagerError(Exception):
    """The manager has failed, and with it every row that it has; `cause`: what was raised there."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(reason(cause))
        self.cause = cause


def obstacle(task: Generation, model: Any) -> str:
    """Why the manager would not write what `generate` writes, in a few words; "" where nothing is known."""
    config = model.config
    kind = type(model)
    if config.is_encoder_decoder:
        return f"there is none for --task {task.name}"
    if not (hasattr(model, "init_continuous_batching") and _can_be_stopped()):
        return "this release of transformers has none, or none that can be stopped at once"
    if task.draws:
        return "tokens are drawn, and each row draws from a seed of its own"
    for name, value in task.settings.items():
        if name not in _HONOURED and value is not None and value != _IDLE.get(name):
            return f"it does not know the setting {name}"
    if is_quantised(model):
        return "the model is quantised"
    supports = getattr(model, "_supports_attention_backend", False)
    if not (kind.__module__.startswith("transformers.") and supports):
        return f"{kind.__name__} does its attention by itself"
    layers = getattr(config, "layer_types", None) or ()
    if config.get_text_config() is not config or not set(layers) <= set(_LAYERS):
        return f"{kind.__name__} has layers of other kinds than it can keep"
    rope = str([getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")])
    if "dynamic" in rope or "longrope" in rope:
        return "positions depend on the longest row of a batch"
    return ""


def flash_attention(model: Any, device: torch.device) -> str:
    """The fastest flash attention that is installed for this model and GPU, by its name; "": none.

    What would have to be fetched (a kernel from the hub) is none: it is code, and nobody was asked.
    """
    from transformers.utils import import_utils

    halves = (torch.bfloat16, torch.float16)
    if device.type != "cuda" or model.dtype not in halves:
        return ""
    if not getattr(model, "_supports_flash_attn", False):
        return ""
    capability = torch.cuda.get_device_capability(device)
    for name, question, least, below in _FLASH:
        is_there = getattr(import_utils, question, bool)
        if least <= capability < below and is_there():
            return name
    return ""


class Manager:
    """A running manager of a model: prompts in, by number, and their answers out as they end.

    While it runs nobody else may call the model, whose attention it may have replaced. `settings`: of
    `generate`; the pages of a GPU take `share` of the memory that is free. `rows`: of a step at most.
    `attention`: "" for the model's own. Raises ManagerError where it cannot be started.
    """

    def __init__(
        self,
        model: Any,
        settings: Any,
        *,
        attention: str,
        rows: int,
        longest: int,
        share: float,
    ) -> None:
        self._model, self._own_attention = model, model.config._attn_implementation
        self._failure: Exception | None = None
        #: By request, how many tokens it may get.
        self._under_way: dict[str, int] = {}
        self._manager: Any = None
        # It sets what it misses in the settings; and those without an end get one that is no token.
        own = copy.deepcopy(settings)
        own.do_sample = False
        own.eos_token_id = -1 if own.eos_token_id is None else own.eos_token_id
        ends = own.eos_token_id
        self._ends = frozenset([ends] if isinstance(ends, int) else ends)
        options: dict[str, Any] = {
            "max_requests_per_batch": rows,
            "max_memory_percent": share,
            "auto_switch_to_flash": False,
            "return_logprobs": True,  # by them, scores that are no numbers are seen
        }
        if model.device.type == "cpu":
            rows = min(rows, _CPU_ROWS)
            options |= {
                "max_requests_per_batch": rows,
                "max_batch_tokens": _CPU_TOKENS,
                "num_blocks": (rows + 2) * (ceil(longest / _PAGE) + 1),
            }
        # It sends messages to stderr by itself, those of an error with a traceback.
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        try:
            with self._on_device():
                if attention:
                    model.set_attn_implementation(attention)
                self._manager = model.init_continuous_batching(
                    generation_config=own, continuous_batching_config=_configuration(options)
                )
                self._manager.warmup()
                # A thread is a daemon where the one that starts it is: a process need not wait for it.
                starter = threading.Thread(target=self._manager.start, daemon=True)
                starter.start()
                starter.join()
        except Exception as error:  # whatever a release raises that lacks something, or memory
            self.close()
            raise ManagerError(_bare(error)) from None

    def add(self, number: int, tokens: list[int], max_new_tokens: int) -> None:
        """Have a prompt answered. What goes wrong shows in `wait`."""
        name = str(number)
        self._under_way[name] = max_new_tokens
        try:
            # One that has failed takes none, and only says so in a message.
            self._manager.add_request(
                tokens,
                request_id=name,
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(self._ends),
            )
        except Exception as error:
            self._fail(error)

    def wait(self, seconds: float) -> list[tuple[int, list[int], bool]]:
        """What has ended since: each row's number, its new tokens, and whether the model ended it.

        Waits for the first for so many seconds. Raises ManagerError once, or instead, where the manager
        has failed.
        """
        found = []
        result = None
        if self._failure is None:
            result = self._manager.get_result(timeout=seconds)
        while result is not None:
            if result.error is not None:
                self._fail(RuntimeError(result.error))
                break
            tokens = [int(token) for token in result.generated_tokens]
            has_ended = bool(tokens) and tokens[-1] in self._ends
            if not has_ended and len(tokens) != self._under_way[result.request_id]:
                self._fail(
                    RuntimeError(f"a row came back after {len(tokens)} tokens, without an end")
                )
                break
            if not (result.logprobs and np.isfinite(result.logprobs).all()):
                # Of this row, or of one beside it: PyTorch's attention multiplies those by zero.
                self._fail(RuntimeError("a row has scores that are no numbers"))
                break
            del self._under_way[result.request_id]
            found.append((int(result.request_id), tokens, has_ended))
            result = self._manager.get_result(timeout=0)
        if found:
            return found
        if self._failure is None and self._under_way and not self._manager.is_running():
            self._fail(RuntimeError("its thread has ended"))
        if self._failure is not None:
            raise ManagerError(self._failure)
        return []

    def close(self) -> bool:
        """Stop it, and give its memory and the model's attention back; rows under way are dropped.

        Returns whether the thread has ended: within a step, or else it hangs and has the model still.
        """
        manager, self._manager = self._manager, None
        has_ended = True
        if manager is not None:
            with suppress(Exception):  # of a manager that failed, or never started
                manager.stop(block=True, timeout=STOP_SECONDS, hard_stop=True)
            has_ended = not manager.is_running()
            self._failure = self._deeper(manager) or self._failure
        if has_ended and self._model.config._attn_implementation != self._own_attention:
            self._model.set_attn_implementation(self._own_attention)
        return has_ended

    @property
    def failure(self) -> Exception | None:
        """What went wrong: once it is closed, what was raised in its thread."""
        return self._failure

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or _bare(error)

    @staticmethod
    def _deeper(manager: Any) -> Exception | None:
        """The exception that ended a manager's thread, where the release keeps it."""
        status = getattr(manager, "background_thread_status", manager)
        error = getattr(status, "fatal_error", None)
        return _bare(error) if isinstance(error, Exception) else None

    def _on_device(self) -> Any:
        """It asks for the memory of the device that is current."""
        device = self._model.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _can_be_stopped() -> bool:
    """Whether this release stops with rows under way: 5.10 went on, or hung where they were cancelled."""
    import transformers

    kind: Any = getattr(transformers, "ContinuousBatchingManager", None)
    return kind is not None and "hard_stop" in inspect.signature(kind.stop).parameters


def _configuration(options: dict[str, Any]) -> Any:
    """transformers' configuration with those options that this release knows."""
    from transformers import ContinuousBatchingConfig

    known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    return ContinuousBatchingConfig(
        **{name: value for name, value in options.items() if name in known}
    )


def _bare(error: Exception) -> Exception:
    """The error without the frames that it leads to, and their tensors."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
