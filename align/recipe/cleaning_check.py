"""What would stop a cleaning section before it runs: packages, lists, models and keys that are not there; steps that
the records pass untouched."""

from __future__ import annotations

from collections.abc import Iterator

from align.recipe.cleaning_section import CleaningSection
from align.recipe.reward_section import part_problems
from align.runtime.packages import NO_SPACY_MODEL, is_installed, missing_package, spacy_model
from align.runtime.paths import typed_path

_PACKAGES = {"languages": "py3langid", "near_duplicates": "datasketch"}
_OF_DOCUMENTS = ("gopher", "c4")


def cleaning_problems(section: CleaningSection, key: str = "cleaning", kind: str | None = None) -> list[str]:
    """One sentence for each, with its full key path; looks at the disk and imports nothing.

    Args:
        key: of the section.
        kind: of the records that are cleaned, by its name; None: not known.
    """
    found = [f"{key}.{name}: {problem}" for name, problem in _problems(section, kind)]
    if section.toxicity is not None and section.toxicity.endpoint is not None:
        found += part_problems(f"{key}.toxicity.endpoint", section.toxicity.endpoint)
    return found


def _problems(section: CleaningSection, kind: str | None) -> Iterator[tuple[str, str]]:
    for name, package in _PACKAGES.items():
        if getattr(section, name) is not None and not is_installed(package):
            yield name, missing_package("the step", package) + ", or remove the key"
    asks_presidio = section.pii is not None and (section.pii.by == "presidio" or "name" in section.pii.kinds)
    if asks_presidio and not is_installed("presidio_analyzer"):
        yield "pii", missing_package("the step", "presidio_analyzer") + ", or use by: patterns"
    elif section.pii is not None and "name" in section.pii.kinds and spacy_model() is None:
        yield "pii.kinds", NO_SPACY_MODEL
    for name in _OF_DOCUMENTS:
        if getattr(section, name) is not None and kind not in (None, "Document"):
            yield name, f"judges documents alone, and these are {kind.lower()}s: remove the key"
    if section.toxicity is not None:
        yield from _missing_list("toxicity.words", section.toxicity.words)
        yield from _missing_model("toxicity.model", section.toxicity.model)
    if section.c4 is not None:
        yield from _missing_list("c4.bad_words", section.c4.bad_words)
    if section.perplexity is not None:
        yield from _missing_model("perplexity.model", section.perplexity.model)


def _missing_list(name: str, file: str | None) -> Iterator[tuple[str, str]]:
    if file is not None and not typed_path(file).is_file():
        yield name, f"no such file {file}"


def _missing_model(name: str, model: str | None) -> Iterator[tuple[str, str]]:
    """A hub id cannot be looked up here, a folder can."""
    if model is None or typed_path(model).is_dir():
        return
    if model.startswith((".", "~", "/")) or model.count("/") > 1 or "\\" in model or typed_path(model).exists():
        yield name, f"no such folder {model}"
