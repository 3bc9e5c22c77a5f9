"""What rules give away as unfinished or made by a machine, and what only looks so."""

import pytest

from data_formats import Comparison, Demonstration, Document, Message
from data_formats.cleaning import MachineMade
from data_formats.cleaning.machine_made import KINDS, misread_share

FOUND = {
    "template": [
        *(
            "I am {{name}}.",
            "我叫 {{ name }}，",
            "Dear [INSERT CUSTOMER NAME],",
            "[insert date here]",
            "<<FIRST_NAME>>",
        ),
        *("at %CLINIC_NAME% on", "【请填写客户姓名】", "[插入公司名称]", "Some lorem ipsum dolor"),
    ],
    "blank": [
        *(
            "Sincerely,\n[Your Name]",
            "Hi [Recruiter's Name],",
            "at [Company]",
            "[Name]",
            "[Date]",
            "[你的名字]",
            "【您的姓名】",
        ),
        *("感谢您对XX公司的支持", "I, ________, agree", "Dear [Hiring Manager],"),
    ],
    "assistant": [
        *(
            "As an AI language model, I",
            "as an AI, I cannot",
            "I'm just an AI",
            "I am an AI assistant",
            "As an AI assistant,",
        ),
        *("as a large language model trained by", "As of my last knowledge update in", "Regenerate response"),
        *(
            "作为一个AI语言模型，我",
            "作为一名人工智能助手，",
            "作为一个AI，我无法",
            "由于我是一个语言模型，",
            "我是人工智能助手",
        ),
    ],
    "ocr": [
        "Tbe qu1ck br0wn f0x jumped ov3r tbe 1azy d0g, wh1le tbe o1d m4n s4t by th3 r1ver w4tched h1m w1th gre4t joy",
        *("The cafÃ© on the corner", "itâ€™s open", "if you&apos;re here", "锟斤拷"),
    ],
}
NEAR_MISSES = [
    *(
        r"$\frac{{a}}{{b}}$",
        r"x_{{i}}",
        "{x | x > 0}",
        "<<48/2=24>>24",
        "`{{ user.name }}`",
        "```\n{{ x }}\n```",
        "100%",
    ),
    *("[link](page.md)", "[1]", "array[i]", "[a, b, c]", "[date](x)", "[Latin] word", "- [ ] task", "__init__", "a_b"),
    *(
        "As an air traffic controller,",
        "an aide",
        "as an AI researcher, I",
        "作为一个老师，",
        "As a model student,",
        "作为数据导入工具",
        "AI is a field.",
    ),
    *("It is AI train time", "xx", "XXL", "&amp", "naïve café", "R&D"),
    "print(x) and f1_score with l2 norm, h2o, mp3, b2b, 3d, 4k, a1c, x86_64, utf8, sha256, i18n, k8s, p99, v2, w3c, ok",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_found_by_its_own_rule(kind):
    for text in FOUND[kind]:
        found = {other for other in KINDS if MachineMade([other]).check(Document(text)) is not None}
        assert kind in found and len(found) <= 2, (text, found)


def test_near_misses_pass():
    found = {text: step.reason for text in NEAR_MISSES if (step := MachineMade().check(Document(text))) is not None}
    assert found == {}


def test_only_wanted_replies_count_and_keep_counts_alone():
    prompt = (Message("user", "Who are you, {{name}}?"),)
    step = MachineMade()
    assert step.check(Comparison(prompt, chosen="Tom.", rejected="As an AI, I am {{name}}.")) is None
    bad = Demonstration((*prompt, Message("assistant", "I am {{name}}.")))
    assert (step.check(bad).action, step.check(bad).reason) == ("drop", "unfilled template")
    assert MachineMade(action="keep").check(bad).action == "note"
    assert "{{name}}" in step.check(bad).excerpt


def test_misread_words_are_a_share():
    assert misread_share("plain words " * 20) == 0.0
    assert misread_share("c0me th3re " * 5) == 0.0  # fewer than twenty words
    assert misread_share("plain br0wn " * 20) == 0.5
    assert misread_share("a plain text of words " * 4 + "s p r e a d o u t") > 0.3


@pytest.mark.parametrize("part", ["[Your ", "{{ ", "a b ", "作为", "<<A", "_", "我是由a", "as a ", "x.y;z"])
def test_long_texts_of_one_part_end(part):
    """A search that is quadratic would take many minutes."""
    MachineMade().check(Document(part * (60_000 // len(part))))
