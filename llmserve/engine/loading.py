"""A compiled model and its limits become an engine core: how much memory goes to pages is decided here."""

from __future__ import annotations

import os
from collections.abc import Collection

from ..compile.compiled import CompiledModel
from ..config import EngineConfig
from ..errors import ConfigError
from .core import EngineCore
from .detokenize import Tokenizer
from .executor import LocalExecutor
from .scheduler_config import SchedulerConfig

_SHARE_OF_FREE_MEMORY = 0.25
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
    """Pages that the configuration allows: as told, else a quarter of the free memory, but no more than all sequences
    at full length could use. Raises ConfigError when not even one sequence of full length fits."""
    size = model.interface.page_size
    one = -(-model.max_model_len // size)
    if config.num_pages is not None:
        return config.num_pages
    budget = config.kv_cache_memory
    if budget is None:
        budget = int(_free_memory() * _SHARE_OF_FREE_MEMORY)
    pages = min(budget // model.page_bytes, one * config.max_num_seqs)
    if pages < one:
        raise ConfigError(
            f"The KV cache of one sequence of {model.max_model_len} tokens takes {_size(one * model.page_bytes)}, "
            f"and {_size(budget)} are set aside for it; lower max_model_len or raise kv_cache_memory."
        )
    return pages


def _free_memory() -> int:
    """Bytes that can be had without swapping; where the system does not say, its physical memory."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size(count: int) -> str:
    unit = next((u for u in ("GiB", "MiB", "KiB") if count >= _UNITS[u]), None)
    return f"{count} bytes" if unit is None else f"{count / _UNITS[unit]:.1f} {unit}"
