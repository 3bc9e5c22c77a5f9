"""Helpers: a model's folder, loaded and used by the program on its own card."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from align.runtime.card import CARD
from data_formats.records import Message
from reward.protocol import Sample
from reward.sources import load_reward

MOON = Sample((Message("user", "How far is the moon?"),), "About 384,000 km.")


def used(folder: Path) -> dict[str, Any]:
    """What the program on the card of the model in `folder` finds."""
    text = (folder / CARD).read_text()
    assert "/tmp" not in text and str(folder) not in text
    assert "align" in ModelCard(text).data.tags and "## Versions" in text
    found = {}
    with chdir(folder):
        exec(text.split("```python\n")[1].split("```")[0], found)
    return found


def generates(folder: Path) -> Any:
    """Whether it goes on with the card's text; returns the model."""
    found = used(folder)
    tokens = found["tokens"] if "tokens" in found else found["model"].generate(**found["inputs"], max_new_tokens=2)
    assert tokens.shape[1] > found["inputs"]["input_ids"].shape[1]
    return found["model"]


def scores(folder: Path, tolerance: float = 1e-5) -> None:
    """Whether the card's program scores as we do."""
    assert used(folder)["score"] == pytest.approx(load_reward(folder).score([MOON])[0], abs=tolerance)
