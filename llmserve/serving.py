"""`llmserve serve`: settings in, a server until a signal comes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from .api.checks import check
from .compile.prepare import PreparedModel, prepare
from .compile.recall import RecalledBuild
from .config import Config, sampling_defaults
from .console import Steps, say
from .text.tokenizer import Tokenizer
from .weights.load import read_ahead


def serve(config: Config) -> None:
    """Build what is missing and serve. Raises LLMServeError before the port is opened, not after.

    A start with everything cached takes as long as its imports, in this thread. What waits for disk and memory, or
    computes outside of Python, goes on beside them: that is why the imports stand here.
    """
    model, server = config.model, config.server
    check(server)
    with Steps() as steps, ThreadPoolExecutor(1, "llmserve-start") as beside:
        with _without_garbage_collection():
            build: PreparedModel = prepare(
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
            loading = beside.submit(Tokenizer.from_directory, build.tokenizer_directory)
            if isinstance(build, RecalledBuild):
                read_ahead(build.compiled.params)

            from .api.app import create_app
            from .api.base.state import ServedModel
            from .api.launch import run
            from .engine import AsyncEngine, recommended
            from .engine.grammar.compiler import GrammarCompiler
            from .engine.loading import load_core, scheduler_config
            from .text.chat_template import ChatTemplate

        # A wrong tokenizer or template is an error before anything is converted or compiled.
        tokenizer = loading.result()
        directory = build.tokenizer_directory
        template = ChatTemplate.from_directory(directory, tokenizer.special_tokens, server.chat_template)
        defaults = recommended(sampling_defaults(directory), f"{directory}/generation_config.json")
        compiled = build.run(config.engine.max_model_len)
    scheduler = scheduler_config(compiled, config.engine)
    engine = AsyncEngine(
        lambda: load_core(compiled, config.engine, scheduler, tokenizer, tokenizer.eos_token_ids),
        GrammarCompiler(tokenizer),
    )
    name, *others = server.served_model_name or (build.label,)
    served = ServedModel(
        id=name,
        max_model_len=compiled.max_model_len,
        aliases=(*others, *(() if model.path is None else (model.path,))),
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


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """For imports: what they make stays, and looking through all of it for garbage takes a sixth of their time.

    Afterwards it is left out of every collection, so that those of a server that runs are short too.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
