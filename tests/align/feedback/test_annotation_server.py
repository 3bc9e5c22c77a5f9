"""The server: what it refuses, what it hides, and that killing it loses nothing."""

import http.client
import json
import os
import random
import re
import threading
import time
from collections import Counter

import pytest
from starlette.testclient import TestClient

from align.feedback.annotation import Annotation
from align.feedback.annotation_server import HEADERS, AnnotationServer
from align.feedback.judgments import load_rows
from align.runtime.files import write_json_lines
from align.serving import bodies
from tests.align.feedback.annotation_case import TOKEN, Program, items, said

ITEMS = items(4)
HOME = "http://127.0.0.1:8400"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "judgments.jsonl"


def client(path, opened=True, home=HOME):
    made = TestClient(AnnotationServer(Annotation(ITEMS, path, 1), TOKEN, "be <b>fair</b>").app, base_url=home)
    if opened:
        assert made.get(f"/?token={TOKEN}").url == f"{home}/"
    return made


def test_the_token_becomes_a_cookie_that_no_script_reads(path):
    fresh = client(path, opened=False)
    answer = fresh.get(f"/?token={TOKEN}", follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert re.search(r"; HttpOnly; Path=/; SameSite=lax$", answer.headers["set-cookie"])
    page = fresh.get("/")
    assert page.status_code == 200 and TOKEN not in page.text and '<script src="/page.js"' in page.text
    assert {name: page.headers[name] for name in HEADERS} == HEADERS
    assert fresh.get("/guideline").json() == {"text": "be <b>fair</b>"}


@pytest.mark.parametrize("way", ["/", "/page.js", "/page.css", "/guideline", "/state?annotator=anna", "/?token=wrong"])
def test_without_the_token_nothing_is_told(path, way):
    answer = client(path, opened=False).get(way)
    assert answer.status_code == 403 and "token" in answer.json()["error"] and set(answer.json()) == {"error"}
    posted = client(path, opened=False).post(f"/judgments?token={TOKEN}", json=said(ITEMS[0]))
    assert posted.status_code == 403 and not path.exists()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:8400"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
def test_other_hosts_origins_and_forms_are_refused(path, headers, status):
    asked = client(path)
    body = json.dumps(said(ITEMS[0]))
    answer = asked.post("/judgments", content=body, headers={"Content-Type": "application/json"} | headers)
    assert answer.status_code == status and not path.exists()
    for good in ({}, {"Origin": HOME}, {"Host": "localhost:9", "Origin": "http://localhost:9"}):  # a tunnel's port
        cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in asked.cookies.items())}
        answer = asked.post("/judgments", content=body, headers={"Content-Type": "application/json"} | cookie | good)
        assert answer.status_code == 200
    assert len(load_rows(path)) == 1


def test_what_is_no_judgment_is_refused_in_a_sentence(path, monkeypatch):
    asked = client(path)
    kind = {"Content-Type": "application/json"}
    for body, status in ((b"{", 400), (b"[]", 422), (b"\xff", 400), (b"[" * 9999, 400), (b'{"id": "\\ud800"}', 422)):
        answer = asked.post("/judgments", content=body, headers=kind)
        assert answer.status_code == status and answer.json()["error"]
    for changes in ({"item": "x"}, {"ranking": [["r7"]]}, {"more": 1}, {"annotator": "eve"}, {"id": "7"}):
        assert asked.post("/judgments", json=said(ITEMS[2]) | changes).status_code in (200, 422)
    monkeypatch.setattr(bodies, "LARGEST_BODY", 500)
    assert asked.post("/judgments", json=said(ITEMS[0], comment="c" * 600)).status_code == 413
    assert asked.get("/state?annotator=%00").status_code == asked.get("/state").status_code == 422
    assert asked.get("/judgments").status_code == 405 and asked.get("/../judgments.jsonl").status_code in (403, 404)
    assert all(row.annotator == "eve" for row in load_rows(path))  # who perhaps sees that item the same way


def test_a_full_disk_is_told_and_nothing_counts(path):
    asked = client(path)
    path.mkdir()
    answer = asked.post("/judgments", json=said(ITEMS[0]))
    assert answer.status_code == 507 and "cannot append" in answer.json()["error"]
    assert asked.get("/state?annotator=anna").json()["done"] == 0


def test_nothing_of_a_reply_but_its_text_is_told_and_an_undo_brings_back_what_was_said(path):
    asked = client(path)
    answer = asked.get("/state?annotator=anna")
    assert "secret-source" not in answer.text and "temperature" not in answer.text
    row = said(next(one for one in ITEMS if one.id == answer.json()["item"]["id"]), comment="c")
    after = asked.post("/judgments", json=row).json()
    assert (after["done"], after["total"], after["latest"]) == (1, 4, row["id"]) and after["item"]["id"] != row["item"]
    undo = {"id": said(ITEMS[0])["id"], "undoes": row["id"], "annotator": "anna"}
    back = asked.post("/judgments", json=undo).json()
    assert back["item"]["id"] == row["item"] and back["former"]["comment"] == "c" and back["done"] == 0


@pytest.mark.slow
def test_a_kill_every_few_hundred_judgments_loses_and_doubles_none(tmp_path):
    """Twenty people at once; who hears no answer says it again."""
    number, often = 100, 200  # items; judgments from kill to kill, at least
    each, out = items(number), tmp_path / "judgments.jsonl"
    write_json_lines(tmp_path / "items.jsonl", [one.row() for one in each])
    program = Program(tmp_path / "items.jsonl", "--out", out, "--overlap", "1", "--port", "0")
    kept, chance, kills, failed = Counter(), random.Random(0), [], []

    def judge(name):
        connection, cookie = None, ""
        for one in each:
            body = json.dumps(said(one, name, comment="知識" * 20))
            while True:
                try:
                    connection, cookie = (connection, cookie) if connection else program.connect()
                    headers = {"Content-Type": "application/json", "Cookie": cookie}
                    connection.request("POST", "/judgments", body, headers)
                    answer = connection.getresponse()
                    told = answer.read()
                    assert answer.status == 200, told
                    break
                except (OSError, http.client.HTTPException):
                    connection = None
                except AssertionError as error:
                    failed.append(error)
                    return
            kept[json.loads(body)["id"]] += 1

    people = [threading.Thread(target=judge, args=(f"person {at}",)) for at in range(20)]
    for person in people:
        person.start()
    after = often
    while any(person.is_alive() for person in people):
        time.sleep(0.005)
        if kept.total() >= after:
            program.kill()
            kills.append(kept.total())
            after = kept.total() + chance.randint(often, 2 * often)
    program.process.kill()
    program.process.wait()
    assert not failed and len(kills) >= 10 * number / (2 * often) and len(kept) == 20 * number
    lines = out.read_bytes().split(b"\n")
    whole = Counter(json.loads(line)["id"] for line in lines if line.endswith(b"}"))
    assert whole == kept and set(whole.values()) == {1}
    assert len(load_rows(out)) == 20 * number
    print(f"{len(kills)} kills, {len(lines) - 1 - len(whole)} torn rows, {os.path.getsize(out)} bytes")
