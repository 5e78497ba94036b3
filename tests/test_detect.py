"""Devices are found in a directory that looks like a machine, and what drivers' programs would say is made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmserve import detect
from llmserve.detect import Device
from llmserve.machine import THIS, Machine, install, size

GIB = 1 << 30


class Pretended(Machine):
    """A machine of files below a directory, whose programs print what `says` has, and all of whose libraries load but
    those that `broken` names."""

    says: dict[str, str]
    broken: dict[str, str]
    packages: tuple[str, ...]

    def output(self, *command: str, timeout: float = 10) -> str | None:
        return self.says.get(" ".join(command), self.says.get(command[0]))

    def why_not(self, library: str) -> str | None:
        return next((why for name, why in self.broken.items() if name in library), None)

    def package(self, name: str) -> Path | None:
        return Path("/nowhere") if name in self.packages else None


def pretended(root: Path, files: dict[str, str], system: str = "Linux", architecture: str = "x86_64") -> Pretended:
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    machine = Pretended(root, system, architecture)
    object.__setattr__(machine, "says", {})
    object.__setattr__(machine, "broken", {})
    object.__setattr__(machine, "packages", ("wgpu",))
    return machine


def pci(number: int, vendor: str, kind: str) -> dict[str, str]:
    path = f"/sys/bus/pci/devices/0000:0{number}:00.0"
    return {f"{path}/vendor": f"{vendor}\n", f"{path}/class": f"{kind}\n"}


def test_an_empty_machine_has_a_cpu(tmp_path: Path) -> None:
    machine = pretended(tmp_path, {})
    assert {p: detect.devices(p, machine) for p in detect.PROBES if p != "cpu"} == dict.fromkeys(
        ("cuda", "metal", "rocm", "webgpu"), ()
    )
    assert detect.devices("cpu", machine)[0].name.startswith("x86_64, ")
    assert detect.devices("abacus", machine) == () and detect.arch("abacus", machine) is None


def test_this_machine_is_looked_at_without_raising() -> None:
    for platform in detect.PROBES:
        for device in detect.devices(platform):
            assert device.platform == platform and device.name
    memory = detect.devices("cpu")[0]
    assert memory.memory is not None and memory.memory > GIB


def test_the_memory_of_a_container(tmp_path: Path) -> None:
    files = {
        "/proc/meminfo": f"MemTotal: {64 << 20} kB\nMemAvailable: {50 << 20} kB\n",
        "/proc/cpuinfo": "processor : 0\nmodel name\t: A CPU\n",
    }
    device = detect.cpu(pretended(tmp_path, files))[0]
    assert (device.memory, device.free) == (64 * GIB, 50 * GIB) and device.name.startswith("A CPU, ")
    group = {"/sys/fs/cgroup/memory.max": f"{8 * GIB}", "/sys/fs/cgroup/memory.current": f"{3 * GIB}"}
    device = detect.cpu(pretended(tmp_path, files | group))[0]
    assert (device.memory, device.free) == (8 * GIB, 5 * GIB)
    device = detect.cpu(pretended(tmp_path, files | {"/sys/fs/cgroup/memory.max": "max"}))[0]
    assert (device.memory, device.free) == (64 * GIB, 50 * GIB)


def test_nvidia(tmp_path: Path) -> None:
    machine = pretended(tmp_path, {})
    machine.says["nvidia-smi"] = (
        "NVIDIA H100 80GB HBM3, 9.0, 81559, 81000, 580.65.06\nCard, with comma, [N/A], 4096, 1, 580.65.06"
    )
    first, second = detect.cuda(machine)
    assert first == Device("cuda", "NVIDIA H100 80GB HBM3", "sm_90", 81559 << 20, 81000 << 20, "580.65.06")
    assert (second.name, second.arch) == ("Card, with comma", None)
    assert detect.arch("cuda", machine) == "sm_90"


@pytest.mark.parametrize(
    ("driver", "broken", "words"),
    [
        ("535.10", {}, ["The driver is 535.10", "580 or later"]),
        ("580.1", {"libcuda.so.1": "it is torn"}, ["it is torn", "install NVIDIA's driver again"]),
        ("580.1", {"libcudart": "it is gone"}, ["it is gone", "pip install 'llmserve[cuda]'"]),
    ],
)
def test_nvidia_that_cannot_be_used(tmp_path: Path, driver: str, broken: dict[str, str], words: list[str]) -> None:
    machine = pretended(tmp_path, {})
    machine.says["nvidia-smi"] = f"GPU, 8.0, 1, 1, {driver}"
    machine.broken.update(broken)
    problem = detect.cuda(machine)[0].problem
    assert all(word in problem for word in words), problem
    assert detect.usable("cuda", machine) is None and detect.arch("cuda", machine) == "sm_80"


def test_cards_without_their_drivers(tmp_path: Path) -> None:
    """A display (class 03) and an accelerator (12) count; a card's sound (04) and others' cards do not."""
    files = pci(1, "0x10de", "0x030000") | pci(2, "0x10de", "0x040300") | pci(3, "0x1002", "0x120000")
    machine = pretended(tmp_path, files | pci(4, "0x8086", "0x030000"))
    assert [d.name for d in detect.cuda(machine)] == ["NVIDIA GPU"]
    assert "install version 580 or later" in detect.cuda(machine)[0].problem
    assert [d.name for d in detect.rocm(machine)] == ["AMD GPU"]
    assert "/dev/kfd" in detect.rocm(machine)[0].problem


def kfd(node: int, version: int, minor: int, simds: int = 64) -> dict[str, str]:
    text = f"cpu_cores_count 0\nsimd_count {simds}\ngfx_target_version {version}\ndrm_render_minor {minor}\n"
    return {f"/sys/class/kfd/kfd/topology/nodes/{node}/properties": text}


def test_amd(tmp_path: Path) -> None:
    card = "/sys/class/drm/card0/device"
    files = {
        "/sys/class/kfd/kfd/topology/nodes/0/properties": "cpu_cores_count 8\nsimd_count 0\ngfx_target_version 0\n",
        **kfd(1, 110000, 128),
        **kfd(2, 90402, 129),
        f"{card}/vendor": "0x1002",
        f"{card}/drm/renderD128": "",
        f"{card}/mem_info_vram_total": f"{24 * GIB}",
        f"{card}/mem_info_vram_used": f"{4 * GIB}",
        f"{card}/product_name": "Radeon",
        "/dev/kfd": "",
    }
    machine = pretended(tmp_path, files)
    first, second = detect.rocm(machine)
    assert first == Device("rocm", "Radeon", "gfx1100", 24 * GIB, 20 * GIB)
    assert second == Device("rocm", "AMD GPU", "gfx942")
    machine.broken["libamdhip64"] = "no such file"
    assert "HIP's runtime does not load (no such file)" in detect.rocm(machine)[0].problem
    (tmp_path / "dev/kfd").unlink()
    assert "usermod -aG render,video" in detect.rocm(machine)[0].problem


@pytest.mark.parametrize(
    # gfx_target_version of the kernel's amdkfd, and LLVM's names ("User Guide for AMDGPU Backend", Processors).
    ("version", "name"),
    [
        (90010, "gfx90a"),
        (90402, "gfx942"),
        (90500, "gfx950"),
        (100300, "gfx1030"),
        (110003, "gfx1103"),
        (120001, "gfx1201"),
    ],
)
def test_names_of_amd(version: int, name: str) -> None:
    assert detect.gfx_name(version) == name


def icd(name: str, library: str) -> dict[str, str]:
    return {f"/usr/share/vulkan/icd.d/{name}.json": json.dumps({"ICD": {"library_path": library}})}


def test_vulkan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.delenv(name, raising=False)
    software, real = icd("lvp_icd.x86_64", "/usr/lib/libvulkan_lvp.so"), icd("radeon_icd.x86_64", "libvulkan_radeon.so")
    damaged = {"/etc/vulkan/icd.d/bad.json": "{", "/etc/vulkan/icd.d/worse.json": "[]"}
    machine = pretended(tmp_path, software | real | damaged)
    assert detect.vulkan_drivers(machine) == {"lvp": "/usr/lib/libvulkan_lvp.so", "radeon": "libvulkan_radeon.so"}
    # Without a card, the driver for one is only installed.
    assert detect.webgpu(machine) == [Device("webgpu", "lvp by Vulkan", software=True)]
    machine = pretended(tmp_path, {"/dev/dri/renderD128": ""})
    assert [(d.name, d.software) for d in detect.webgpu(machine)] == [
        ("lvp by Vulkan", True),
        ("radeon by Vulkan", False),
    ]
    assert detect.usable("webgpu", machine) == Device("webgpu", "radeon by Vulkan")
    machine.broken["radeon"] = "wrong class"
    assert "libvulkan_radeon.so does not load (wrong class)" in detect.webgpu(machine)[1].problem
    object.__setattr__(machine, "packages", ())
    assert all("pip install 'llmserve[webgpu]'" in d.problem for d in detect.webgpu(machine))


def test_a_mac(tmp_path: Path) -> None:
    machine = pretended(tmp_path, {}, "Darwin", "arm64")
    machine.says |= {"sysctl -n machdep.cpu.brand_string": "Apple M3", "sysctl -n hw.memsize": f"{16 * GIB}"}
    assert detect.metal(machine) == [Device("metal", "Apple M3", None, 16 * GIB, 12 * GIB)]
    assert detect.cpu(machine)[0].memory == 16 * GIB
    assert detect.webgpu(machine) == [Device("webgpu", "by Metal")]
    assert "Apple silicon only" in detect.metal(pretended(tmp_path, {}, "Darwin", "x86_64"))[0].problem


def test_the_best_device(tmp_path: Path) -> None:
    machine = pretended(tmp_path, icd("lvp_icd", "/lvp.so") | {"/dev/kfd": ""} | kfd(1, 110000, 128))
    everything = tuple(detect.PROBES)
    assert detect.best_device(everything, machine=machine) == "rocm"
    assert detect.best_device(everything, lambda device: False, machine) == "cpu"
    assert detect.best_device(("cpu", "webgpu"), machine=machine) == "cpu"  # software is not taken by itself
    machine = pretended(tmp_path / "other", {"/dev/kfd": ""} | kfd(1, 110000, 128))
    machine.says["nvidia-smi"] = "GPU, 8.0, 1, 1, 580.1"
    tried: list[str] = []
    assert detect.best_device(everything, lambda d: tried.append(d.platform) or False, machine) == "cpu"
    assert tried == ["cuda", "rocm"]


def test_libraries_are_loaded_elsewhere(tmp_path: Path) -> None:
    assert THIS.why_not("libc.so.6") is None
    assert "libnone.so" in str(THIS.why_not("libnone.so"))
    torn = tmp_path / "libtorn.so"
    torn.write_bytes(b"\x7fELF" + bytes(60))
    assert THIS.why_not(str(torn))


def test_programs_that_fail() -> None:
    assert THIS.output("false") is None and THIS.output("no-such-program") is None
    assert THIS.output("sleep", "5", timeout=0.1) is None
    assert THIS.output("echo", "word") == "word"


def test_words() -> None:
    assert [size(n) for n in (12, 2048, 3 << 20, GIB * 3 // 2)] == ["12 bytes", "2.0 KiB", "3.0 MiB", "1.5 GiB"]
    assert install(apt="lld").endswith(" lld")
