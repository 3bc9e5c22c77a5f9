"""One of each helper: what the ground floor has is not written again, and a class's name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.import_graph import dotted, parsed
from tests.test_layers import ROOT, our_tree

FLOOR = "align/runtime"

# Classes that bear a name another one has, each with what makes the two one thing.
SAME_THING: dict[str, str] = {}


@cache
def trees() -> dict[str, ast.Module]:
    """File -> its syntax."""
    return {path.relative_to(ROOT).as_posix(): parsed(path) for path in our_tree().files.values()}


@cache
def nodes() -> dict[str, list[ast.AST]]:
    """File -> every node of its syntax."""
    return {name: list(ast.walk(tree)) for name, tree in trees().items()}


def found(wanted, *homes: str) -> list[str]:
    """`file:line` of every node that `wanted` picks, but in its homes."""
    return [
        f"{name}:{node.lineno}: {ast.unparse(node)[:80]}"
        for name, inside in nodes().items()
        if name not in homes
        for node in inside
        if wanted(node)
    ]


def called(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and dotted(node.func) in names


def asks_for(node: ast.AST, attribute: str) -> bool:
    return (
        called(node, "hasattr", "getattr")
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
        and node.args[1].value == attribute
    )


def texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value for part in node.values if isinstance(part, ast.Constant))


def loops(tree: ast.AST) -> Iterator[tuple[set[str], ast.AST]]:
    """The names that a loop or a comprehension over a text's lines binds, and what it does with them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For):
            targets, over = [node.target], ast.unparse(node.iter)
        elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp):
            targets, over = (
                [one.target for one in node.generators],
                " ".join(ast.unparse(one.iter) for one in node.generators),
            )
        else:
            continue
        if any(word in over for word in ("line", "file", "read", "open", "split")):
            yield {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}, node


def reads_lines(tree: ast.AST) -> Iterator[int]:
    for names, loop in loops(tree):
        for node in ast.walk(loop):
            if (
                called(node, "json.loads", "parse_json")
                and isinstance(node.args[0], ast.Name)
                and node.args[0].id in names
            ):
                yield node.lineno


def test_the_rules_can_say_no():
    said = ast.parse(
        "rows = [json.loads(line) for line in file]\nfor line in file:\n    json.loads(line)\njson.loads(x)"
    )
    assert sorted(reads_lines(said)) == [1, 3]
    assert asks_for(ast.parse("hasattr(model, 'peft_config')").body[0].value, "peft_config")
    assert list(texts(ast.parse("f'pip install {x}'").body[0].value)) == ["pip install "]


def test_one_reader_of_json_lines():
    home = f"{FLOOR}/json_files.py"
    assert [f"{name}:{line}" for name, tree in trees().items() if name != home for line in reads_lines(tree)] == []


def test_one_way_to_replace_a_file_or_folder():
    """Who writes under a temporary name and renames it does so by `align.runtime.files`."""
    homes = (f"{FLOOR}/files.py",)
    assert found(lambda node: called(node, "os.replace", "os.fsync"), *homes) == []


def test_one_way_to_ask_for_an_adapter_and_what_is_inside():
    home = f"{FLOOR}/peft_model.py"
    asked = found(lambda node: asks_for(node, "peft_config") or asks_for(node, "get_base_model"), home)
    kinds = found(lambda node: called(node, "isinstance") and "PeftModel" in ast.unparse(node), home)
    assert asked + kinds == []


def test_one_sentence_for_a_package_that_is_missing():
    home = f"{FLOOR}/packages.py"
    assert found(lambda node: any("pip install" in text for text in texts(node)), home) == []
    assert found(lambda node: called(node, "find_spec", "importlib.util.find_spec"), home) == []


def test_one_padding_and_one_shortener():
    def pads(node: ast.AST) -> bool:  # [fill] * (width - len(row)), of ids
        return (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Mult)
            and isinstance(node.left, ast.List)
            and ast.unparse(node.left) != "[0.0]"
            and isinstance(node.right, ast.BinOp)
            and isinstance(node.right.op, ast.Sub)
            and called(node.right.right, "len")
        )

    def shortens(node: ast.AST) -> bool:  # text if len(text) <= most else …
        return (
            isinstance(node, ast.IfExp)
            and isinstance(node.test, ast.Compare)
            and called(node.test.left, "len")
            and isinstance(node.test.ops[0], ast.LtE)
            and ast.unparse(node.body) == ast.unparse(node.test.left.args[0])
        )

    assert found(pads, f"{FLOOR}/padding.py") == []
    assert found(shortens, f"{FLOOR}/terminal.py") == []


def test_one_loader_of_tokenizers():
    own = ("reward/loading.py", "align/models/fetch.py")  # which reads a GGUF, no folder of a tokenizer
    assert found(lambda node: called(node, "AutoTokenizer.from_pretrained"), *own) == []


def test_one_way_to_agree_over_ranks():
    """A rank that failed tells the others by `agree`, not by words or flags of its own."""
    assert found(lambda node: called(node, "any_rank") and "error" in ast.unparse(node), f"{FLOOR}/ranks.py") == []


def test_a_class_name_means_one_thing():
    homes: dict[str, list[str]] = defaultdict(list)
    for name, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(name)
    twice = {name: files for name, files in homes.items() if len(files) > 1}
    assert {name: files for name, files in twice.items() if name not in SAME_THING} == {}
    assert [name for name in SAME_THING if len(homes[name]) < 2] == [], "there is one only: take the entry out"


def test_one_root_of_errors():
    """The errors of the ground floor are imported from it."""
    borrowed = {"AlignError", "MissingFileError", "StorageError", "PathError", "MissingPackageError"}
    elsewhere = [
        f"{name}:{node.lineno}"
        for name, inside in nodes().items()
        for node in inside
        if isinstance(node, ast.ImportFrom) and node.module != "align.runtime.errors"
        if borrowed & {one.name for one in node.names}
    ]
    assert elsewhere == []


def test_the_helpers_have_their_homes():
    for name in ("json_files", "files", "peft_model", "packages", "padding", "terminal", "ranks", "errors"):
        assert Path(ROOT, FLOOR, f"{name}.py").is_file()
