"""Texts as vectors of length 1, whose dot product is their cosine.

Three ways, by what there is: a folder of sentence-transformers and any causal language model (`encoders.py`), and,
where there is no model, hashed TF-IDF reduced by a truncated SVD (latent semantic analysis, Deerwester et al. 1990), by
scikit-learn: words of Latin and other alphabets, single characters of Chinese and Japanese, and pairs of neighbours.
The SVD's directions are those of frequent words. What they leave of a text, its rare words, stands beside them, by a
random projection (Johnson and Lindenstrauss 1984): else "What is Atlantis?" and "What is gremolata?" would be one.

The SVD is fitted on at most `FITTED_ON` texts, evenly spread, so that memory does not grow with the data; what grows is
the matrix of vectors, which `align.curation.selection` keeps in a file: 1,000,000 of 256 numbers take 0.5 GB there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from align.runtime.packages import require_package
from align.textmodels.vectors import unit_rows

FITTED_ON = 50_000  # texts that the SVD sees
REST = 64  # numbers that stand for what the directions leave: a cosine is right to 1 / sqrt(REST) of its share
PLACES = 2**17  # that words and pairs are hashed into
WORDS = r"[^\W\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]"  # words; single characters of CJK


class Embedder(Protocol):
    """Makes vectors of texts.

    Attributes:
        name: what made them, for files and pages.
    """

    name: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 (N, D), every row of length 1."""
        ...


class HashedTfidf:
    """TF-IDF over hashed words and pairs of words, reduced to at most `dimensions` directions by a truncated SVD, and
    `REST` numbers of what these leave.

    Args:
        texts: what the weights and directions are fitted on; of more than `FITTED_ON` every n-th one.
        dimensions: of the SVD; fewer where there are fewer texts.
        seed: of the randomised SVD and of the projection.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """

    def __init__(self, texts: Sequence[str], *, dimensions: int = 192, seed: int = 0):
        require_package("embedding without a model", "sklearn", "name a model folder")
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        self.name = "hashed TF-IDF"
        sample = texts[:: -(-len(texts) // FITTED_ON) or 1]
        form = {"token_pattern": WORDS, "ngram_range": (1, 2), "alternate_sign": False, "norm": None}
        self._hashes = HashingVectorizer(n_features=PLACES, dtype=np.float32, **form)
        counts = self._hashes.transform(sample)
        self._weights = TfidfTransformer(sublinear_tf=True).fit(counts)
        seen = np.flatnonzero(counts.getnnz(axis=0))  # the others lie on no direction, and would cost as much
        self._seen = seen if len(seen) > 1 else np.union1d(seen, np.arange(2))  # the SVD wants two
        rank = max(1, min(dimensions, len(sample) - 1, len(self._seen)))
        self._svd = TruncatedSVD(rank, n_iter=4, random_state=seed)
        with np.errstate(invalid="ignore"):  # of a single text nothing varies
            self._svd.fit(self._weights.transform(counts)[:, self._seen])
        self._projection = np.random.default_rng(seed).standard_normal((PLACES, REST), np.float32) / math.sqrt(REST)
        self._of_directions = self._svd.components_.astype(np.float32) @ self._projection[self._seen]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 (N, D). A text without any word lies on the first axis."""
        weighted = self._weights.transform(self._hashes.transform(texts))
        directions = self._svd.transform(weighted[:, self._seen])
        rest = weighted @ self._projection - directions @ self._of_directions
        return unit_rows(np.concatenate([directions, rest], axis=1))


def load_embedder(model: str | None, texts: Sequence[str], *, seed: int = 0) -> Embedder:
    """The embedder that `model` names: a folder of sentence-transformers, a folder or hub id of a causal language
    model, or, with None, hashed TF-IDF fitted on `texts`.

    Raises:
        MissingPackageError: scikit-learn is needed and not installed.
        ModelError: the folder holds neither.
    """
    if model is None:
        return HashedTfidf(texts, seed=seed)
    from align.textmodels.encoders import load_encoder

    return load_encoder(model)
