"""The typed recipe. Nothing here imports torch: a recipe is checked in under a second."""

from __future__ import annotations

from align.recipe.batch import BatchPlan, batch_plan, launched_world_size
from align.recipe.errors import RecipeError
from align.recipe.load import dump_recipe, load_recipe
from align.recipe.registry import STAGES
from align.recipe.schema import Recipe

__all__ = [
    "STAGES",
    "BatchPlan",
    "Recipe",
    "RecipeError",
    "batch_plan",
    "dump_recipe",
    "launched_world_size",
    "load_recipe",
]
