"""The making of an engine core from a compiled model and limits; it decides how much memory goes to pages."""

from __future__ import annotations

from collections.abc import Collection

from .. import detect
from ..compile.compiled import CompiledModel
from ..config import EngineConfig
from ..errors import ConfigError
from ..weights.load import PARAMS_FILE
from .core import EngineCore
from .detokenize import Tokenizer
from .plan.scheduler_config import SchedulerConfig
from .run.executor import LocalExecutor

_SHARE_OF_FREE_MEMORY = 0.25  # of a computer's, which others want as well
_SHARE_OF_GPU_MEMORY = 0.85  # of a GPU's own, less the weights; the rest is for a step's results
_UNKNOWN_MEMORY = 4 << 30  # where nothing tells
_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def scheduler_config(model: CompiledModel, config: EngineConfig) -> SchedulerConfig:
    """The scheduler's limits for a model on this machine, now. Raises ConfigError where they cannot be met."""
    return SchedulerConfig(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=model.interface.max_num_batched_tokens,
        max_model_len=model.max_model_len,
        page_size=model.interface.page_size,
        num_pages=choose_num_pages(model, config),
        prefix_caching=config.prefix_caching,
        max_waiting=config.max_waiting,
    )


def load_core(
    model: CompiledModel,
    config: EngineConfig,
    limits: SchedulerConfig,
    tokenizer: Tokenizer | None,
    eos_token_ids: Collection[int] = (),
) -> EngineCore:
    """Load the model in the calling thread, which must be the one that steps it."""
    executor = LocalExecutor(model, limits.num_pages, eos_token_ids, config.num_threads)
    return EngineCore(executor, limits, tokenizer, eos_token_ids)


def choose_num_pages(model: CompiledModel, config: EngineConfig) -> int:
    """Pages that the configuration allows: as told, else a share of the free memory, but no more than all sequences
    at full length could use. Raises ConfigError when not even one sequence of full length fits."""
    size = model.interface.page_size
    one = -(-model.max_model_len // size)
    if config.num_pages is not None:
        return config.num_pages
    budget = config.kv_cache_memory
    if budget is None:
        budget = _budget(model)
    pages = min(budget // model.page_bytes, one * config.max_num_seqs)
    if pages < one:
        raise ConfigError(
            f"The KV cache of one sequence of {model.max_model_len} tokens takes {_size(one * model.page_bytes)}, "
            f"and {_size(budget)} are set aside for it; lower max_model_len or raise kv_cache_memory."
        )
    return pages


def _budget(model: CompiledModel) -> int:
    """Bytes for pages where the settings do not say."""
    device = detect.usable(model.interface.device)
    if model.interface.device != "cpu" and device and not device.software and device.free is not None:
        weights = (model.params / PARAMS_FILE).stat().st_size
        return max(0, int((device.free - weights) * _SHARE_OF_GPU_MEMORY))
    # A CPU, or a device that shares its memory or does not report its own.
    host = detect.usable("cpu")
    free = (host.free or host.memory) if host else None
    return int((free or _UNKNOWN_MEMORY) * _SHARE_OF_FREE_MEMORY)


def _size(count: int) -> str:
    unit = next((u for u in ("GiB", "MiB", "KiB") if count >= _UNITS[u]), None)
    return f"{count} bytes" if unit is None else f"{count / _UNITS[unit]:.1f} {unit}"
