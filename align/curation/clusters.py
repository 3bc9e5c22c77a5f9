"""Vectors of length 1 -> groups of like ones: k-means by scikit-learn, or leaders in one pass.

K-means' centres are found on at most `FITTED_ON` vectors (or 32 a cluster), drawn by the seed, and every vector then
goes to the nearest, block by block: of N vectors in a file only a block is in memory. Leaders (Hartigan 1975, chapter
3) are found in the order of the rows: each joins the nearest leader within a cosine, or becomes one.

What a cosine means depends on what made the vectors: those of unrelated texts are near 0 by hashed TF-IDF and near 1 by
a causal language model. So that of leaders is read off the set where nobody says it (`usual_cosine`).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from align.textmodels.vectors import chunks, unit_rows

FITTED_ON, A_CLUSTER = 100_000, 32
BLOCK, COMPARED = 4096, 256  # vectors at once: given a centre; compared with all leaders
LOOKED_AT = 1000  # rows of which all pairs are looked at


def kmeans(vectors_ND: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """The cluster of every vector, int64 (N,), numbered from 0 without a gap.

    Args:
        vectors_ND: rows of length 1, of any kind of float; may lie in a file.
        clusters: at most so many; fewer where there are fewer different vectors, or one would be empty.
        seed: of the sample, and of the centres to begin with.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    count = len(vectors_ND)
    clusters = min(clusters, count)
    if clusters <= 1:
        return np.zeros(count, np.int64)
    size = min(count, max(FITTED_ON, A_CLUSTER * clusters))
    sample = np.sort(np.random.default_rng(seed).choice(count, size, replace=False))
    found = MiniBatchKMeans(clusters, random_state=seed, n_init=1, batch_size=BLOCK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different vectors than clusters
        found.fit(unit_rows(vectors_ND[sample]))
    labels = np.empty(count, np.int64)
    for rows in chunks(count, BLOCK):
        labels[rows] = found.predict(unit_rows(vectors_ND[rows]))
    return np.unique(labels, return_inverse=True)[1]


def leaders(vectors_ND: Any, cosine: float) -> np.ndarray:
    """The row that leads every vector, int64 (N,): the most alike of the leaders before it, from `cosine` on (of as
    alike ones the earlier), else itself.

    Args:
        vectors_ND: as of `kmeans`, or a sparse matrix.
    """
    found, leading, led = np.empty(vectors_ND.shape[0], np.int64), np.zeros(0, np.int64), None
    for rows in chunks(len(found), COMPARED):
        block = vectors_ND[rows]
        block = block if hasattr(block, "toarray") else unit_rows(block)
        count = block.shape[0]
        known = np.zeros((count, 0)) if led is None else dense(block @ led.T)
        own, fresh = dense(block @ block.T), list[int]()  # leaders among the block's own rows
        for row in range(count):
            cosines = np.concatenate([known[row], own[row, fresh]])
            best = int(cosines.argmax()) if len(cosines) else -1
            if best < 0 or cosines[best] < cosine:
                fresh.append(row)
                found[rows.start + row] = rows.start + row
            elif best < len(leading):
                found[rows.start + row] = leading[best]
            else:
                found[rows.start + row] = rows.start + fresh[best - len(leading)]
        new = np.array(fresh, np.int64)
        led = block[new] if led is None else _stacked(led, block[new])
        leading = np.concatenate([leading, new + rows.start])
    return found


def dense(product: Any) -> np.ndarray:
    """A product of matrices as an array, be they sparse."""
    return product.toarray() if hasattr(product, "toarray") else np.asarray(product)


def _stacked(above: Any, below: Any) -> Any:
    if hasattr(above, "toarray"):
        from scipy.sparse import vstack

        return vstack([above, below], format="csr")
    return np.concatenate([above, below])


def usual_cosine(vectors_ND: np.ndarray, seed: int) -> float:
    """The cosine that one pair of rows in sqrt(N) reaches: a row is so like sqrt(N) others, as many as a cluster of
    k-means has by default.

    Args:
        vectors_ND: as of `kmeans`.
        seed: of the rows that are looked at.
    """
    count = len(vectors_ND)
    sample = np.sort(np.random.default_rng(seed).choice(count, min(count, LOOKED_AT), replace=False))
    rows = unit_rows(vectors_ND[sample])
    pairs = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    return float(np.quantile(pairs, 1 - 1 / math.sqrt(count))) if len(pairs) else 1.0
