"""Every family and every scheme, compiled and run: against transformers, against the numpy oracle, and against itself.

New families and schemes are picked up from their registries.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmserve import LLM, SamplingParams
from llmserve.compile.build import Build
from llmserve.engine.plan.scheduler import ScheduledSequence
from llmserve.engine.plan.sequence import Request
from llmserve.models.base import families
from llmserve.quant.group import GroupFormat
from llmserve.quant.scheme import SCHEMES

from . import reference
from .oracle import Oracle
from .representatives import by_registry, representatives
from .skips import package

GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
# Of twins, the one that CPUs compute.
QUANTS = [s.name for s in SCHEMES.values() if s.compute_dtype == "float32" or s.storage == "float16"]


@pytest.fixture(scope="module")
def load(checkpoint):
    """(family, quant, arch) → LLM, each loaded once."""
    loaded: dict[tuple, LLM] = {}

    def get(family: str, quant: str, arch: str | None = None) -> LLM:
        key = (family, quant, arch)
        if key not in loaded:
            loaded[key] = LLM(checkpoint(family), quant=quant, arch=arch, kv_cache_memory="16MiB", max_num_seqs=16)
        return loaded[key]

    return get


def random_ids(seed: int, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 512, count)]


@pytest.mark.reference
@pytest.mark.parametrize("family", families())
def test_float32_equals_transformers(family, load, checkpoint):
    """Logits of a text longer than the windows, and 64 greedy tokens. Pages are float32 here, so that the difference is
    only the order of float32 sums: 1e-4 of the largest logit leaves a factor of ten. Pooled last hidden states, to 1e-5
    of their unit length."""
    torch = package("torch", "transformers as a reference")
    package("transformers", "transformers as a reference")
    model = reference.load(checkpoint(family))
    llm, ids = load(family, "f32"), random_ids(0, 100)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
        text = model.generate(
            torch.tensor([ids[:20]]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0]
        states = model.base_model(torch.tensor([ids])).last_hidden_state[0].numpy()
    assert np.abs(llm.logits(ids) - expected).max() <= 1e-4 * np.abs(expected).max()
    [result] = llm.generate([ids[:20]], GREEDY)
    assert list(result.outputs[0].token_ids) == text[20:].tolist()
    for pooling, pooled in (("mean", states.mean(0)), ("last", states[-1])):
        np.testing.assert_allclose(llm.embed([ids], pooling)[0], pooled / np.linalg.norm(pooled), atol=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize("family", by_registry())
def test_quantized_equals_transformers(family, load, checkpoint, tmp_path):
    """The stored weights put back into a checkpoint, with activations and pages rounded as the engine rounds them. See
    the test of schemes for what two correct implementations may differ by."""
    package("torch", "transformers as a reference")
    package("transformers", "transformers as a reference")
    build = Build(str(checkpoint(family)), quant="q4")
    model = reference.load(reference.checkpoint_of_stored(build, tmp_path / "stored"))
    texts = [random_ids(seed, 5) for seed in range(12)]
    expected = reference.rounded_logits(model, build.scheme.storage, build.scheme.page_dtype, texts)
    llm = load(family, "q4")
    errors = [np.abs(llm.logits(i) - e).max() / np.abs(e).max() for i, e in zip(texts, expected, strict=True)]
    assert np.quantile(errors, 0.25) <= 1e-4
    assert np.median(errors) <= 1e-2
    assert max(errors) <= worst(build.scheme.storage)


@pytest.mark.reference
def test_embeddings_equal_transformers(load, checkpoint):
    """Pooled last hidden states of texts shorter and longer than a step takes, to 1e-5 of their unit length: ten times
    what float32 sums in another order were seen to differ by."""
    torch = package("torch", "transformers as a reference")
    transformers = package("transformers", "transformers as a reference")
    model = transformers.AutoModel.from_pretrained(checkpoint("llama"), dtype=torch.float32).eval()
    texts = [random_ids(0, 1), random_ids(1, 100), random_ids(2, 17)]
    chunked = LLM(checkpoint("llama"), quant="f32", num_pages=32, max_num_seqs=8, max_num_batched_tokens=24)
    for pooling in ("mean", "last"):
        with torch.no_grad():
            states = [model(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in texts]
        pooled = np.stack([s.mean(0) if pooling == "mean" else s[-1] for s in states])
        expected = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        for llm in (load("llama", "f32"), chunked):
            for _ in range(2):  # the second time with the prefix cache warm
                np.testing.assert_allclose(llm.embed(texts, pooling), expected, atol=1e-5)


@pytest.mark.parametrize("quant", ["f32", "q4"])
def test_embeddings_equal_the_oracle(quant, load, checkpoint):
    """float32 to 1e-5; with activations rounded to 8 bits most texts to 1e-2, see the test of schemes for the rest."""
    build = Build(str(checkpoint("llama")), quant=quant)
    oracle = Oracle(build.config, build.weights(), build.scheme)
    texts = [random_ids(seed, 5) for seed in range(12)]
    states = np.stack([oracle.hidden(ids).mean(0) for ids in texts])
    expected = states / np.linalg.norm(states, axis=1, keepdims=True)
    errors = np.abs(load("llama", quant).embed(texts) - expected).max(axis=1)
    assert max(errors) <= (3e-2 if quant == "q4" else 1e-5) and np.median(errors) <= 1e-2


def test_prompts_are_scored_with_the_models_logits(load, checkpoint):
    """In one step or in chunks, with some of the prompt in the prefix cache, and the answer is what it is without."""
    llm = load("llama", "f32")
    small = LLM(checkpoint("llama"), quant="f32", num_pages=32, max_num_seqs=8, max_num_batched_tokens=24)
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, 500, 60)]
    plain = SamplingParams(temperature=0.0, max_tokens=4)
    answer = llm.generate(tokens, plain)[0].outputs[0].token_ids
    logits = llm.logits(tokens).astype(np.float64)
    expected = logits - logits.max(1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(1, keepdims=True))
    for engine in (llm, small):
        engine.generate(tokens[:40], plain)
        result = engine.generate(tokens, replace(plain, prompt_logprobs=1))[0]
        assert result.outputs[0].token_ids == answer
        assert [score.token_id for score in result.prompt_logprobs] == tokens[1:]
        own = [score.logprob for score in result.prompt_logprobs]
        np.testing.assert_allclose(own, expected[np.arange(59), tokens[1:]], atol=1e-3)
        best = [score.top[0][1] for score in result.prompt_logprobs]
        np.testing.assert_allclose(best, expected[:-1].max(1), atol=1e-3)


def test_head_of_hidden_states_is_the_logits(load):
    """`hidden` and `head` are `step` in two calls, for as many rows as there are tokens."""
    llm, ids = load("qwen3", "q4"), random_ids(3, 40)
    expected = llm.logits(ids)
    request = Request("hidden", ids, SamplingParams(), -1)
    sequence = request.sequences[0]
    sequence.pages = list(range(3))  # nobody else is served
    states = llm._runner.hidden([ScheduledSequence(sequence, len(ids))], np.arange(len(ids), dtype=np.int32))
    heads = [llm._runner.head(states[at : at + 16]).copy() for at in range(0, len(ids), 16)]
    np.testing.assert_allclose(np.concatenate(heads), expected, atol=2e-2 * np.abs(expected).max())
    assert (np.concatenate(heads).argmax(-1) == expected.argmax(-1)).mean() >= 0.95


def worst(storage: GroupFormat | str) -> float:
    """How far one text may be off, relative to its largest logit."""
    return 3e-2 if isinstance(storage, GroupFormat) else {"float32": 1e-5, "float16": 5e-4}[storage]


@pytest.mark.parametrize("quant", QUANTS)
def test_schemes_equal_the_oracle(quant, load, checkpoint):
    """f32: within 1e-5 of the largest logit. Otherwise something is rounded on purpose (pages to float16, activations
    to int8), and two correct implementations differ where a value lies within float32's error of a rounding border:
    rare, but such a flip moves what follows by the size of that rounding. So of many short texts most must agree
    closely, and none may be further off than the rounding itself: 2**-11 for float16, 2e-2 measured for int8."""
    build = Build(str(checkpoint("qwen3")), quant=quant)
    oracle = Oracle(build.config, build.weights(), build.scheme)
    llm = load("qwen3", quant)
    errors = []
    for seed in range(12):
        ids = random_ids(seed, 5)
        expected = oracle.logits(ids)
        errors.append(np.abs(llm.logits(ids) - expected).max() / np.abs(expected).max())
    assert np.quantile(errors, 0.25) <= 1e-4
    assert np.median(errors) <= (1e-2 if isinstance(build.scheme.storage, GroupFormat) else 1e-4)
    assert max(errors) <= worst(build.scheme.storage)


@pytest.mark.parametrize("quant", QUANTS)
def test_the_portable_kernels_equal_the_oracle(quant, load, checkpoint):
    build = Build(str(checkpoint("qwen3")), quant=quant, arch="portable")
    oracle = Oracle(build.config, build.weights(), build.scheme)
    errors = []
    for seed in range(8):
        ids = random_ids(seed, 4)
        expected = oracle.logits(ids)
        errors.append(np.abs(load("qwen3", quant, "portable").logits(ids) - expected).max() / np.abs(expected).max())
    assert np.quantile(errors, 0.25) <= 1e-4
    assert max(errors) <= worst(build.scheme.storage)


@pytest.mark.parametrize(
    ("family", "quant"), [*((name, "f32") for name in families()), *((name, "q4") for name in representatives())]
)
def test_decoding_equals_one_full_prefill(family, quant, load):
    """Each token is the one that the whole text, computed at once, would choose, with the same log-probability."""
    llm, prompt = load(family, quant), random_ids(7, 37)
    [result] = llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=0))
    text = prompt + list(result.outputs[0].token_ids)
    logits = llm.logits(text)[len(prompt) - 1 : -1].astype(np.float64)
    assert logits.argmax(-1).tolist() == text[len(prompt) :]
    peak = logits.max(-1)
    expected = -np.log(np.exp(logits - peak[:, None]).sum(-1))
    got = [entry.logprob for entry in result.outputs[0].logprobs]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("quant", ["f32", "q4", "q3"])
def test_batching_chunking_and_prefix_hits_change_no_token(quant, load, checkpoint):
    """One by one, all together, in small chunks with preemption, and again with a warm prefix cache: the same tokens,
    sampled and greedy."""
    shared = random_ids(8, 48)
    prompts = [shared[: 3 + 5 * i] + random_ids(i, 4) for i in range(8)]
    params = [
        SamplingParams(temperature=(i % 2) * 0.8, top_p=0.9, seed=i, max_tokens=56, ignore_eos=True) for i in range(8)
    ]
    llm = load("llama", quant)
    alone = [llm.generate([p], s)[0].outputs[0].token_ids for p, s in zip(prompts, params, strict=True)]
    assert [r.outputs[0].token_ids for r in llm.generate(prompts, params)] == alone
    again = llm.generate(prompts, params)
    assert [r.outputs[0].token_ids for r in again] == alone
    assert any(r.num_cached_tokens for r in again)
    tight = LLM(checkpoint("llama"), quant=quant, num_pages=8, max_num_seqs=8, max_num_batched_tokens=8)
    assert [r.outputs[0].token_ids for r in tight.generate(prompts, params)] == alone
    assert tight._core.stats().num_preemptions > 0
    assert tight._core.stats().num_available_pages == 8
