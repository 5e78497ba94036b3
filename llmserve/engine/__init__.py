"""The engine: requests to tokens. This face is what the server, the offline facade and the benchmarks use.

plan/ decides (pure), run/ computes (devices), grammar/ compiles grammars. Importing this imports no TVM: executors are
made in run/executor.py.
"""

from __future__ import annotations

from .async_engine import AsyncEngine
from .core import EngineCore, EngineStats, Executor
from .plan.grammar_spec import Grammar
from .plan.outputs import ChoiceDelta, FinishReason, Pooled, RequestOutput, SampledToken, Scored, TokenLogprob, fold
from .plan.sampling_params import MAX_LOGIT_BIAS, SamplingParams, recommended
from .plan.scheduler_config import SchedulerConfig

__all__ = [
    "MAX_LOGIT_BIAS",
    "AsyncEngine",
    "ChoiceDelta",
    "EngineCore",
    "EngineStats",
    "Executor",
    "FinishReason",
    "Grammar",
    "Pooled",
    "RequestOutput",
    "SampledToken",
    "SamplingParams",
    "SchedulerConfig",
    "Scored",
    "TokenLogprob",
    "fold",
    "recommended",
]
