"""Whole models on a WebGPU device, a software one if there is no other: against transformers, the oracle and the CPU.

The engine is the same as for CPUs, so what is tested here is that its plans come out the same on a device whose memory
is not the host's: prefill, decode, chunks on history, preemption, prefix hits, sampling, structured answers.
"""

from __future__ import annotations

import json

import numpy as np
import openai
import pytest

from llmserve import LLM, SamplingParams
from llmserve.compile.build import Build
from llmserve.quant.group import GroupFormat

from .kernels.gpu.harness import needs_device
from .oracle import Oracle
from .skips import package
from .test_families import random_ids
from .test_serve import Server

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def load(checkpoint):
    """(family, quant, device) → LLM, each loaded once."""
    needs_device()
    loaded: dict[tuple, LLM] = {}

    def get(family: str, quant: str, device: str = "webgpu") -> LLM:
        key = (family, quant, device)
        if key not in loaded:
            loaded[key] = LLM(checkpoint(family), quant=quant, device=device, kv_cache_memory="16MiB", max_num_seqs=16)
        return loaded[key]

    return get


class FloatOracle(Oracle):
    """GPUs leave activations as they are."""

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        bias = self.params[f"{name}.bias"].astype(np.float64) if f"{name}.bias" in self.params else 0.0
        return x @ self.matrix(name, x.shape[1]).T + bias


@pytest.mark.reference
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])  # one of each kind of attention; qwen2 is below
def test_float32_equals_transformers(family, load, checkpoint):
    """As on CPUs: the difference is the order of float32 sums, and exponentials that are good to a few units."""
    torch = package("torch", "transformers as a reference")
    transformers = package("transformers", "transformers as a reference")
    reference = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float32).eval()
    llm, ids = load(family, "f32"), random_ids(0, 100)
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
        text = reference.generate(
            torch.tensor([ids[:20]]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0]
    assert np.abs(llm.logits(ids) - expected).max() <= 1e-4 * np.abs(expected).max()
    [result] = llm.generate([ids[:20]], GREEDY)
    assert list(result.outputs[0].token_ids) == text[20:].tolist()


@pytest.mark.parametrize(("family", "quant"), [("llama", "q4"), ("qwen2", "q3")])
def test_quantized_models_equal_the_oracle(family, quant, load, checkpoint):
    """float16 activations round each intermediate value to 2**-11 of it; errors of a dozen such steps add up to below
    1 % of the largest logit."""
    build = Build(str(checkpoint(family)), quant=quant, device="webgpu")
    assert isinstance(build.scheme.storage, GroupFormat)
    oracle = FloatOracle(build.config, build.weights(), build.scheme)
    oracle.page_dtype = np.dtype(build.compute_dtype)
    for seed, length in enumerate((5, 40)):
        ids = random_ids(seed, length)
        expected = oracle.logits(ids)
        error = np.abs(load(family, quant).logits(ids) - expected).max() / np.abs(expected).max()
        assert error <= 1e-2, (length, error)


def test_plans_give_what_they_give_on_a_cpu(load, checkpoint):
    """One by one, all together, in chunks of 8 with preemption, and with a warm prefix cache, greedy and sampled: the
    CPU's tokens. Logits agree to 1e-5, which would have to fall on a tie to show."""
    shared = random_ids(8, 48)
    prompts = [shared[: 3 + 9 * i] + random_ids(i, 4) for i in range(5)]
    params = [
        SamplingParams(temperature=(i % 2) * 0.8, top_p=0.9, seed=i, max_tokens=20, ignore_eos=True) for i in range(5)
    ]
    cpu, gpu = load("llama", "f32", "cpu"), load("llama", "f32")
    expected = [r.outputs[0].token_ids for r in cpu.generate(prompts, params)]
    assert gpu.generate(prompts[1:2], params[1:2])[0].outputs[0].token_ids == expected[1]
    assert [r.outputs[0].token_ids for r in gpu.generate(prompts, params)] == expected
    again = gpu.generate(prompts, params)
    assert [r.outputs[0].token_ids for r in again] == expected
    assert any(r.num_cached_tokens for r in again)
    tight = LLM(
        checkpoint("llama"), quant="f32", device="webgpu", num_pages=6, max_num_seqs=8, max_num_batched_tokens=8
    )
    assert [r.outputs[0].token_ids for r in tight.generate(prompts, params)] == expected
    assert tight._core.stats().num_preemptions > 0
    assert tight._core.stats().num_available_pages == 6


def test_knobs_of_sampling_and_scores_are_the_cpus(load):
    """Penalties, biases, bans, top-k, min-p and log-probabilities, in one batch."""
    prompt = random_ids(3, 20)
    shared = {"max_tokens": 16, "ignore_eos": True, "logprobs": 2}
    params = [
        SamplingParams(temperature=0.0, repetition_penalty=1.3, **shared),
        SamplingParams(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.4, **shared),
        SamplingParams(temperature=0.9, top_k=7, seed=1, **shared),
        SamplingParams(temperature=0.7, min_p=0.05, seed=2, logit_bias={5: 4.0, 9: -100.0}, **shared),
        SamplingParams(temperature=0.0, min_tokens=4, stop_token_ids=(11,), **shared),
    ]
    answers = []
    for device in ("cpu", "webgpu"):
        results = load("qwen3", "f32", device).generate([prompt] * len(params), params)
        answers.append([r.outputs[0] for r in results])
    for on_cpu, on_gpu in zip(*answers, strict=True):
        assert on_gpu.token_ids == on_cpu.token_ids
        for ours, theirs in zip(on_gpu.logprobs, on_cpu.logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]


def test_embeddings_and_scores_of_prompts(load):
    texts = [random_ids(0, 1), random_ids(1, 60)]
    states = [load("llama", "f32", device).embed(texts, "mean") for device in ("cpu", "webgpu")]
    np.testing.assert_allclose(states[1], states[0], atol=1e-5)
    scored = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=0)
    scores = [load("llama", "f32", device).generate(texts[1:], scored)[0] for device in ("cpu", "webgpu")]
    own, theirs = ([entry.logprob for entry in result.prompt_logprobs] for result in scores)
    np.testing.assert_allclose(theirs, own, atol=1e-4)


def test_a_server_answers_the_openai_client(load, checkpoint):
    """Streamed and whole, sampled with a seed, held to a schema, and with log-probabilities."""
    load("llama", "q4")  # which compiles what the server takes from the cache
    options = ("--device", "webgpu", "--quant", "q4", "--max-num-seqs", "16", "--kv-cache-memory", "16MiB")
    server = Server(checkpoint("llama"), *options)
    try:
        server.wait()
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        asked = {"model": "tiny-llama", "messages": [{"role": "user", "content": "How are you?"}], "max_tokens": 8}
        whole = client.chat.completions.create(**asked, seed=3, temperature=0.8, logprobs=True)
        stream = client.chat.completions.create(**asked, seed=3, temperature=0.8, stream=True)
        parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(parts) == whole.choices[0].message.content
        assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.content) == 8
        schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
        schema["additionalProperties"] = False
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        held = client.chat.completions.create(**{**asked, "max_tokens": 40}, response_format=form, temperature=0.0)
        assert json.loads(held.choices[0].message.content)["a"] in (1, 2)
    finally:
        server.stop()
