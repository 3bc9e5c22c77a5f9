"""StackExchange dumps: scores of votes, the accepted answer, what is left out, and how the file may be written."""

import gzip

import pytest

from data_formats import Comparison, DataError, Message, Reply, Scored, read

POSTS = """<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="1" PostTypeId="1" AcceptedAnswerId="3" Title="Why?" Body="&lt;p&gt;Say &amp;amp; tell&lt;/p&gt;" Score="9" />
  <row Id="2" PostTypeId="2" ParentId="1" Body="&lt;ul&gt;&lt;li&gt;seven&lt;/li&gt;&lt;/ul&gt;" Score="7" />
  <row Id="3" PostTypeId="2" ParentId="1" Body="accepted" Score="3" />
  <row Id="4" PostTypeId="2" ParentId="1" Body="bad" Score="-5" />
  <row Id="5" PostTypeId="2" ParentId="1" Body="none" Score="0" />
  <row Id="6" PostTypeId="2" ParentId="99" Body="orphan" Score="1" />
  <row Id="7" PostTypeId="5" Body="a wiki page" Score="0" />
  <row Id="8" PostTypeId="1" Title="Alone?" Body="" Score="0" />
</posts>
"""
WAYS = {
    "x.xml": POSTS.encode(),
    "bom.xml": b"\xef\xbb\xbf" + POSTS.encode(),
    "crlf.xml": POSTS.replace("\n", "\r\n").encode(),
    "x.xml.gz": gzip.compress(POSTS.encode()),
}


@pytest.mark.parametrize("name", WAYS)
def test_votes_become_scores_and_every_post_is_counted(tmp_path, name):
    (tmp_path / name).write_bytes(WAYS[name])
    result = read(tmp_path / name, Scored)
    prompt = (Message("user", "Why?\n\nSay & tell"),)
    # round(log2(1 + 7)) = 3; round(log2(1 + 3)) + 1 = 3; -1; round(log2(1)) = 0
    replies = (Reply("- seven", 3.0), Reply("accepted", 3.0), Reply("bad", -1.0), Reply("none", 0.0))
    assert result.records == [Scored(prompt, replies)]
    report = result.report
    assert (report.rows, report.used) == (8, 5)
    assert report.dropped == {"answer without its question": 1, "neither question nor answer": 1, "no reply": 1}


def test_pairs_leave_ties_out(tmp_path):
    (tmp_path / "x.xml").write_text(POSTS)
    result = read(tmp_path / "x.xml", Comparison)
    assert [(pair.chosen, pair.rejected, pair.grade) for pair in result.records] == [
        ("- seven", "bad", 4.0),
        ("- seven", "none", 3.0),
        ("accepted", "bad", 4.0),
        ("accepted", "none", 3.0),
        ("none", "bad", 1.0),
    ]
    assert result.report.left_out == {"pairs of equal score": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('<!DOCTYPE p [<!ENTITY a "b">]>\n<posts/>', r"x\.xml, line 1: document type declarations are refused"),
        (POSTS.replace('Score="3"', 'Score="many"'), r"line 5, field 'Score': expected a whole number, found 'many'"),
        (POSTS.replace("</posts>", ""), "not XML"),
    ],
)
def test_refusals(tmp_path, content, message):
    (tmp_path / "x.xml").write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.xml", Scored)
