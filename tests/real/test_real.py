"""Real models from their GGUF files: logits, tokenizer, and a conversation over HTTP.

Random weights hide what tokenizers, templates and windows do; these do not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from llmserve import LLM

from ..skips import package
from ..test_serve import Server
from ..text.nasty import disagreements
from .models import MODELS, RealModel

pytestmark = [
    pytest.mark.skipif("LLMSERVE_REAL_MODELS" not in os.environ, reason="real models: they are large (make real)"),
    pytest.mark.timeout(900),
]
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
TOKENS = 700  # more than Gemma's window of 512
QUESTIONS = {"What is the capital of France?": "Paris", "And what is the capital of Italy?": "Rome"}


def text() -> str:
    """Prose and code: this repository's own."""
    return (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def reference(model: RealModel) -> Any:
    """transformers' reading of the file, in float32."""
    torch = package("torch", "transformers as a reference")
    transformers = package("transformers", "transformers as a reference")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.AutoConfig.from_pretrained(model.path.parent, gguf_file=model.path.name)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    tensors = load_gguf_checkpoint(str(model.path), return_tensors=True, model_to_load=made)["tensors"]
    left = made.load_state_dict({name: torch.as_tensor(t) for name, t in tensors.items()}, strict=False)
    assert left.missing_keys in ([], ["lm_head.weight"]) and not left.unexpected_keys
    made.tie_weights()
    return made.eval()


@pytest.mark.reference
@each_model
def test_logits_equal_transformers(model: RealModel) -> None:
    """The same weights in float32, text longer than the windows: what is left is the order of float32 sums, 1e-5 of the
    largest logit where it was seen; 1e-4 leaves a factor of ten. The likeliest tokens are the same."""
    torch = package("torch", "transformers as a reference")
    llm = LLM(model.path, quant="f32", kv_cache_memory="128MiB", max_model_len=1024)
    ids = llm.tokenizer.encode(text())[:TOKENS]
    assert len(ids) == TOKENS
    with torch.no_grad():
        expected = reference(model)(torch.tensor([ids])).logits[0].numpy()
    found = llm.logits(ids)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.995


@pytest.mark.reference
@each_model
def test_the_tokenizer_equals_transformers(model: RealModel) -> None:
    package("transformers", "transformers as a reference")
    assert not disagreements(model.path)


@each_model
def test_it_answers_over_http(model: RealModel) -> None:
    """As served by default: two turns of a conversation, or for a base model a text that is continued."""
    server = Server(model.path, "--kv-cache-memory", "128MiB", "--max-model-len", "1024")
    try:
        server.wait()
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        name = client.models.list().data[0].id
        try:
            messages: list[dict[str, str]] = []
            for question, answer in QUESTIONS.items():
                messages.append({"role": "user", "content": question})
                reply = client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=32)
                messages.append({"role": "assistant", "content": reply.choices[0].message.content})
                assert answer in messages[-1]["content"]
        except openai.BadRequestError as error:
            assert "no chat template" in str(error)
            asked = {"prompt": "Monday, Tuesday, Wednesday,", "temperature": 0, "max_tokens": 8}
            done = client.completions.create(model=name, **asked)
            assert "Thursday, Friday" in done.choices[0].text
    finally:
        server.stop()
