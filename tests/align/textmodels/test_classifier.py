"""A text classifier: its probabilities are scikit-learn's, it is kept without pickle, what is damaged is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from align.runtime.errors import MissingFileError
from align.textmodels import classifier as module
from align.textmodels.classifier import ClassifierError, TextClassifier, ngrams

pytestmark = pytest.mark.needs("sklearn")

FOOD = ["boil the eggs for six minutes", "bake a cake with flour", "煮鸡蛋需要六分钟", "用面粉烤一个蛋糕"]
CODE = ["write a python function", "fix this compiler error", "写一个排序的函数", "修复这个编译错误"]
TRAVEL = ["book a train to Paris", "hotels near the beach", "订一张去巴黎的火车票", "海边的酒店"]
TEXTS = FOOD + CODE + TRAVEL
LABELS = ["food"] * 4 + ["code"] * 4 + ["travel"] * 4


@pytest.fixture(scope="module")
def three() -> TextClassifier:
    return TextClassifier.fit(TEXTS, LABELS)


def regression(texts, labels):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=module.STRENGTH, max_iter=300).fit(ngrams(texts), labels)


@pytest.mark.parametrize("labels", [2, 3])
def test_probabilities_are_those_of_scikit_learn(labels):
    texts, own = TEXTS[: 4 * labels], LABELS[: 4 * labels]
    ours = TextClassifier.fit(texts, own)
    theirs = regression(texts, own)
    asked = [*texts, "fix the cake 函数", "", "!?"]
    assert ours.labels == tuple(theirs.classes_)
    np.testing.assert_allclose(ours.probabilities(asked), theirs.predict_proba(ngrams(asked)), atol=1e-6)


def test_tags_are_questions_of_their_own():
    owned = [[label, *(["chinese"] if not text.isascii() else [])] for text, label in zip(TEXTS, LABELS, strict=True)]
    ours = TextClassifier.fit(TEXTS, owned, multi_label=True)
    found = ours.probabilities(["一个函数"])[0]
    for label in ("chinese", "travel"):
        has = [label in own for own in owned]
        expected = regression(TEXTS, has).predict_proba(ngrams(["一个函数"]))[0, 1]
        assert found[ours.labels.index(label)] == pytest.approx(expected, abs=1e-6)
    assert [label for label, p in zip(ours.labels, found, strict=True) if p > 0.3] == ["chinese", "code"]


def test_a_tag_that_every_text_has_is_likely_and_tells_nothing():
    ours = TextClassifier.fit(FOOD, [["food"]] * 4, multi_label=True)
    assert ours.probabilities(["whatever"])[0] == pytest.approx([5 / 6])  # 4 of 4, by the rule of succession


def test_words_of_both_languages_are_told(three):
    found = three.probabilities(["烤蛋糕", "an error of the compiler", "a hotel in paris"])
    assert [three.labels[at] for at in found.argmax(1)] == ["food", "code", "travel"]
    np.testing.assert_allclose(found.sum(1), 1)
    assert three.probabilities([]).shape == (0, 3)


def test_ngrams_of_a_text_by_hand():
    """Two words and their pair are three places of weight 1/sqrt(3) in the words' half; a Han letter is a word."""
    for text in ("ab cd", "鸡蛋"):
        words = ngrams([text])[0, : module.PLACES]
        np.testing.assert_allclose(words.data, np.sqrt(0.5 / 3), rtol=1e-6)
    assert ngrams(["鸡蛋"])[0, : module.PLACES].nnz == 3
    assert ngrams(["x" * 10]).nnz == ngrams(["X" * 10]).nnz
    assert (ngrams(["a " * 40_000]) != ngrams(["a " * 10_000])).nnz == 0  # what is behind the limit is not looked at


def test_what_is_saved_is_what_is_loaded(three, tmp_path):
    three.save(tmp_path / "one")
    again = TextClassifier.load(tmp_path / "one")
    assert again.labels == three.labels
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["classifier.json", "weights.safetensors"]
    np.testing.assert_array_equal(again.probabilities(TEXTS), three.probabilities(TEXTS))


def test_sets_that_teach_nothing_are_refused():
    for texts, labels, words in (
        (["a", "b"], ["x", "x"], "only 'x'"),
        ([], [], "none"),
        (["a", "b", "c"], ["x", "x", "y"], r"single text \('y'\)"),
        (["a", "b"], ["x"], "2 texts with the labels of 1"),
        (["a", "b", "c", "d"], ["x", "x", "y" * 1001, "y" * 1001], "1 to 1000"),
    ):
        with pytest.raises(ClassifierError, match=words):
            TextClassifier.fit(texts, labels)


def test_what_is_damaged_is_refused(three, tmp_path):
    three.save(tmp_path / "whole")
    whole = json.loads((tmp_path / "whole/classifier.json").read_text())
    tensors = load_file(tmp_path / "whole/weights.safetensors")

    def changed(**values):
        folder = tmp_path / "other"
        shutil.copytree(tmp_path / "whole", folder, dirs_exist_ok=True)
        (folder / "classifier.json").write_text(json.dumps(whole | values.pop("settings", {})))
        save_file({**tensors, **values}, folder / "weights.safetensors")
        return folder

    places, weights = tensors["places"], tensors["weights"]
    for damage, words in (
        ({"settings": {"labels": ["food", "code"]}}, "for 2 labels"),
        ({"settings": {"labels": ["food", "food", "code"]}}, "different labels"),
        ({"settings": {"labels": "food"}}, "different labels"),
        ({"settings": {"version": 2}}, "another way"),
        ({"settings": {"hashing": {**whole["hashing"], "places": 1}}}, "another way"),
        ({"settings": {"hashing": {**whole["hashing"], "probe": "0"}}}, "another way"),
        ({"weights": weights[:, :-1].copy()}, "of shape"),
        ({"weights": weights.astype(np.float64)}, "other types"),
        ({"weights": np.where(weights == weights.max(), np.nan, weights)}, "not finite"),
        ({"places": places[::-1].copy()}, "no such places"),
        ({"places": places + 2 * module.PLACES}, "no such places"),
        ({"more": places}, "other tensors"),
    ):
        with pytest.raises(ClassifierError, match=words):
            TextClassifier.load(changed(**damage))
    folder = changed()
    (folder / "weights.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ClassifierError, match="is not what belongs"):
        TextClassifier.load(folder)
    with pytest.raises(MissingFileError, match="holds no text classifier"):
        TextClassifier.load(tmp_path / "nowhere")
