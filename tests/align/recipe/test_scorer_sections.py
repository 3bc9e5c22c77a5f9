"""Who rates rows: what each kind may say, and what is missing here before anything is loaded."""

import pytest
from pydantic import TypeAdapter, ValidationError

from align.recipe import scorer_sections
from align.recipe.scorer_sections import DifficultySection, QualitySection, scorer_problems

QUALITY, DIFFICULTY = TypeAdapter(QualitySection), TypeAdapter(DifficultySection)
LLM = {"kind": "llm", "url": "https://host.example/v1?key=s3cret", "model": "m"}


@pytest.mark.parametrize(
    ("kinds", "given", "told"),
    [
        (QUALITY, {"kind": "reward"}, "model_from"),
        (QUALITY, {"kind": "tags"}, "does not match any of the expected tags"),
        (QUALITY, {"kind": "ifd", "model_from": "x"}, "does not match any of the expected tags"),
        (DIFFICULTY, {"kind": "reward", "model_from": "x"}, "does not match any of the expected tags"),
        (DIFFICULTY, {"kind": "ifd", "model_from": "x", "max_length": 0}, "greater than 0"),
        (QUALITY, LLM | {"url": "ftp://host"}, "url"),
        (QUALITY, LLM | {"parameters": {"model": "x"}}, "is not to be set; leave it out"),
        (QUALITY, {"kind": "classifier", "path": "x", "label": ""}, "at least 1 character"),
    ],
)
def test_what_a_kind_does_not_know_is_refused(kinds, given, told):
    with pytest.raises(ValidationError, match=told):
        kinds.validate_python(given)


def test_what_is_missing_here_is_told_by_key(tmp_path, monkeypatch):
    def problems(kinds, **given):
        return scorer_problems("sft.selection.quality", kinds.validate_python(given))

    at = "sft.selection.quality"
    here = str(tmp_path)
    assert problems(QUALITY, kind="reward", model_from=here) == []
    assert problems(QUALITY, kind="reward", model_from="org/model") == []  # may be a hub id
    assert problems(QUALITY, kind="reward", model_from="./gone") == [f"{at}.model_from: no such folder ./gone"]
    assert problems(DIFFICULTY, kind="ifd", model_from="runs/a/sft") == [f"{at}.model_from: no such folder runs/a/sft"]
    assert problems(QUALITY, kind="classifier", path="gone") == [f"{at}.path: no such folder gone"]
    assert problems(DIFFICULTY, kind="tags", tagger="gone") == [f"{at}.tagger: no such folder gone"]
    monkeypatch.setattr(scorer_sections, "is_installed", lambda package: False)
    assert problems(DIFFICULTY, kind="tags") == []
    (told,) = problems(QUALITY, kind="classifier", path=here)
    assert told.startswith(f"{at}.kind: 'classifier' needs scikit-learn, which is not installed: pip install")
    assert problems(QUALITY, **LLM) == []
    assert problems(QUALITY, **LLM, rubric="gone.txt") == [f"{at}.rubric: no such file gone.txt"]
    monkeypatch.delenv("NO_KEY", raising=False)
    (told,) = problems(DIFFICULTY, **LLM, api_key_env="NO_KEY")
    assert told == f"{at}.api_key_env: the environment variable NO_KEY is not set; set it to the key"
    (told,) = problems(QUALITY, **LLM | {"url": "https://host.example/v1?key=***"})
    assert told.startswith(f"{at}.url: *** stands where a secret was left out")
    assert "s3cret" not in repr(QUALITY.validate_python(LLM)) + str(QUALITY.validate_python(LLM).model_dump())
