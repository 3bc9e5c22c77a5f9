"""The reader of imports and the rules must be able to say no."""

from __future__ import annotations

from pathlib import Path

from tests import test_layers as layers
from tests.import_graph import Tree, circles, edges, path_between, read_tree


def house(root: Path, **files: str) -> Tree:
    """A tree of ours made of `align__data__load="import torch"`: two underscores for a dot, PACKAGE for `__init__`."""
    for name, text in files.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path = path.with_name(path.name.replace("PACKAGE", "__init__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_tree(root, tuple({name.split("__")[0] for name in files}))


def test_every_way_to_import_is_seen(tmp_path):
    tree = house(
        tmp_path,
        align__data__b="",
        align__data__c="",
        align__data__d="",
        align__data__e="",
        align__data__f="",
        align__data__a="""
import os, align.data.b
from typing import TYPE_CHECKING
from importlib import import_module
if TYPE_CHECKING:
    from align.data import c
else:
    from . import d
def work():
    from .e import thing
    import_module("align.data.f")
""",
    )
    found = {item.target: (item.line, item.lazy, item.typing_only) for item in tree.imports}
    assert found == {
        "os": (2, False, False),
        "align.data.b": (2, False, False),
        "typing": (3, False, False),
        "importlib": (4, False, False),
        "align.data.c": (6, False, True),
        "align.data.d": (8, False, False),
        "align.data.e": (10, True, False),
        "align.data.f": (11, True, False),
    }
    assert tree.untraceable == ()


def test_modules_named_by_strings_count_where_an_import_is_computed(tmp_path):
    tree = house(
        tmp_path,
        align__data__a="""
from importlib import import_module
HOMES = {"x": "b", "y": "align.data.c:run"}
import_module(HOMES["x"])
""",
        align__data__b="",
        align__data__c="",
        align__data__d='NAME = "b"',
    )
    assert edges(tree)["align.data.a"] == {"align.data.b", "align.data.c"}
    assert edges(tree, only_real=True)["align.data.a"] == edges(tree)["align.data.d"] == set()
    assert tree.untraceable == (("align.data.a", 4),)


def test_circles_and_paths(tmp_path):
    tree = house(
        tmp_path,
        reward__a="import reward.b",
        reward__b="def f():\n    from reward import c",
        reward__c="import reward.a",
    )
    assert circles(edges(tree)) == [["reward.a", "reward.b", "reward.c"]]
    assert path_between(edges(tree), "reward.a", "reward.c") == ["reward.a", "reward.b", "reward.c"]
    straight = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert circles(straight) == [] and path_between(straight, "c", "a") == []


def test_broken_arrows_are_reported_with_file_and_line(tmp_path):
    tree = house(
        tmp_path,
        data_formats__errors="",
        data_formats__reading="from align.data import load",
        reward__sources="import rollouts.protocol\nimport data_formats.errors",
        rollouts__protocol="",
        align__runtime__errors="",
        align__recipe__schema="from align.runtime.errors import AlignError\nfrom data_formats import reading",
        align__data__load="from align.recipe.schema import Recipe",
        align__cli="from align.data import load",
    )
    found = sorted(line.removeprefix(tmp_path.as_posix() + "/") for line in layers.broken_arrows(tree))
    assert found == [
        "align/recipe/schema.py:2: align.recipe.schema imports data_formats.reading",
        "data_formats/reading.py:1: data_formats.reading imports align.data.load",
        "reward/sources.py:1: reward.sources imports rollouts.protocol",
    ]


def test_foreign_packages_are_reported(tmp_path):
    tree = house(
        tmp_path,
        data_formats__files="import json\ndef f():\n    import pyarrow",
        data_formats__eager="import pyarrow",
        align__functional__kl="import torch\nimport numpy",
        rollouts__vllm__engine="def f():\n    import vllm",
        rollouts__hf="def f():\n    import vllm",
    )
    found = sorted(line.rpartition(": ")[2] for line in layers.foreign_imports(tree))
    assert found == [
        "align.functional.kl imports numpy",
        "data_formats.eager imports pyarrow",
        "rollouts.hf imports vllm",
    ]


def test_gold_is_found_directly_and_through_others(tmp_path):
    tree = house(
        tmp_path,
        align__tinyworld__gold="",
        align__tinyworld__labels="from align.tinyworld.gold import judge",
        align__stages__outcome="from align.tinyworld import gold",
        align__evaluation__judge="import align.tinyworld.gold",
        align__trainers__ppo="def f():\n    from align.tinyworld.labels import label",
        align__trainers__sft="import torch",
    )
    found = sorted(layers.gold_breaches(tree))
    assert len(found) == 2
    assert found[0].endswith("judge.py:1: align.evaluation.judge imports align.tinyworld.gold")
    assert found[1] == "align.trainers.ppo -> align.tinyworld.labels -> align.tinyworld.gold"


def test_gold_is_found_behind_a_package_that_imports_it_on_the_way(tmp_path):
    tree = house(
        tmp_path,
        align__tinyworld__gold="",
        align__tinyworld__PACKAGE="from align.tinyworld.gold import judge",
        align__tinyworld__lexicon="",
        align__data__load="from align.tinyworld.lexicon import words",
    )
    assert "align.data.load -> align.tinyworld.lexicon -> align.tinyworld -> align.tinyworld.gold" in set(
        layers.gold_breaches(tree)
    )
