"""llmserve: a Hugging Face checkpoint goes in, an OpenAI-compatible endpoint comes out.

Importing this package imports neither TVM nor the web framework; `LLM` and its records load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LLM", "Grammar", "SamplingParams", "__version__"]

if TYPE_CHECKING:
    from .engine.plan.grammar_spec import Grammar
    from .engine.plan.sampling_params import SamplingParams
    from .llm import LLM


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from .llm import LLM

        return LLM
    if name == "Grammar":
        from .engine.plan.grammar_spec import Grammar

        return Grammar
    if name == "SamplingParams":
        from .engine.plan.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
