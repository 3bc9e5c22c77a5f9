"""A vocabulary of tags: what a model called freely, brought down to names that are worth counting (InsTag, Lu et al.
2023, 2308.07074, section 2.3).

1. By rule: case, punctuation and plurals are no difference.
2. By meaning: tags stand in the order of their rows, and each joins the most alike of those before it that lead a
   group, from `similarity` on, or leads one itself.
3. By association: two tags that stand on the same rows, nearly always, say one thing.
4. By frequency: what is left on fewer than `least_rows` rows is no tag.

Departures: frequency is looked at last, so that a rare tag may still join a frequent one. Groups have leaders in the
place of DBSCAN's chains, whose ends have nothing in common, so that what a later run brings is judged by the same rule.
Associations are those of two tags, in both directions, which counting them together finds without FP-growth: the rule
"a, so b" alone would swallow every special tag by its general one. Words lose their plural (Harman's S stemmer, 1991)
and no other ending; their n-grams of characters see to those, where no model embeds tags.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from align.curation.clusters import dense, leaders
from align.runtime import files
from align.runtime.errors import AlignError, MissingFileError
from align.runtime.json_files import read_object
from align.runtime.packages import require_package
from align.runtime.paths import typed_path
from data_formats.cleaning.texts import folded

# texts, and the tags by which n-grams are weighed -> (N, D) rows of length 1, an array or a sparse matrix
Embed = Callable[[Sequence[str], Sequence[str]], Any]
LONGEST_TAG = 100  # characters; what is longer is a sentence
MOST_TAGS = 1_000_000  # of a file
SIMILARITY = 0.8
ASSOCIATED, CONFIDENCE = 40, 0.99  # rows that two tags share at least, and of each one's rows (both InsTag's)
AT_ONCE = 256  # tags compared with all leaders in one go
VERSION = 1


class TagVocabularyError(AlignError, ValueError):
    """Tags of which no vocabulary can be made, or a file that holds none."""


@dataclass(frozen=True, slots=True)
class Tag:
    """One name.

    Attributes:
        rows: on how many it stood when the vocabulary was made.
        raw: what it was called there, with rows; its own name is one of these.
    """

    rows: int
    raw: dict[str, int]


@dataclass(frozen=True)
class Vocabulary:
    """The tags by name, the most frequent first.

    Attributes:
        embedder: what compared them: a model's folder or hub id, "" for n-grams of characters.
        similarity: from which cosine on two are one.
        steps: how many different tags there were before and after each step.
    """

    tags: Mapping[str, Tag]
    embedder: str
    similarity: float
    steps: Mapping[str, int]

    @cached_property
    def _by_key(self) -> dict[str, str]:
        return {rule_key(raw): name for name, tag in reversed(self.tags.items()) for raw in (*tag.raw, name)}

    def names_of(self, raws: Iterable[str], embed: Embed) -> dict[str, str | None]:
        """The tag that each raw one is: one of the same rule, else the most alike from `similarity` on, else None."""
        keys = {raw: rule_key(raw) for raw in raws}
        found = {raw: self._by_key.get(key) for raw, key in keys.items()}
        if unknown := [raw for raw, name in found.items() if name is None and keys[raw]]:
            names = list(self.tags)
            vectors = embed([*names, *(folded(raw) for raw in unknown)], names)  # not by what else is unknown
            alike = nearest(vectors[len(names) :], vectors[: len(names)], self.similarity)
            found |= {raw: names[at] if at >= 0 else None for raw, at in zip(unknown, alike, strict=True)}
        return found

    def save(self, path: Path) -> None:
        """Write it as JSON. Raises StorageError."""
        said = {"version": VERSION, "embedder": self.embedder, "similarity": self.similarity}
        tags = [{"tag": name, **asdict(tag)} for name, tag in self.tags.items()]
        files.write_json(path, said | {"steps": dict(self.steps), "tags": tags})

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """What `save` wrote.

        Raises:
            MissingFileError: no such file.
            TagVocabularyError, RunFileError: it is damaged, or something else.
        """
        path = typed_path(path)
        found = read_object(path, "name another vocabulary, or leave it out to make one")
        if found is None:
            raise MissingFileError(f"{path}: no such vocabulary; `align data tag` writes one beside what it tags")
        rows, similarity, embedder = found.get("tags"), found.get("similarity"), found.get("embedder")
        right = found.get("version") == VERSION and isinstance(rows, list) and 0 < len(rows) <= MOST_TAGS
        right = right and isinstance(similarity, float) and 0 < similarity <= 1 and isinstance(embedder, str)
        tags = {row["tag"]: Tag(row["rows"], row["raw"]) for row in rows if _is_tag(row)} if right else {}
        if not right or len(tags) != len(rows):
            raise TagVocabularyError(f"{path} is no vocabulary of tags; name one that `align data tag` wrote")
        steps = found.get("steps")
        return cls(tags, embedder, similarity, steps if isinstance(steps, dict) else {})


def _is_tag(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("tag"), str) or not isinstance(row.get("rows"), int):
        return False
    raw = row.get("raw")
    named = isinstance(raw, dict) and all(isinstance(count, int) for count in raw.values())
    return bool(row["tag"]) and named and all(len(name) <= LONGEST_TAG for name in (row["tag"], *raw))


def build_vocabulary(
    rows: Sequence[Sequence[str]],
    embed: Embed,
    *,
    least_rows: int = 5,
    similarity: float = SIMILARITY,
    embedder: str = "",
) -> Vocabulary:
    """The vocabulary of raw tags.

    Args:
        rows: the raw tags of each row.
        embed: compares them; `embedder` is what it is called in the file.

    Raises:
        TagVocabularyError: no tag is left, or there are too many.
    """
    raw_of: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_rule: list[set[str]] = []
    for row in rows:
        own = {folded(raw): rule_key(raw) for raw in row}
        for raw, key in own.items():
            if key:
                raw_of[key][raw] += 1
        by_rule.append(set(own.values()) - {""})
    if len(raw_of) > MOST_TAGS:
        raise TagVocabularyError(f"{len(raw_of)} different tags are more than {MOST_TAGS}; tag fewer rows")
    steps = {"different": len({raw for own in raw_of.values() for raw in own}), "by rule": len(raw_of)}
    counts = Counter(key for own in by_rule for key in own)
    order = sorted(raw_of, key=lambda key: (-counts[key], key))
    named = [_name(raw_of[key]) for key in order]
    leading = leaders(embed(named, named), similarity).tolist() if order else []
    merged = {key: order[at] for key, at in zip(order, leading, strict=True)}
    steps["by meaning"] = len(set(merged.values()))
    by_meaning = [{merged[key] for key in own} for own in by_rule]
    joined = associated(by_meaning)
    steps["by association"] = steps["by meaning"] - len(joined)
    merged = {key: joined.get(leader, leader) for key, leader in merged.items()}
    counts = Counter(name for own in by_rule for name in {merged[key] for key in own})
    raw_by_tag: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for key, leader in merged.items():
        raw_by_tag[leader].update(raw_of[key])
    frequent = sorted(
        (key for key, count in counts.items() if count >= least_rows), key=lambda key: (-counts[key], key)
    )
    steps["frequent"] = len(frequent)
    if not frequent:
        most = max(counts.values(), default=0)
        told = f"none of {len(counts)} tags stands on {least_rows} rows, the most frequent on {most}"
        raise TagVocabularyError(f"{told if counts else 'no row has a tag'}; lower the number of rows that a tag needs")
    tags = {_name(raw_of[key]): Tag(counts[key], dict(raw_by_tag[key].most_common())) for key in frequent}
    return Vocabulary(tags, embedder, similarity, steps)


def rule_key(raw: str) -> str:
    """What tags share that differ by case, punctuation, white space or a plural; "" where no word is in one. `+` and
    `#` are letters: C, C++ and C# are three things."""
    return " ".join(singular(word) for word in re.findall(r"[\w+#]+", folded(raw).replace("_", " ")))


def singular(word: str) -> str:
    """Harman's S stemmer (1991), which takes an English plural away and nothing else."""
    if len(word) < 4 or not word.isascii():
        return word
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    return word[:-1] if word.endswith("s") and not word.endswith(("us", "ss")) else word


def nearest(vectors: Any, names: Any, similarity: float) -> list[int]:
    """Each row's most alike name, by index; -1 where none reaches `similarity`."""
    found: list[int] = []
    for start in range(0, vectors.shape[0], AT_ONCE):
        cosines_BN = dense(vectors[start : start + AT_ONCE] @ names.T)
        best = cosines_BN.argmax(axis=1)
        reached = cosines_BN[np.arange(len(best)), best] >= similarity
        found += np.where(reached, best, -1).tolist()
    return found


def associated(rows: Iterable[set[str]]) -> dict[str, str]:
    """Of tags that stand on the same rows the one that stays, by those that go: it is on more rows, or comes first.

    Two are associated that share `ASSOCIATED` rows or more, which are `CONFIDENCE` of the rows of each.
    """
    rows = list(rows)
    counts = Counter(tag for own in rows for tag in own)
    frequent = {tag for tag, count in counts.items() if count >= ASSOCIATED}
    together: Counter[tuple[str, str]] = Counter()
    for own in rows:
        known = sorted(own & frequent, key=lambda tag: (-counts[tag], tag))
        together.update((first, second) for at, first in enumerate(known) for second in known[at + 1 :])
    stays: dict[str, str] = {}
    for (first, second), number in sorted(together.items(), key=lambda one: (-counts[one[0][0]], one[0])):
        if number >= max(ASSOCIATED, CONFIDENCE * counts[first]) and second not in stays:
            stays[second] = stays.get(first, first)
    return stays


def by_characters(names: Sequence[str], known: Sequence[str]) -> Any:
    """Tags as sparse TF-IDF vectors over hashed n-grams of 2 to 4 characters within words, (N, D), rows of length 1.

    Args:
        known: the tags that say how rare an n-gram is.

    Raises:
        MissingPackageError: without scikit-learn.
    """
    require_package("comparing tags without a model", "sklearn", "name a model that embeds them")
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    how = {"analyzer": "char_wb", "ngram_range": (2, 4), "alternate_sign": False, "norm": None, "dtype": np.float32}
    hashes = HashingVectorizer(n_features=2**20, **how)
    return TfidfTransformer(sublinear_tf=True).fit(hashes.transform(known)).transform(hashes.transform(names))


def _name(raw: Counter[str]) -> str:
    """The most frequent of what a tag is called; of equals the first in the alphabet."""
    return min(raw, key=lambda one: (-raw[one], one))
