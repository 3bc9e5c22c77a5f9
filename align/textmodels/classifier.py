"""A small classifier of texts: a linear model over hashed n-grams of words and characters, on a CPU.

As fastText's (Joulin et al. 2017, 1607.01759) it knows a text by its word n-grams and its words by their character
n-grams (Bojanowski et al. 2017), all hashed into a fixed number of places. Departures: there is no hidden layer, a
linear model over the n-grams themselves (scikit-learn's logistic regression) needs no tuned rate of learning; and a Han
character is a word, so that Chinese has word n-grams without a segmenter.

    classifier = TextClassifier.fit(texts, labels)              # one label a text
    classifier = TextClassifier.fit(texts, tags, multi_label=True)    # any number of labels a text
    classifier.probabilities(["How do I boil an egg?"])         # (N, L)

A folder holds `classifier.json` and `weights.safetensors` (no pickle). `align data train-classifier` makes one.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from align.runtime import files
from align.runtime.errors import AlignError, MissingFileError
from align.runtime.json_files import read_object
from align.runtime.packages import require_package
from align.runtime.paths import typed_path
from data_formats.cleaning.texts import folded

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SETTINGS, WEIGHTS, VERSION = "classifier.json", "weights.safetensors", 1
PLACES = 2**18  # of each of the two hashes
WORDS, CHARACTERS = (1, 2), (2, 4)  # how long n-grams are
WORD = r"[^\W\u3400-\u9fff\uf900-\ufaff]+|[\u3400-\u9fff\uf900-\ufaff]"  # a run of letters and digits, or a Han one
LONGEST = 20_000  # characters of a text that are looked at
AT_ONCE = 1024  # texts whose n-grams are held at the same time when many are classified
MOST_WEIGHTS = 2**28  # labels times n-grams: 1 GiB
MOST_LABELS, LONGEST_LABEL = 100_000, 1000
LEAST_ROWS = 2  # of every label
STRENGTH = 20.0  # C of the logistic regression, whose texts have length 1
_PROBE = "Probe: 3 eggs, naïve Straße 如何煮鸡蛋？\n" + "long" * 5


class ClassifierError(AlignError, ValueError):
    """Texts that no classifier can be made from, or a folder that holds none of ours."""


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """Labels, and how likely each is of a text.

    Attributes:
        labels: L of them, sorted; columns of `probabilities`.
        multi_label: whether a text has any number of them; else exactly one.
        places_C: (C,) int64, ascending: the places of n-grams that were seen in training; others weigh nothing.
        weights_LC, bias_L: float32.
    """

    labels: tuple[str, ...]
    multi_label: bool
    places_C: np.ndarray
    weights_LC: np.ndarray
    bias_L: np.ndarray

    @classmethod
    def fit(
        cls, texts: Sequence[str], labels: Sequence[str] | Sequence[Sequence[str]], *, multi_label: bool = False
    ) -> TextClassifier:
        """The classifier of texts whose labels are known. The same texts give the same weights.

        Args:
            labels: one a text, or with `multi_label` a list a text, which may be empty.

        Raises:
            ClassifierError: fewer than two labels (with `multi_label`: none), a label with fewer than two texts, or too
                many labels for so many n-grams.
            MissingPackageError: without scikit-learn.
        """
        owned = [tuple(own) if multi_label else (own,) for own in labels]
        known = _known(texts, owned, multi_label)
        grams = ngrams(texts)
        places_C = np.flatnonzero(np.bincount(grams.indices, minlength=grams.shape[1])).astype(np.int64)
        if len(known) * len(places_C) > MOST_WEIGHTS:
            told = f"{len(known)} labels times {len(places_C)} n-grams are more than {MOST_WEIGHTS} weights"
            raise ClassifierError(f"{told}; leave out rare labels, or give fewer texts")
        fitted = _one_by_one if multi_label else _together
        return cls(known, multi_label, places_C, *fitted(grams[:, places_C], owned, known))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """How likely each label is of each text: (N, L) float64.

        Rows sum to 1, but with `multi_label`, where every label is a question of its own.
        """
        weights_CL = self.weights_LC.T.astype(np.float64)
        logits = [np.zeros((0, len(self.labels)))]
        for at in range(0, len(texts), AT_ONCE):
            seen_NC = ngrams(texts[at : at + AT_ONCE])[:, self.places_C].astype(np.float64)
            logits.append(seen_NC @ weights_CL + self.bias_L)
        logits_NL = np.concatenate(logits)
        if self.multi_label:
            return 0.5 * (1 + np.tanh(logits_NL / 2))  # the logistic function, without overflow
        raised_NL = np.exp(logits_NL - logits_NL.max(axis=1, keepdims=True, initial=-np.inf))
        return raised_NL / raised_NL.sum(axis=1, keepdims=True)

    def save(self, folder: Path) -> None:
        """Write the folder, in one step. Raises StorageError."""
        from safetensors.numpy import save_file

        settings = {"version": VERSION, "multi_label": self.multi_label, "hashing": _hashing()}
        with files.atomic_dir(folder) as draft:
            files.write_json(draft / SETTINGS, settings | {"labels": list(self.labels)})
            tensors = {"places": self.places_C, "weights": self.weights_LC, "bias": self.bias_L}
            save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, draft / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> TextClassifier:
        """What `save` wrote.

        Raises:
            MissingFileError: no such folder, or none of a classifier.
            ClassifierError, RunFileError: it is damaged, or its n-grams are hashed in another way.
            MissingPackageError: without scikit-learn.
        """
        folder = typed_path(folder)
        advice = f"name another folder, or make {folder} again by `align data train-classifier`"
        settings = read_object(folder / SETTINGS, advice)
        if settings is None or not (folder / WEIGHTS).is_file():
            raise MissingFileError(f"{folder} holds no text classifier ({SETTINGS}, {WEIGHTS}): {advice}")
        if settings.get("version") != VERSION or settings.get("hashing") != _hashing():
            raise ClassifierError(f"{folder} holds a classifier whose n-grams are hashed in another way: {advice}")
        labels, multi_label = _saved_labels(settings), settings.get("multi_label")
        if labels is None or not isinstance(multi_label, bool):
            raise ClassifierError(f"{folder / SETTINGS} has no list of different labels: {advice}")
        found = _tensors(folder / WEIGHTS, len(labels))
        if isinstance(found, str):
            raise ClassifierError(f"{folder / WEIGHTS} is not what belongs to its {SETTINGS} ({found}): {advice}")
        return cls(labels, multi_label, *found)


def ngrams(texts: Sequence[str]) -> csr_matrix:
    """Each text's n-grams of words and of characters, (N, 2 * PLACES) float32, rows of length 1 (0 without any).

    Raises:
        MissingPackageError: without scikit-learn.
    """
    from scipy.sparse import hstack

    words, characters = _hashes()
    shown = [folded(text[:LONGEST]) for text in texts]
    both = hstack([words.transform(shown), characters.transform(shown)], format="csr", dtype=np.float32)
    both.data *= np.float32(math.sqrt(0.5))
    return both


@cache
def _hashes() -> tuple[Any, Any]:
    require_package("a text classifier", "sklearn")
    from sklearn.feature_extraction.text import HashingVectorizer

    how = {"n_features": PLACES, "alternate_sign": False, "norm": "l2", "lowercase": False, "dtype": np.float32}
    return (
        HashingVectorizer(analyzer="word", token_pattern=WORD, ngram_range=WORDS, **how),
        HashingVectorizer(analyzer="char_wb", ngram_range=CHARACTERS, **how),
    )


def _hashing() -> dict[str, Any]:
    """What the places of n-grams depend on, with the places of a text: another version of a library may hash anew."""
    places = ngrams([_PROBE]).indices
    probe = hashlib.sha256(np.sort(places).astype("<i8").tobytes()).hexdigest()[:16]
    return {"places": PLACES, "words": list(WORDS), "characters": list(CHARACTERS), "longest": LONGEST, "probe": probe}


def _known(texts: Sequence[str], owned: Sequence[tuple[str, ...]], multi_label: bool) -> tuple[str, ...]:
    """The labels, sorted. Raises ClassifierError where nothing can be learnt of them."""
    if len(texts) != len(owned):
        raise ClassifierError(f"{len(texts)} texts with the labels of {len(owned)}: give each its own")
    counts = Counter(label for own in owned for label in set(own))
    if len(counts) < (1 if multi_label else 2):
        found = f"only {next(iter(counts))!r}" if counts else "none"
        raise ClassifierError(f"a classifier tells labels apart, and of {len(texts)} texts there is {found}")
    if odd := [label for label in counts if not 0 < len(label) <= LONGEST_LABEL]:
        found = f"{odd[0][:40]!r} has {len(odd[0])} characters"
        raise ClassifierError(f"a label may have 1 to {LONGEST_LABEL} characters, and {found}")
    rare = sorted(label for label, count in counts.items() if count < LEAST_ROWS)
    if rare:
        found = f"{len(rare)} labels have a single text ({rare[0]!r})"
        raise ClassifierError(f"{found}: leave them out, or give more texts")
    if len(counts) > MOST_LABELS:
        raise ClassifierError(f"{len(counts)} labels are more than {MOST_LABELS}: is this a column of texts?")
    return tuple(sorted(counts))


def _together(grams_NC: csr_matrix, owned: Sequence[tuple[str, ...]], known: tuple[str, ...]) -> tuple[Any, Any]:
    """Weights (L, C) and bias (L,) of one model over all labels."""
    model = fitted(grams_NC, np.array([known.index(own[0]) for own in owned]))
    weights, bias = model.coef_, model.intercept_
    if len(known) == 2:  # scikit-learn has one row then, of the second label against the first
        weights, bias = np.concatenate([np.zeros_like(weights), weights]), np.concatenate([np.zeros_like(bias), bias])
    return weights.astype(np.float32), bias.astype(np.float32)


def _one_by_one(grams_NC: csr_matrix, owned: Sequence[tuple[str, ...]], known: tuple[str, ...]) -> tuple[Any, Any]:
    """Weights (L, C) and bias (L,) of a model a label, each against all texts without it."""
    weights_LC = np.zeros((len(known), grams_NC.shape[1]), np.float32)
    bias_L = np.zeros(len(known), np.float32)
    having: dict[str, list[int]] = {label: [] for label in known}
    for at, own in enumerate(owned):
        for label in set(own):
            having[label].append(at)
    for row, label in enumerate(known):
        has_N = np.zeros(len(owned), np.int64)
        has_N[having[label]] = 1
        if has_N.all():  # nothing to tell it by: as likely as Laplace's rule of succession says
            bias_L[row] = math.log(len(owned) + 1)
            continue
        model = fitted(grams_NC, has_N)
        weights_LC[row], bias_L[row] = model.coef_[0], model.intercept_[0]
    return weights_LC, bias_L


def fitted(grams_NC: csr_matrix, labels_N: np.ndarray) -> Any:
    """scikit-learn's logistic regression of one set of labels."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few more steps would change no third digit
        return LogisticRegression(C=STRENGTH, max_iter=300).fit(grams_NC, labels_N)


def _saved_labels(settings: dict[str, Any]) -> tuple[str, ...] | None:
    labels = settings.get("labels")
    if not isinstance(labels, list) or not 0 < len(labels) <= MOST_LABELS:
        return None
    right = all(isinstance(label, str) and 0 < len(label) <= LONGEST_LABEL for label in labels)
    return tuple(labels) if right and len(set(labels)) == len(labels) else None


def _tensors(file: Path, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | str:
    """Places, weights and bias, or what is wrong with the file. Shapes are looked at before anything is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as held:
            if set(held.keys()) != {"places", "weights", "bias"}:
                return "it has other tensors"
            shapes = {name: held.get_slice(name).get_shape() for name in held.keys()}  # noqa: SIM118
            (number,) = shapes["places"] if len(shapes["places"]) == 1 else (0,)
            if shapes["weights"] != [count, number] or shapes["bias"] != [count] or count * number > MOST_WEIGHTS:
                return f"weights of shape {shapes['weights']} for {count} labels"
            places, weights, bias = (held.get_tensor(name) for name in ("places", "weights", "bias"))
    except (SafetensorError, OSError, TypeError) as error:
        return re.sub(r"\s+", " ", str(error))[:200]
    if places.dtype != np.int64 or weights.dtype != np.float32 or bias.dtype != np.float32:
        return "its tensors have other types"
    if len(places) and (places[0] < 0 or places[-1] >= 2 * PLACES or not (np.diff(places) > 0).all()):
        return "its n-grams have no such places"
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        return "a weight is not finite"
    return places, weights, bias
