"""The score of a small text classifier: how likely a label is, or the number to be expected where labels are numbers.

The second is how Deita (2312.15685, section 3) reads its scorers, which were taught scores of 1 to 6 by a large model:
not the likeliest one, but the mean of all weighted by their probabilities, which tells apart what both are a 4. A
classifier trained on an endpoint's scores of some thousand rows rates millions on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from align.curation.scorer import ScorerError, require_kinds
from align.recipe.errors import did_you_mean
from align.recipe.scorer_sections import ClassifierSection
from align.runtime.json_files import number, parse_json
from align.runtime.paths import typed_path
from align.textmodels.classifier import TextClassifier
from data_formats.records import Record


class ClassifierScore:
    """What a classifier says of a text of each record; a `RecordScorer`.

    Args:
        classifier: with any labels where `label` is one of them, else with numbers as labels.
        text_of: what of a record it reads.
        label: whose probability is the score; None: the score is the number to be expected.
        called: the classifier in errors.

    Raises:
        ScorerError: it has no such label, or labels that are no numbers, or any number of labels a text.
    """

    def __init__(
        self,
        classifier: TextClassifier,
        text_of: Callable[[Record], str],
        label: str | None = None,
        *,
        called: str = "the classifier",
    ):
        self.name, self._classifier, self._text_of = "classifier", classifier, text_of
        labels = classifier.labels
        if label is not None and label not in labels:
            near = did_you_mean(label, labels)
            hint = f"did you mean {near!r}?" if near else f"it has {', '.join(labels[:8])}"
            raise ScorerError(f"{called} has no label {label!r}; {hint}")
        values = [number(parse_json(one)) if label is None else float(one == label) for one in labels]
        if None in values or (label is None and classifier.multi_label):
            what = (
                "gives any number of labels"
                if classifier.multi_label
                else f"has labels that are no numbers ({labels[0]})"
            )
            raise ScorerError(f"{called} {what}; name the label whose probability is the score")
        self._values_L = np.array(values)

    @classmethod
    def of(cls, section: ClassifierSection, text_of: Callable[[Record], str]) -> ClassifierScore:
        """The one in the section's folder. Errors as of `TextClassifier.load`, and of the class."""
        classifier = TextClassifier.load(typed_path(section.path))
        return cls(classifier, text_of, section.label, called=f"the classifier {section.path}")

    def score(self, records: Sequence[Record]) -> list[float | None]:
        """A probability, or a number between the least and the greatest label. None: there is no text.

        Raises:
            ScorerError: something that is no record.
        """
        require_kinds(records, self.name, ClassifierSection.rates)
        texts = [self._text_of(record) for record in records]
        at = [index for index, text in enumerate(texts) if text.strip()]
        scores: list[float | None] = [None] * len(texts)
        found_N = self._classifier.probabilities([texts[index] for index in at]) @ self._values_L
        for index, value in zip(at, found_N.tolist(), strict=True):
            scores[index] = value
        return scores
