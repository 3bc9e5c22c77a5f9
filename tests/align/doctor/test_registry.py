"""What the rules name exists: keys of the recipe, and figures that a run logs."""

import re

from pydantic import BaseModel

from align.doctor import rules  # noqa: F401
from align.doctor.rule import RULES
from align.recipe.ppo_section import PPOSection

WORDS = [(rule.name, text) for rule in RULES.values() for text in (*rule.causes, *rule.changes)]


def has_key(section: type[BaseModel], path: list[str]) -> bool:
    if path[0] not in section.model_fields:
        return False
    kind = section.model_fields[path[0]].annotation
    return len(path) == 1 or (issubclass(kind, BaseModel) and has_key(kind, path[1:]))


def test_recipe_keys_that_the_words_name_exist():
    named = [(name, key) for name, text in WORDS for key in re.findall(r"ppo\.([a-z_]+(?:\.[a-z_]+)*)", text)]
    named += [(rule.name, key) for rule in RULES.values() for key in rule.settings]
    assert len({key for _, key in named}) > 15
    assert [item for item in named if not has_key(PPOSection, item[1].split("."))] == []


def test_every_rule_says_what_to_do_in_plain_words():
    for rule in RULES.values():
        assert re.fullmatch(r"[a-z-]+", rule.name) and rule.severity in ("problem", "note")
        assert rule.causes and rule.changes and rule.examine.__doc__
        assert rule.title[0].isupper() and not rule.title.endswith(".")
