"""`llmserve serve`: settings in, a server until a signal comes."""

from __future__ import annotations

from typing import Any

from .api.app import create_app, run
from .api.state import ServedModel
from .compile.build import Build, Limits
from .config import Config, sampling_defaults
from .console import Steps, stderr
from .engine import AsyncEngine
from .engine.loading import load_core
from .text.chat_template import ChatTemplate
from .text.tokenizer import Tokenizer
from .weights import embedded


def serve(config: Config) -> None:
    """Build what is missing and serve. Raises LLMServeError before the port is opened, not after."""
    model, server = config.model, config.server
    with Steps() as steps:
        build = Build(
            model.path,
            quant=model.quant,
            device=model.device,
            arch=model.arch,
            limits=Limits.of(config.engine),
            notify=steps,
        )
        compiled = build.run(config.engine.max_model_len)
    for note in compiled.notes:
        stderr.print(note, highlight=False)
    if model.path is None and embedded.is_random():
        stderr.print("No model was named: a stand-in of random weights is served, whose answers are noise.")
    tokenizer = Tokenizer.from_directory(compiled.source)
    template = ChatTemplate.from_directory(compiled.source, tokenizer.special_tokens, server.chat_template)
    engine = AsyncEngine(lambda: load_core(compiled, config.engine, tokenizer, tokenizer.eos_token_ids))
    defaults: dict[str, Any] = sampling_defaults(compiled.source)
    served = ServedModel(
        id=server.served_model_name or build.label,
        max_model_len=compiled.max_model_len,
        aliases=() if model.path is None else (model.path,),
        sampling_defaults=defaults,
    )
    stderr.print(
        f"{served.id} ({compiled.scheme} on {compiled.platform}) at http://{server.host}:{server.port}/v1",
        highlight=False,
    )
    run(create_app(engine, tokenizer, template, served, server), server)
