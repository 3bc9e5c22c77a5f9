"""A recipe on many cards: layout, memory, seconds and hours, worked out from its numbers without torch."""

from __future__ import annotations

from align.scale.cards import CARDS, Card, Cluster, ScaleError, read_cluster
from align.scale.choose import Scaled, StageScale, Unfit, scale
from align.scale.efficiency import Efficiency
from align.scale.layout import Layout
from align.scale.probe import Probe, efficiency_of, read_probe
from align.scale.size import model_of_size

__all__ = [
    "CARDS",
    "Card",
    "Cluster",
    "Efficiency",
    "Layout",
    "Probe",
    "ScaleError",
    "Scaled",
    "StageScale",
    "Unfit",
    "efficiency_of",
    "model_of_size",
    "read_cluster",
    "read_probe",
    "scale",
]
