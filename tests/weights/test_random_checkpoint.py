"""Random checkpoints are what they claim: right names, one seed one result, a tokenizer that tokenizes."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import numpy as np
import pytest
from tokenizers import Tokenizer

from llmserve.compile.random_checkpoint import TINY_LLAMA, tensor_shapes, write_random_checkpoint
from llmserve.errors import UnsupportedError
from llmserve.weights.read import Checkpoint
from llmserve.weights.tiny_tokenizer import SPECIALS, write_tokenizer

from ..skips import package


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_families(tmp_path: Path, family: str, tied: bool) -> None:
    config = TINY_LLAMA | {"model_type": family, "tie_word_embeddings": tied, "vocab_size": 300}
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path, config))
    shapes = {name: checkpoint.info(name).shape for name in checkpoint.names()}
    assert shapes == tensor_shapes(config)
    assert ("lm_head.weight" in shapes) is not tied
    assert ("model.layers.0.self_attn.q_proj.bias" in shapes) is (family == "qwen2")
    assert ("model.layers.0.self_attn.q_norm.weight" in shapes) is (family == "qwen3")
    norm, weight = (checkpoint.read(f"model.layers.1.{name}.weight") for name in ("input_layernorm", "mlp.up_proj"))
    assert abs(norm.astype(float).mean() - 1) < 0.1
    assert abs(weight.astype(float).std() * np.sqrt(128) - 1) < 0.1


def test_the_seed_decides(tmp_path: Path) -> None:
    paths = [write_random_checkpoint(tmp_path / str(i), TINY_LLAMA, seed=i // 2) for i in range(3)]
    a, b, c = ({file.name: file.read_bytes() for file in path.iterdir()} for path in paths)
    assert a == b
    assert {name for name in a if a[name] != c[name]} == {"model.safetensors"}


def test_unknown_families_need_shapes(tmp_path: Path) -> None:
    config = TINY_LLAMA | {"model_type": "mamba"}
    with pytest.raises(UnsupportedError, match="mamba"):
        write_random_checkpoint(tmp_path, config)
    write_random_checkpoint(tmp_path, config, shapes={"a.weight": (3, 4)})
    assert Checkpoint.open(tmp_path).info("a.weight").shape == (3, 4)


@pytest.mark.parametrize("vocab_size", [259, 300, 1024, 4000])
def test_the_tokenizer(tmp_path: Path, vocab_size: int) -> None:
    ids = write_tokenizer(tmp_path, vocab_size, 64)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))
    text = "Hello, wörld! 你好 😀\r\n\n  def f(x):\treturn x ** 2\x00"
    tokens = tokenizer.encode(text + "<|im_end|>").ids
    assert tokens[-1] == ids["eos_token_id"][0] == tokenizer.token_to_id("<|im_end|>")
    assert tokenizer.decode(tokens) == text
    assert [tokenizer.id_to_token(i) for i in range(vocab_size - 3, vocab_size)] == list(SPECIALS)


def test_a_vocabulary_must_hold_all_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 259 entries"):
        write_tokenizer(tmp_path, 258, 64)


def test_configs_and_template_agree(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, TINY_LLAMA)
    config, generation, tokenizer = (
        json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("config", "generation_config", "tokenizer_config")
    )
    assert config["eos_token_id"] == generation["eos_token_id"] and config["torch_dtype"] == "bfloat16"
    template = jinja2.Environment().from_string(tokenizer["chat_template"])
    rendered = template.render(messages=[{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.reference
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_transformers_takes_it(tmp_path: Path, family: str) -> None:
    torch = package("torch", "transformers as a reference")
    transformers = package("transformers", "transformers as a reference")
    path = write_random_checkpoint(tmp_path, TINY_LLAMA | {"model_type": family, "architectures": None})
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("Tell me a story")["input_ids"]])).logits
    assert 0.3 < logits.std() < 3
