"""Personal data by pattern: every kind, its near misses, what becomes of a record, and no search without bounds."""

import json
import re
from re import _parser

import pytest

from align.runtime.errors import MissingPackageError
from align.runtime.packages import is_installed
from data_formats import Comparison, Demonstration, Document, Message, Prompt
from data_formats.cleaning import PII, Cleaner
from data_formats.cleaning.pii_patterns import KINDS, LONGEST, PLACEHOLDERS, mask_by_pattern, patterns
from data_formats.records import ToolCall

FOUND = {
    "email": [
        "bob.smith@corp.co.uk",
        "邮箱zhang@163.com，",
        "mailto:a_b+c@d-e.org.",
        "o'neil@mail.ie",
        "to='ann@corp.com'",
        "x@sub.domain.museum",
    ],
    "phone": [
        *("call (212) 456-7890 now", "212-456-7890", "212.456.7890", "1-800-273-8255", "(646) 381-2077 ext. 4"),
        *("+44 20 7946 0958", "+1-212-456-7890", "020 7946 0958", "07911 123456", "+49 151 23456789"),
        *("电话13812345678。", "138-1234-5678", "+86 138 1234 5678", "010-62751234", "（010）62751234", "400-820-8820"),
        *("call me at 5551234567", "phone: 555-1234", "my number is 555 123 4567", "电话是62751234"),
    ],
    "ssn": ["ssn 536-22-8726", "536 22 8726", "SSN: 536228726"],
    "nino": ["AB 12 34 56 C", "NI number JG103759A."],
    "resident_id": ["身份证号：11010519491231002X，"],
    "iban": [
        *("GB29NWBK60161331926819", "DE89 3704 0044 0532 0130 00", "BE68 5390 0754 7034 BIC: GEBABEBB"),
        "ES91 2100 0418 4502 0005 1332 BIC",
    ],
    "card": ["4111 1111 1111 1111.", "5500-0000-0000-0004", "3400 000000 00009", "卡号6200000000000005"],
    "ip": ["from 93.184.216.34 port 22", "2001:4860:4860::8844", "93.184.216.34:8080", "IP是93.184.216.34。"],
    "key": [
        *("AKIAIOSFODNN7EXAMPLE", "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "sk-abcdefghijklmnopqrstuvw1"),
        *("https://bob:hunter2@corp.com/x", "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "xoxb-1234567890-abc"),
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabc=\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,3F\n\nMIIE\n-----END RSA PRIVATE KEY-----",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    ],
}
NEAR_MISSES = [
    *("version 1.2.3.4", "v93.184.216.34", "1.2.3.4.5", "127.0.0.1", "192.168.1.1", "10.0.0.0/8", "8.8.8.8", "0.0.0.0"),
    *("999.184.216.34", "ab::cd:ef", "std::vector::iterator", "10:30:45", "00:1A:2B:3C:4D:5E", "12:34:56:78"),
    *("2021-06-10", "12/31/1999", "2021-06-10T10:00:00", "1914-1918", "1999-2005-2010", "第12.3.4.5节"),
    *("ISBN 978-3-16-148410-0", "ISBN 0-306-40615-2", "ISSN 0317-8471", "10.1000/182", "978-0-394-80001-9"),
    *("order 4111111111111112", "order number 1234-5678-9012-3456", "订单号 13812345678", "invoice 212-456-7890"),
    *(
        "110105194912310021",
        "123456789012345678",
        "3.14159265358979",
        "0.4111111111111111",
        "1609459200",
        "1609459200000",
    ),
    *(
        "15000000000韩元",
        "1,234,567",
        "1 000 000",
        "$1,200,000.00",
        "1234567890",
        "123-456",
        "555-1234",
        "21-15, 18-21",
    ),
    *("666-12-3456", "000-12-3456", "123-45-6789", "900-12-3456", "QQ123456C", "GB29NWBK60161331926818", "AB12 CD34"),
    *(
        "user@example.com",
        "a@b.example.org",
        "git@github.com:a/b",
        "image@2x.png",
        "@handle",
        "f(x)=x@y.z1",
        "a@localhost",
    ),
    *(
        "noreply@corp.com",
        "x @ y . com",
        "AKIA1234",
        "sk-learn",
        "sk-toggleable__control-label-arrow",
        "://host:80/a@b",
        "<<48/2=24>>24",
        "5 10 15 20 25",
    ),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_masked_and_nothing_else(kind):
    for text in FOUND[kind]:
        masked, counts = mask_by_pattern(text)
        assert dict(counts) == {kind: 1}, (text, masked)
        assert PLACEHOLDERS[kind] in masked
        assert mask_by_pattern(text, [other for other in KINDS if other != kind])[1][kind] == 0


def test_near_misses_stay():
    found = {text: masked for text in NEAR_MISSES if (masked := mask_by_pattern(text)[0]) != text}
    assert found == {}


def test_several_in_a_text_are_counted_one_by_one():
    text = "Ann: ann@corp.com, 212-456-7890; Bob: bob@corp.com, 212-456-7891."
    masked, counts = mask_by_pattern(text)
    assert masked == "Ann: <EMAIL>, <PHONE>; Bob: <EMAIL>, <PHONE>."
    assert dict(counts) == {"email": 2, "phone": 2}


def demo(question, answer, **more):
    return Demonstration((Message("user", question), Message("assistant", answer, **more)), category="a@corp.com")


def test_masked_dropped_or_counted():
    record = demo("I am ann@corp.com", "Hello, is 212-456-7890 yours?")
    found = PII(by="patterns").check(record)
    assert (found.action, found.reason) == ("repair", "email, phone masked")
    assert [turn.content for turn in found.repaired.messages] == ["I am <EMAIL>", "Hello, is <PHONE> yours?"]
    assert found.repaired.category == "a@corp.com"  # a label is no text
    assert PII("drop", by="patterns").check(record).action == "drop"
    noted = PII("keep", ["phone"], by="patterns").check(record)
    assert (noted.action, noted.reason, noted.repaired) == ("note", "phone", None)
    assert PII(by="patterns").check(demo("Hello", "Hello")) is None


def test_every_text_of_every_kind_of_record():
    records = [
        Document("ann@corp.com"),
        Prompt((Message("user", "x"),), reference="ann@corp.com", columns={"tests": "ann@corp.com"}),
        Comparison((Message("user", "x"),), chosen="y", rejected="ann@corp.com"),
        Comparison((Message("user", "x"),), "y", "z", chosen_reasoning="ann@corp.com"),
        demo("x", "y", reasoning="ann@corp.com"),
    ]
    cleaner = Cleaner([PII(by="patterns")])
    cleaned = list(cleaner.clean(records))
    assert cleaner.report.steps[0].repaired == {"email masked": 5}
    assert cleaned[1].columns == {"tests": "ann@corp.com"}  # what a reward is computed from stays
    assert not any("ann@corp.com" in repr(one) for at, one in enumerate(cleaned) if at != 1)


def test_a_tool_call_stays_json():
    arguments = '{"to": "ann@corp.com", "phone": 13812345678, "n": 2, "ok": true, "list": ["212-456-7890"]}'
    tools = ('{"name": "send", "description": "ask ann@corp.com"}',)
    record = Demonstration(demo("x", "y", tool_calls=(ToolCall("send", arguments),)).messages, tools=tools)
    repaired = PII(by="patterns").check(record).repaired
    expected = {"to": "<EMAIL>", "phone": "<PHONE>", "n": 2, "ok": True, "list": ["<PHONE>"]}
    assert json.loads(repaired.messages[1].tool_calls[0].arguments) == expected
    assert json.loads(repaired.tools[0])["description"] == "ask <EMAIL>"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"text": "call\\n13812345678"}', {"text": "call\n<PHONE>"}),  # \\n is no letter before the number
        ('{"text": "\\u7535\\u8bdd13812345678"}', {"text": "电话<PHONE>"}),
        ('{"phone": 5550199, "id": 5550199}', {"phone": "<PHONE>", "id": 5550199}),  # a name says what the value is
        ('{"ann@corp.com": 13812345678}', {"<EMAIL>": "<PHONE>"}),
    ],
)
def test_json_is_read_as_it_is_meant(arguments, expected):
    repaired = PII(by="patterns").check(demo("x", "y", tool_calls=(ToolCall("send", arguments),))).repaired
    assert json.loads(repaired.messages[1].tool_calls[0].arguments) == expected


def test_json_that_is_none_or_too_deep_is_a_text():
    for arguments in ("{'to': 'ann@corp.com'}", "[" * 900 + '"ann@corp.com"' + "]" * 900):
        repaired = PII(by="patterns").check(demo("x", "y", tool_calls=(ToolCall("send", arguments),))).repaired
        assert repaired.messages[1].tool_calls[0].arguments == arguments.replace("ann@corp.com", "<EMAIL>")


def test_presidio_reads_a_long_text_in_pieces():
    from data_formats.cleaning.presidio import PIECE

    for text in ("ab cd\n" * 50_000, "x" * 250_001, "", "a b"):
        pieces = PIECE.findall(text)
        assert "".join(pieces) == text and all(len(piece) <= 100_000 for piece in pieces)
        assert all(piece[-1].isspace() for piece in pieces[:-1]) or " " not in text
        assert all(piece[-1] == "\n" for piece in pieces[:-1]) or "\n" not in text


def test_the_report_shows_nobodys_data():
    cleaner = Cleaner([PII("keep", by="patterns")])
    list(cleaner.clean([demo("hi", "Ann is at ann@corp.com or 212-456-7890, and her card is 4111 1111 1111 1111.")]))
    example = cleaner.report.steps[0].examples["card, email, phone"]
    assert "<CARD>" in example and not re.search(r"ann@|\d{3}", example)


def test_no_pattern_searches_without_bound():
    """A pattern with a bounded width costs a bounded time at each place, so that time grows with the text alone."""
    widths = {pattern.pattern: _parser.parse(pattern.pattern, pattern.flags).getwidth()[1] for pattern in patterns()}
    assert max(widths.values()) < LONGEST


@pytest.mark.parametrize(
    "part", ["a", "1 ", "a.b@", "1-", "a:a:", "+1 ", "-----BEGIN PRIVATE KEY-----", "eyJaaaaaaaaaaaa "]
)
def test_long_texts_of_one_part_end(part):
    """A search that is quadratic would take hours."""
    text = part * (200_000 // len(part))
    assert mask_by_pattern(text) == (text, {})


def test_kinds_need_their_finder():
    if is_installed("presidio_analyzer"):
        pytest.skip("presidio is installed")
    assert PII().looks_for.startswith("personal data, by patterns")
    with pytest.raises(MissingPackageError, match=r"presidio-analyzer, which is not installed.*by: patterns"):
        PII(by="presidio")
    with pytest.raises(MissingPackageError, match="presidio-analyzer"):
        PII(kinds=["name"])


@pytest.mark.needs("presidio_analyzer")
def test_presidio_adds_names_and_masks_nothing_twice():
    import spacy

    from data_formats.cleaning.presidio import PresidioMask

    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Hannah Weiss"}])
    mask = PresidioMask((*KINDS, "name"), nlp)
    masked, counts = mask("Hannah Weiss, hannah@corp.com, card 4111 1111 1111 1111, at 212-456-7890.")
    assert masked == "<NAME>, <EMAIL>, card <CARD>, at <PHONE>."
    assert dict(counts) == {"name": 1, "email": 1, "card": 1, "phone": 1}
    assert PII(by="presidio").check(Document("call +44 20 7946 0958")).reason == "phone masked"
    line = "nothing to see here\n" * 5_000  # of 100,000 characters, behind which a piece would end within the name
    masked, counts = mask(f"{line[:-30]}\nby Hannah Weiss\n{line * 10}Hannah Weiss")
    assert len(masked) > 1_000_000 and counts == {"name": 2}
    assert masked == f"{line[:-30]}\nby <NAME>\n{line * 10}<NAME>"
