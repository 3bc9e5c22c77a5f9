"""YAML text to plain values and back, read and written by ruamel.yaml.

Which plain words are not text is decided here, not by the library's version: `true`/`false`, `null`/`~`/nothing,
integers, floats with or without a point, as in the YAML 1.2 core schema; everything else is text (`no`, `12:30`, dates,
`0x1f`). A key that occurs twice is an error, not a silent overwrite.

Aliases may repeat what an anchor names, but what a text comes to with its aliases written out is bounded, and so is how
deep it is nested: a few hundred bytes could else stand for more than any memory holds.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from align.recipe.errors import RecipeError
from align.runtime.errors import MissingFileError, reason_of
from align.runtime.paths import typed_path
from align.runtime.terminal import shortened

Lines = dict[tuple[str | int, ...], int]

LONGEST = 1 << 18  # characters of a document; the longest shipped recipe has 8,000
MOST_EXPANDED = 1 << 20  # characters and nodes, aliases written out
DEEPEST = 64
LONGEST_INT = 18  # characters, so that every integer fits into 64 bits

_CORE = "tag:yaml.org,2002:"
_WORDS = {
    Tag(suffix=_CORE + kind): re.compile(pattern)
    for kind, pattern in {
        "null": r"~|null|Null|NULL|",
        "bool": r"true|True|TRUE|false|False|FALSE",
        "int": r"[-+]?[0-9]+(?:_[0-9]+)*",
        "float": r"[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF|nan|NaN|NAN))",
        "merge": r"<<",
    }.items()
}


class _Reading(VersionedResolver):
    """What a plain word is: see the module."""

    processing_version = (1, 2)  # whatever a directive of the text says

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> Tag:
        if kind is ScalarNode and implicit[0]:
            return next((tag for tag, word in _WORDS.items() if word.fullmatch(value)), self.DEFAULT_SCALAR_TAG)
        return super().resolve(kind, value, (False, False))


class _Writing(_Reading):
    """As read here, or else by a reader of YAML 1.1: text that either takes for something else is quoted."""

    processing_version = (1, 1)

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> Tag:
        found = super().resolve(kind, value, implicit)
        return VersionedResolver.resolve(self, kind, value, implicit) if found == self.DEFAULT_SCALAR_TAG else found


class _Values(SafeConstructor):
    """Values of nodes; of none is made what its tag (`!!timestamp x`) says and its text is not."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if node.tag == _CORE + "int" and len(digits := str(node.value).replace("_", "")) > LONGEST_INT:
            _refuse(f"an integer of {len(digits)} characters is larger than any key takes", node)
        try:
            return super().construct_object(node, deep)
        except (YAMLError, RecursionError, MemoryError):
            raise
        except Exception:
            kind, value = str(node.tag).rpartition(":")[2], node.value if isinstance(node.value, str) else "this"
            _refuse(f"{shortened(value)} is no {kind} that can be read", node)

    def date(self, node: Node) -> NoReturn:
        raise ValueError  # no key takes one


_Values.add_constructor(_CORE + "timestamp", _Values.date)


class _Plain(SafeRepresenter):
    """Values as plain as they can be written."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> ScalarNode:
        # Unicode line breaks would be written raw into single quotes and then folded to spaces in reading.
        odd = any(letter in data for letter in "\x85\u2028\u2029")
        return self.represent_scalar(_CORE + "str", data, style='"' if odd else None)

    def number(self, data: float) -> ScalarNode:
        node = self.represent_float(data)
        if "." not in node.value:  # YAML 1.1 takes 1e-06 for text
            node.value = node.value.replace("e", ".0e")
        return node


_Plain.add_representer(str, _Plain.text)
_Plain.add_representer(float, _Plain.number)


def _yaml(resolver: type[VersionedResolver]) -> YAML:
    made = YAML(typ="safe", pure=True)
    made.Resolver, made.Constructor, made.Representer = resolver, _Values, _Plain
    made.composer.warn_double_anchors = False
    return made


def _refuse(problem: str, node: Node) -> NoReturn:
    raise ConstructorError(None, None, problem, node.start_mark)


@dataclass(slots=True)
class _Walk:
    """Goes through a document with its aliases written out: notes the line of every key, keeps to the bounds."""

    lines: Lines = field(default_factory=dict)
    size: int = 0

    def visit(self, node: Node, path: tuple[str | int, ...] = (), inside: frozenset[int] = frozenset()) -> None:
        if id(node) in inside:
            _refuse("an anchor that contains itself", node)
        if len(path) > DEEPEST:
            _refuse(f"nested deeper than {DEEPEST} levels", node)
        inside |= {id(node)}
        self.size += 1 + (len(node.value) if isinstance(node, ScalarNode) else 0)
        if isinstance(node, ScalarNode) and not _encodable(node.value):
            _refuse("half of a surrogate pair, which no text holds", node)
        if self.size > MOST_EXPANDED:
            _refuse("its aliases, written out, come to more than a recipe can hold", node)
        if isinstance(node, MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                if not isinstance(key, ScalarNode):
                    _refuse("a key must be a word, not a list or a section", key)
                here, line = (*path, key.value), key.start_mark.line + 1
                # The library's own check names one line alone, and passes over the keys beside a merge.
                if key.value in first and key.tag != _CORE + "merge":
                    _refuse(f"key '{key.value}' occurs twice, on lines {first[key.value]} and {line}; keep one", key)
                self.lines[here] = first[key.value] = line
                self.visit(key, here, inside)
                self.visit(value, here, inside)
        elif isinstance(node, SequenceNode):
            for index, value in enumerate(node.value):
                self.lines[(*path, index)] = value.start_mark.line + 1
                self.visit(value, (*path, index), inside)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse(text: str, source: str) -> tuple[Any, Lines]:
    """Values of a YAML document and the 1-based line of every key. Raises RecipeError naming the line."""
    if len(text) > LONGEST:
        raise RecipeError([f"is longer than {LONGEST} characters; is this a recipe?"], source)
    walk, yaml = _Walk(), _yaml(_Reading)
    try:
        node = yaml.compose(text)
        if node is None:
            return None, walk.lines
        walk.visit(node)
        return yaml.constructor.construct_document(node), walk.lines
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError([f"{where}{shortened(error.problem or error.context, 200)}"], source) from error
    except RecursionError:
        raise RecipeError([f"nested deeper than {DEEPEST} levels"], source) from None
    except MemoryError:
        raise
    except Exception as error:  # the values of some tags are made last, and not of everything can they be made
        raise RecipeError([f"not readable as YAML: {shortened(reason_of(error), 200)}"], source) from error


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
    yaml, out = _yaml(_Writing), io.StringIO()
    yaml.sort_base_mapping_type_on_output, yaml.default_flow_style, yaml.width = False, False, 120
    yaml.dump(data, out)
    return out.getvalue()
