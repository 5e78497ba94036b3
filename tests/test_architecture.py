"""The house rules: who may import whom, what stays out of which room, how long things may be.

The tables are the rules. Each check is a function from a source tree to its complaints, and is shown to fail on a copy
of the tree in which the rule is broken. Imports are read from the syntax tree, those inside functions too.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import llmserve

PACKAGE = Path(llmserve.__file__).parent
REPOSITORY = Path(__file__).parents[1]

# What the server and the benchmarks know of the engine: the package itself, which re-exports it.
ENGINE_FACE = "engine.__init__"

# Room (a package, or a file at the top) → what of ours it may import. Of two keys that fit, the longer one counts; a
# file may always import from its own key. `__init__` is the package itself, for `__version__`. The few files of rooms
# that have a row, or are named in one, are those that others need without the rest of their room.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "disk": {"errors"},
    "artifact": {"errors", "disk"},
    "toolchain": {"errors"},
    # Finding devices knows no platform's row, and asks files and programs only. That a device works is found out in
    # another process, so it needs no compiler; what was found is kept in the cache.
    "machine": set(),
    "detect": {"machine"},
    "trial": {"artifact", "detect", "toolchain"},
    "platforms": {"errors", "detect", "trial"},
    "text": {"errors"},
    "quant": {"errors"},
    # The arithmetic of conversion is the format's own. Which weight gets which format comes in a plan, from outside.
    "weights": {"errors", "disk", "quant.group", "quant.takeover"},
    "kernels": {"errors", "quant.group", "toolchain"},
    # A GPU's facts (warp, shared memory) are what its kernels are made for.
    "kernels.gpu": {"errors", "quant.group", "platforms", "kernels.base", "kernels.tir"},
    # The table of a step's arguments is data that the models' entry points, the kernels and the engine share.
    "kernels.step": set(),
    # A family hands in a table of how its checkpoint's names fuse, and the table's type is the weights'.
    "models": {"errors", "kernels.base", "kernels.step", "weights.mapping"},
    "models.config": {"errors"},
    "backends": {"errors", "toolchain", "machine", "artifact"},
    # The record that compilation leaves, which the engine reads, and what compiling needs: both without a compiler.
    "compile.compiled": {"errors"},
    "compile.tools": {"errors", "machine"},
    "compile": {
        *("__init__", "errors", "config", "artifact", "toolchain", "machine", "detect", "platforms", "text"),
        *("models", "quant", "kernels", "weights", "backends"),
    },
    "engine.plan": {"errors"},
    "engine.grammar": {"errors", "text", "engine.plan"},
    "engine.run": {"errors", "engine.plan", "kernels.step", "compile.compiled", "weights.load", "backends"},
    # The record that compilation leaves, the file of parameters beside it, and how much memory a device has.
    "engine": {"errors", "config", "compile.compiled", "detect", "weights.load"},
    "api.edge": {"__init__", "errors", ENGINE_FACE},
    "api.base": {"__init__", "errors", "config", "text", ENGINE_FACE, "api.edge"},
    "api.endpoints": {"__init__", "errors", "text", ENGINE_FACE, "api.edge", "api.base"},
    "api": {"__init__", "errors", "config", "text", ENGINE_FACE},
    # It steps an engine core in its own thread, and asks it for logits, so it sees behind the engine's face.
    "llm": {"errors", "config", "text", "compile.build", "engine"},
    "bench": {"__init__", "errors", "config", "platforms", "text", "llm", "compile.build", ENGINE_FACE},
    # The command line's helpers: what a verb does, less the parsing.
    "console": set(),
    # What a model is made of, in each scheme, without making it.
    "fit": {"errors", "config", "machine", "detect", "platforms", "models", "quant", "weights"},
    "doctor": {
        *("__init__", "errors", "machine", "detect", "trial", "platforms", "toolchain"),
        *("artifact", "compile.tools"),
    },
    "terminal_chat": {"console", "errors", "llm"},
    "serving": {
        *("api", "compile.prepare", "compile.recall", "config", "console", "engine", "text"),
        "weights.load",  # which it has begin early
    },
    "cli": {"*"},
    "__main__": {"cli", "toolchain"},
    "__init__": {"llm", "engine.plan"},  # on first use
}

TVM = {"models", "kernels", "compile", "weights", "engine.run", "backends"}  # whose plugins find its symbols
# Library → where it may be imported. What is not named here is free.
LIBRARIES: dict[str, set[str]] = {
    "tvm": TVM,
    "tvm_ffi": TVM,
    "fastapi": {"api"},
    "starlette": {"api"},
    "uvicorn": {"api"},
    "prometheus_client": {"api.edge"},
    "opentelemetry": {"api.edge"},
    "pydantic": {"config", "api"},  # endpoints with bodies of their own check them where they are taken
    "typer": {"cli"},
    "rich": {"console"},
    "jinja2": {"text"},
    "tokenizers": {"text", "weights.tiny_tokenizer"},
    "huggingface_hub": {"weights.hub"},
    "llguidance": {"engine.grammar"},
    "torch": set(),
    "transformers": set(),
    # What runs code that comes with data.
    "pickle": set(),
    "marshal": set(),
    "shelve": set(),
    "dill": set(),
}
# Rooms of pure arithmetic, or pure data, that may import the standard library and nothing else of others'.
STANDARD_LIBRARY_ONLY = {
    *("errors", "disk", "artifact", "platforms", "toolchain", "machine", "detect", "trial"),
    *("compile.tools", "models.config"),
    *("engine.plan", "engine.core", "engine.grammar.bounds", "engine.grammar.schema_keywords"),
}

# Families are found by their file names; nothing else is imported by a name that is made up at run time.
DYNAMIC_IMPORTS = {"models.base"}
NOT_FAMILIES = {"base", "activations", "config", "layers", "parts", "rope", "__init__"}

LINES = {"engine.plan.scheduler": 299, "*": 400}
FAMILY_LINES = 150
STEP_LINES = 14
VERB_LINES = 25
DOCSTRING_LINES = 12  # two to six are usual; the longest draws a memory layout

# Importing the left must not load the right.
LEAN_IMPORTS = {
    "llmserve": ("tvm", "fastapi", "numpy"),
    "llmserve.cli": ("tvm", "fastapi", "numpy"),
    "llmserve.config": ("tvm", "fastapi", "numpy"),
    "llmserve.engine": ("tvm", "fastapi"),
    "llmserve.api.app": ("tvm", "opentelemetry.sdk", "opentelemetry.exporter"),
    "llmserve.weights.convert": ("tvm",),
    "llmserve.quant.scheme": ("tvm",),
    "llmserve.artifact": ("tvm", "numpy"),
    "llmserve.compile.recall": ("tvm",),
    "llmserve.api.checks": ("fastapi", "starlette", "uvicorn"),
    "llmserve.serving": ("tvm", "fastapi", "rich"),
}


# --- reading a tree


def modules(root: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    """Name (dotted, from the package's root; a room's own file ends in `__init__`), file and syntax of every file."""
    for file in sorted(root.rglob("*.py")):
        name = ".".join(file.relative_to(root).with_suffix("").parts)
        yield name, file, parsed(file.read_text(encoding="utf-8"))


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def imports(root: Path, name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import; our own modules are told by the leading "llmserve."."""
    package = ["llmserve", *name.split(".")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = [*(package[: len(package) - node.level + 1] if node.level else []), *(node.module or "").split(".")]
            base = ".".join(filter(None, parts))
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def ours(root: Path, imported: str) -> str | None:
    """The module of ours that an import names (`compile.build`, `engine.__init__`), or None if it is not ours."""
    first, *parts = imported.split(".")
    if first != "llmserve":
        return None
    while parts and not (root.joinpath(*parts).with_suffix(".py").exists() or root.joinpath(*parts).is_dir()):
        parts.pop()  # what is left over is a name in the module
    return ".".join([*parts, "__init__"] if root.joinpath(*parts).is_dir() else parts)


def within(name: str, place: str) -> bool:
    return place == "*" or name == place or name.startswith(f"{place}.")


def room(name: str) -> str | None:
    """The longest key of MAY_IMPORT that a module belongs to."""
    return max((key for key in MAY_IMPORT if within(name, key)), key=len, default=None)


# --- the rules


def who_imports_whom(root: Path) -> Iterator[str]:
    for name, _, tree in modules(root):
        if (own := room(name)) is None:
            yield f"{name} is in no room of MAY_IMPORT"
            continue
        for line, imported in imports(root, name, tree):
            target = ours(root, imported)
            if target and not any(within(target, place) for place in (own, *MAY_IMPORT[own])):
                yield f"{name}:{line} imports {target}, which {own} may not"


def no_cycles(root: Path) -> Iterator[str]:
    graph: dict[str, set[str]] = {}
    for name, _, tree in modules(root):
        targets = {ours(root, imported) for _, imported in imports(root, name, tree)}
        # The package's own file loads its two names on first use.
        graph[name] = {t for t in targets if t and t != "__init__"} if name != "__init__" else set()
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        yield f"imports go in a circle: {' -> '.join(error.args[1])}"


def no_cycles_of_rooms(root: Path) -> Iterator[str]:
    """Of packages and files at the top; `no_cycles` sees to the files within."""
    graph: dict[str, set[str]] = {}
    for name, _, tree in modules(root):
        targets = {(ours(root, imported) or name).split(".")[0] for _, imported in imports(root, name, tree)}
        own = name.split(".")[0]
        graph.setdefault(own, set()).update(targets - {own, "__init__"} if own != "__init__" else ())
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        yield f"rooms import each other: {' -> '.join(error.args[1])}"


def libraries_in_their_rooms(root: Path) -> Iterator[str]:
    for name, _, tree in modules(root):
        for line, imported in imports(root, name, tree):
            library = imported.split(".")[0]
            places = LIBRARIES.get(library, {"*"})
            pure = any(within(name, place) for place in STANDARD_LIBRARY_ONLY)
            if pure and library != "llmserve" and library not in sys.stdlib_module_names:
                yield f"{name}:{line} imports {library}, and may import the standard library only"
            elif not any(within(name, place) for place in places):
                yield f"{name}:{line} imports {library}, which belongs in {', '.join(sorted(places)) or 'no room'}"


def no_dynamic_imports(root: Path) -> Iterator[str]:
    for name, _, tree in modules(root):
        for node in ast.walk(tree):
            called = node.func if isinstance(node, ast.Call) else None
            word = getattr(called, "id", getattr(called, "attr", None))
            if word in ("import_module", "__import__", "exec", "eval") and name not in DYNAMIC_IMPORTS:
                yield f"{name}:{node.lineno} calls {word}"


def lengths(root: Path) -> Iterator[str]:
    for name, file, _ in modules(root):
        count = len(file.read_text(encoding="utf-8").splitlines())
        limit = LINES[max((key for key in LINES if within(name, key)), key=len)]
        if name.startswith("models.") and name.split(".")[-1] not in NOT_FAMILIES:
            limit = FAMILY_LINES
        if count > limit:
            yield f"{name} has {count} lines, and {limit} are the limit"


def lines_of_body(function: ast.FunctionDef) -> int:
    """Lines below the signature, less the docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def functions_are_short(root: Path) -> Iterator[str]:
    trees = {name: tree for name, _, tree in modules(root)}
    core = next(n for n in trees["engine.core"].body if isinstance(n, ast.ClassDef) and n.name == "EngineCore")
    for name in ("step", "plan", "compute"):
        step = next(n for n in core.body if isinstance(n, ast.FunctionDef) and n.name == name)
        if lines_of_body(step) > STEP_LINES:
            yield f"EngineCore.{name} has {lines_of_body(step)} lines, and {STEP_LINES} are the limit"
    verbs = [n for n in trees["cli"].body if isinstance(n, ast.FunctionDef) and is_verb(n)]
    if len(verbs) < 6:
        yield f"only {len(verbs)} verbs were found in cli"
    for verb in verbs:
        if lines_of_body(verb) > VERB_LINES:
            yield f"cli.{verb.name} has {lines_of_body(verb)} lines, and {VERB_LINES} are the limit"


def is_verb(function: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Call) and getattr(d.func, "attr", "") == "command" for d in function.decorator_list)


def files_say_what_they_are(root: Path) -> Iterator[str]:
    for name, _, tree in modules(root):
        if tree.body:  # an empty __init__.py says nothing and needs no words
            words = ast.get_docstring(tree)
            if not words:
                yield f"{name} does not begin with a docstring"
            elif len(words.splitlines()) > DOCSTRING_LINES:
                yield f"{name} begins with {len(words.splitlines())} lines of docstring; {DOCSTRING_LINES} are enough"


def families_know_no_scheme_and_no_platform(root: Path) -> Iterator[str]:
    words = re.compile(r"\bq[2348]f(16|32)|\bint[348]\b|\b(cpu|cuda|rocm|metal|vulkan|webgpu|avx\w*|neon)\b", re.I)
    for name, file, _ in modules(root):
        if within(name, "models"):
            for line, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if found := words.search(text):
                    yield f"{name}:{line} mentions {found[0]}"


Rule = Callable[[Path], Iterator[str]]
RULES: tuple[Rule, ...] = (
    who_imports_whom,
    no_cycles,
    no_cycles_of_rooms,
    libraries_in_their_rooms,
    no_dynamic_imports,
    lengths,
    functions_are_short,
    files_say_what_they_are,
    families_know_no_scheme_and_no_platform,
)


@pytest.mark.parametrize("rule", RULES)
def test_the_house_rules(rule: Rule) -> None:
    complaints = list(rule(PACKAGE))
    assert not complaints, "\n" + "\n".join(complaints)


def test_the_tables_name_what_there_is() -> None:
    """A room that was renamed would leave a rule that nothing can break."""
    names = {name for name, _, _ in modules(PACKAGE)}
    places = {p for allowed in (*MAY_IMPORT.values(), *LIBRARIES.values()) for p in allowed}
    for place in {*MAY_IMPORT, *places, *STANDARD_LIBRARY_ONLY, *DYNAMIC_IMPORTS, *LINES} - {"*"}:
        assert any(within(name, place) for name in names), f"there is no {place}"


LONG = "\n# one more line" * 400
BREACHES: tuple[tuple[Rule, str, str, str], ...] = (
    (who_imports_whom, "models/llama.py", "from ..quant import scheme\n", "models.llama:.* imports quant.scheme"),
    (who_imports_whom, "quant/group.py", "from ..models.base import family\n", "quant.group:.* imports models.base"),
    (who_imports_whom, "quant/scheme.py", "from ..kernels.base import active\n", "quant.scheme:.* kernels.base"),
    (who_imports_whom, "weights/read.py", "from .. import artifact\n", "weights.read:.* imports artifact"),
    (who_imports_whom, "artifact.py", "from .weights import read\n", "artifact:.* imports weights.read"),
    (who_imports_whom, "trial.py", "from .compile import selftest\n", "trial:.* imports compile.selftest"),
    (who_imports_whom, "backends/build.py", "from ..compile import tools\n", "backends.build:.* compile.tools"),
    (who_imports_whom, "compile/build.py", "from ..engine import EngineCore\n", "compile.build:.* engine.__init__"),
    (who_imports_whom, "engine/plan/sequence.py", "from ..core import x\n", "engine.plan.sequence:.* engine.core"),
    (who_imports_whom, "engine/plan/outputs.py", "from ..run import scorer\n", "plan.outputs:.* engine.run.scorer"),
    (who_imports_whom, "engine/grammar/bounds.py", "from ..run import scorer\n", "grammar.bounds:.* engine.run.scorer"),
    (who_imports_whom, "engine/run/executor.py", "from ..core import EngineCore\n", "run.executor:.* engine.core"),
    (who_imports_whom, "engine/run/executor.py", "import llmserve.compile.build\n", "run.executor:.* compile.build"),
    (who_imports_whom, "engine/core.py", "def f():\n    from ..api import app\n", "engine.core:.* imports api.app"),
    (who_imports_whom, "api/edge/gate.py", "from ..base.state import Serving\n", "api.edge.gate:.* api.base.state"),
    (who_imports_whom, "api/base/turns.py", "from ..endpoints import chat\n", "base.turns:.* api.endpoints.chat"),
    (who_imports_whom, "api/endpoints/chat.py", "from .. import app\n", "api.endpoints.chat:.* imports api.app"),
    (
        who_imports_whom,
        "api/launch.py",
        "from ..engine.plan.scheduler import x\n",
        "api.launch:.* engine.plan.scheduler",
    ),
    (who_imports_whom, "api/app.py", "from ..compile import build\n", "api.app:.* imports compile.build"),
    (who_imports_whom, "config.py", "from . import platforms\n", "config:.* imports platforms"),
    (who_imports_whom, "attic/old.py", '"""Old."""\n', "attic.old is in no room"),
    (no_cycles, "engine/plan/outputs.py", "from .scheduler import Scheduler\n", "in a circle"),
    (
        no_cycles_of_rooms,
        "quant/scheme.py",
        "from ..kernels.base import active\n",
        "(quant|kernels) -> (quant|kernels)",
    ),
    (no_cycles_of_rooms, "artifact.py", "from .compile import build\n", "rooms import each other: .*artifact"),
    (libraries_in_their_rooms, "api/app.py", "import tvm.runtime\n", "api.app:.* imports tvm, which"),
    (libraries_in_their_rooms, "engine/core.py", "def f():\n    import tvm\n", "engine.core:.* standard library only"),
    (
        libraries_in_their_rooms,
        "engine/plan/page_pool.py",
        "import numpy as np\n",
        "engine.plan.page_pool:.* imports numpy",
    ),
    (libraries_in_their_rooms, "engine/loading.py", "import tvm\n", "engine.loading:.* imports tvm, which"),
    (libraries_in_their_rooms, "quant/group.py", "import tvm\n", "quant.group:.* imports tvm, which"),
    (libraries_in_their_rooms, "serving.py", "import uvicorn\n", "serving:.* uvicorn, which belongs in api"),
    (libraries_in_their_rooms, "llm.py", "from fastapi import FastAPI\n", "llm:.* fastapi"),
    (libraries_in_their_rooms, "weights/read.py", "import torch\n", "weights.read:.* torch, which belongs in no room"),
    (libraries_in_their_rooms, "text/tokenizer.py", "from transformers import x\n", "text.tokenizer:.* transformers"),
    (libraries_in_their_rooms, "weights/read.py", "import pickle\n", "weights.read:.* pickle"),
    (no_dynamic_imports, "weights/read.py", "__import__('torch')\n", "weights.read:.* calls __import__"),
    (no_dynamic_imports, "text/sandbox.py", "eval('1')\n", "text.sandbox:.* calls eval"),
    (lengths, "models/mistral.py", "\n# one more line" * 150, "models.mistral has"),
    (lengths, "engine/plan/scheduler.py", "\n# one more line" * 60, "engine.plan.scheduler has .* 299 are the limit"),
    (lengths, "api/endpoints/chat.py", LONG, "api.endpoints.chat has .* 400 are the limit"),
    (functions_are_short, "cli.py", "@app.command()\ndef x():\n" + "    f()\n" * 26, "cli.x has 26 lines"),
    (functions_are_short, "engine/core.py", "", "EngineCore.compute has 16 lines"),
    (files_say_what_they_are, "api/silent.py", "x = 1\n", "api.silent does not begin"),
    (files_say_what_they_are, "api/wordy.py", '"""' + "word\n" * 13 + '"""\n', "api.wordy begins with 13 lines"),
    (families_know_no_scheme_and_no_platform, "models/llama.py", "# fast on CUDA\n", "models.llama:.* mentions CUDA"),
    (families_know_no_scheme_and_no_platform, "models/llama.py", "X = 'q4f16_1'\n", "models.llama:.* q4f16"),
)


@pytest.mark.parametrize(("rule", "file", "text", "complaint"), BREACHES)
def test_each_rule_can_be_broken(tmp_path: Path, rule: Rule, file: str, text: str, complaint: str) -> None:
    root = tmp_path / "llmserve"
    shutil.copytree(PACKAGE, root, ignore=shutil.ignore_patterns("__pycache__", "data"))
    path = root / file
    path.parent.mkdir(exist_ok=True)
    source = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text:  # inside of a method, where nothing can be appended
        line = "        sampled = self.executor.execute(plan)\n"
        assert line in source
        source = source.replace(line, line * 11)
    path.write_text(source + text, encoding="utf-8")
    found = "\n".join(rule(root))
    assert re.search(complaint, found), found or "nothing was found"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_files_that_exist(document: str) -> None:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    named = set(re.findall(r"[`(]((?:[\w.]+/)*[\w.]+\.(?:py|toml|yaml|md))[`)]", text))
    assert len(named) > 5
    for name in sorted(named):
        assert (REPOSITORY / name).exists() or (PACKAGE / name).exists(), f"{document} names {name}"


def test_every_family_has_a_row_in_the_documents() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", (REPOSITORY / "docs" / "families.md").read_text("utf-8"), re.MULTILINE))
    files = {name.removeprefix("models.") for name, _, _ in modules(PACKAGE) if name.startswith("models.")}
    assert named - {"model_type"} == files - NOT_FAMILIES


def test_worked_examples_are_the_code() -> None:
    """Each block of Python in CONTRIBUTING.md consists of lines of one file, so that it cannot grow old."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    files = [{line.strip(" ,") for line in file.read_text("utf-8").splitlines()} for file in PACKAGE.rglob("*.py")]
    for block in blocks:
        wanted = {line.strip(" ,") for line in block.splitlines()} - {""}
        missing = min((wanted - lines for lines in files), key=len)
        assert not missing, f"no file has {missing}"


@pytest.mark.parametrize(("module", "heavy"), LEAN_IMPORTS.items())
def test_imports_stay_lean(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sorted({set(heavy)!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded, f"importing {module} loads {', '.join(loaded)}"
