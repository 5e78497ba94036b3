"""`llmserve doctor`: what this machine can run and compile for, what is missing, and the command that gets it.

Its facts are found elsewhere: devices by detect.py, tools by compile/tools.py, whether a device works by trial.py.
"""

from __future__ import annotations

import platform as python_platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from . import __version__, detect
from .artifact import cache_root
from .compile.tools import Tool, needed
from .errors import ConfigError
from .machine import THIS, Machine, size
from .platforms import PLATFORMS
from .toolchain import tvm_version
from .trial import Verdict, attempt

WORKS, BROKEN, COMPILES, LACKING = "works", "broken", "compiles only", "missing"
_ABSENT = {
    "cuda": "there is no NVIDIA GPU here",
    "rocm": "there is no AMD GPU here",
    "metal": "this is no Mac",
    "webgpu": "there is no Vulkan driver with its GPU here",
}


@dataclass(frozen=True)
class Finding:
    """The findings about a platform on this machine.

    Attributes:
        state: "works" (a kernel ran on it and was right), "broken" (a device that cannot be used), "compiles only" (for
            devices elsewhere), "missing" (neither).
        devices: those that are here, usable or not.
        tools: what compiling for it needs, found or not.
        problems: sentences that say what is wrong and what to do.
        verdict: what came of the trial, if there was one.
    """

    platform: str
    state: str
    devices: tuple[detect.Device, ...] = ()
    tools: tuple[Tool, ...] = ()
    problems: tuple[str, ...] = ()
    verdict: Verdict | None = None


def examine(
    platforms: Iterable[str] = PLATFORMS,
    machine: Machine = THIS,
    attempt: Callable[[str, str | None], Verdict] = attempt,
) -> list[Finding]:
    """A finding for each platform. Never raises."""
    return [_examine(platform, machine, attempt) for platform in platforms]


def _examine(platform: str, machine: Machine, attempt: Callable[[str, str | None], Verdict]) -> Finding:
    devices, tools = detect.devices(platform, machine), tuple(needed(platform, None, machine))
    problems = [device.problem for device in devices if device.problem]
    problems += [f"Compiling needs {tool.name}; run: {tool.remedy}" for tool in tools if tool.found is None]
    device = detect.usable(platform, machine)
    complete = all(tool.found for tool in tools)
    if device is None or not complete:
        state = BROKEN if devices else COMPILES if complete else LACKING
        return Finding(platform, state, devices, tools, tuple(dict.fromkeys(problems)))
    verdict = attempt(platform, device.arch)
    if verdict.problem:
        problems.append(verdict.problem)
    return Finding(platform, BROKEN if verdict.problem else WORKS, devices, tools, tuple(problems), verdict)


def wrong_tvm() -> str | None:
    """The sentence about TVM, if it is not the one that llmserve is written for."""
    try:
        tvm_version()
    except ConfigError as error:
        return str(error)
    return None


def best(findings: Iterable[Finding]) -> str | None:
    """The platform that `--device auto` takes: the best one that works on a device other than a software driver."""
    working = {f.platform for f in findings if f.state == WORKS and any(not d.software for d in f.devices)}
    return next((platform for platform in detect.PROBES if platform in working), None)


def describe(findings: list[Finding]) -> str:
    """For people: a line on each platform, and below it what to do."""
    system = f"{python_platform.system()} {python_platform.machine()}, Python {python_platform.python_version()}"
    lines = [f"llmserve {__version__} on {system}", wrong_tvm() or tvm_version(), f"Cache: {cache_root()}", ""]
    for finding in findings:
        lines.append(f"{finding.platform:<8}{finding.state:<15}{_words(finding)}")
        lines += [f"{'':<8}{device.name}{_memory(device)}" for device in finding.devices[1:]]
        lines += [f"{'':<8}{problem}" for problem in finding.problems]
    auto = best(findings)
    last = f"--device auto is {auto}." if auto else "No platform works on this machine; the sentences above say why."
    return "\n".join([*lines, "", last])


def _words(finding: Finding) -> str:
    if not finding.devices:
        tools = ", ".join(tool.found for tool in finding.tools if tool.found)
        absent = _ABSENT.get(finding.platform, "there is none here")
        return f"{absent}; with {tools}" if finding.state == COMPILES else absent
    device, verdict = finding.devices[0], finding.verdict
    name = verdict.device if verdict and verdict.device and device.platform != "cpu" else device.name
    words = f"{name}{f' ({device.arch})' if device.arch else ''}{_memory(device)}"
    if device.software:
        words += ", which is the CPU"
    return words if verdict is None or verdict.problem else f"{words}; a kernel took {verdict.seconds * 1e3:.2g} ms"


def _memory(device: detect.Device) -> str:
    if device.memory is None:
        return ""
    return f", {size(device.memory)}{'' if device.free is None else f' of which {size(device.free)} are free'}"


def report(findings: list[Finding]) -> dict[str, Any]:
    """For programs: JSON values."""
    return {
        "version": __version__,
        "system": python_platform.system(),
        "machine": python_platform.machine(),
        "python": python_platform.python_version(),
        "tvm": wrong_tvm() or tvm_version(),
        "cache": str(cache_root()),
        "auto": best(findings),
        "platforms": [asdict(finding) for finding in findings],
    }
