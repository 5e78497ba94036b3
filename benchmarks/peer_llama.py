"""llama.cpp, through the low-level API of llama-cpp-python, timed on the same two things as `EngineBench`.

Set up to be as fast as it can: weights repacked for the CPU (its default), as many threads as we have, and for each
question a context of its own, with a cache per sequence (a shared one has every sequence look at all cells) no longer
than needed. Flash attention is tried on and off. What a decode begins with is computed once and then kept, as our
prefix cache does. Tokens are chosen greedily, by numpy's argmax.
"""

from __future__ import annotations

import ctypes
import random
import time
from pathlib import Path
from typing import Any

import llama_cpp as api
import numpy as np

from llmserve.bench.plan import CONTEXT, STEPS, Timing

UBATCH = 512


@api.llama_log_callback
def _quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Said in the protocol's place, llama.cpp's log would break it."""


class LlamaBench:
    """One loaded model with up to eight sequences."""

    def __init__(self, file: Path, threads: int) -> None:
        api.llama_log_set(_quiet, ctypes.c_void_p())
        began = time.perf_counter()
        api.llama_backend_init()
        self._threads, self._random = threads, random.Random(0)
        self._model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {file}")
        self._vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._batch = api.llama_batch_init(UBATCH, 0, 1)
        self._context: Any = None  # the one in use, of those that there are by shape
        self._contexts: dict[tuple[int, int, bool], Any] = {}
        # Of the contexts that keep a decode's beginning: its length, and the token after each sequence's.
        self._begun: dict[tuple[int, int, bool], tuple[int, list[int]]] = {}
        self.flash = False
        self.decode(1, 16, 1)
        self.ready_seconds = time.perf_counter() - began

    def _room_for(self, sequences: int, tokens: int) -> tuple[int, int, bool]:
        """Makes a warm context for so many sequences of so many tokens the one in use; returns its shape."""
        shape = (sequences, -(-tokens // 256) * 256, self.flash)
        if shape in self._contexts:
            self._context = self._contexts[shape]
        else:
            self._context = self._contexts[shape] = self._new_context(*shape)
            for sequence in range(sequences):
                self._read(self._prompt(4), sequence)
            self._clear()
        return shape

    def _clear(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self._context), False)

    def _new_context(self, sequences: int, tokens: int, flash: bool) -> Any:
        options = api.llama_context_default_params()
        options.n_seq_max, options.n_ctx, options.kv_unified = sequences, sequences * tokens, False
        options.n_batch = options.n_ubatch = UBATCH
        options.n_threads = options.n_threads_batch = self._threads
        options.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = api.llama_init_from_model(self._model, options)
        if not context:
            raise SystemExit("llama.cpp made no context")
        return context

    def set_flash(self, on: int) -> bool:
        self.flash = bool(on)
        return self.flash

    def system(self) -> str:
        """The instruction sets that it was compiled for."""
        words = api.llama_print_system_info().decode().replace(" = 1", "").split("|")
        return " ".join(word.strip() for word in words if word.strip())

    def prefill(self, tokens: int) -> Timing:
        """One prompt of that many tokens, up to its first answer token."""
        self._begun.pop(self._room_for(1, tokens), None)
        self._clear()
        prompt = self._prompt(tokens)
        began = time.perf_counter()
        self._read(prompt, 0)
        seconds = time.perf_counter() - began
        return Timing(1, tokens, seconds, seconds)

    def decode(self, batch: int, context: int = CONTEXT, steps: int = STEPS) -> Timing:
        """`batch` sequences that each have `context` tokens already, one token each per step."""
        tokens = self._begin(batch, context, steps)
        began = time.perf_counter()
        for step in range(steps):
            rows = [(token, context + step, sequence, True) for sequence, token in enumerate(tokens)]
            self._decode(rows)
            tokens = [int(self._logits(row).argmax()) for row in range(batch)]
        seconds = time.perf_counter() - began
        return Timing(steps, batch * steps, seconds, seconds)

    def _begin(self, batch: int, context: int, steps: int) -> list[int]:
        """The sequences at exactly `context` tokens; returns the next of each."""
        shape = self._room_for(batch, context + steps)
        length, tokens = self._begun.get(shape, (None, []))
        if length == context:
            memory = api.llama_get_memory(self._context)
            for sequence in range(batch):
                api.llama_memory_seq_rm(memory, sequence, context, -1)
            return tokens
        self._clear()
        tokens = [self._read(self._prompt(context), sequence) for sequence in range(batch)]
        self._begun[shape] = (context, tokens)
        return tokens

    def logits(self, tokens: list[int]) -> np.ndarray:
        """float32 [vocab] after the last of `tokens`."""
        self._begun.pop(self._room_for(1, len(tokens)), None)
        self._clear()
        self._read(tokens, 0)
        return self._logits(len(tokens) - 1).copy()

    def _prompt(self, tokens: int) -> list[int]:
        return self._random.choices(range(self._vocab), k=tokens)

    def _read(self, prompt: list[int], sequence: int) -> int:
        """Compute a prompt, and return the likeliest next token."""
        for first in range(0, len(prompt), UBATCH):
            part = prompt[first : first + UBATCH]
            last = first + len(part) == len(prompt)
            self._decode([(t, first + i, sequence, last and i == len(part) - 1) for i, t in enumerate(part)])
        return int(self._logits(len(part) - 1).argmax())

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if code := api.llama_decode(self._context, batch):
            raise SystemExit(f"llama_decode returned {code}")

    def _logits(self, row: int) -> np.ndarray:
        return np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, row), (self._vocab,))
