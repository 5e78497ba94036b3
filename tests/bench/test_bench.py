"""The bench verbs on a tiny model: every promised figure is there, finite and positive. Not how fast anything is."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmserve.bench import engine, host, plan, serve
from llmserve.cli import app
from llmserve.compile.random_checkpoint import TINY_LLAMA, write_random_checkpoint
from llmserve.errors import LLMServeError

ENGINE = [
    "ready_seconds",
    "prepare_seconds",
    *(f"prefill_{tokens}_tok_s" for tokens in plan.PREFILL),
    *(f"decode_b{batch}_{what}" for batch in plan.BATCHES for what in ("tok_s", "step_ms", "host_ms")),
    "peak_rss_mib",
    "rss_mib",
    "threads",
]
SERVE = [
    "ready_seconds",
    "output_tok_s",
    "first_token_median_ms",
    "first_token_p95_ms",
    "server_peak_rss_mib",
]
# Nothing, where a tiny model is faster than its reader, who then gets a whole answer at once.
GAPS = ["gap_median_ms", "gap_p95_ms", "per_token_median_ms"]


def check(figures: dict[str, Any], names: list[str]) -> None:
    for name in names:
        assert math.isfinite(figures[name]) and figures[name] > 0, (name, figures)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The families' tiny configs have contexts shorter than what is measured; the demo's is long enough."""
    return str(write_random_checkpoint(tmp_path_factory.mktemp("bench") / "tiny-demo", TINY_LLAMA))


def test_the_engine_figures_through_the_command_line(model: str, tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    done = CliRunner().invoke(app, ["bench", "engine", model, "--json", str(file)])
    assert done.exit_code == 0, (done.output, done.exception)
    figures = json.loads(file.read_text())
    check(figures, ENGINE)
    assert figures["scheme"] == "q4f32_1"
    assert "prefill_512_tok_s" in done.output


def test_host_time_is_part_of_the_step(model: str) -> None:
    bench = engine.EngineBench(model)
    timing = bench.decode(4, 20, 6)
    assert (timing.steps, timing.tokens) == (6, 24)
    assert 0 < timing.compiled < timing.seconds
    assert bench.prefill(40).tokens == 40
    assert not bench.core.has_work(), "what was measured has left the engine"


def test_the_server_figures_and_that_it_stops(model: str) -> None:
    figures = serve.measure(model, None, clients=3, prompt_tokens=12, max_tokens=8)
    check(figures, SERVE)
    assert all(math.isfinite(figures[name]) and figures[name] >= 0 for name in GAPS)
    assert (figures["requests"], figures["requests_failed"]) == (3 * serve.REQUESTS, 0)


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "prepare", lambda *args, **options: (0.0, ""))  # it fails as well, only slower
    with pytest.raises(LLMServeError, match=r"did not start: .*config\.json"):
        serve.measure(str(tmp_path), None)


def test_bystanders_are_counted_and_we_are_not() -> None:
    own, all_ = host.Bystanders(), host.Bystanders(os.getppid())
    began = time.perf_counter()
    if host.machine_seconds() is None:
        pytest.skip("this system does not tell how busy it is")
    busy = host.process_seconds() + 0.3  # of processor time: on a machine with other work it takes longer
    while host.process_seconds() < busy:
        pass
    seconds = time.perf_counter() - began
    ours, everyone = own.cores(), all_.cores()
    assert ours is not None and everyone is not None
    assert (everyone - ours) * seconds > 0.2, "a busy loop of ours is no bystander"


def test_a_url_where_nobody_listens_is_an_error() -> None:
    with pytest.raises(LLMServeError, match="list its models"):
        serve.measure(None, url="http://127.0.0.1:9")
