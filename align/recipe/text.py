"""YAML text to plain values and back.

PyYAML reads YAML 1.1, in which `1e-6` is a string and `no` is false. Both bite in recipes, so this loader resolves
plain scalars by the YAML 1.2 core schema: `true`/`false`, `null`/`~`/nothing, integers, floats with or without a point,
and everything else is text (dates too). A key that occurs twice is an error, not a silent overwrite.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from align.recipe.errors import RecipeError

Lines = dict[tuple[str | int, ...], int]

_FLOAT = re.compile(
    r"^[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_INT = re.compile(r"^[-+]?[0-9]+(?:_[0-9]+)*$")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the resolvers of YAML 1.2 and no duplicate keys."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own attribute)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            line = key_node.start_mark.line + 1
            if key_node.value in seen:
                problem = f"key '{key_node.value}' occurs twice, on lines {seen[key_node.value]} and {line}; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen[key_node.value] = line
        return super().construct_mapping(node, deep)

    def construct_plain_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node).replace("_", ""))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_plain_int)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes whatever YAML 1.1 or `_Loader` would read as something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        # PyYAML writes Unicode line breaks raw into single quotes and then folds them to spaces when reading.
        odd = any(letter in data for letter in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if odd else None)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))


def _key_lines(node: yaml.Node, path: tuple[str | int, ...], lines: Lines, open_nodes: frozenset[int]) -> None:
    if id(node) in open_nodes:
        raise yaml.constructor.ConstructorError(None, None, "an anchor that contains itself", node.start_mark)
    open_nodes |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, key.value if isinstance(key, yaml.ScalarNode) else "?")] = key.start_mark.line + 1
            _key_lines(value, (*path, key.value if isinstance(key, yaml.ScalarNode) else "?"), lines, open_nodes)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _key_lines(value, (*path, index), lines, open_nodes)


def parse(text: str, source: str) -> tuple[Any, Lines]:
    """Values of a YAML document and the 1-based line of every key. Raises RecipeError naming the line."""
    lines: Lines = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _key_lines(node, (), lines, frozenset())
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError([f"{where}{error.problem or error.context}"], source) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError([f"not readable as YAML: {str(error).splitlines()[0]}"], source) from None


def dump(data: Any) -> str:
    """YAML that `parse` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)
