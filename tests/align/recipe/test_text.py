"""YAML 1.2 scalars, duplicate keys, lines of syntax errors, and the round trip of dump and parse."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.recipe.cleaning_section import read_cleaning
from align.recipe.errors import RecipeError
from align.recipe.load import inspect
from align.recipe.text import dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("2E5", 2e5),
        (".5", 0.5),
        ("1_000", 1000),
        ("010", 10),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("~", None),
        ("", None),
        ("2024-01-02", "2024-01-02"),
        ("12:30", "12:30"),
        ("0x1f", "0x1f"),
        (".5e3", 500.0),
        ("'1e-6'", "1e-6"),
        ("[a.jsonl, tinyworld:x]", ["a.jsonl", "tinyworld:x"]),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text, value):
    found, _ = parse(text, "t")
    assert found == value and type(found) is type(value)


def test_lines_of_keys():
    _, lines = parse("a: 1\nb:\n  - c: 2\n  - d: 3\n", "t")
    assert lines[("a",)] == 1
    assert lines[("b", 1, "d")] == 4


def test_duplicate_key_names_both_lines():
    with pytest.raises(RecipeError, match=r"line 3.*'a' occurs twice, on lines 2 and 3"):
        parse("x:\n  a: 1\n  a: 2\n", "t")


def test_duplicate_keys_beside_a_merge_are_told_too():
    with pytest.raises(RecipeError, match=r"line 2.*'a' occurs twice, on lines 2 and 2"):
        parse("b: &b {c: 1}\nx: {a: 1, a: 2, <<: *b}\n", "t")


def test_a_directive_does_not_change_what_words_mean():
    assert parse("%YAML 1.1\n---\n[yes, 010, 1:30]\n", "t")[0] == ["yes", 10, "1:30"]


def test_merged_keys_may_be_overridden():
    found, _ = parse("base: &b {a: 1, c: 3}\nmore:\n  <<: *b\n  a: 2\n", "t")
    assert found["more"] == {"a": 2, "c": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", "line 3"),
        ("a: 1\n\tb: 2\n", "line 2"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1"),
        ("a: &x [*x]\n", "contains itself"),
        ("[a]: 1\n", "line 1, column 1: a key must be a word"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("a: \x00\n", "not readable"),
        ("b: 1\na: !!timestamp x\n", "line 2, column 4: x is no timestamp that can be read"),
        ("a: !!bool x\n", "line 1, column 4: x is no bool"),
        ("a: !!float ''\n", "line 1, column 4:  is no float"),
        ("a: !!float " + "1:" * 2000 + "1\n", "line 1, column 4: 1:1:.* is no float"),
        ("a: !!set [a]\n", "line 1, column 4: expected a mapping node"),
        ("a: !" + "x" * 1000, "line 1, column 4: could not determine a constructor for the tag"),
        ("a: " + "9" * 19, "line 1, column 4: an integer of 19 characters is larger than any key takes"),
        ("a: " + "9" * 5000, "line 1, column 4: an integer of 5000 characters"),
    ],
)
def test_unreadable_text_is_one_recipe_error(text, words):
    with pytest.raises(RecipeError, match=words) as told:
        parse(text, "t.yaml")
    assert len(str(told.value)) < 300


BOMB = "x0: &x0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"x{at}: &x{at} [{', '.join([f'*x{at - 1}'] * 9)}]\n" for at in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line 1, column .*: its aliases, written out, come to more than a recipe can hold"),
        (BOMB.replace("[*", "{<<: [*").replace("*]", "*]}"), "line"),
        ("a: &a " + "x" * 10_000 + "\nb: [" + "*a, " * 200 + "]\n", "its aliases, written out"),
        ("[" * 1200, "nested deeper than 64 levels"),
        ("a:\n" + "".join(" " * at + "- \n" for at in range(1, 100)), "nested deeper than 64 levels"),
        ("- " * 70 + "x", "line 1, column 131: nested deeper than 64 levels"),
        ("a: " + "x" * (1 << 18), "is longer than 262144 characters; is this a recipe"),
        ('a: "\\ud83d"', "line 1, column 4: half of a surrogate pair"),
    ],
)
def test_what_a_text_expands_to_is_bounded(text, words):
    began = time.monotonic()
    with pytest.raises(RecipeError, match=words):
        parse(text, "t.yaml")
    assert time.monotonic() - began < 20  # 9 ** 9 texts would take hours


def test_the_bomb_is_refused_wherever_yaml_is_read(tmp_path):
    """As a recipe, as the value of an override, as a cleaning file; never more of a file than a recipe has is read."""
    file = tmp_path / "bomb.yaml"
    file.write_text(BOMB)
    with pytest.raises(RecipeError, match="its aliases"):
        inspect(file)
    with pytest.raises(RecipeError, match="its aliases"):
        read_cleaning(file)
    flow = "{" + BOMB.strip().replace("\n", ", ") + "}"
    problems = inspect("quickstart", [f"sft.data={flow}"]).problems
    assert len(problems) == 1 and problems[0].startswith("sft.data: the value '{x0:") and "its aliases" in problems[0]
    assert len(problems[0]) < 250
    with pytest.raises(RecipeError, match="is longer than 262144 characters"):
        os.truncate(file, 10**11)  # sparse
        inspect(file)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(VALUES)
def test_dump_reads_back_equal(value):
    assert parse(dump(value), "t")[0] == value


@pytest.mark.parametrize(
    "text", ["no", "1e-6", "1_0", "~", "null", "<<", "=", "2024-01-02", "y", "0x1f", "1:30", "+.5"]
)
def test_dump_keeps_text_that_looks_like_something_else(text):
    assert parse(dump({"a": text}), "t")[0] == {"a": text}
