"""Raw tags become a vocabulary: each step by hand, and what a later run makes of new tags."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from align.curation import vocabulary as module
from align.curation.vocabulary import (
    TagVocabularyError,
    Vocabulary,
    associated,
    build_vocabulary,
    by_characters,
    nearest,
    rule_key,
    singular,
)
from align.runtime.errors import MissingFileError

needs_sklearn = pytest.mark.needs("sklearn")


def alone(names, known):
    """An embedding in which no two tags are alike."""
    return np.eye(len(names))


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ("Spelling & Grammar-Check", "spelling grammar check"),
        (" spelling_grammar  checks ", "spelling grammar check"),
        ("Ｃ＋＋", "c++"),
        ("C#", "c#"),
        ("烹饪：食谱", "烹饪 食谱"),
        ("Straßen", "straßen"),
        ("🍳!", ""),
    ],
)
def test_what_the_rule_takes_away(raw, key):
    assert rule_key(raw) == key


def test_plurals_as_harman_has_them():
    words = {"queries": "query", "recipes": "recipe", "eggs": "egg", "class": "class", "bus": "bus", "shoes": "shoe"}
    words |= {"gas": "gas", "essays": "essay", "business": "business", "corpus": "corpus"}
    assert {word: singular(word) for word in words} == words


def test_the_nearest_by_hand(monkeypatch):
    """On a circle: 0°, 20°, 40°, then 10°, 90° and 41°, with a limit of 25°."""
    angles = np.radians([0, 20, 40, 10, 90, 41])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for block in (1, 2, 256):
        monkeypatch.setattr(module, "AT_ONCE", block)
        assert nearest(vectors[3:], vectors[:3], np.cos(np.radians(25))) == [0, -1, 2]


def test_tags_that_stand_on_the_same_rows_are_one_and_a_special_one_is_not_its_general_one():
    rows = [{"mathematics", "solve"}] * 120 + [{"code", "python"}] * 50 + [{"code"}] * 50 + [{"mathematics"}]
    rows += [{"rare", "pair"}] * 39
    assert associated(rows) == {"solve": "mathematics"}  # 120 of 121 and of 120; python is all code, code half python
    assert associated([*rows, {"mathematics"}]) == {}  # 120 of 122 are under 99 %


def test_each_step_by_hand():
    rows = [["Recipes", "cooking"]] * 4 + [["recipe", "Cooking"]] * 3 + [["recipes for eggs"], ["boil eggs", "🍳"], []]

    def embed(names, known):
        assert names == ["cooking", "recipes", "boil eggs", "recipes for eggs"]
        return np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.9, np.sqrt(1 - 0.81)]])

    made = build_vocabulary(rows, embed, least_rows=2, similarity=0.85)
    assert {name: (tag.rows, tag.raw) for name, tag in made.tags.items()} == {
        "recipes": (8, {"recipes": 4, "recipe": 3, "recipes for eggs": 1}),
        "cooking": (7, {"cooking": 7}),
    }
    steps = {"different": 5, "by rule": 4, "by meaning": 3, "by association": 3, "frequent": 2}
    assert dict(made.steps) == steps


def test_a_later_run_takes_the_same_names(tmp_path):
    rows = [["Recipes", "cooking"]] * 4 + [["recipe", "Cooking"]] * 3
    build_vocabulary(rows, alone, least_rows=2, similarity=0.85).save(tmp_path / "tags.json")
    known = Vocabulary.load(tmp_path / "tags.json")
    assert list(known.tags) == ["cooking", "recipes"] and known.steps["different"] == 3

    def embed(names, known):
        assert names == ["cooking", "recipes", "cookery", "chess"] and known == names[:2]
        return np.array([[1, 0, 0], [0, 1, 0], [0.9, np.sqrt(1 - 0.81), 0], [0, 0, 1]])

    found = known.names_of(["RECIPE", "Cookery", "chess", "🍳"], embed)
    assert found == {"RECIPE": "recipes", "Cookery": "cooking", "chess": None, "🍳": None}


def test_what_gives_no_vocabulary_says_why():
    with pytest.raises(TagVocabularyError, match="none of 2 tags stands on 5 rows, the most frequent on 2"):
        build_vocabulary([["a", "b"], ["a"]], alone)
    for rows in ([], [[]], [["🍳"]]):
        with pytest.raises(TagVocabularyError, match="no row has a tag"):
            build_vocabulary(rows, alone, least_rows=1)


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    path = tmp_path / "tags.json"
    with pytest.raises(MissingFileError, match="no such vocabulary"):
        Vocabulary.load(path)
    build_vocabulary([["a"], ["b"]], alone, least_rows=1).save(path)
    whole = json.loads(path.read_text())
    for change in (
        {"version": 2},
        {"tags": []},
        {"tags": [whole["tags"][0]] * 2},
        {"tags": [{"tag": "a", "rows": "3", "raw": {}}]},
        {"tags": [{"tag": "a", "rows": 3, "raw": {"x" * 10_000: 1}}]},
        {"similarity": 3.0},
        {"embedder": None},
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(TagVocabularyError, match="is no vocabulary of tags"):
            Vocabulary.load(path)


@needs_sklearn
def test_three_languages_stand_side_by_side_by_their_characters():
    rows = [["information retrieval", "数据分析"], ["Retrieval of Information", "数据分析！"], ["analyse de données"]]
    made = build_vocabulary([*rows, ["Analyse des données"]], by_characters, least_rows=1, similarity=0.6)
    assert sorted(made.tags) == ["analyse de données", "information retrieval", "数据分析"]
    found = made.names_of(["【数据分析】", "retrieving information", "échecs"], by_characters)
    assert found == {"【数据分析】": "数据分析", "retrieving information": "information retrieval", "échecs": None}


@needs_sklearn
def test_what_a_new_tag_is_called_does_not_depend_on_the_others_of_its_file():
    tags = ["information retrieval", "code debugging", "data analysis", "machine learning", "python programming"]
    asked, others = ["debug code", "data analytics", "machine learner"], ["code theory", "data theory", "machine help"]
    made = build_vocabulary([[tag] for tag in tags], by_characters, least_rows=1)
    for similarity in (0.5, 0.6, 0.7, 0.75, 0.8):
        known = Vocabulary(made.tags, "", similarity, {})
        company = [f"{one} basics {at}" for one in others for at in range(9)]
        together = known.names_of([*asked, *others, *company], by_characters)
        assert all(known.names_of([one], by_characters)[one] == together[one] for one in asked)


@needs_sklearn
def test_ten_thousand_different_tags():
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(10_000)]
    made = build_vocabulary([[word] for word in words], by_characters, least_rows=1)
    assert made.steps["different"] == len(set(words)) and made.steps["frequent"] == len(made.tags) > 9000
