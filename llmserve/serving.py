"""`llmserve serve`: settings in, a server until a signal comes."""

from __future__ import annotations

from typing import Any

from .api.app import create_app
from .api.launch import check, run
from .api.state import ServedModel
from .compile.build import Build
from .config import Config, sampling_defaults
from .console import Steps, say
from .engine import AsyncEngine
from .engine.grammar import GrammarCompiler
from .engine.loading import load_core, scheduler_config
from .text.chat_template import ChatTemplate
from .text.tokenizer import Tokenizer


def serve(config: Config) -> None:
    """Build what is missing and serve. Raises LLMServeError before the port is opened, not after."""
    model, server = config.model, config.server
    check(server)
    with Steps() as steps:
        build = Build(
            model.path,
            quant=model.quant,
            device=model.device,
            arch=model.arch,
            engine=config.engine,
            notify=steps,
            calibrate=model.calibrate,
            calibration_data=model.calibration_data,
            bits=model.bits,
            report=model.report,
        )
        # What is wrong with words or settings shows before anything is converted or compiled.
        tokenizer = Tokenizer.from_directory(build.words)
        template = ChatTemplate.from_directory(build.words, tokenizer.special_tokens, server.chat_template)
        defaults: dict[str, Any] = sampling_defaults(build.words)
        compiled = build.run(config.engine.max_model_len)
    scheduler = scheduler_config(compiled, config.engine)
    engine = AsyncEngine(
        lambda: load_core(compiled, config.engine, scheduler, tokenizer, tokenizer.eos_token_ids),
        GrammarCompiler(tokenizer),
    )
    served = ServedModel(
        id=server.served_model_name or build.label,
        max_model_len=compiled.max_model_len,
        aliases=() if model.path is None else (model.path,),
        sampling_defaults=defaults,
    )
    for note in compiled.notes:
        say(note)
    if model.path is None:
        say("No model was named: the small one of the package is served, which knows few things and is often wrong.")
    url = f"{'http' if server.ssl_certfile is None else 'https'}://{server.host}:{server.port}"
    say(f"{served.id} ({compiled.scheme} on {compiled.platform}) at {url}/v1")
    if server.page:
        say(f"A page to chat with it: {url}")
    run(create_app(engine, tokenizer, template, served, server), server)
