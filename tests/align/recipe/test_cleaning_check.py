"""What would stop a cleaning section, told before anything is imported or read."""

import pytest
from pydantic import ValidationError

from align.data.cleaning import build_cleaner
from align.recipe import RecipeError
from align.recipe.check import run_problems
from align.recipe.cleaning_check import cleaning_problems
from align.recipe.cleaning_section import CleaningSection
from align.recipe.filter_sections import PII_KINDS, PIISection
from align.runtime import packages
from data_formats.cleaning import C4, Gopher, machine_made, pii_patterns
from tests.align.stages.small_chain import small_recipe, write_data


def section(**keys):
    return CleaningSection.model_validate(keys)


def test_defaults_are_those_of_the_steps():
    assert PII_KINDS == pii_patterns.KINDS and PIISection.model_validate("drop").action == "drop"
    machine = section(machine_made={}).machine_made
    assert machine.kinds == machine_made.KINDS
    assert Gopher(**section(gopher={}).gopher.model_dump()) == Gopher()
    assert C4(**section(c4={}).c4.model_dump()) == C4()


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    asked = section(languages={"keep": ["en"]}, pii={"by": "presidio"}, near_duplicates={})
    assert cleaning_problems(asked, "sft.cleaning") == [
        "sft.cleaning.languages: the step needs py3langid, which is not installed: pip install 'align-rlhf[curation]', "
        "or remove the key",
        "sft.cleaning.near_duplicates: the step needs datasketch, which is not installed: "
        "pip install 'align-rlhf[dedup]', or remove the key",
        "sft.cleaning.pii: the step needs presidio-analyzer, which is not installed: pip install 'align-rlhf[pii]', "
        "or use by: patterns",
    ]
    assert cleaning_problems(section(pii={"kinds": ["name"]})) != []
    monkeypatch.setattr(packages, "find_spec", lambda name: object() if name == "presidio_analyzer" else None)
    assert "en_core_web_lg" in cleaning_problems(section(pii={"kinds": ["name"]}))[0]
    assert cleaning_problems(section(pii="mask")) == []


def test_missing_lists_and_models(tmp_path):
    none = str(tmp_path / "none")
    asked = section(
        toxicity={"words": none, "model": none}, c4={"bad_words": none}, perplexity={"model": none, "max_nats": 5}
    )
    assert cleaning_problems(asked) == [
        f"cleaning.toxicity.words: no such file {none}",
        f"cleaning.toxicity.model: no such folder {none}",
        f"cleaning.c4.bad_words: no such file {none}",
        f"cleaning.perplexity.model: no such folder {none}",
    ]
    with pytest.raises(RecipeError, match="4 errors"):
        build_cleaner(asked)
    endpoint = {"url": "https://api.example.com/v1/moderations", "model": "m", "api_key_env": "NO_SUCH_KEY_IS_SET"}
    assert cleaning_problems(section(toxicity={"endpoint": endpoint}), "sft.cleaning") == [
        "sft.cleaning.toxicity.endpoint.api_key_env: the environment variable NO_SUCH_KEY_IS_SET is not set; set it to "
        "the key"
    ]
    assert cleaning_problems(section(toxicity={"model": "org/name"}, perplexity={"model": "gpt2", "min_nats": 1})) == []


def test_rules_for_documents_in_a_stage_of_conversations(tmp_path):
    write_data(tmp_path)
    made = small_recipe(tmp_path, sft__cleaning={"gopher": {}, "c4": {}})
    told = [problem for problem in run_problems(made, ["sft"]) if "cleaning" in problem]
    assert told == [
        f"sft.cleaning.{name}: judges documents alone, and these are demonstrations: remove the key"
        for name in ("gopher", "c4")
    ]
    assert cleaning_problems(section(gopher={}), kind="Document") == []


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"pii": "hide"}, "pii.action"),
        ({"pii": {"kinds": ["passport"]}}, "pii.kinds"),
        ({"pii": {"kinds": ["name"], "by": "patterns"}}, "no pattern tells a name"),
        ({"pii": {"kinds": []}}, "pii.kinds"),
        ({"toxicity": {}}, "names nobody who tells; set words, model or endpoint"),
        ({"toxicity": {"words": "w", "threshold": 2}}, "toxicity.threshold"),
        ({"toxicity": {"endpoint": {"url": "http://far.example.com/v1", "model": "m"}}}, "https"),
        ({"languages": {}}, "languages.keep"),
        ({"gopher": {"min_words": 9, "max_words": 8}}, "min_words: 9 is more than max_words"),
        ({"machine_made": {"kinds": ["spam"]}}, "machine_made.kinds"),
        ({"perplexity": {"model": "m"}}, "names no limit; set min_nats or max_nats"),
        ({"perplexity": {"model": "m", "min_nats": 3, "max_nats": 2}}, "min_nats: 3.0 is more than max_nats"),
    ],
)
def test_what_cannot_be_meant(raw, said):
    with pytest.raises(ValidationError, match=said):
        CleaningSection.model_validate(raw)
