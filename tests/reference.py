"""Families by transformers, with the rounding that the engine does on purpose: the reference for whole quantized
models.

The stored weights are put back into a checkpoint of the family's own names and order, the inputs of matrices are
rounded to 8 bits as the kernels do it, and keys and values to the dtype of pages. Nothing of the product's forward
pass is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llmserve.compile.build import Build
from llmserve.compile.quality import StoredWeights
from llmserve.quant.group import GroupFormat
from llmserve.weights.load import load_params
from llmserve.weights.source import copy_companions, write_json

from .oracle import quantize_activations


def checkpoint_of_stored(build: Build, out: Path) -> Path:
    """A float32 checkpoint of the weights that `build` stored, dequantized, as the family publishes them."""
    plan = build.subject.plan(build.scheme)
    weights = StoredWeights(load_params(build.weights()), plan)
    tensors: dict[str, np.ndarray] = {}
    for param in plan.params:
        ours = np.atleast_1d(weights.tensor(param.name) - np.float32(param.added))
        whole = np.empty_like(ours)
        whole[slice(None) if param.order is None else param.order] = ours
        first = 0
        for source in param.sources:
            shape = build.subject.source.info(source).shape
            rows = (shape[-1] if param.transposed else shape[0]) if shape else 1
            part, first = whole[first : first + rows], first + rows
            tensors[source] = np.ascontiguousarray(part.T if param.transposed else part).reshape(shape)
    out.mkdir()
    write_json(out / "config.json", build.raw_config)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    copy_companions(Path(build.directory), out)
    return out


def load(directory: Path) -> Any:
    """The float32 model of transformers. Every tensor of the checkpoint must have a place, and every place a tensor."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    left = {kind: names for kind, names in info.items() if names and kind != "error_msgs"}
    assert not left, f"transformers disagrees with the checkpoint's names: {left}"
    return model.eval()


def rounded_logits(model: Any, storage: GroupFormat | str, page_dtype: str, texts: list[list[int]]) -> list[np.ndarray]:
    """Logits float32 [T, vocab] of each text, computed with the rounding of that storage."""
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    class RoundingCache(transformers.DynamicCache):
        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            kind = getattr(torch, page_dtype)
            rounded = (states.to(kind).to(states.dtype) for states in (key_states, value_states))
            return super().update(*rounded, *args, **kwargs)

    def rounded(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        rows = x.reshape(-1, x.shape[-1]).numpy()
        a, scale = quantize_activations(np.ascontiguousarray(rows), storage)
        values = (a * scale[:, :, None]).reshape(len(rows), -1)[:, : rows.shape[1]]
        return (torch.from_numpy(values.astype(np.float32)).reshape(x.shape), *inputs[1:])

    hooks = []
    if isinstance(storage, GroupFormat):
        matrices = [module for module in model.modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
        hooks = [module.register_forward_pre_hook(rounded) for module in matrices]
    with torch.no_grad():
        found = [model(torch.tensor([ids]), past_key_values=RoundingCache()).logits[0].numpy() for ids in texts]
    for hook in hooks:
        hook.remove()
    return found
