"""No secret comes out of an address, or of a text that others wrote."""

import base64
import json
from urllib.parse import quote

import pytest

from align.runtime.secrets import hidden_problem, hide, shown_url, url_secrets

KEY = "sk-Very/secret+Key=42"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/score", "https://host/score"),
        ("https://host:8000/a/b?token=abc&version=2", "https://host:8000/a/b?token=***&version=***"),
        ("https://host?abc", "https://host?***"),
        ("https://host/?a=&b", "https://host/?a=&***"),
        ("https://host/#abc", "https://host/#***"),
        ("https://me:pass@host/x", "https://***@host/x"),
        ("https://to@ken@host/x", "https://***@host/x"),
        ("http://[::1]:80/x?y=z", "http://[::1]:80/x?y=***"),
        ("http://[broken/x?y=z", "http://[broken/x?y=***"),
        ("host/x?y=z?w=v", "host/x?y=***"),
        ("unix:///run/socket", "unix:///run/socket"),
        ("", ""),
    ],
)
def test_an_address_as_it_may_be_written(url, shown):
    assert shown_url(url) == shown == shown_url(shown)
    assert (hidden_problem(shown) is not None) == (url != shown)


def echoes():
    raw = KEY.encode()
    yield from (KEY, KEY.upper(), quote(KEY), quote(KEY, safe=""), json.dumps(KEY), KEY.replace("/", "\\/"), raw.hex())
    for before in (b"", b"u", b"me", b"me:", b"user:"):
        yield base64.b64encode(before + raw).decode()
        yield base64.urlsafe_b64encode(before + raw + b"tail").decode()
    yield KEY[:14] + " … " + KEY[4:]


@pytest.mark.parametrize("echo", list(echoes()))
def test_whatever_a_server_echoes(echo):
    """No eight characters of the key, or of the echo, are left in a row."""
    said = hide(f"bad: {echo} (known: 7)", [KEY])
    assert said.startswith("bad: ") and said.endswith(" (known: 7)") and "(the key)" in said
    core = echo.rstrip("=")  # of base64 the ends hold what stands beside the key
    assert [core[at : at + 8] for at in range(len(core) - 7) if core[at : at + 8] in said] == []


def test_what_is_no_secret_stays():
    assert hide("İstanbul 猫 \x1b[31m 42", [KEY]) == "İstanbul 猫 \x1b[31m 42"
    assert hide("a short key: x, x x", ["x"]) == "a short key: (the key), (the key) (the key)"
    assert hide("", [KEY]) == hide("", []) == ""
    assert hide("İ" + KEY + "İ", [KEY]) == "İ(the key)İ"


def test_addresses_and_tokens_are_hidden_in_any_text():
    assert hide("the bearer of news") == "the bearer of news"
    text = "see 'https://cdn.example/f?X-Signature=abcdef&Expires=3', hf_abcDEF123456789, Bearer abc.def.0123456789"
    expected = "see 'https://cdn.example/f?X-Signature=***&Expires=***', ***, Bearer ***"
    assert hide(text) == expected == hide(expected)


def test_the_secrets_of_an_address():
    found = url_secrets("https://me:pass%2Fword@host/x?token=a%20bcd&v=2&bare-token#frag")
    assert set(found) == {"pass%2Fword", "pass/word", "a%20bcd", "a bcd", "bare-token", "frag"}
    assert url_secrets("https://host/x") == []
