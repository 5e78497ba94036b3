"""Reports on conversions and budgets of bits, on small random models, against the numpy oracle."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmserve import LLM, artifact
from llmserve.compile import calibration_data, judging, quality
from llmserve.compile.build import Build
from llmserve.compile.conversion import Conversion
from llmserve.compile.texts import EvaluationText
from llmserve.errors import ConfigError, UnsupportedError
from llmserve.quant.mixed import CHOICES, allocate, bits_per_weight
from llmserve.quant.report import Report, log_softmax
from llmserve.quant.scheme import SCHEMES
from llmserve.text.tokenizer import Tokenizer
from llmserve.weights.convert import convert
from llmserve.weights.load import PARAMS_FILE, load_params
from llmserve.weights.read import SINGLE

from ..oracle import Oracle

Checkpoints = Callable[[str], Path]
WORDS = "The quick brown fox jumps over the lazy dog while {} more dogs sleep; nobody counts to {}. "


class Exact(Oracle):
    """The oracle for the stored weights alone: nothing is rounded on the way."""

    def __init__(self, build: Build, weights: Path) -> None:
        super().__init__(build.config, weights, build.scheme)
        self.page_dtype = np.dtype(np.float64)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        bias = self.params[f"{name}.bias"].astype(np.float64) if f"{name}.bias" in self.params else 0.0
        return x @ self.matrix(name, x.shape[1]).T + bias


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "evaluation.txt"
    file.write_text("".join(WORDS.format(i * i, i) for i in range(60)), "utf-8")
    return file


def judged(checkpoint: Path, text: Path, out: Path, quant: str = "q4") -> tuple[Build, Report]:
    build = Build(str(checkpoint), quant=quant, report=True, evaluation_data=text)
    build.export_weights(out)
    return build, Report.read(artifact.results_of(out)["report"])


@pytest.mark.parametrize(("family", "quant"), [("llama", "q4"), ("qwen3", "q3")])
def test_the_figures_are_those_of_an_independent_computation(
    family: str, quant: str, checkpoint: Checkpoints, text: Path, tmp_path: Path
) -> None:
    """Both models by the numpy oracle in float64, figures written out. What is left is the rounding of float32 sums:
    1e-4 of a perplexity, 1e-5 nats and 1 % of it, and a tie or two in the likeliest token."""
    build, report = judged(checkpoint(family), text, tmp_path / "out", quant)
    plain = Build(str(checkpoint(family)), quant="f32")
    models = Exact(plain, plain.weights()), Exact(build, tmp_path / "out")
    tokenizer = Tokenizer.from_directory(checkpoint(family))
    ids = tokenizer.encode(text.read_text("utf-8"), add_special_tokens=False)
    prefix = [i for i in tokenizer.encode("") if i == tokenizer.bos_token_id]
    width = report.window - len(prefix)
    assert report.window == 512 or report.window == len(ids)
    losses, kl, same = [[], []], [], []
    for at in range(0, len(ids) - width + 1, width):
        window = prefix + ids[at : at + width]
        first = max(len(prefix), 1)
        p, q = (log_softmax(model.logits(window)) for model in models)
        for row in range(first - 1, len(window) - 1):
            losses[0].append(-p[row, window[row + 1]])
            losses[1].append(-q[row, window[row + 1]])
            kl.append(float((np.exp(p[row]) * (p[row] - q[row])).sum()))
            same.append(p[row].argmax() == q[row].argmax())
    figures = report.figures
    assert report.tokens == len(kl) > 400
    assert figures["perplexity_unquantized"] == pytest.approx(math.exp(np.mean(losses[0])), rel=1e-4)
    assert figures["perplexity"] == pytest.approx(math.exp(np.mean(losses[1])), rel=1e-4)
    assert figures["kl"] == pytest.approx(np.mean(kl), rel=1e-2, abs=1e-5)
    assert figures["top1"] == pytest.approx(np.mean(same), abs=2.5 / len(same))
    # The errors of matrices, from the weights alone where the inputs are the table itself.
    [embedding, *_, last] = report.matrices
    name = "model.embed_tokens"
    w, stored = (model.matrix(name, build.config.hidden_size)[np.array(window_ids(ids, width))] for model in models)
    assert embedding.name == name and embedding.storage == build.scheme.stored["storage"]
    assert embedding.error == pytest.approx(np.linalg.norm(stored - w) / np.linalg.norm(w), rel=1e-3)
    assert last.name == ("model.layers.1.mlp.down_proj" if build.config.tie_word_embeddings else "lm_head")
    assert len(report.matrices) == len(list(build.model.matrices()))
    assert all(0 < row.error < 0.5 for row in report.matrices)


def window_ids(ids: list[int], width: int) -> list[int]:
    return ids[: len(ids) // width * width]


def test_the_report_tells_the_files_size(checkpoint: Checkpoints, text: Path, tmp_path: Path) -> None:
    build, report = judged(checkpoint("llama"), text, tmp_path / "out")
    size = (tmp_path / "out" / PARAMS_FILE).stat().st_size
    weights = sum(w.size for w in load_file(checkpoint("llama") / SINGLE).values())
    assert report.nbytes == size and report.bits_per_weight == 8 * size / weights
    results = artifact.results_of(tmp_path / "out")
    assert results["bits_per_weight"] == report.bits_per_weight
    assert any(note == str(report) for note in build.notes) and report.text == text.name


def test_shuffled_weights_are_warned_about(checkpoint: Checkpoints, text: Path, tmp_path: Path) -> None:
    build = Build(str(checkpoint("llama")), quant="q4")
    plan = build.subject.plan(build.scheme)
    converted = convert(checkpoint("llama"), tmp_path, plan)
    tensors = dict(load_params(tmp_path))
    mixed_up = "model.layers.1.mlp.down_proj"
    order = np.random.default_rng(0).permutation(len(tensors[f"{mixed_up}.q_weight"]))
    for part in ("q_weight", "q_scale"):
        tensors[f"{mixed_up}.{part}"] = tensors[f"{mixed_up}.{part}"][order]
    save_file(tensors, tmp_path / PARAMS_FILE)
    report = judging.judge(
        build.subject, tmp_path, plan, build.scheme, converted, EvaluationText.read(text), 1024, lambda *news: None
    )
    assert report.worst[0].name == mixed_up and report.worst[0].error > 1
    assert report.figures["kl"] > 0.15
    [warning] = report.warnings
    assert "has lost much" in warning and "KL divergence" in warning


def test_what_is_no_number_is_said(checkpoint: Checkpoints, text: Path, tmp_path: Path) -> None:
    build = Build(str(checkpoint("llama")), quant="q4")
    plan = build.subject.plan(build.scheme)
    converted = convert(checkpoint("llama"), tmp_path, plan)
    tensors = {name: array.copy() for name, array in load_params(tmp_path).items()}
    tensors["model.layers.0.mlp.down_proj.q_scale"][3] = np.nan
    save_file(tensors, tmp_path / PARAMS_FILE)
    report = judging.judge(
        build.subject, tmp_path, plan, build.scheme, converted, EvaluationText.read(text), 1024, lambda *news: None
    )
    assert report.figures == {} and "the quantized model's outputs hold NaN or infinity" in str(report.failure)
    assert json.dumps(report.json, allow_nan=False) and "could not be judged" in report.warnings[0]


@pytest.mark.parametrize("damage", ["gone", "larger"])
def test_without_words_there_are_weights_all_the_same(
    damage: str, checkpoint: Checkpoints, text: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    if damage == "gone":
        (model / "tokenizer.json").unlink()
    else:
        tokenizer = json.loads((model / "tokenizer.json").read_text("utf-8"))
        tokenizer["model"]["vocab"]["e"] = 100_000
        (model / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    build = Build(str(model), quant="q4", report=True, evaluation_data=text)
    build.export_weights(tmp_path / "out")
    assert (tmp_path / "out" / PARAMS_FILE).exists() and "report" not in artifact.results_of(tmp_path / "out")
    words = {"gone": "tokenizer.json", "larger": "ids up to 100000 for 512 embeddings"}[damage]
    assert any(note.startswith("The result was not judged: ") and words in note for note in build.notes)


def test_what_is_not_rounded_is_not_judged(checkpoint: Checkpoints, text: Path, tmp_path: Path) -> None:
    Build(str(checkpoint("llama")), quant="none", report=True, evaluation_data=text).export_weights(tmp_path / "out")
    assert "report" not in artifact.results_of(tmp_path / "out")


def test_a_report_in_passing_is_for_small_models(
    checkpoint: Checkpoints, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Build(str(checkpoint("llama")), quant="q4", report=None, evaluation_data=text)
    build.export_weights(tmp_path / "small")
    assert artifact.results_of(tmp_path / "small")["report"]["tokens"] > 400
    assert any(note.startswith("Quality: ") for note in build.notes)
    monkeypatch.setattr(judging, "QUICK", 1e6)
    build = Build(str(checkpoint("llama")), quant="q4", report=None, evaluation_data=text)
    build.export_weights(tmp_path / "large")
    assert "report" not in artifact.results_of(tmp_path / "large")
    assert any("too large to be judged in passing" in note for note in build.notes)


def test_costs_follow_the_size() -> None:
    assert judging.affordable_tokens(5_000_000, thorough=False) == 4096
    assert judging.affordable_tokens(100_000_000, thorough=False) == 2500
    assert judging.affordable_tokens(1_000_000_000, thorough=False) == 0
    assert judging.affordable_tokens(1_000_000_000, thorough=True) == 2500
    assert judging.affordable_tokens(70_000_000_000, thorough=True) == 1024


@pytest.mark.parametrize("content", [None, b"", b"  \n", b"\xff\xfe"])
def test_texts_that_are_none(content: bytes | None, checkpoint: Checkpoints, tmp_path: Path) -> None:
    file = tmp_path / "text"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=str(file)):
        Build(str(checkpoint("llama")), report=True, evaluation_data=file)


def test_the_packages_text_is_there_and_is_not_calibrated_with() -> None:
    """No run of 80 characters of it occurs in the calibration text."""
    content = EvaluationText.packaged().content
    assert 20_000 < len(content) < 100_000
    calibration = calibration_data.PACKAGED.read_text("utf-8")
    rows = [json.loads(line) for line in calibration.splitlines()]
    fitted = "\n".join(json.dumps(row["messages"]) if "messages" in row else row["text"] for row in rows)
    runs = {fitted[at : at + 80] for at in range(len(fitted) - 80)}
    assert not any(content[at : at + 80] in runs for at in range(len(content) - 80))


# --- budgets of bits


@pytest.fixture(scope="module")
def measured(checkpoint: Checkpoints) -> list:
    return judging.sensitivities(Build(str(checkpoint("llama")), quant="q4").subject, lambda *news: None)


def test_harm_is_the_divergence_that_one_matrix_causes(measured: list, checkpoint: Checkpoints, tmp_path: Path) -> None:
    """One matrix rounded to 3 bits by the oracle, on the same text: float32 against float64, so within 2 %."""
    subject = Build(str(checkpoint("llama")), quant="q4").subject
    assert [row.name for row in measured] == [name for name, _ in subject.unbound_model.matrices()]
    assert all(row.harm["int3"] > row.harm["int4"] > row.harm["int8"] > 0 for row in measured)
    build = Build(str(checkpoint("llama")), quant="f32")
    plain, rounded = Exact(build, build.weights()), Exact(build, build.weights())
    row = next(row for row in measured if row.name == "model.layers.0.self_attn.qkv_proj")
    weight = plain.params[f"{row.name}.weight"]
    from llmserve.compile.sensitivity import nearest

    rounded.params = {**plain.params, f"{row.name}.weight": nearest(np.asarray(weight), CHOICES[0])}
    sequences = judging.chosen_sequences(subject)
    kl = []
    for ids in sequences[:: max(1, len(sequences) // 4)]:
        p, q = (log_softmax(model.logits(list(map(int, ids)))[:-1]) for model in (plain, rounded))
        kl.append((np.exp(p) * (p - q)).sum(1).mean())
    assert row.harm["int3"] == pytest.approx(np.mean(kl), rel=0.15)


def test_a_budget_is_met_and_the_directory_serves(
    measured: list, checkpoint: Checkpoints, text: Path, tmp_path: Path
) -> None:
    build = Build(str(checkpoint("llama")), bits=4.0, report=True, evaluation_data=text)
    build.export_weights(tmp_path / "out")
    causes = artifact.causes_of(tmp_path / "out", "weights")
    assert causes["scheme"] == "mix4" and causes["overrides"] == build.scheme.stored["overrides"]
    tensors = load_file(tmp_path / "out" / PARAMS_FILE)
    packed = sum(array.nbytes for name, array in tensors.items() if name.endswith(("q_weight", "q_scale")))
    bits = 8 * packed / sum(row.weights for row in measured)
    formats = allocate(measured, 4.0)
    assert bits == bits_per_weight([row.shape for row in measured], list(formats.values())) <= 4.0
    assert bits > 3.8 and len(set(formats.values())) > 1
    assert {name: build.scheme.storage_of(name) for name in formats} == formats
    assert LLM(tmp_path / "out", kv_cache_memory="16MiB").logits([1, 2, 3]).shape[0] == 3
    with pytest.raises(UnsupportedError, match="so its bits are spent"):
        Build(str(tmp_path / "out"), bits=4.0)


def test_a_budget_goes_with_calibration(measured: list, checkpoint: Checkpoints, text: Path, tmp_path: Path) -> None:
    """The budget says which format each matrix gets, calibration how it is rounded; the latter shows in the figures."""
    found = {}
    for methods in (None, "search"):
        build = Build(str(checkpoint("llama")), bits=4.0, calibrate=methods, report=True, evaluation_data=text)
        build.export_weights(out := tmp_path / str(methods))
        assert {row.name: build.scheme.storage_of(row.name) for row in measured} == allocate(measured, 4.0)
        found[methods] = Report.read(artifact.results_of(out)["report"])
    assert found["search"].nbytes == pytest.approx(found[None].nbytes, abs=256)  # the header names the scheme alike
    assert found["search"].figures["kl"] < found[None].figures["kl"]


def test_factors_between_matrices_are_no_errors(checkpoint: Checkpoints, text: Path, tmp_path: Path) -> None:
    """Scaling channels moves factors out of a matrix into the norm or the rows before it; both are divided out."""
    errors = {}
    for methods in ("search", "awq"):
        build = Build(str(checkpoint("llama")), quant="q4", calibrate=methods, report=True, evaluation_data=text)
        build.export_weights(out := tmp_path / methods)
        errors[methods] = {r.name: r.error for r in Report.read(artifact.results_of(out)["report"]).matrices}
    norm = load_params(tmp_path / "awq")["model.layers.0.input_layernorm.weight"]
    assert not np.allclose(norm, load_params(tmp_path / "search")["model.layers.0.input_layernorm.weight"])
    for name, error in errors["awq"].items():
        assert error == pytest.approx(errors["search"][name], rel=0.25)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 96)).astype(np.float32)
    rows, columns = rng.uniform(0.5, 2, (64, 1)), rng.uniform(0.5, 2, (1, 96))
    moved = (weight * rows * columns).astype(np.float32)
    for _ in range(20):  # rows and columns in turns come to both
        moved = quality.unfolded(moved, weight)
    np.testing.assert_allclose(moved, weight, atol=1e-4)


def test_budgets_that_cannot_be(checkpoint: Checkpoints) -> None:
    model = str(checkpoint("llama"))
    with pytest.raises(UnsupportedError, match="too few"):
        Build(model, bits=2.0)
    with pytest.raises(UnsupportedError, match="more than the 8"):
        Build(model, bits=16)
    with pytest.raises(ConfigError, match="give --bits or --quant, not both"):
        Build(model, bits=4.0, quant="q4")


def test_deep_models_share_variants(checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers to a variant: what each kind suffers in both together is shared out between them."""
    from llmserve.compile import sensitivity

    subject = Build(str(checkpoint("llama")), quant="q4").subject
    own = {row.name: row.harm["int3"] for row in judging.sensitivities(subject, lambda *news: None)}
    monkeypatch.setattr(sensitivity, "MAX_VARIANTS", 4)
    together = {row.name: row.harm["int3"] for row in judging.measure(subject, lambda *news: None)}
    assert own.keys() == together.keys()
    for kind in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        pair = [f"model.layers.{i}.{kind}" for i in range(2)]
        assert sum(together[name] for name in pair) == pytest.approx(sum(own[name] for name in pair), rel=0.2)


def test_a_conversion_without_wishes_is_not_judged(checkpoint: Checkpoints, tmp_path: Path) -> None:
    build = Build(str(checkpoint("llama")), quant="q4")
    assert Conversion(build.subject, SCHEMES["q4f32_1"], lambda *news: None).report is False
