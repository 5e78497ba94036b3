"""`make bench` on a tiny model and without the peer: that it measures, writes both files, and says what it ran."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import peers
import pytest
from samples import Sample

from llmserve.bench.host import Bystanders


@pytest.mark.slow
def test_a_run_and_what_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "result.json"
    monkeypatch.setattr(peers, "peer_installed", lambda: False)
    monkeypatch.setattr(Bystanders, "cores", lambda self: None)  # or nothing would count while other tests run
    options = ["--shape", "tiny", "--only", "decode", "--repetitions", "2", "--patience", "0", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["peers.py", *options, "--output", str(output)])
    peers.main()
    found = json.loads(output.read_text(encoding="utf-8"))
    samples = found["samples"]["decode"]["llmserve"]
    assert len(samples) == 2 * 3
    assert all(math.isfinite(rate) and rate > 0 for sample in samples for rate in sample["figures"].values())
    assert len(found["samples"]["decode"]["read"]) == 2 and found["other load"]["samples"] == 8
    assert [row["label"][:6] for row in found["rows"]] == ["decode", "  of r", "decode", "decode"]
    assert all(row["llmserve"] for row in found["rows"]) and not any(row["llama.cpp"] for row in found["rows"])
    page = output.with_suffix(".md").read_text(encoding="utf-8")
    for words in ("worker.py llmserve --model", "apache-tvm", "load average", "cpu-", "1 threads each", *options):
        assert words in page, words


def test_parts_are_kept_apart_from_a_run_of_everything() -> None:
    found = {"machine": "Some CPU 9, Linux"}
    whole = peers.stem(found, "random llama-1b", [])
    assert whole.endswith("-some-cpu-9")
    assert peers.stem(found, "random llama-1b", ["decode", "host"]) == f"{whole}-decode-host"
    assert peers.stem(found, "random tiny", []) == f"{whole}-random-tiny"


def test_the_load_is_told_of_every_sample() -> None:
    records = [{"a": [Sample({}, 0.0, 9.0), Sample({}, 90.0, 9.0)]}, {"b": [Sample({}, None, 9.0)]}]
    found = peers.disturbance(records)
    assert (found["samples"], found["undisturbed"]) == (3, 2)
    assert (found["cores_used_by_others_mean"], found["cores_used_by_others_max"]) == (45.0, 90.0)
