"""Languages told apart; code, short texts and mixtures passed over as what they are."""

import pytest

from data_formats import Comparison, Demonstration, Document, Message, Prompt
from data_formats.cleaning import Languages
from data_formats.cleaning.language import prose_of
from data_formats.errors import DataError

pytestmark = pytest.mark.needs("py3langid")
EN = "The municipal library will be closed next Monday because of works in the reading room."
FR = "La bibliothèque municipale sera fermée lundi prochain en raison de travaux dans la salle de lecture."
ZH = "下星期一市图书馆的阅览室因为装修而不开放，请大家互相转告。"
CODE = "```python\nfor i in range(10):\n    print(i ** 2)\n```"


def test_other_languages_are_dropped():
    step = Languages(["en", "zh"])
    assert step.check(Document(EN)) is None and step.check(Document(ZH)) is None
    found = step.check(Document(FR))
    assert (found.action, found.reason) == ("drop", "in fr")
    assert Languages(["fr"]).check(Document(FR)) is None
    assert Languages(["fr"]).check(Document(ZH)).reason == "in zh"
    assert step.check(Document(f"{EN}\n{CODE}\n{EN}")) is None


def test_what_nobody_can_tell_is_passed_over_and_counted():
    step = Languages(["en"])
    for text in (
        CODE,
        "Oui.",
        "42",
        "好的。",
        "SELECT a FROM b;\nx = f(1)\n",
        "https://exemple.fr/la-bibliotheque-municipale",
    ):
        found = step.check(Document(text))
        assert (found.action, found.reason) == ("note", "passed over: code, or too short to tell"), text


def test_the_wanted_reply_decides_and_a_prompt_for_itself():
    step = Languages(["en"])
    asked = (Message("user", FR),)
    assert step.check(Demonstration((*asked, Message("assistant", EN)))) is None
    assert step.check(Comparison(asked, chosen=EN, rejected=FR)) is None
    assert step.check(Comparison(asked, chosen=FR, rejected=EN)).reason == "in fr"
    assert step.check(Prompt(asked)).reason == "in fr"


def test_what_is_not_surely_in_another_language_passes_and_is_counted():
    words = Document("1. Optimistic\n2. Encouraging\n3. Constructive\n4. Favorable\n5. Affirmative.")  # en, barely
    found = Languages(["fr"]).check(words)
    assert (found.action, found.reason) == ("note", "passed over: no language is sure")
    assert Languages(["fr"], min_probability=0.05).check(words).reason == "in en"
    assert Languages(["en"], min_probability=0.0).check(words) is None


def test_an_unknown_code_is_an_error():
    with pytest.raises(DataError, match=r"py3langid knows no 'english'; it has .*en, "):
        Languages(["english"])


def test_prose_is_what_is_left_of_code():
    text = f"See `f(x)` and $a+b$:\n```\nx\n```\n{FR} https://a.b/c\nx = f(1)\nimport os\nreturn x;"
    assert prose_of(text).split("\n")[-1].strip() == FR
