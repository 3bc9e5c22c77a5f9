"""Plots as parts of a page."""

import re
from dataclasses import fields
from xml.etree import ElementTree

from align.report.style import DARK, LIGHT
from align.report.svg import NAMES, Panel, pictures
from align.report.template import TEMPLATES

EVIL = '</text></svg><script>alert(1)</script> style="fill: #fe0105" 12.345 --> $\\frac{ {{ 7 }} 知識'


def busy(axes):
    axes.plot([1, 2], [0.5, 1.0], color=LIGHT.blue, label=EVIL)
    axes.fill_between([1, 2], [0.0, 0.5], [1.0, 1.5], color="#fe0105", alpha=0.5, label="band")
    axes.axhline(0.7, color="#fe0104", linestyle="--", label="dashed")
    axes.barh(1, 2, color="#fe0104", label="bar")
    axes.plot([1], [1], "o", color="#fe0105", label="dot")
    axes.set_yticks([0, 1], ["low", EVIL])


def test_text_of_a_run_stays_text():
    (picture,) = pictures([Panel(EVIL, busy, EVIL)], "busy")
    tree = ElementTree.fromstring(picture.svg)
    texts = [one.text for one in tree.iter() if one.tag == "text"]
    assert EVIL in texts and "low" in texts
    assert tree.attrib["aria-label"].startswith(f"{EVIL}, {EVIL}, {EVIL}")
    assert picture.title == picture.unit == picture.keys[0].label == EVIL
    assert not [one for one in tree.iter() if one.tag == "script"]


def test_colours_are_the_pages_and_a_legend_stands_beside_the_drawing():
    (picture,) = pictures([Panel("t", busy)], "busy")
    tags = re.sub(r">[^<]*<", "><", picture.svg.partition(">")[2])
    assert "var(--blue)" in tags and "var(--gray)" in tags and "var(--rule)" in tags and "#fe01" not in tags
    assert {key.label: (key.mark, key.color) for key in picture.keys} == {
        EVIL: ("line", "#2a78d6"),  # a colour that is none of the page's stays what it is
        "band": ("band", "var(--blue)"),
        "dashed": ("dashes", "var(--gray)"),
        "bar": ("area", "var(--gray)"),
        "dot": ("dots", "var(--blue)"),
    }


def test_drawings_have_ids_of_their_own_and_the_same_bytes_each_time():
    twice = [pictures([Panel("t", busy), Panel("t", busy)], "one") for _ in range(2)]
    assert twice[0] == twice[1]
    ids = [re.findall(r'\bid="(\w+)"', picture.svg) for picture in twice[0]]
    assert ids[0] and not set(ids[0]) & set(ids[1])
    for picture, own in zip(twice[0], ids, strict=True):
        assert set(re.findall(r"url\(#(\w+)\)", picture.svg)) <= set(own)


def test_labels_have_room_and_no_drawing_is_wider_for_them():
    narrow, wide = (
        pictures([Panel("t", lambda axes, name=name: axes.set_yticks([0, 1], ["a", name]))], "n")[0].svg
        for name in ("b", "b" * 24)
    )
    edges = [min(float(x) for x in re.findall(r"M (\d+\.?\d*) ", svg)) for svg in (narrow, wide)]
    assert edges[0] < 20 and 150 < edges[1] < 200
    assert 'viewBox="0 0 340 190"' in narrow and 'viewBox="0 0 340 190"' in wide


def test_the_pages_colours_are_those_of_the_themes():
    styles = "".join((TEMPLATES / name).read_text() for name in ("style.css", "figures.css"))
    for one in fields(LIGHT)[1:]:
        found = re.findall(rf"--{NAMES.get(one.name, one.name)}: (#\w+)", styles)
        assert found == [getattr(LIGHT, one.name), getattr(DARK, one.name)], one.name
