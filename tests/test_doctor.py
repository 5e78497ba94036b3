"""Doctor's conclusions from what was found, and trials of devices, which end in a verdict whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmserve import detect, doctor, trial
from llmserve.compile.selftest import problem
from llmserve.detect import Device
from llmserve.machine import Machine
from llmserve.quant.group import INT4, dequantize
from llmserve.trial import Verdict

RIGHT = Verdict("", 1e-3)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list[Device]]:
    """A machine with a CPU, and whatever else a test puts there."""
    found = {"cpu": [Device("cpu", "A CPU", None, 8 << 30, 4 << 30)]}
    monkeypatch.setattr(detect, "devices", lambda platform, machine=None: tuple(found.get(platform, ())))
    monkeypatch.setattr(
        doctor, "needed", lambda platform, arch, machine: [doctor.Tool("a tool", "/bin/tool", "get it")]
    )
    return found


def examined(verdicts: dict[str, Verdict]) -> dict[str, doctor.Finding]:
    return {f.platform: f for f in doctor.examine(attempt=lambda platform, arch: verdicts[platform], machine=Machine())}


def test_a_gpu_that_works(machine: dict[str, list[Device]]) -> None:
    machine["cuda"] = [Device("cuda", "GPU 1", "sm_90", 80 << 30), Device("cuda", "GPU 2", "sm_90", 80 << 30)]
    found = examined({"cpu": RIGHT, "cuda": RIGHT})
    assert {name: f.state for name, f in found.items()} == {
        "cpu": doctor.WORKS,
        "cuda": doctor.WORKS,
        **dict.fromkeys(("rocm", "metal", "webgpu"), doctor.COMPILES),
    }
    text = doctor.describe(list(found.values()))
    assert "GPU 1 (sm_90), 80.0 GiB; a kernel took 1 ms" in text and "GPU 2, 80.0 GiB" in text
    assert text.endswith("--device auto is cuda.") and "there is no AMD GPU here; with /bin/tool" in text
    assert doctor.report(list(found.values()))["auto"] == "cuda"


def test_a_gpu_that_is_wrong(machine: dict[str, list[Device]]) -> None:
    machine["cuda"] = [Device("cuda", "GPU", "sm_90")]
    found = examined({"cpu": RIGHT, "cuda": Verdict("Its results are wrong.")})
    assert (found["cuda"].state, found["cuda"].problems) == (doctor.BROKEN, ("Its results are wrong.",))
    assert doctor.describe(list(found.values())).endswith("--device auto is cpu.")


def test_a_gpu_without_its_driver_is_not_tried(machine: dict[str, list[Device]]) -> None:
    machine["rocm"] = [Device("rocm", "GPU", problem="No driver; get one.")] * 2
    found = examined({"cpu": RIGHT})
    assert (found["rocm"].state, found["rocm"].problems) == (doctor.BROKEN, ("No driver; get one.",))


def test_missing_tools(machine: dict[str, list[Device]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "needed", lambda platform, arch, machine: [doctor.Tool("a tool", None, "get it")])
    found = examined({})
    assert (found["cpu"].state, found["metal"].state) == (doctor.BROKEN, doctor.LACKING)
    assert found["cpu"].problems == ("Compiling needs a tool; run: get it",)
    assert "No platform works on this machine" in doctor.describe(list(found.values()))


def test_software_is_never_the_best(machine: dict[str, list[Device]]) -> None:
    machine["webgpu"] = [Device("webgpu", "a driver", software=True)]
    found = examined({"cpu": Verdict("broken"), "webgpu": Verdict("", 1e-3, "llvmpipe")})
    assert "llvmpipe, which is the CPU" in doctor.describe(list(found.values()))
    assert doctor.best(found.values()) is None


def test_the_cpu_of_this_machine_works() -> None:
    verdict = trial.attempt("cpu")
    assert verdict.problem == "" and 0 < verdict.seconds < 1


def test_a_device_that_is_not_here() -> None:
    if detect.devices("metal"):
        pytest.skip("it is here")
    assert trial.attempt("metal").problem == "TVM finds no metal device."


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import os; os.abort()", "ended with -6"),
        ("import sys; print('a word', file=sys.stderr); sys.exit(3)", "ended with 3 (a word)"),
        ("print('{}')", "ended with 0"),
        ("import time; time.sleep(60)", "no answer in 1 s"),
    ],
)
def test_trials_that_end_badly(script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    file = tmp_path / "script.py"
    file.write_text(script, encoding="utf-8")
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {file}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert words in trial.attempt("cuda", timeout=1.0 if "sleep" in script else 30.0).problem


def test_only_what_has_worked_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSERVE_CACHE", str(tmp_path / "cache"))
    verdicts = [Verdict("no"), RIGHT]
    monkeypatch.setattr(trial, "attempt", lambda platform, arch: verdicts.pop(0))
    device = Device("cuda", "GPU", "sm_90", driver="1")
    assert [trial.works(device) for _ in range(3)] == [False, True, True] and not verdicts
    (tmp_path / "cache/devices.json").write_text("[broken", encoding="utf-8")
    verdicts.append(Verdict("no"))
    assert not trial.works(device)
    verdicts.append(RIGHT)
    assert trial.works(Device("cuda", "GPU", "sm_90", driver="2")) and not verdicts  # a new driver is tried anew


def test_a_wrong_result_is_noticed() -> None:
    """The bound has room for 8-bit activations and float16; not for leaving out a group of 32 inputs."""
    for dtype in ("float32", "float16"):
        x, stored, expected, bound = problem(dtype)
        assert x.dtype == dtype and (bound > 0).all()
        weights = dequantize(stored["q_weight"], stored["q_scale"], INT4, x.shape[1]).astype(np.float64)
        without = x[:, 32:].astype(np.float64) @ weights[:, 32:].T
        assert (np.abs(without - expected) > bound).mean() > 0.5


def test_the_verb(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmserve", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    answer = json.loads(done.stdout)
    states = {row["platform"]: row["state"] for row in answer["platforms"]}
    assert set(states) == {"cpu", "cuda", "rocm", "metal", "webgpu"} and states["cpu"] == "works"
    assert done.returncode == 0 and answer["auto"] in states
