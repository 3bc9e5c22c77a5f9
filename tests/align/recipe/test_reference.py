"""The manual's recipe reference is that of the schema, and says what every key means."""

from pathlib import Path

from align.recipe.reference import meanings, own_fields, reference, sections

PAGE = Path(__file__).parents[3] / "docs" / "recipe.md"


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == reference(), "python -m align.recipe.reference > docs/recipe.md"


def test_every_key_has_a_meaning():
    for section in sections():
        meant = meanings(section)
        bare = [name for name in own_fields(section) if not meant.get(name)]
        assert not bare, f"write a string under these fields of {section.__name__}"
        assert not [text for text in meant.values() if "|" in text], "it would end the cell of the table"


def test_a_row_has_type_bounds_default_and_meaning():
    rows = reference().splitlines()
    assert "| `kl_coef` | number, at least 0 | `0.04` | Reward taken off for a nat of KL to the reference. |" in rows
    assert any(row.startswith("| `dual_clip` | number or null, above 1 | `null` |") for row in rows)
    assert any(row.startswith("| `reward` | list of: section, by its `kind` | `[]` |") for row in rows)
    assert "In a recipe: `rollout.vllm` of `rejection`, `ppo`." in rows
