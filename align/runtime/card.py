"""Model cards: `README.md` in a model's folder, with the metadata that the hub reads at its head.

A card is a title, what the model is, and sections by their headings. The metadata is written and read by
huggingface_hub's own classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from align.runtime.files import write_text

CARD, OURS = "README.md", "align"  # the tag by which a card of ours is known
KEPT = ("base_model", "datasets", "license", "model-index")  # metadata that holds for what is made from a model too
PACKAGES = ("align-rlhf", "torch", "transformers", "peft", "accelerate", "trl", "vllm")
PATH = 'path = "."'  # how the programs of a card name its own folder


def write_card(folder: Path, title: str, about: str, sections: Mapping[str, str], metadata: Mapping[str, Any]) -> None:
    """Write the card of the model in `folder`, atomically.

    Args:
        about: what stands below the title.
        sections: Markdown by heading; empty ones are left out.
        metadata: as of `huggingface_hub.ModelCardData`, `eval_results` as plain values of its `EvalResult`; None and
            empty values are left out.

    Raises:
        StorageError: it cannot be written.
    """
    from huggingface_hub import EvalResult, ModelCardData

    known = {name: value for name, value in metadata.items() if value}
    known["tags"] = [OURS, *known.get("tags", ())]
    if "eval_results" in known:
        known["eval_results"] = [EvalResult(**one) for one in known["eval_results"]]
    told = {**sections, "Versions": versions()}
    parts = [f"# {title}", about, *(f"## {heading}\n\n{text}" for heading, text in told.items() if text)]
    head = ModelCardData(**known).to_yaml()
    write_text(folder / CARD, f"---\n{head}\n---\n\n" + "\n\n".join(part.strip() for part in parts) + "\n")


def versions() -> str:
    """The packages that are installed of those that decide what a model does, each with its version."""
    found = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def read_card(file: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Metadata and sections of a card, nothing of either where there is none or it cannot be read."""
    from huggingface_hub import ModelCard

    if file is None or not file.is_file():
        return {}, {}
    try:
        card = ModelCard.load(file, ignore_metadata_errors=True)
    except Exception:  # foreign cards hold anything, and none of it is needed
        return {}, {}
    parts = (part.partition("\n") for part in card.text.split("\n## ")[1:])
    return card.data.to_dict(), {heading.strip(): text.strip() for heading, _, text in parts}


def inherited(file: Path | None, *headings: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What the card of ours in `file` says that holds for a model made from its model too.

    Args:
        headings: of the sections that are taken over.
    """
    metadata, sections = read_card(file)
    if OURS not in metadata.get("tags", ()):
        return {}, {}
    return {name: metadata[name] for name in KEPT if name in metadata}, {
        heading: sections[heading] for heading in headings if heading in sections
    }
