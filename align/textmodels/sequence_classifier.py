"""Any Hugging Face sequence classifier as a classifier of texts: labels, and how likely each is of a text.

Probabilities are those that the config's `problem_type` means: a question for each label
(`multi_label_classification`, or a single label), else one label of all. A longer text is cut at what the model reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.runtime.memory import memory_errors
from align.runtime.padding import pad_right
from reward.forward import position_room
from reward.loading import check_vocabulary, load_pretrained, saved_tokenizer
from reward.scoring import batches_by_length

BATCH_TOKENS = 8192  # padding included
LONGEST = 4096  # tokens of a text, where the model has no limit of its own


class SequenceClassifier:
    """A loaded model, on an accelerator where there is one.

    Attributes:
        labels: L of them, in the model's order.

    Args:
        path: folder or hub id.

    Raises:
        MissingFileError, ModelFileError: nothing there, torn, or no classifier.
    """

    def __init__(self, path: str | Path):
        from transformers import AutoModelForSequenceClassification

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._path = path
        self._model = load_pretrained(AutoModelForSequenceClassification, path, exact=()).eval().to(device)
        self._tokenizer = saved_tokenizer(path)
        check_vocabulary(self._model, self._tokenizer, path)
        config = self._model.config
        self.labels = tuple(str(config.id2label[at]) for at in range(config.num_labels))
        self._apart = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        self._pad: int | None = getattr(config.get_text_config(), "pad_token_id", None)
        room = position_room(self._model) or getattr(config.get_text_config(), "max_position_embeddings", None)
        self._longest = min(self._tokenizer.model_max_length, room or LONGEST)

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """(N, L) float64; rows sum to 1, but where every label is a question of its own.

        Raises:
            OutOfMemoryError: a batch does not fit.
        """
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._longest)["input_ids"] if texts else []
        rows = [ids or [self._pad or 0] for ids in encoded]
        found = np.zeros((len(rows), len(self.labels)))
        device = next(self._model.parameters()).device
        at_once = 1 if self._pad is None else BATCH_TOKENS  # the class finds a row's end by its pad id alone
        with memory_errors(f"classifying by {self._path}"):
            for taken in batches_by_length([len(row) for row in rows], at_once, BATCH_TOKENS):
                parts = pad_right([rows[at] for at in taken], self._pad or 0)
                ids_BT, mask_BT = (part.to(device) for part in parts)
                logits_BL: Any = self._model(input_ids=ids_BT, attention_mask=mask_BT).logits.double()
                found[taken] = (logits_BL.sigmoid() if self._apart else logits_BL.softmax(-1)).cpu().numpy()
        return found
