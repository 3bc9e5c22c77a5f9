"""Vectors of length 1 -> groups of like ones: k-means by scikit-learn, or leaders in one pass.

K-means' centres are found on at most `FITTED_ON` vectors (or 32 a cluster), drawn by the seed, and every vector then
goes to the nearest, block by block: of N vectors in a file only a block is in memory. Leaders (Hartigan 1975, chapter
3) are found in the order of the rows: each joins the nearest leader within a cosine, or becomes one.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from align.textmodels.vectors import chunks, unit_rows

FITTED_ON, A_CLUSTER = 100_000, 32
BLOCK = 4096


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


def leaders(vectors_ND: np.ndarray, cosine: float) -> np.ndarray:
    """The cluster of every vector, int64 (N,), numbered from 0 in the order in which their leaders come.

    Args:
        vectors_ND: as of `kmeans`.
        cosine: from which on a vector may join a leader; of two as near the earlier leads.
    """
    labels = np.empty(len(vectors_ND), np.int64)
    led: Any = np.empty((BLOCK, vectors_ND.shape[1]), np.float32)
    count = 0
    for rows in chunks(len(vectors_ND), 256):
        block = unit_rows(vectors_ND[rows])
        known = block @ led[:count].T  # to the leaders before this block; those that it adds are compared one by one
        before = count
        for at, vector in enumerate(block):
            near = np.concatenate([known[at], led[before:count] @ vector])
            best = int(near.argmax()) if count else -1
            if best < 0 or near[best] < cosine:
                if count == len(led):
                    led = np.concatenate([led, np.empty_like(led)])
                led[count], best = vector, count
                count += 1
            labels[rows.start + at] = best
    return labels
