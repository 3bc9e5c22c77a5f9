"""Growth on paper, and what was measured beside its simulation, of made-up runs by hand."""

import json

import pytest

from examples.experiments import growth, growth_measured


def test_more_cards_on_paper(monkeypatch):
    monkeypatch.setattr(growth, "CARDS", (1, 2))
    lines = [line.split("|") for line in growth.on_paper().splitlines()[2:]]
    assert [(line[2].strip(), line[3].strip(), line[4].strip()) for line in lines] == [
        ("1", "in the ranks", "no"),
        ("2", "in the ranks", "no"),
        ("1", "1", "no"),
        ("1", "1", "yes"),
    ]
    alone, two, apart, ahead = (float(line[5]) for line in lines)
    assert alone / 2 < two < ahead < apart <= alone * 1.01


def test_a_published_step(monkeypatch):
    monkeypatch.setattr(growth, "PUBLISHED", growth.PUBLISHED[:1])
    cells = [cell.strip() for cell in growth.beside_published().splitlines()[2].split("|")]
    full, simulated, published = map(float, cells[5:8])
    assert cells[2] == "Llama-3.1-8B" and published == 92.8 and 0.5 * published < simulated < published < full


def run_of(folder, prompts, ranks, seconds):
    """A finished run that computed so long in every phase."""
    out = folder / f"{growth_measured.RANKED}-{prompts}-{ranks}" / "ppo"
    out.mkdir(parents=True)
    row = {f"seconds/{part}": seconds for part in growth_measured.PARTS}
    slow = dict.fromkeys(row, 99.0)
    (out / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (slow, slow, row, row, row)))
    (out / "summary.json").write_text("{}")


def test_ranks_that_share_two_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    for prompts, ranks, seconds in ((4, 1, 3.0), (16, 1, 9.0), (16, 2, 5.0), (16, 4, 4.0)):
        run_of(tmp_path, prompts, ranks, seconds)
    (tmp_path / "averaging.json").write_text(json.dumps({"2": 0.5, "4": 0.25}))
    rows = [line.split("|")[1:-1] for line in growth_measured.compare_ranks(tmp_path).splitlines()[2:]]
    found = {(int(row[0]), row[1].strip()): (float(row[2]), float(row[3])) for row in rows}
    # 8 replies take 3 s, 32 take 9: 0.25 a reply and 1 besides
    assert found[1, "rollout"] == (9, 9) and found[1, "all"] == (36, 36)
    # 16 replies a rank, each on a core; the update averages twice
    assert found[2, "score"] == (5, 5) and found[2, "update"] == (6, 5) and found[2, "all"] == (21, 20)
    # 8 replies a rank, four ranks on two cores: twice as long by the clock, averaging too
    assert (
        found[4, "experience"] == (6, 8) and found[4, "update"] == pytest.approx((7, 8)) and found[4, "all"] == (25, 32)
    )
