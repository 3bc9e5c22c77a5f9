"""The house keeps its shape: which room may know which, no circles, small files, gold out of training's reach.

Breaches are listed all at once, each with file and line. The rules are those of docs/design.md.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from align.recipe.registry import ENTRIES, STAGES
from tests.import_graph import Import, Tree, circles, dotted, edges, parsed, path_between, read_tree

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("align", "data_formats", "reward", "rollouts")

SAFETY = ("weights_only", "trust_remote_code")  # options
GOLD = "align.tinyworld.gold"
BLIND = (  # what trains, or rewards while training
    *("align.trainers", "align.models", "align.data", "align.functional", "align.recipe", "align.runs"),
    *("reward", "rollouts", "data_formats"),
    *(stage.run.partition(":")[0] for stage in STAGES.values()),
)
ENTRY_SCRIPTS = tuple(f"align.{name}" for name in ENTRIES)
ANYTHING = frozenset({"*"})
GROUND = "align.runtime"

# Room -> what of ours it may import (itself always). A room without a line here may import nothing.
ARROWS: dict[str, frozenset[str]] = {
    GROUND: frozenset(),  # every room may stand on it
    "data_formats": frozenset(),
    "reward": frozenset({"data_formats"}),
    "rollouts": frozenset({"data_formats"}),
    "align.functional": frozenset(),
    "align.recipe": frozenset(),
    "align.tinyworld": frozenset({"data_formats"}),
    "align.models": frozenset({"align.recipe", "reward", "data_formats"}),
    "align.textmodels": frozenset({"align.models", "align.recipe", "align.functional", "reward", "data_formats"}),
    "align.data": frozenset({"data_formats", "align.recipe", "align.textmodels"}),
    "align.curation": frozenset(
        {"align.textmodels", "align.models", "align.data", "align.recipe", "align.runs", "align.evaluation"}
        | {"align.functional", "align.trainers.causal_forward"}  # losses of replies
        | {"reward", "rollouts", "data_formats"}
    ),
    "align.runs": frozenset({"data_formats", "align.recipe"}),
    "align.trainers": frozenset(
        {"align.functional", "align.models", "align.data", "align.runs", "align.recipe"}
        | {"reward", "rollouts", "data_formats"}
    ),
    "align.evaluation": frozenset(
        {"align.models", "align.data", "align.recipe", "align.functional", "align.textmodels"}
        | {"reward", "rollouts", "data_formats"}
    ),
    "align.chat": frozenset(
        {"align.models", "align.data", "align.runs", "align.evaluation", "reward", "rollouts", "data_formats"}
    ),
    "align.feedback": frozenset(
        {"align.models", "align.data", "align.evaluation", "align.serving", "align.chat", "align.recipe", "align.runs"}
        | {"align.stages", "align.report", "reward", "rollouts", "data_formats"}
    ),
    "align.report": frozenset(
        {"data_formats", "align.recipe", "align.runs.reading", "align.runs.run_files", "align.doctor"}
        | {f"align.evaluation.{name}" for name in ("accuracy", "shares", "table", "wins")}  # plain numbers
    ),
    "align.doctor": frozenset({"data_formats", "align.recipe", "align.runs.run_files"}),  # without torch
    "align.plan": frozenset({"align.recipe"}),  # without torch
    "align.scale": frozenset({"align.plan", "align.recipe"}),  # without torch
    "align.serving": frozenset({"align.recipe", "align.models", "align.stages", "reward", "data_formats"}),
    "align.commands": frozenset(
        {"align.runs", "align.recipe", "align.data", "align.models", "align.evaluation", "align.doctor", "align.plan"}
        | {"align.scale", "align.textmodels", "align.curation", "align.chat", "align.serving", "align.feedback"}
        | {"align.report"}
        | {"reward", "rollouts", "data_formats"}
    ),
    "align.stages": ANYTHING,
    "align": ANYTHING,  # the entries and the command line
}

# Room -> foreign packages. Those after LAZY may be imported inside functions and for type checkers only.
TORCH = frozenset({"torch", "transformers", "safetensors", "numpy"})
FOREIGN: dict[str, frozenset[str]] = {
    "align.runtime": frozenset({"rich", "filelock", "httpcore2"}),
    "data_formats": frozenset(),
    "reward": TORCH - {"numpy"},
    "rollouts": TORCH,
    "align.functional": frozenset({"torch"}),
    "align.recipe": frozenset({"pydantic", "pydantic_core", "ruamel"}),
    "align.tinyworld": frozenset(),
    "align.models": TORCH | {"tokenizers", "peft", "bitsandbytes"},
    "align.textmodels": TORCH,
    "align.curation": TORCH,
    "align.data": TORCH - {"safetensors"},
    "align.runs": (TORCH - {"safetensors"}) | {"accelerate", "psutil", "rich"},
    "align.trainers": TORCH | {"accelerate", "peft", "trl", "datasets"},  # the last one is what trl takes
    "align.evaluation": TORCH | {"evalica", "pandas", "scipy"},  # ranking models by wins
    "align.chat": frozenset({"rich"}),
    "align.feedback": TORCH | {"evalica", "pydantic", "pydantic_core", "scipy", "starlette", "uvicorn"},
    "align.report": frozenset({"matplotlib", "numpy", "jinja2"}),
    "align.doctor": frozenset(),
    "align.plan": frozenset(),
    "align.scale": frozenset(),
    "align.serving": frozenset({"starlette", "uvicorn"}),
    "align.commands": frozenset({"rich"}),
    "align.stages": TORCH | {"accelerate", "rich", "peft", "trl"},
    "align": frozenset({"rich"}),
}
LAZY: dict[str, frozenset[str]] = {
    "align.runtime": frozenset({"torch", "huggingface_hub"}),
    "data_formats": frozenset(
        {"pyarrow", "zstandard", "datasets", "datasketch", "numpy", "py3langid", "presidio_analyzer", "spacy"}
    ),
    "reward": frozenset({"regex", "math_verify", "peft", "bitsandbytes"}),
    "rollouts": frozenset({"peft", "bitsandbytes", "uvicorn"}),
    "align.models": frozenset({"huggingface_hub"}),
    "align.textmodels": frozenset({"sklearn", "scipy"}),
    "align.curation": frozenset({"sklearn", "scipy"}),
    "align.evaluation": frozenset({"lm_eval"}),
    "align.trainers": frozenset({"bitsandbytes"}),
}
ENGINES = {"vllm": "rollouts.vllm"}  # only inside that package

# Size is advice: past these, a second meaning is looked for. What has none stays whole and says here which one it has:
# "align/x/y.py" or "align/x/y.py:function" -> why it is one thing.
FILE_LINES, FUNCTION_LINES, MEDIAN_LINES = 400, 60, 130
WHOLE: dict[str, str] = {
    "align/trainers/ppo/trainer.py": "one class: what it is given, its parts, its step, and the seams that it promises",
    "align/recipe/ppo_section.py": "the keys of ppo, each with its meaning, and the rules between them",
}


def room_of(module: str, rooms: dict[str, frozenset[str]] = ARROWS) -> str | None:
    """The longest room that holds `module`; `align` itself holds only the modules directly in it."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        room = ".".join(parts[:length])
        if room in rooms:
            return room if room != "align" or len(parts) <= 2 else None
    return None


def inside(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def where(tree: Tree, item: Import) -> str:
    return f"{tree.files[item.source].as_posix()}:{item.line}: {item.source} imports {item.target}"


def broken_arrows(tree: Tree) -> Iterator[str]:
    for item in tree.imports:
        if item.target.split(".")[0] not in PACKAGES:
            continue
        room = room_of(item.source)
        allowed = ARROWS.get(room or "", frozenset()) | {GROUND}
        own = room is not None and room_of(item.target) == room
        if not own and not allowed >= ANYTHING and not any(inside(item.target, prefix) for prefix in allowed):
            yield where(tree, item)


def foreign_imports(tree: Tree) -> Iterator[str]:
    for item in tree.imports:
        package = item.target.split(".")[0]
        if package in PACKAGES or package in sys.stdlib_module_names:
            continue
        room = room_of(item.source) or ""
        lazily = (item.lazy or item.typing_only) and package in LAZY.get(room, frozenset())
        engine = package in ENGINES and inside(item.source, ENGINES[package])
        if package not in FOREIGN.get(room, frozenset()) and not lazily and not engine:
            yield where(tree, item)


def gold_breaches(tree: Tree) -> Iterator[str]:
    for item in tree.imports:
        known = inside(item.source, "align.tinyworld") or inside(item.source, "align.stages")
        if item.target == GOLD and not known:
            yield where(tree, item)
    graph = edges(tree)
    for (
        module
    ) in tree.files:  # importing a.b.c runs a.b/__init__ too (align/__init__ is lazy: checked with the entries)
        parents = {".".join(module.split(".")[:length]) for length in range(2, module.count(".") + 1)}
        graph[module] |= parents & set(tree.files)
    for module in tree.files:
        if any(inside(module, room) for room in BLIND) and (path := path_between(graph, module, GOLD)):
            yield " -> ".join(path)


@cache
def our_tree() -> Tree:
    """The modules of this repository, read when the first test asks."""
    return read_tree(ROOT, PACKAGES)


def test_every_module_lives_in_a_known_room():
    assert [module for module in our_tree().files if room_of(module) is None] == []
    missing = [room for room in PACKAGES if room not in our_tree().files]
    assert missing == []


def test_imports_follow_the_arrows():
    assert list(broken_arrows(our_tree())) == []


def test_foreign_packages_only_where_they_are_listed():
    assert list(foreign_imports(our_tree())) == []


def test_no_import_circles_between_files_or_rooms():
    """An import inside a function, or for type checkers alone, hides a circle and does not undo it."""
    assert circles(edges(our_tree(), only_real=True)) == []
    rooms: dict[str, set[str]] = {room: set() for room in ARROWS}
    for source, targets in edges(our_tree()).items():
        rooms[room_of(source)] |= {room_of(target) for target in targets} - {room_of(source)}
    assert circles(rooms) == []


def test_computed_imports_only_in_lazy_packages_and_where_a_stage_is_looked_up():
    found = [
        f"{our_tree().files[module]}:{line}"
        for module, line in our_tree().untraceable
        if our_tree().files[module].name != "__init__.py"
        and module not in ("align.runtime.resolve", "align.stages.user_code")
    ]
    assert found == []


def test_gold_is_known_to_labels_and_final_evaluation_alone():
    assert GOLD in our_tree().files
    assert any(item.target == GOLD for item in our_tree().imports)
    assert list(gold_breaches(our_tree())) == []
    named = [
        module
        for module, path in our_tree().files.items()
        if any(inside(module, room) for room in BLIND) and "tinyworld.gold" in path.read_text(encoding="utf-8")
    ]
    assert named == []


def test_entry_scripts_are_thin_and_import_our_code_inside_main():
    for module in ENTRY_SCRIPTS:
        text = our_tree().files[module].read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 45, module
        assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(parsed(our_tree().files[module]))), module
        eager = {item.target.split(".")[0] for item in our_tree().imports if item.source == module and not item.lazy}
        assert eager <= sys.stdlib_module_names, module


def test_no_module_directly_in_align_shadows_another():
    """`accelerate launch align/ppo.py` puts align/ first on the path: a name in there would win over the real one."""
    top_level = {path.stem for path in ROOT.iterdir() if any(path.glob("*.py")) or path.suffix == ".py"}
    imported = {item.target.split(".")[0] for item in our_tree().imports}
    foreign = imported.union(*FOREIGN.values(), *LAZY.values(), ENGINES)
    taken = top_level | foreign | sys.stdlib_module_names
    ours = {path.stem for path in (ROOT / "align").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {"functional", "ppo"} <= ours - {"__init__"}
    assert sorted(ours & taken) == []


def test_long_files_and_functions_have_one_meaning_that_is_written_down():
    long: dict[str, int] = {}
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in our_tree().files.values()}
    for path, count in lines.items():
        name = path.relative_to(ROOT).as_posix()
        if count > FILE_LINES:
            long[name] = count
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    long[f"{name}:{node.name}"] = length
    assert {name: count for name, count in long.items() if not WHOLE.get(name)} == {}, (
        "split by meaning, or say why not"
    )
    assert sorted(WHOLE.keys() - long.keys()) == [], "not long any more: take the entry out"
    assert statistics.median(lines.values()) <= MEDIAN_LINES


def test_every_module_says_what_it_does():
    silent = [
        str(path)
        for path in our_tree().files.values()
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(parsed(path))
    ]
    assert silent == []


def test_tests_mirror_the_packages_without_being_packages():
    tests = ROOT / "tests"
    assert list(tests.rglob("__init__.py")) == []
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")} - {Path()}
    assert [
        str(folder) for folder in sorted(folders) if folder.parts[0] in PACKAGES and not (ROOT / folder).is_dir()
    ] == []


def test_nothing_is_unpickled_and_no_remote_code_is_trusted_by_default():
    found = []
    for path in our_tree().files.values():
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            called = dotted(node.func)
            options = {one.arg: ast.unparse(one.value) for one in node.keywords if one.arg in SAFETY}
            unsafe = called == "torch.load" and options.get("weights_only") != "True"
            if unsafe or called.startswith(("pickle.", "dill.")) or options.get("trust_remote_code") == "True":
                found.append(f"{path}:{node.lineno}: {called}")
    assert found == []
