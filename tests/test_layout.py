"""The house rules that a machine can check: which way the arrows run, how large files get, what may shadow what."""

import ast
import importlib.metadata
import statistics
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("align", "data_formats", "reward", "rollouts")
MAX_LINES, MAX_FUNCTION = 400, 60

# room: (our rooms it may import, other packages it may import at module level); anything else only inside a function,
# and only where INSIDE allows it.
TORCH = {"torch", "transformers"}
RULES: dict[str, tuple[set[str], set[str]]] = {
    "data_formats": (set(), set()),
    "reward": ({"data_formats"}, TORCH | {"safetensors"}),
    "rollouts": ({"data_formats"}, TORCH),
    "align.functional": (set(), {"torch"}),
    "align.recipe": ({"data_formats.errors"}, {"pydantic", "yaml"}),
    "align.tinyworld": ({"data_formats"}, set()),
    "align.runs": ({"data_formats.errors"}, TORCH | {"rich", "accelerate"}),
    "align.data": ({"data_formats", "align.recipe"}, {"torch"}),
    "align.models": (
        {"data_formats", "align.recipe", "reward"},
        TORCH | {"tokenizers", "safetensors", "peft"},
    ),
    "align.trainers": (
        {"align.functional", "align.models", "align.data", "align.runs", "align.recipe"}
        | {"reward", "rollouts", "data_formats"},
        TORCH | {"accelerate", "trl", "numpy", "datasets", "peft", "safetensors"},
    ),
    "align.evaluation": (
        {"align.models", "align.data", "align.recipe", "align.runs", "reward", "rollouts", "data_formats"},
        TORCH | {"numpy"},
    ),
    "align.report": ({"align.recipe", "data_formats"}, {"matplotlib", "jinja2", "numpy"}),
    "align.stages": (
        {
            f"align.{room}"
            for room in ("functional", "models", "data", "trainers", "runs", "recipe", "tinyworld", "evaluation")
        }
        | {"align.report", "reward", "rollouts", "data_formats"},
        TORCH | {"accelerate", "rich", "numpy", "tokenizers"},
    ),
}
INSIDE = {
    "data_formats": {"pyarrow", "zstandard", "datasets", "datasketch"},
    "align.runs": {"numpy"},
    "align.stages": {"matplotlib"},
    "rollouts": {"vllm"},
    "align.data": {"transformers"},
}
ENTRIES = {"align.cli", "align.base", "align.sft", "align.rm", "align.ppo"}
# Rooms that train or score for training, and so must never see the gold score.
TRAINING_STAGES = ("base", "sft", "reward", "ppo", "common", "causal", "pairs", "reference", "unigram")
BLIND = (
    "align.trainers", "align.functional", "align.models", "align.data", "align.recipe", "align.runs",
    "reward", "rollouts", "data_formats", *(f"align.stages.{name}" for name in TRAINING_STAGES),
)  # fmt: skip


def files() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(file): file for file in files()}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(file: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether at module level) of every import, `from x import y` as `x.y` where that is a module."""

    def walk(node: ast.AST, top: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, top
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}:{child.lineno}: relative import"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield (full if full in modules() else str(child.module)), child.lineno, top
            elif not is_for_types_only(child):
                yield from walk(
                    child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                )

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), True)


def room_of(name: str) -> str | None:
    return max((room for room in RULES if within(name, room)), key=len, default=None)


@pytest.mark.parametrize("file", files(), ids=module_name)
def test_arrows(file):
    name = module_name(file)
    room = room_of(name)
    if room is None:
        assert name == "align" or name in ENTRIES, f"{name}: a module that belongs to no room"
    ours, theirs = RULES.get(room, (set(), set()))
    for target, line, top in imports(file):
        first = target.partition(".")[0]
        where = f"{file.relative_to(ROOT)}:{line} imports {target}"
        if first in sys.stdlib_module_names or (room and within(target, room)):
            continue
        if room is None:
            heavy = target not in {
                "align",
                "align.runs.launch",
                "align.runs.arguments",
                "align.cli",
                "data_formats.errors",
            }
            assert not (top and heavy), f"{where} at module level; entries import inside main()"
        elif first in PACKAGES:
            assert any(within(target, allowed) for allowed in ours), f"{where}; {room} may import {sorted(ours)}"
        elif top:
            assert first in theirs, f"{where} at module level; {room} may import {sorted(theirs)}"
        else:
            assert first in theirs | INSIDE.get(room, set()), f"{where}, not foreseen for {room}"


def reachable(start: str) -> set[str]:
    """Every module of ours that importing `start` can load, lazily or not; packages load their `__init__`."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        if name in seen or name not in modules():
            continue
        seen.add(name)
        todo += [name.rpartition(".")[0], *(target for target, _, _ in imports(modules()[name]))]
    return seen


def test_nothing_that_trains_or_rewards_can_reach_the_gold_score():
    for name, file in modules().items():
        if any(within(name, room) for room in BLIND):
            assert "align.tinyworld.gold" not in reachable(name), f"{name} can import the gold score"
            if name != "align.stages.hooks":
                assert "tinyworld.gold" not in file.read_text(encoding="utf-8"), f"{name} names the gold score"
    # The walk itself works: the label generator does reach it.
    assert "align.tinyworld.gold" in reachable("align.tinyworld.labels")


def test_there_are_no_circles():
    """Between files, counting imports at module level; a package's `__init__` counts as a file."""
    graph = {
        name: {target for target, _, top in imports(file) if top and target in modules() and target != name}
        for name, file in modules().items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("file", files(), ids=module_name)
def test_sizes_and_docstrings(file):
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MAX_LINES
    if tree.body:
        assert ast.get_docstring(tree), "a module says what it does"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            body = length - (node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0)
            assert body < MAX_FUNCTION, f"{node.name} has {body} lines"


def test_files_are_small_in_the_median():
    assert statistics.median(len(file.read_text(encoding="utf-8").splitlines()) for file in files()) <= 130


def test_no_module_of_align_shadows_another():
    """`accelerate launch align/x.py` puts align/ on sys.path first, for as long as it takes the entry to replace it."""
    own = {path.stem for path in (ROOT / "align").iterdir() if path.suffix == ".py" or path.is_dir()} - {
        "__init__",
        "__pycache__",
    }
    installed = set(importlib.metadata.packages_distributions()) - set(PACKAGES)
    assert not own & (set(sys.stdlib_module_names) | installed | set(PACKAGES))


def test_tests_have_no_init_files():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_tests_mirror_the_packages():
    for folder in (ROOT / "tests").rglob("*"):
        if folder.is_dir() and folder.name != "__pycache__" and not folder.name.startswith((".", "_")):
            assert (ROOT / folder.relative_to(ROOT / "tests")).is_dir(), f"{folder} mirrors no package"


def test_trust_remote_code_comes_from_the_recipe_only():
    for file in files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert not (isinstance(node.value, ast.Constant) and node.value.value), f"{file}:{node.value.lineno}"


def test_torch_load_is_weights_only():
    for file in files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", f"{file}:{node.lineno}"
