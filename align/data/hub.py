"""A recipe's source of the hub, as `data_formats` reads it."""

from __future__ import annotations

from align.recipe.fields import Source
from data_formats.hub import HubDataset


def hub_dataset(source: Source) -> HubDataset:
    """The dataset that a source with `hub` names."""
    return HubDataset(source.hub, source.hub_split, source.hub_config, source.revision, source.streaming)
