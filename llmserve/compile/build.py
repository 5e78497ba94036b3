"""The build of a model, where family, scheme and platform meet: a model's name goes in, a compiled model comes out.

Three steps, each cached by its causes: weights (checkpoint → storage, any platform), params (storage → this platform's
layout) and library (model → machine code). The work of each is in conversion.py and weights/, kernels/, pipeline.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, artifact
from ..config import EngineConfig
from ..errors import ArtifactError, ConfigError, UnsupportedError
from ..kernels.base import KernelSet, using
from ..models import rope
from ..models.base import CausalLM, read_family
from ..models.config import read_config
from ..models.layers import PageFormat
from ..platforms import PLATFORMS, Platform
from ..quant import mixed
from ..quant import scheme as schemes
from ..toolchain import tvm_version
from ..weights.container import SafetensorsWriter, TensorSpec, read_header
from ..weights.foreign import mlc_writer, open_source
from ..weights.load import PARAMS_FILE, load_params
from ..weights.mapping import other_parts
from ..weights.source import PlainSource
from . import judging
from .adopt import adopt
from .calibrate import is_rounded, parse
from .compiled import CompiledModel, Interface
from .conversion import Conversion, Notify
from .environment import environment
from .host import CPU_SOURCES, compute_dtype, gpu_arch, kernel_set, linker
from .linking import complete, export
from .pipeline import compile_module
from .recall import BuildRequest, remember
from .subject import Subject, tied_as_stored
from .texts import EvaluationText
from .tools import require

DEFAULT_CONTEXT = 8192


def silent(step: str, detail: str, fraction: float | None) -> None:
    """A Notify that shows nothing."""


class Build:
    """One model for one scheme, platform and set of limits. Steps run on demand and only where nothing is cached."""

    def __init__(
        self,
        model: str | None,
        *,
        quant: str | None = None,
        device: str | None = None,
        arch: str | None = None,
        engine: EngineConfig | None = None,
        notify: Notify = silent,
        calibrate: str | None = None,
        calibration_data: str | Path | None = None,
        bits: float | None = None,
        report: bool | None = False,
        evaluation_data: Path | None = None,
    ) -> None:
        """Resolves the model (downloading it if it is a Hub id; None is the package's own) and reads its config.

        `calibrate` names methods as `calibrate.parse` reads them, `calibration_data` the text for them. `bits` per
        weight are spent on formats matrix by matrix, in place of `quant`. `report` and `evaluation_data` as in
        Conversion; a text of None is the package's.
        Raises CheckpointError, ConfigError or UnsupportedError, each naming what is wrong.
        """
        self.request = BuildRequest(
            model,
            quant=quant,
            device=device,
            arch=arch,
            engine=engine,
            calibrate=calibrate,
            calibration_data=calibration_data,
            bits=bits,
        )
        self.name = self.request.name
        # The name for clients and listings: a Hub id as it is, a directory or file by its last part.
        found = Path(self.name)
        stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", found.resolve().name)
        self.label = stem if found.exists() else self.name
        self.platform: Platform = self.request.platform
        self.arch = arch
        self.limits = self.request.limits
        self.notify = notify
        self.notes: list[str] = []
        self._takeover = ""
        self.directory = self.request.directory
        self.compute_dtype = compute_dtype(self.platform, arch, quant)
        self.converted = _converted_scheme(self.directory, self.compute_dtype)
        self.source = None if self.converted else open_source(self.directory)
        self.raw_config = self.source.config if self.source else read_config(self.directory)
        config_file = self.source.config_file if self.source else self.directory / "config.json"
        self.family, self.config = read_family(self.raw_config, str(config_file))
        stored = self.source or read_header(self.directory / PARAMS_FILE)
        self.config, said = tied_as_stored(self.config, self.family, stored)
        self.notes += said
        if self.source and (parts := other_parts(self.source.names())):
            self.notes.append(f"Only text is served: {', '.join(parts)} of the checkpoint are left unread.")
        self.quant, self.bits, self.report = quant, bits, report
        self.evaluation = None if evaluation_data is None else EvaluationText.read(evaluation_data)
        if bits is None:
            self.scheme = self._scheme(quant)
        else:
            self._check_bits(bits, quant)
        self.methods = self._methods(calibrate)
        self._calibration_data = self.request.calibration_data
        self._standing_notes = tuple(self.notes)  # which are said at every start, whatever is cached

    def _methods(self, calibrate: str | None) -> tuple[str, ...]:
        """The calibration methods; where calibration would do nothing, a note says so and there are none."""
        methods = parse(calibrate)
        if methods and (self.converted or self._takeover):
            raise UnsupportedError(
                f"{self.name} holds quantized weights, which cannot be calibrated any more; "
                "leave --calibrate out, or start from the unquantized checkpoint."
            )
        if methods and self.bits is None and not is_rounded(self.scheme):
            self.notes.append(f"Calibration would do nothing for {self.scheme.name} and was left out: see --quant.")
            return ()
        return methods

    def _check_bits(self, bits: float, quant: str | None) -> None:
        if quant is not None:
            raise ConfigError("A budget of bits chooses the formats itself; give --bits or --quant, not both.")
        if self.converted or (self.source and self.source.kind):
            raise UnsupportedError(
                f"{self.name} holds quantized weights, so its bits are spent; "
                "leave --bits out, or start from the unquantized checkpoint."
            )
        mixed.check_budget([(m.out_features, m.in_features) for _, m in self.subject.unbound_model.matrices()], bits)

    @cached_property
    def scheme(self) -> schemes.Scheme:
        """The storage of each matrix; with a budget of bits, known after the matrices' sensitivities are measured."""
        assert self.bits is not None, "without a budget it is set at once"
        formats = mixed.allocate(judging.sensitivities(self.subject, self.notify, self._calibration_data), self.bits)
        return schemes.mixed(f"mix{self.bits:g}", formats, self.compute_dtype)

    def _scheme(self, quant: str | None) -> schemes.Scheme:
        stored = self.converted
        if stored and quant is None:
            return stored
        scheme = schemes.choose(quant or "q4", self.compute_dtype)
        if stored and (stored.storage, stored.overrides) != (scheme.storage, scheme.overrides):
            kind = "mixed" if stored.overrides else schemes.storage_name(stored.storage)
            raise UnsupportedError(
                f"{self.name} holds {kind} weights, which cannot become {schemes.storage_name(scheme.storage)}; "
                "leave --quant out, or start from the unquantized checkpoint."
            )
        if self.source and self.source.kind:
            matrices = self.family.model(self.config, PageFormat()).matrices()
            scheme, self._takeover = adopt(matrices, self.source, self.family.weights, scheme, quant is not None)
        return scheme

    @cached_property
    def kernels(self) -> KernelSet:
        return kernel_set(self.platform, self.arch, self.compute_dtype)[0]

    @cached_property
    def target(self) -> Mapping[str, Any]:
        return kernel_set(self.platform, self.arch, self.compute_dtype)[1]

    @cached_property
    def model(self) -> CausalLM:
        """The traced module, its weight matrices in this platform's layout."""
        with using(self.kernels):
            pages = PageFormat(self.limits.page_size, self.kernels.page_dtype or self.scheme.page_dtype)
            model = self.family.model(self.config, pages)
            schemes.apply(model.matrices(), self.scheme, self.kernels)
        return model

    # --- weights: checkpoint → storage

    @cached_property
    def subject(self) -> Subject:
        """The checkpoint, as conversion, calibration and judging on this machine's CPU take it."""
        source = self.source or PlainSource(self.directory, self.raw_config)
        cpu = PLATFORMS["cpu"]
        # Not the kernels of the model's platform: that may be another machine's, and layers are measured in float32.
        kernels, target = kernel_set(cpu, self.arch if self.platform is cpu else None, "float32")
        return Subject(self.label, source, self.raw_config, self.family, self.config, kernels, target, cpu.name)

    @cached_property
    def conversion(self) -> Conversion:
        return Conversion(
            *(self.subject, self.scheme, self.notify, self.notes),
            self._takeover,
            self.methods,
            self._calibration_data,
            self.report,
            self.evaluation,
        )

    @property
    def tokenizer_directory(self) -> Path:
        """Directory with config.json, tokenizer and chat template, which can be read before anything is converted."""
        return self.directory if self.converted else self.subject.tokenizer_directory

    def weights(self) -> Path:
        """Directory with params.safetensors in the scheme's storage, config.json and the tokenizer."""
        return self.directory if self.converted else self.conversion.into_cache()

    def export_weights(self, out: Path) -> None:
        """Writes the weights into a directory of the user's choice, which `serve` takes as a model."""
        if self.converted:
            raise UnsupportedError(
                f"{self.name} is a converted directory already, in {self.converted.name}; serve it as it is."
            )
        self.conversion.into(out)

    def export_mlc(self, out: Path) -> None:
        """Writes a weight directory of MLC's; what is not packed is float16, or float32 if `quant` says f32.

        Raises UnsupportedError where MLC has no name for the weights' format.
        """
        wide = self.scheme.storage == "float32" or "f32" in (self.quant or "")
        quantization = mlc_writer.quantization_name(self.scheme.storage, wide, bool(self.scheme.overrides))
        weights = self.weights()
        causes = {"model": self.label, "scheme": quantization, "weights": artifact.identity(weights)}
        with artifact.landing(out, "mlc", causes, artifact.results_of(weights)) as directory:
            nbytes = mlc_writer.write(weights, self.raw_config, quantization, directory)
        self.notes.append(f"Written for MLC in {quantization}: {nbytes / 1e6:,.1f} MB of weights.")

    # --- params: storage → layout

    def params(self) -> Path:
        """Directory with the parameters as this platform's kernels want them."""
        weights = self.weights()
        causes = {
            "model": self.label,
            "scheme": self.scheme.name,
            "platform": self.kernels.name,
            "weights": artifact.identity(weights),
            "sources": artifact.source_hash("kernels", "quant", "models"),
        }
        if path := artifact.landed("params", causes):
            return path
        return artifact.obtain("params", causes, lambda directory: self._arrange(weights, directory))

    def _arrange(self, weights: Path, directory: Path) -> None:
        stored = load_params(weights)
        specs = [
            TensorSpec(name, np.dtype(str(p.dtype)), tuple(int(n) for n in p.shape))
            for name, p in self.model.named_parameters()
        ]
        matrices = dict(self.model.matrices())
        with SafetensorsWriter(directory / PARAMS_FILE, specs, {"layout": self.kernels.name}) as writer:
            for name, _ in self.model.floats():
                writer.write(name, stored[name], 0)
            for done, (name, matrix) in enumerate(matrices.items(), 1):
                parts = ("q_weight", "q_scale", "q_zero", "weight", "bias")
                own = {part: stored[f"{name}.{part}"] for part in parts if f"{name}.{part}" in stored}
                for suffix, array in matrix.arrange(own).items():
                    writer.write(f"{name}.{suffix}", array, 0)
                self.notify("arrange", name, done / len(matrices))

    # --- library: model → machine code

    @cached_property
    def _library_causes(self) -> dict[str, Any]:
        """The causes of the library. Models of one shape share it: weights and rotary tables are not among them."""
        others = ("rope", "layers", "max_position_embeddings", "interleaved")
        shape = {key: value for key, value in vars(self.config).items() if key not in others}
        return {
            "model": f"{self.config.family}-{self.config.num_layers}x{self.config.hidden_size}",
            **self.scheme.stored,
            "platform": self.kernels.name,
            "config": {**shape, "tables": len(self.config.rope), "layers": [vars(kind) for kind in self.config.layers]},
            "target": dict(self.target),
            "limits": vars(self.limits),
            "tvm": tvm_version(),
            "sources": artifact.source_hash(
                *("kernels", "models", "quant/scheme.py", "compile"),
                *(f"backends/{source.name}" for source in CPU_SOURCES),
            ),
            "version": __version__,
        }

    def library(self) -> Path:
        """Directory with the compiled library and its interface."""
        path = artifact.landed("library", self._library_causes)
        path = path or artifact.obtain("library", self._library_causes, self._compile)
        complete(path, self.target)
        return path

    def check_tools(self) -> None:
        """Raises ArtifactError or UnsupportedError if there is something to compile and a tool for it is missing."""
        if not artifact.landed("library", self._library_causes):
            require(self.platform.name, gpu_arch(self.platform, self.arch))

    def _compile(self, directory: Path) -> None:
        began = time.perf_counter()
        environment(self.platform.name, gpu_arch(self.platform, self.arch))
        self.notify("compile", "tracing", None)
        with using(self.kernels):
            module, names = self.model.export_tvm(self.model.spec())
        limits = self.limits
        tokens = limits.max_num_batched_tokens
        tiles = tokens // self.kernels.query_tile(self.model.attention_shape) + limits.max_num_seqs
        bounds = {"num_tokens": tokens, "num_rows": tokens, "num_logits": limits.max_num_seqs, "num_tiles": tiles}
        self.notify("compile", f"for {self.kernels.name}", None)
        executable = compile_module(module, self.target, bounds)
        self.notify("compile", "linking", None)
        left = export(executable, directory, linker(self.platform), self.target)
        attention = self.model.attention_shape
        Interface(
            device=self.platform.name,
            params=tuple(name for name, _ in names),
            vocab_size=self.config.vocab_size,
            num_layers=self.config.num_layers,
            page_size=limits.page_size,
            page_shape=self.kernels.page_tensor(attention, 1)[1:],
            page_dtype=attention.page_dtype,
            query_tile=self.kernels.query_tile(attention),
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_num_seqs=limits.max_num_seqs,
        ).write(directory)
        self.notify("compile", "done", 1.0)
        took = f"Compiled for {self.kernels.name} in {time.perf_counter() - began:.1f} s."
        self.notes += [took] if left is None else [took, left]

    def run(self, max_model_len: int | None = None) -> CompiledModel:
        """All three steps. `max_model_len` None is the natural context, or DEFAULT_CONTEXT if that is longer."""
        longest = self.config.max_position_embeddings
        stretches = any(rope.stretches for rope in self.config.rope)
        if max_model_len is not None and max_model_len > longest and not stretches:
            raise UnsupportedError(
                f"{self.name} has positions for {longest} tokens; max_model_len {max_model_len} is more."
            )
        length = max_model_len or min(rope.natural_context(self.config), DEFAULT_CONTEXT)
        self.check_tools()
        # Weights first: what is wrong with a checkpoint shows before anything is compiled.
        source, params, library = self.weights(), self.params(), self.library()
        frequencies = rope.inverse_frequencies(self.config, length)
        cos, sin = rope.tables_of(frequencies, length)
        compiled = CompiledModel(
            name=self.name,
            source=source,
            library=library,
            params=params,
            interface=Interface.read(library),
            scheme=self.scheme.name,
            platform=self.kernels.name,
            max_model_len=length,
            cos=cos,
            sin=sin,
            notes=tuple(self.notes),
        )
        remember(
            *(self.request, max_model_len, compiled),
            label=self.label,
            tokenizer_directory=self.tokenizer_directory,
            frequencies=frequencies,
            notes=self._standing_notes,
        )
        return compiled


def _converted_scheme(directory: Path, compute_dtype: str) -> schemes.Scheme | None:
    """The scheme of a directory that `convert` wrote; None for a checkpoint. Raises ArtifactError if it is broken."""
    if not (directory / PARAMS_FILE).exists():
        return None
    if not (directory / artifact.MANIFEST).exists():
        raise ArtifactError(
            f"{directory} looks like a converted directory without its {artifact.MANIFEST}, so it cannot be trusted; "
            "convert the checkpoint again."
        )
    causes = artifact.causes_of(directory, "weights")
    if "overrides" not in causes:
        raise ArtifactError(f"{directory} was written by an older llmserve; convert the checkpoint again.")
    return schemes.restored(causes, compute_dtype)
