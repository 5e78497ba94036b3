"""The model as a Python object, without a server: `LLM`. It steps the same engine core that the server runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from .compile.build import Build, Notify, silent
from .config import EngineConfig, sampling_defaults, validated
from .engine import FinishReason, RequestOutput, SamplingParams, TokenLogprob, fold, recommended
from .engine.grammar.compiler import GrammarCompiler
from .engine.loading import load_core, scheduler_config
from .engine.plan.scheduler import ScheduledSequence
from .engine.plan.sequence import Request
from .engine.run.executor import LocalExecutor
from .errors import ContextLengthError, EngineError, RequestError
from .text.chat_template import ChatTemplate
from .text.tokenizer import Tokenizer

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class CompletionOutput:
    """One completion. `logprobs` has an entry per token if `SamplingParams.logprobs` asked for them."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None


@dataclass(frozen=True)
class GenerationResult:
    """The result of one prompt: `n` outputs, best read by index.

    `prompt_logprobs` has an entry per prompt token but the first, if `SamplingParams.prompt_logprobs` asked for them.
    """

    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


class LLM:
    """A model, converted and compiled if need be, and ready to generate.

    Args:
        model: a checkpoint's directory, a converted directory, or a Hub id; None is the model of the package.
        quant: "q4", "q3", "q8", "none" or a scheme's full name; None is 4-bit (or what a converted directory holds).
        calibrate, calibration_data: methods that round weights by a text, and that text, as in compile.calibrate.
        bits: instead of `quant`: bits per weight, spent matrix by matrix where they help most.
        device, arch: the platform and, where it has several, its instruction set; None picks the best.
        notify: called while something takes time, see compile.build.Notify.
        engine: fields of `config.EngineConfig`, such as max_model_len or kv_cache_memory.

    Not thread-safe; use it from the thread that made it.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        quant: str | None = None,
        device: str | None = None,
        arch: str | None = None,
        calibrate: str | None = None,
        calibration_data: str | Path | None = None,
        bits: float | None = None,
        notify: Notify = silent,
        **engine: Any,
    ) -> None:
        config = validated(EngineConfig, engine, "LLM")
        build = Build(
            None if model is None else str(model),
            quant=quant,
            device=device,
            arch=arch,
            engine=config,
            notify=notify,
            calibrate=calibrate,
            calibration_data=calibration_data,
            bits=bits,
        )
        self.tokenizer = Tokenizer.from_directory(build.tokenizer_directory)
        self.chat_template = ChatTemplate.from_directory(build.tokenizer_directory, self.tokenizer.special_tokens)
        generation = f"{build.tokenizer_directory}/generation_config.json"
        self.default_params = SamplingParams(**recommended(sampling_defaults(build.tokenizer_directory), generation))
        self.compiled = build.run(config.max_model_len)
        limits = scheduler_config(self.compiled, config)
        self._core = load_core(self.compiled, config, limits, self.tokenizer, self.tokenizer.eos_token_ids)
        self._runner = cast(LocalExecutor, self._core.executor).runner
        self._grammars = GrammarCompiler(self.tokenizer)
        self._ids = count()

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[GenerationResult]:
        """Complete prompts (texts or lists of token ids) together; results in the order of the prompts.

        `params` is one for all or one for each; None is the model's own recommendation. Raises RequestError for a
        prompt that cannot be served, and then generates nothing.
        """
        many = _many(prompts)
        each = params if isinstance(params, Sequence) else [params or self.default_params] * len(many)
        if len(each) != len(many):
            raise RequestError(f"{len(many)} prompts need as many SamplingParams, got {len(each)}.", param="params")
        ids = [self._encode(prompt) for prompt in many]
        names = [f"generate-{next(self._ids)}" for _ in many]
        news: dict[str, list[RequestOutput]] = {name: [] for name in names}
        for output in self._run(names, ids, each):
            news[output.request_id].append(output)
        return [_result(tokens, fold(news[name])) for name, tokens in zip(names, ids, strict=True)]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """One prompt, step by step. Closing the iterator ends the request."""
        names = [f"stream-{next(self._ids)}"]
        yield from self._run(names, [self._encode(prompt)], [params or self.default_params])

    def chat(self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None) -> Iterator[str]:
        """The assistant's next message, in pieces of text."""
        text = self.chat_template.render([dict(m) for m in messages])
        for output in self.stream(self.tokenizer.encode(text, add_special_tokens=False), params):
            yield "".join(delta.text for delta in output.deltas)

    def embed(
        self, prompts: Prompt | Sequence[Prompt], pooling: Literal["mean", "last"] = "mean"
    ) -> npt.NDArray[np.float32]:
        """A vector of unit length for each prompt, from the model's normed hidden states: float32 [prompts, hidden]."""
        many, params = _many(prompts), SamplingParams(pooling=pooling)
        vectors: dict[str, bytes] = {}
        names = [f"embed-{next(self._ids)}" for _ in many]
        for output in self._run(names, [self._encode(prompt) for prompt in many], [params] * len(many)):
            for delta in output.deltas:
                if delta.vector is None:
                    raise EngineError(delta.error or "A prompt was not pooled.")
                vectors[output.request_id] = delta.vector
        return np.stack([np.frombuffer(vectors[name], "<f4") for name in names])

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each of `token_ids`: float32 [T, vocab]. For evaluation and tests."""
        pool, interface = self._core.scheduler.pool, self.compiled.interface
        request = Request("logits", [int(t) for t in token_ids], SamplingParams(), -1)
        sequence = request.sequences[0]
        pages = pool.allocate(-(-len(token_ids) // interface.page_size))
        if pages is None or len(token_ids) > self._core.max_model_len:
            raise ContextLengthError(f"{len(token_ids)} tokens do not fit the context of {self._core.max_model_len}.")
        sequence.pages = pages
        out = np.empty((len(token_ids), interface.vocab_size), np.float32)
        step = min(interface.max_num_seqs, interface.max_num_batched_tokens)
        try:
            for start in range(0, len(token_ids), step):
                rows = np.arange(min(step, len(token_ids) - start), dtype=np.int32)
                plan = [ScheduledSequence(sequence, len(rows))]
                out[start : start + len(rows)] = self._runner.logits(plan, rows)
                sequence.num_computed_tokens += len(rows)
        finally:
            pool.release(pages)
        return out

    def _run(self, names: list[str], ids: list[list[int]], params: Sequence[SamplingParams]) -> Iterator[RequestOutput]:
        """Queue these requests and step until they are done. Closing the iterator aborts what is left."""
        try:
            for name, tokens, its in zip(names, ids, params, strict=True):
                grammar = None if its.grammar is None else self._grammars.submit(its.grammar).result()
                self._core.add_request(name, tokens, its, grammar)
            while self._core.has_work():
                yield from self._core.step()
        finally:
            for name in names:
                self._core.abort(name)

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(t) for t in prompt]


def _many(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) and all(isinstance(p, (int, np.integer)) for p in prompts)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _result(tokens: list[int], output: RequestOutput) -> GenerationResult:
    outputs = tuple(
        CompletionOutput(d.index, d.text, d.token_ids, d.logprobs, d.finish_reason, d.stop_reason)
        for d in sorted(output.deltas, key=lambda delta: delta.index)
    )
    scores = next((delta.prompt_logprobs for delta in output.deltas if delta.index == 0), None)
    return GenerationResult(tuple(tokens), outputs, output.num_cached_tokens, scores)
