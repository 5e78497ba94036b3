"""Devices of this machine, found without using any: from files, PCI ids and the drivers' own programs.

A device that is there but cannot be used has a `problem`, in a sentence that ends with what to do. Nothing here raises,
and nothing imports tvm. Whether a device works is found by trial.py.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from .machine import THIS, Machine, cuda_runtime, install

# The oldest driver that runs programs of CUDA 13 (NVIDIA, CUDA 13 release notes, table of minor version compatibility).
CUDA_DRIVER = 580
_NVIDIA, _AMD = 0x10DE, 0x1002


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        platform: the row of platforms.py that could run on it.
        arch: what `--arch` would be: sm_90, gfx1100; None where the platform has no such thing.
        memory, free: bytes, of its own or shared with the CPU; None where they cannot be known without using it.
        software: a software Vulkan driver, which runs on the CPU.
        problem: why it cannot be used, empty if nothing speaks against it.
    """

    platform: str
    name: str
    arch: str | None = None
    memory: int | None = None
    free: int | None = None
    driver: str | None = None
    software: bool = False
    problem: str = ""


def cpu(machine: Machine = THIS) -> list[Device]:
    """The CPU, with the memory that may be had without swapping as `free`."""
    fields = _table(machine.read("/proc/cpuinfo") or "", ":")
    # ARM's cpuinfo names no model; lscpu decodes its part numbers.
    name = fields.get("model name") or machine.output("sysctl", "-n", "machdep.cpu.brand_string")
    memory = _table(machine.read("/proc/meminfo") or "", ":")
    total, free = _kilobytes(memory.get("MemTotal")), _kilobytes(memory.get("MemAvailable"))
    if total is None:
        total = _integer(machine.output("sysctl", "-n", "hw.memsize"))
    limit = _integer(machine.read("/sys/fs/cgroup/memory.max"))
    if limit is not None and total is not None and limit < total:  # a container's share
        used = _integer(machine.read("/sys/fs/cgroup/memory.current")) or 0
        total, free = limit, min(free if free is not None else limit, max(0, limit - used))
    return [Device("cpu", f"{name or machine.architecture}, {os.cpu_count() or 1} threads", None, total, free)]


def cuda(machine: Machine = THIS) -> list[Device]:
    """NVIDIA's GPUs, by nvidia-smi; without it, what the kernel and the PCI bus know of them."""
    fields = "name,compute_cap,memory.total,memory.free,driver_version"
    listed = machine.output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    devices = []
    for line in (listed or "").splitlines():
        words = [word.strip() for word in line.rsplit(",", 4)]
        if len(words) != 5:
            continue
        name, capability, total, free, driver = words
        arch = f"sm_{capability.replace('.', '')}" if re.fullmatch(r"\d+\.\d+", capability) else None
        problem = _cuda_problem(machine, driver)
        devices.append(Device("cuda", name, arch, _mebibytes(total), _mebibytes(free), driver, problem=problem))
    if devices:
        return devices
    names = [
        _table(machine.read(path) or "", ":").get("Model", "NVIDIA GPU")
        for path in machine.glob("/proc/driver/nvidia/gpus", "*/information")
    ] or ["NVIDIA GPU" for _ in _pci(machine, _NVIDIA)]
    remedy = f"NVIDIA's driver does not answer; install version {CUDA_DRIVER} or later, and run nvidia-smi to check it."
    return [Device("cuda", name, problem=remedy) for name in names]


def _cuda_problem(machine: Machine, driver: str) -> str:
    major = _integer(driver.split(".")[0])
    if major is not None and major < CUDA_DRIVER:
        return f"The driver is {driver}, and CUDA 13 needs {CUDA_DRIVER} or later; update NVIDIA's driver."
    if reason := machine.why_not("libcuda.so.1"):
        return f"The driver's library does not load ({reason}); install NVIDIA's driver again."
    library = cuda_runtime(machine)
    if reason := machine.why_not(str(library or "libcudart.so.13")):
        return f"CUDA 13's runtime does not load ({reason}); run: pip install 'llmserve[cuda]'"
    return ""


def rocm(machine: Machine = THIS) -> list[Device]:
    """AMD's GPUs, by the topology that the kernel's compute driver shows."""
    devices, problem = [], _rocm_problem(machine)
    cards = [card for card in machine.glob("/sys/class/drm", "card*/device") if _vendor(machine, card) == _AMD]
    for path in machine.glob("/sys/class/kfd/kfd/topology/nodes", "*/properties"):
        fields = _table(machine.read(path) or "", None)
        version = _integer(fields.get("gfx_target_version"))
        if not version or not _integer(fields.get("simd_count")):
            continue  # a CPU is a node too
        # A node and a card are the same device if they have the same render node, which is called by its minor number.
        minor = fields.get("drm_render_minor", "")
        card = next((c for c in cards if machine.exists(f"{c}/drm/renderD{minor}")), None)
        total = machine.number(f"{card}/mem_info_vram_total") if card else None
        used = machine.number(f"{card}/mem_info_vram_used") if card else None
        free = None if total is None or used is None else total - used
        name = (card and machine.read(f"{card}/product_name")) or "AMD GPU"
        devices.append(Device("rocm", name, gfx_name(version), total, free, problem=problem))
    if devices:
        return devices
    remedy = "The kernel shows no compute device of it (/dev/kfd); install AMD's driver with ROCm."
    return [Device("rocm", "AMD GPU", problem=remedy) for _ in _pci(machine, _AMD)]


def gfx_name(version: int) -> str:
    """The kernel's gfx_target_version as LLVM names it: 90402 is gfx942, 90010 gfx90a, 110000 gfx1100."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _rocm_problem(machine: Machine) -> str:
    if not machine.writable("/dev/kfd"):
        return "/dev/kfd may not be opened; run: sudo usermod -aG render,video $USER, and log in again."
    if reason := _first_reason(machine, ("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5")):
        return f"HIP's runtime does not load ({reason}); run: {install(apt='libamdhip64-5', dnf='rocm-hip')}"
    return ""


def metal(machine: Machine = THIS) -> list[Device]:
    """Apple's GPU. It shares the CPU's memory, of which Metal lets a program have three quarters or so."""
    if machine.system != "Darwin":
        return []
    name = machine.output("sysctl", "-n", "machdep.cpu.brand_string") or "Apple GPU"
    memory = _integer(machine.output("sysctl", "-n", "hw.memsize"))
    problem = (
        "" if machine.architecture == "arm64" else "TVM's wheel has Metal on Apple silicon only; use --device cpu."
    )
    return [Device("metal", name, None, memory, None if memory is None else memory * 3 // 4, problem=problem)]


def webgpu(machine: Machine = THIS) -> list[Device]:
    """Devices for wgpu-native: on Linux one for each Vulkan driver, elsewhere the system's own interface."""
    lacking = "" if machine.package("wgpu") else "wgpu-native is not installed; run: pip install 'llmserve[webgpu]'"
    if machine.system != "Linux":
        name = {"Darwin": "Metal", "Windows": "DirectX 12"}.get(machine.system)
        return [Device("webgpu", f"by {name}", problem=lacking)] if name else []
    has_card = bool(machine.glob("/dev/dri", "renderD*"))
    devices = []
    for name, library in vulkan_drivers(machine).items():
        software = any(word in name for word in ("lvp", "lavapipe", "swiftshader"))
        if not software and not has_card:
            continue  # a driver for hardware that is not there: distributions install all of Mesa's
        # Software drivers are not tried here: every start looks for devices, and never takes these by itself.
        problem = lacking or ("" if software else _vulkan_problem(machine, library))
        devices.append(Device("webgpu", f"{name} by Vulkan", software=software, problem=problem))
    return devices


def _vulkan_problem(machine: Machine, driver: str) -> str:
    if reason := machine.why_not("libvulkan.so.1"):
        return f"Vulkan's loader does not load ({reason}); run: {install(apt='libvulkan1', dnf='vulkan-loader')}"
    if reason := machine.why_not(driver):
        return f"The Vulkan driver {driver} does not load ({reason}); install it again."
    return ""


def vulkan_drivers(machine: Machine = THIS) -> dict[str, str]:
    """Name → library of each Vulkan driver that is registered; $VK_DRIVER_FILES replaces the usual directories."""
    own = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    folders = ("/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/usr/share/vulkan/icd.d")
    files = own.split(os.pathsep) if own else [file for folder in folders for file in machine.glob(folder, "*.json")]
    drivers = {}
    for file in files:
        try:
            library = json.loads(machine.read(file) or "")["ICD"]["library_path"]
        except (ValueError, KeyError, TypeError):
            continue
        name = re.sub(r"_?icd.*|\.(x86_64|aarch64|i686).*|\.json", "", os.path.basename(file))
        folder = os.path.dirname(file)
        drivers[name] = os.path.normpath(os.path.join(folder, library)) if "/" in str(library) else str(library)
    return drivers


PROBES: Mapping[str, Callable[[Machine], list[Device]]] = {
    "cuda": cuda,
    "metal": metal,
    "rocm": rocm,
    "webgpu": webgpu,
    "cpu": cpu,
}
"""Platform → its devices; the best platform first."""


@cache
def devices(platform: str, machine: Machine = THIS) -> tuple[Device, ...]:
    """The devices of a platform; none for one that is unknown. Looked up once in a process."""
    probe = PROBES.get(platform)
    return tuple(probe(machine)) if probe else ()


def usable(platform: str, machine: Machine = THIS) -> Device | None:
    """The first device of a platform that nothing speaks against, real ones before those that are the CPU."""
    found = [device for device in devices(platform, machine) if not device.problem]
    return min(found, key=lambda device: device.software, default=None)


def arch(platform: str, machine: Machine = THIS) -> str | None:
    """The default of `--arch`: that of the first device that can be used, else of any that is there."""
    device = usable(platform, machine) or next(iter(devices(platform, machine)), None)
    return device.arch if device else None


def best_device(
    candidates: Iterable[str], works: Callable[[Device], bool] = lambda device: True, machine: Machine = THIS
) -> str:
    """The best of these platforms that is there and, as `works` has it, works; "cpu" if none is.

    Software drivers are left out: the CPU's own kernels are faster than a GPU's that run on the CPU.
    """
    known = set(candidates)
    for platform in PROBES:
        device = usable(platform, machine) if platform in known and platform != "cpu" else None
        if device and not device.software and works(device):
            return platform
    return "cpu"


def _pci(machine: Machine, vendor: int) -> list[str]:
    """PCI devices of a vendor that display or compute (classes 03 and 12)."""
    paths = machine.glob("/sys/bus/pci/devices", "*")
    classes = {path: machine.number(f"{path}/class") for path in paths if _vendor(machine, path) == vendor}
    return [path for path, kind in classes.items() if kind is not None and kind >> 16 in (0x03, 0x12)]


def _vendor(machine: Machine, path: str) -> int | None:
    return machine.number(f"{path}/vendor")


def _first_reason(machine: Machine, libraries: Iterable[str]) -> str | None:
    """None if any of the libraries loads, else why the first of them does not."""
    reasons = []
    for library in libraries:
        reason = machine.why_not(library)
        if reason is None:
            return None
        reasons.append(reason)
    return reasons[0]


def _table(text: str, separator: str | None) -> dict[str, str]:
    """Lines of "name<separator>value" (None: whitespace), the first of each name."""
    table: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(separator) if separator else line.strip().partition(" ")
        table.setdefault(name.strip(), value.strip())
    return table


def _integer(text: str | None) -> int | None:
    match = re.match(r"\d+$", (text or "").strip())
    return int(match[0]) if match else None


def _kilobytes(text: str | None) -> int | None:
    """/proc/meminfo's "123 kB" in bytes."""
    number = _integer((text or "").removesuffix("kB"))
    return None if number is None else number * 1024


def _mebibytes(text: str) -> int | None:
    number = _integer(text)
    return None if number is None else number << 20
