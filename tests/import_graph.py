"""Reads imports from source, without importing anything: what `test_layers.py` judges."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """`source` (a module of ours) imports `target` (a module of ours, or the dotted name of a foreign one) at `line`.

    `lazy`: inside a function. `typing_only`: under `if TYPE_CHECKING`. `by_name`: only a string names the target, in a
    file that computes what it imports.
    """

    source: str
    target: str
    line: int
    lazy: bool = False
    typing_only: bool = False
    by_name: bool = False


@dataclass(frozen=True)
class Tree:
    """All modules of some packages: their files, their imports, and the dynamic imports nobody can follow."""

    files: dict[str, Path]
    imports: tuple[Import, ...]
    untraceable: tuple[tuple[str, int], ...]


@cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax, read once a process."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def dotted(node: ast.AST) -> str:
    """`a.b.c` of names and attributes alone, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_tree(root: Path, packages: tuple[str, ...]) -> Tree:
    """Every module below `root/<package>`."""
    files = {module_name(path, root): path for package in packages for path in sorted((root / package).rglob("*.py"))}
    imports: list[Import] = []
    untraceable: list[tuple[str, int]] = []
    for name, path in files.items():
        reader = _Reader(name, path.name == "__init__.py", set(files))
        reader.visit(parsed(path))
        imports += reader.imports
        untraceable += [(name, line) for line in reader.untraceable]
    return Tree(files, tuple(imports), tuple(untraceable))


class _Reader(ast.NodeVisitor):
    """Import statements at any depth, `import_module("…")`, and modules named by strings where it is computed."""

    def __init__(self, module: str, is_package: bool, known: set[str]):
        self.module, self.known = module, known
        self.package = module if is_package else module.rpartition(".")[0]
        self.imports: list[Import] = []
        self.untraceable: list[int] = []
        self._strings: list[tuple[str, int]] = []
        self._lazy = self._typing_only = False

    def _add(self, target: str, line: int) -> None:
        self.imports.append(Import(self.module, target, line, self._lazy, self._typing_only))

    def visit_Module(self, node: ast.Module) -> None:
        self.generic_visit(node)
        if self.untraceable:  # the names it may come to are written somewhere in this file, or nowhere
            for text, line in self._strings:
                for candidate in (text.partition(":")[0], f"{self.package}.{text}"):
                    if "." in candidate and candidate in self.known:
                        self.imports.append(Import(self.module, candidate, line, lazy=True, by_name=True))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parents = self.package.split(".")
            base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            self._add(inner if inner in self.known else base, node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        called = getattr(node.func, "attr", getattr(node.func, "id", None))
        if called in {"import_module", "__import__"}:
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                self._add(name.value, node.lineno)
            else:
                self.untraceable.append(node.lineno)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self._strings.append((node.value, node.lineno))

    def visit_If(self, node: ast.If) -> None:
        before = self._typing_only
        self._typing_only = before or ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for child in node.body:
            self.visit(child)
        self._typing_only = before
        for child in (node.test, *node.orelse):
            self.visit(child)

    def _visit_function(self, node: ast.AST) -> None:
        before, self._lazy = self._lazy, True
        self.generic_visit(node)
        self._lazy = before

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function


def edges(tree: Tree, *, only_real: bool = False) -> dict[str, set[str]]:
    """Module of ours -> the modules of ours that it imports, at any depth and for type checkers too; `only_real` leaves
    out what only a string names."""
    graph: dict[str, set[str]] = {name: set() for name in tree.files}
    for item in tree.imports:
        counts = not (only_real and item.by_name)
        if counts and item.target in tree.files and item.target != item.source:
            graph[item.source].add(item.target)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other."""
    reach = {node: reachable(graph, node) for node in graph}
    groups = {frozenset({node} | {other for other in reach[node] if node in reach[other]}) for node in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All nodes that can be reached from `start` in one step or more."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        for target in graph.get(todo.pop(), ()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


def path_between(graph: dict[str, set[str]], start: str, end: str) -> list[str]:
    """A shortest chain of imports from `start` to `end`; empty when there is none."""
    previous: dict[str, str] = {start: ""}
    todo = [start]
    while todo:
        node = todo.pop(0)
        if node == end:
            return list(_back(previous, end))[::-1]
        for target in sorted(graph.get(node, ())):
            if target not in previous:
                previous[target] = node
                todo.append(target)
    return []


def _back(previous: dict[str, str], node: str) -> Iterator[str]:
    while node:
        yield node
        node = previous[node]
