"""YAML text to plain values and back.

PyYAML reads YAML 1.1, in which `1e-6` is a string and `no` is false. Both bite in recipes, so this loader resolves
plain scalars by the YAML 1.2 core schema: `true`/`false`, `null`/`~`/nothing, integers, floats with or without a point,
and everything else is text (dates too). A key that occurs twice is an error, not a silent overwrite.

Aliases may repeat what an anchor names, but what a text comes to with its aliases written out is bounded, and so is how
deep it is nested: a few hundred bytes could else stand for more than any memory holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from align.recipe.errors import RecipeError
from align.runtime.paths import typed_path
from align.runtime.terminal import shortened
from data_formats.errors import MissingFileError

Lines = dict[tuple[str | int, ...], int]

LONGEST = 1 << 18  # characters of a document; the longest shipped recipe has 8,000
MOST_EXPANDED = 1 << 20  # characters and nodes, aliases written out
DEEPEST = 64
LONGEST_INT = 18  # characters, so that every integer fits into 64 bits

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

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError, MemoryError):
            raise
        except Exception as error:  # what Python says of a value that is not what its tag, `!!timestamp x`, says
            kind, value = node.tag.rpartition(":")[2], node.value if isinstance(node.value, str) else "what stands here"
            problem = f"{shortened(value)} is no {kind} that can be read"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_plain_int(self, node: yaml.ScalarNode) -> int:
        digits = self.construct_scalar(node).replace("_", "")
        if len(digits) > LONGEST_INT:
            problem = f"an integer of {len(digits)} characters is larger than any key takes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return int(digits)


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


@dataclass(slots=True)
class _Walk:
    """Goes through a document with its aliases written out: notes the line of every key, keeps to the bounds."""

    lines: Lines = field(default_factory=dict)
    size: int = 0

    def visit(self, node: yaml.Node, path: tuple[str | int, ...] = (), inside: frozenset[int] = frozenset()) -> None:
        if id(node) in inside:
            raise _refused("an anchor that contains itself", node)
        if len(path) > DEEPEST:
            raise _refused(f"nested deeper than {DEEPEST} levels", node)
        inside |= {id(node)}
        self.size += 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if isinstance(node, yaml.ScalarNode) and not _encodable(node.value):
            raise _refused("half of a surrogate pair, which no text holds", node)
        if self.size > MOST_EXPANDED:
            raise _refused("its aliases, written out, come to more than a recipe can hold", node)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, key.value if isinstance(key, yaml.ScalarNode) else "?")
                self.lines[here] = key.start_mark.line + 1
                self.visit(key, here, inside)
                self.visit(value, here, inside)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.lines[(*path, index)] = value.start_mark.line + 1
                self.visit(value, (*path, index), inside)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def parse(text: str, source: str) -> tuple[Any, Lines]:
    """Values of a YAML document and the 1-based line of every key. Raises RecipeError naming the line."""
    if len(text) > LONGEST:
        raise RecipeError([f"is longer than {LONGEST} characters; is this a recipe?"], source)
    walk = _Walk()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, walk.lines
        walk.visit(node)
        return loader.construct_document(node), walk.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError([f"{where}{shortened(error.problem or error.context, 200)}"], source) from error
    except RecursionError:
        raise RecipeError([f"nested deeper than {DEEPEST} levels"], source) from None
    except MemoryError:
        raise
    except Exception as error:  # PyYAML makes the values of some tags last, and not of everything can it make them
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RecipeError([f"not readable as YAML: {shortened(reason, 200)}"], source) from error


def read(file: Path, name: str) -> str:
    """The text of a YAML file, not more of it than `parse` takes and one character.

    Args:
        name: of the file in errors.

    Raises:
        RecipeError: it is not UTF-8 text.
        MissingFileError: it cannot be opened or read.
    """
    try:
        with typed_path(file).open(encoding="utf-8") as lines:
            return lines.read(LONGEST + 1)
    except UnicodeDecodeError as error:
        raise RecipeError([f"is not UTF-8 text (byte {error.start})"], name) from None
    except OSError as error:
        raise MissingFileError(f"{file}: cannot be read ({error.strerror or error})") from None


def dump(data: Any) -> str:
    """YAML that `parse` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)
