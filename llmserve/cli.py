"""The command line: each verb parses its options, calls the library, prints. An error is one sentence, exit code 1."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from . import __version__
from .errors import LLMServeError


class _Verbs(TyperGroup):
    """The verbs. Here `--calibrate` may stand alone, which means its default; what follows it may be the model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--calibrate" in args:
            from .compile.calibrate import is_methods

            follows = [*args[1:], ""]
            args = [
                "--calibrate=default" if arg == "--calibrate" and not is_methods(word) else arg
                for arg, word in zip(args, follows, strict=True)
            ]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="llmserve",
    cls=_Verbs,
    help="Serve a Hugging Face checkpoint behind an OpenAI-compatible endpoint, on whatever hardware is there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench_app = typer.Typer(no_args_is_help=True, help="Measure speed and memory.")
app.add_typer(bench_app, name="bench")

# Typer reads annotations at run time, and Python 3.10 needs them spelled this way.
ModelArgument = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(
        help="A checkpoint's directory, a GGUF file, a directory that `convert` wrote, or a Hub id such as "
        "Qwen/Qwen3-0.6B. Without one: the small model that comes with llmserve.",
        show_default=False,
    ),
]
QuantOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Weights: q4, q3, q8, none, or a full name such as q4f16_1.  "
        "[default: q4, or what a converted directory has]",
        show_default=False,
    ),
]
CalibrateOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="[METHODS]",
        help="Round 3- and 4-bit weights by what a text makes of them, which takes minutes. Alone: the best there is; "
        "or search, awq, gptq, none (several with commas).  [default: none]",
        show_default=False,
    ),
]
CalibrationDataOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help='That text: a plain file, or JSON lines of {"text": …} or {"messages": […]}.  [default: one of our own]',
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(help="Where to run: cpu, cuda, rocm, metal, webgpu, or auto for the best that is there and works."),
]
ArchOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="The device's instruction set or family, such as avx2, sm_90 or gfx1100.  [default: the best here]",
        show_default=False,
    ),
]
ConfigFileOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--config", help="A TOML file with sections [model], [engine] and [server].", show_default=False),
]
ContextOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        help="Tokens that a prompt and its answer may have.  [default: the model's own, at most 8192]",
        show_default=False,
    ),
]

BitsOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        help="Instead of --quant: so many bits per weight, scales included, spent where they help most, on 3-, 4- and "
        "8-bit matrices; 3.5 to 8.5.",
        show_default=False,
    ),
]
EvaluationDataOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="A text file to judge converted weights on.  [default: a text that comes with llmserve]",
        show_default=False,
    ),
]
ReportOption = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--report/--no-report",
        help="Judge weights that are converted, against the unquantized model.  "
        "[default: where that takes half a minute at most]",
        show_default=False,
    ),
]


class ConvertFormat(str, Enum):
    llmserve = "llmserve"
    mlc = "mlc"


@app.command()
def serve(
    model: ModelArgument = None,
    quant: QuantOption = None,
    calibrate: CalibrateOption = None,
    calibration_data: CalibrationDataOption = None,
    device: DeviceOption = "auto",
    arch: ArchOption = None,
    config: ConfigFileOption = None,
    host: Annotated[Optional[str], typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,  # noqa: UP045
    port: Annotated[Optional[int], typer.Option(help="Port to listen on.  [default: 8000]")] = None,  # noqa: UP045
    served_model_name: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="The model's name to clients; repeatable, for further names of it.", show_default=False),
    ] = None,
    any_model_name: Annotated[bool, typer.Option("--any-model-name", help="Serve whatever model is named.")] = False,
    max_model_len: ContextOption = None,
    max_num_seqs: Annotated[Optional[int], typer.Option(help="Sequences at once.  [default: 64]")] = None,  # noqa: UP045
    kv_cache_memory: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Memory for the KV cache, such as 2GiB.  [default: a quarter of what is free]"),
    ] = None,
    threads: Annotated[Optional[int], typer.Option(help="CPU threads.  [default: all cores]")] = None,  # noqa: UP045
    chat_template: Annotated[Optional[Path], typer.Option(help="A Jinja file to use instead of the model's.")] = None,  # noqa: UP045
    api_key: Annotated[Optional[list[str]], typer.Option(help="A key that clients must send; repeatable.")] = None,  # noqa: UP045
    bits: BitsOption = None,
    report: ReportOption = None,
) -> None:
    """Serve a model over HTTP: converts, compiles and caches what is missing, then answers the OpenAI API."""
    from .serving import serve as run

    engine: dict[str, Any] = {"max_model_len": max_model_len, "max_num_seqs": max_num_seqs}
    engine |= {"kv_cache_memory": kv_cache_memory, "num_threads": threads}
    server: dict[str, Any] = {
        "host": host,
        "port": port,
        "served_model_name": tuple(served_model_name) if served_model_name else None,
        "any_model_name": any_model_name or None,
        "chat_template": chat_template,
    }
    server["api_keys"] = tuple(api_key) if api_key else None
    chosen: dict[str, Any] = {"path": model, "quant": quant, "device": device, "arch": arch, "bits": bits}
    chosen |= {"calibrate": calibrate, "calibration_data": calibration_data, "report": report}
    run(_config(config, chosen, engine, server))


@app.command()
def chat(
    model: ModelArgument = None,
    quant: QuantOption = None,
    device: DeviceOption = "auto",
    arch: ArchOption = None,
    system: Annotated[Optional[str], typer.Option(help="A system message to begin with.")] = None,  # noqa: UP045
    temperature: Annotated[Optional[float], typer.Option(help="0 always takes the likeliest token.")] = None,  # noqa: UP045
    max_tokens: Annotated[int, typer.Option(help="Length of an answer at most.")] = 1024,
    max_model_len: ContextOption = None,
    threads: Annotated[Optional[int], typer.Option(help="CPU threads.  [default: all cores]")] = None,  # noqa: UP045
) -> None:
    """Talk to a model in the terminal. /reset starts over, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."""
    from .console import Steps
    from .llm import LLM
    from .terminal_chat import converse

    with Steps() as steps:
        llm = LLM(
            model, quant=quant, device=device, arch=arch, notify=steps, max_model_len=max_model_len, num_threads=threads
        )
    converse(llm, system, temperature, max_tokens)


@app.command()
def convert(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; `serve` takes it as a model.")],
    quant: QuantOption = None,
    calibrate: CalibrateOption = None,
    calibration_data: CalibrationDataOption = None,
    device: DeviceOption = "auto",
    bits: BitsOption = None,
    report: Annotated[bool, typer.Option(help="Judge the result against the unquantized model; takes minutes.")] = True,
    evaluation_data: EvaluationDataOption = None,
    picture: Annotated[Optional[Path], typer.Option(help="Draw each matrix's error into this SVG file.")] = None,  # noqa: UP045
    format_: Annotated[
        ConvertFormat, typer.Option("--format", help="Whose weight directory it becomes.")
    ] = ConvertFormat.llmserve,
) -> None:
    """Quantize a checkpoint into a directory of its own, with tokenizer and config, and report what it cost."""
    from .compile.build import Build
    from .console import Steps

    asked: dict[str, Any] = {"report": report or picture is not None, "evaluation_data": evaluation_data}
    with Steps() as steps:
        build = Build(
            model,
            quant=quant,
            device=device,
            notify=steps,
            calibrate=calibrate,
            calibration_data=calibration_data,
            bits=bits,
            **asked,
        )
        (build.export_mlc if format_ is ConvertFormat.mlc else build.export_weights)(output)
    if picture is not None:
        _draw(output, picture)
    typer.echo("\n".join([*build.notes, f"Wrote {output}. Serve it with: llmserve serve {output}"]))


@app.command(name="compile")
def compile_(
    model: ModelArgument = None,
    quant: QuantOption = None,
    calibrate: CalibrateOption = None,
    calibration_data: CalibrationDataOption = None,
    device: DeviceOption = "auto",
    arch: ArchOption = None,
    max_model_len: ContextOption = None,
    bits: BitsOption = None,
    report: ReportOption = None,
) -> None:
    """Convert and compile a model into the cache, so that `serve` starts at once."""
    from .compile.build import Build
    from .console import Steps

    with Steps() as steps:
        build = Build(
            model,
            quant=quant,
            device=device,
            arch=arch,
            notify=steps,
            calibrate=calibrate,
            calibration_data=calibration_data,
            bits=bits,
            report=report,
        )
        compiled = build.run(max_model_len)
    notes = compiled.notes or ("Everything was in the cache already.",)
    typer.echo("\n".join([*notes, f"Library: {compiled.library}", f"Weights: {compiled.params}"]))


@app.command(name="list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List what is in the cache: converted weights and what they cost, weights in a platform's layout, libraries."""
    from .artifact import cache_root, list_artifacts
    from .quant.report import summary

    rows = list_artifacts()
    if as_json:
        typer.echo(json.dumps([{**vars(row), "path": str(row.path)} for row in rows], indent=1))
        return
    for row in rows:
        state = "" if row.intact else "  (broken: will be made again)"
        words = f"{row.kind:<12}{row.size / 1e6:>10.1f} MB  {row.model:<28} {row.scheme:<9} {row.platform:<14}"
        typer.echo(f"{words} {row.path.name}{summary(row.results)}{state}")
    typer.echo(f"{len(rows)} in {cache_root()}")


@app.command()
def fit(
    model: ModelArgument = None,
    device: DeviceOption = "auto",
    memory: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Count with so much, such as 24GiB.  [default: what is free here]", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what memory a model takes in each quantization, and what context fits, before it is downloaded."""
    from .config import parse_memory
    from .fit import describe, report
    from .fit import fit as measure

    found = measure(model, device, parse_memory(memory))
    typer.echo(json.dumps(report(found), indent=1) if as_json else describe(found))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine can run and compile for, try each device, and name what is missing. Exit code 1 if no
    platform works."""
    from .doctor import WORKS, describe, examine, report

    findings = examine()
    typer.echo(json.dumps(report(findings), indent=1) if as_json else describe(findings))
    if not any(finding.state == WORKS for finding in findings):
        raise typer.Exit(1)


JsonFileOption = Annotated[Optional[Path], typer.Option("--json", help="Also write the figures to this file.")]  # noqa: UP045


@bench_app.command(name="engine")
def bench_engine(
    model: ModelArgument = None,
    quant: QuantOption = None,
    json_file: JsonFileOption = None,
    device: DeviceOption = "auto",
    arch: ArchOption = None,
) -> None:
    """Time prefill and decode at several batch sizes, without a server."""
    from .bench.engine import measure

    _report(measure(model, quant=quant, device=device, arch=arch), json_file)


@bench_app.command(name="serve")
def bench_serve(
    model: ModelArgument = None,
    quant: QuantOption = None,
    json_file: JsonFileOption = None,
    clients: Annotated[int, typer.Option(help="Streaming clients at once.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(help="Length of each prompt.")] = 128,
    max_tokens: Annotated[int, typer.Option(help="Length of each answer.")] = 32,
    url: Annotated[Optional[str], typer.Option(help="A server that is running; without it one is started.")] = None,  # noqa: UP045
) -> None:
    """Time a server under streaming clients: tokens per second, time to the first token, gaps between tokens."""
    from .bench.serve import measure

    _report(measure(model, quant, clients, prompt_tokens, max_tokens, url), json_file)


def _report(figures: dict[str, Any], json_file: Path | None) -> None:
    for name, value in figures.items():
        typer.echo(f"{name:<40}{value:>14.4g}" if isinstance(value, float) else f"{name:<40}{value!s:>14}")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _draw(converted: Path, file: Path) -> None:
    from .artifact import results_of
    from .errors import ConfigError
    from .quant.report import Report, picture

    found = results_of(converted).get("report")
    if found is None:
        raise ConfigError(f"There is nothing to draw into {file}, since no weights were rounded.")
    try:
        file.write_text(picture(Report.read(found).matrices), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The picture {file} cannot be written ({error.strerror}).") from error


def _config(file: Path | None, model: dict[str, Any], engine: dict[str, Any], server: dict[str, Any]) -> Any:
    """The TOML file's settings, with those of the command line on top."""
    from .config import Config, load_toml

    if model["device"] == "auto":
        model["device"] = None
    return (load_toml(file) if file else Config()).override(model=model, engine=engine, server=server)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"llmserve {__version__}")
        raise typer.Exit()


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 1."""
    try:
        app()
    except LLMServeError as error:
        typer.echo(f"llmserve: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
