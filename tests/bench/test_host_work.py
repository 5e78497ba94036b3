"""Host work of a step: its parts, and the steps that count."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmserve.bench.host_work import HostWork, _summed, measure
from llmserve.compile.random_checkpoint import TINY_LLAMA, write_random_checkpoint


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_measured_from_inside(tmp_path: Path, temperature: float) -> None:
    model = str(write_random_checkpoint(tmp_path / "tiny", TINY_LLAMA))
    found = measure(model, 3, context=20, steps=8, temperature=temperature)
    assert 0 < found.compiled < found.step
    assert found.loop > 0
    assert found.engine == found.step - found.compiled
    assert found.share > 0


def test_the_share_has_all_of_the_hosts_work() -> None:
    assert HostWork(step=10.0, compiled=8.0, loop=1.0).share == pytest.approx(0.3)


def test_only_decode_steps_of_the_full_batch_count() -> None:
    prompt = [(0.0, 1.0, 8), (1.0, 2.0, 2)]  # whose rest has as many tokens as the batch, but is not in the last run
    others = [(2.0, 5.0, 5)]
    decoding = [(10.0 + i, 10.75 + i, 2) for i in range(8)]
    ending = [(18.0, 18.5, 1)]
    marks = [(9.0 + i, 0.125 * i) for i in range(12)]
    found = _summed([*prompt, *others, *decoding, *ending], 2, marks)
    assert (found.step, found.compiled, found.loop) == (1.0, 0.75, 0.125)
