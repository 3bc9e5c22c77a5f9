"""What `align check` says of how a recipe's model will speak: found out with its tokenizer alone, without torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

from align.models.speech import CONTROL_TOKENS, TokenizerError, generation_ends, speak
from align.recipe import Recipe
from align.recipe.errors import RecipeError
from align.runtime.errors import reason_of
from align.runtime.paths import typed_path


def speech(recipe: Recipe) -> list[str]:
    """A line, or none where there is nothing to say: a model with ChatML's tokens speaks that.

    Raises:
        RecipeError: the model cannot speak so; says why, and what to do.
    """
    model, section = recipe.model, recipe.model.tokenizer
    if model.path is None:
        return []
    folder = typed_path(model.path)
    file = folder / "tokenizer.json"
    if not file.is_file():
        later = f"model.tokenizer: {section.template}, as the tokenizer of {model.path} will show when the run starts"
        return [later] if section.template != "chatml" or section.add_chatml else []
    if section.template == "chatml" and _names_all(file):
        return []
    try:
        return [f"model.tokenizer: {'; '.join(_words(folder, recipe))}"]
    except TokenizerError as error:
        raise RecipeError([f"model.tokenizer: {error}"], recipe.name) from error
    except Exception as error:  # whatever strange files make the tokenizer's class raise
        return [f"model.tokenizer: the tokenizer of {model.path} cannot be tried here ({reason_of(error)})"]


def _names_all(file: Path) -> bool:
    """Whether every token of ChatML is named in a `tokenizer.json`, which takes no time to find."""
    text = file.read_text(encoding="utf-8", errors="replace")
    return all(re.search(rf'"content"\s*:\s*{re.escape(json.dumps(token))}', text) for token in CONTROL_TOKENS)


def _words(folder: Path, recipe: Recipe) -> list[str]:
    from transformers.tokenization_utils_tokenizers import TokenizersBackend  # AutoTokenizer would import torch

    def ends() -> list[int]:
        file = folder / "generation_config.json"
        return generation_ends(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []

    return speak(TokenizersBackend.from_pretrained(str(folder)), folder, recipe.model.tokenizer, ends=ends)
