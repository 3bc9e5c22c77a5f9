"""The card from files as they are downloaded: what is found, read, refused, and told."""

import json
import math
from html.parser import HTMLParser

import pytest

from align.evaluation.reward_card.benchmarks import BENCHMARKS, BY_KEY, SHOWN
from align.evaluation.reward_card.card import make_card, published
from align.evaluation.reward_card.finding import find
from align.evaluation.reward_card.markdown import BEGIN, END, block, write_block
from align.evaluation.reward_card.rows import SUBSETS
from align.report.reward_card import render
from align.runtime.errors import MissingFileError, StorageError
from data_formats.errors import DataError, EmptyDatasetError
from tests.align.evaluation.benchmark_rows import (
    FILES,
    HELPSTEER2,
    HELPSTEER3,
    HH,
    JUDGEBENCH,
    PPE_CORRECTNESS,
    PPE_PREFERENCE,
    REWARDBENCH,
    REWARDBENCH2,
    RM_BENCH,
    SHP,
    write,
    write_all,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return find(write_all(tmp_path_factory.mktemp("bench")))


def by_length(cases):
    return {key: [[len(reply.reply) for reply in case.replies] for case in own] for key, own in cases.items()}


def card_of(found, **more):
    return make_card(found, by_length(found.cases), model="runs/mine", **more) | {"made": "align 1, on cpu"}


def test_every_benchmark_is_known_by_its_rows_and_the_rest_is_named(found):
    assert found.cases.keys() == set(SHOWN) == {one.key for one in BENCHMARKS} == set(BY_KEY)
    counts = {key: len(own) for key, own in found.cases.items()}
    assert counts == {
        **{"rewardbench2": 9, "rewardbench": 6, "prior_sets": 1, "rm_bench": 5, "judgebench": 3, "ppe_preference": 2},
        **{"ppe_correctness": 1, "helpsteer2": 2, "helpsteer3": 2, "shp": 3, "hh": 1},
    }
    assert found.passed_over == {
        "README.md": "no file of rows",
        "other/rows.jsonl": "its rows are those of no benchmark that is known (fields instruction, output)",
        "reward-bench/data/raw-00000-of-00001.parquet": "of a split that is not counted (filtered is)",
        "SHP/askculinary/train.json": "of a split that is not counted (test or validation or val is)",
        "hh-rlhf/harmless-base/train.jsonl.gz": "of a split that is not counted (test or validation or val is)",
    }
    left_out = {one.name: dict(one.left_out) for one in found.files if one.left_out}
    assert left_out == {
        "PPE-Human-Preference-V1/data/test-00000-of-00001.parquet": {"tie": 2},
        "HelpSteer2/preference/preference.jsonl.gz": {"no preference": 1, "of the training split": 1},
        "RM-Bench/total_dataset.json": {"stands in another file too": 1},
    }
    assert {one.name for one in found.files} == FILES.keys() - found.passed_over.keys()


def test_what_the_rows_say(found):
    cases = found.cases
    first = {key: [reply.reply for reply in own[0].replies] for key, own in cases.items()}
    assert first["rewardbench2"] == ["1, of course", "0", "2", "no idea at all, and why should I"]
    assert first["ppe_correctness"] == ["four", "4", "5", "a hundred"]  # right ones first
    assert cases["ppe_correctness"][0].pairs == ((0, 2), (0, 3), (1, 3))
    assert cases["ppe_correctness"][0].labels == {"set": "MMLU-Pro"}
    assert [case.replies[0].reply for case in cases["judgebench"]] == ["It is A, I think.", "B", "B"]
    assert [case.labels["source"] for case in cases["judgebench"]] == ["knowledge", "math", "coding"]
    assert [case.replies[0].reply for case in cases["ppe_preference"]] == ["A horse walks in.", "Ha"]
    assert [case.labels for case in cases["helpsteer2"]] == [{"strength": "2"}, {"strength": "1"}]
    assert [case.replies[0].reply for case in cases["helpsteer3"]] == ["An apple.", "A stone."]
    assert [(case.replies[0].reply, case.headline) for case in cases["shp"]] == [
        *(("With care and a knife", True), ("Do not", True), ("With care and a knife", False))
    ]
    assert cases["shp"][0].labels == {"domain": "askculinary"}
    (hh,) = cases["hh"]
    assert hh.labels == {"part": "harmless"} and [reply.reply for reply in hh.replies] == [
        "Goodbye!",
        "Stay, I insist.",
    ]
    assert [turn.role for turn in hh.replies[0].prompt] == ["user", "assistant", "user"]
    assert [case.labels["domain"] for case in cases["rm_bench"]][-2:] == ["safety", "safety"]


def test_a_reward_that_is_length_gets_what_length_alone_gets_everywhere(found):
    card = card_of(found)
    assert not card["missing"] and list(card["benchmarks"]) == list(SHOWN)
    for one in card["benchmarks"].values():
        figures = [one["overall"], *(part for parts in one["parts"].values() for part in parts.values())]
        assert all(part["score"] == part["longer"] for part in figures), one["name"]
        if one["by_length"]:
            told = {name: part["score"] for name, part in one["by_length"].items()}
            assert told == {name: float(name == "the right reply longer") for name in told}, one["name"]
    rm_bench = card["benchmarks"]["rm_bench"]
    assert rm_bench["matrix"] == [[0, 0, 0], [1, 0, 0], [1, 0, 0]] and rm_bench["parts"]["level"]["hard"]["score"] == 0
    assert card["benchmarks"]["helpsteer2"]["pairs"] == 2
    gap = len("C# is a language.") - len("yes")  # once right, once wrong, each time stated with sigmoid(gap)
    assert card["benchmarks"]["helpsteer2"]["calibration_error"] == pytest.approx(
        1 / (1 + math.exp(-gap)) - 0.5, abs=1e-12
    )
    assert card["benchmarks"]["shp"]["pairs"] == 2  # of clear votes
    own = card["benchmarks"]["rewardbench"]
    sections = [part["score"] for part in own["parts"]["section"].values()]
    prior = card["benchmarks"]["prior_sets"]["overall"]["score"]
    assert prior == 0 and own["with_prior_sets"] == pytest.approx((sum(sections) + 0.5 * prior) / 4.5, abs=1e-15)
    json.dumps(card, allow_nan=False)


def test_a_limit_is_of_each_part_and_keeps_both_forms_of_ties(tmp_path):
    rows = [*REWARDBENCH2, *({**row, "prompt": f"{row['prompt']}!"} for row in REWARDBENCH2[:5])]
    write(tmp_path / "test.jsonl", rows)
    kept = find(tmp_path, limit=1).cases["rewardbench2"]
    assert [case.id for case in kept] == ["0", "1", "2", "3", "4", "ref:0", "tied:0"]


BAD = [  # a good row, what is changed in it, what is said
    (JUDGEBENCH, {"label": None}, "'label': expected A>B or B>A, found None"),
    (REWARDBENCH, {"subset": "chat"}, "'subset': unknown subset 'chat'; the benchmark has alpacaeval-easy"),
    (REWARDBENCH2, {"rejected": ["a", "b"]}, "'rejected': expected 3 rejected replies, found 2"),
    (REWARDBENCH2, {"chosen": ["a", "b"]}, "'chosen': expected 1 chosen reply, found 2"),
    (REWARDBENCH2, {"subset": "Ties", "id": "17"}, "'id': expected ref:NUMBER or tied:NUMBER, found '17'"),
    (REWARDBENCH2, {"subset": "Ties", "rejected": []}, "'chosen': expected right and wrong replies, found 1 and 0"),
    (RM_BENCH, {"chosen": ["a", "b"]}, "'chosen': expected 3 replies (concise, detailed, markdown), found 2"),
    (RM_BENCH, {"domain": "law"}, "'domain': unknown domain 'law'; the benchmark has chat"),
    (PPE_PREFERENCE, {"winner": "x"}, "'winner': expected model_a, model_b or tie, found 'x'"),
    (PPE_PREFERENCE, {"response_1": None}, "'response_1': expected a string, found NoneType"),
    (PPE_CORRECTNESS, {"sampled_conflict_pairs": [[0, 2]]}, "'sampled_conflict_pairs': expected a right and a wrong"),
    (PPE_CORRECTNESS, {"sampled_conflict_pairs": [[0, 4]]}, "'sampled_conflict_pairs': expected two places from 0"),
    (PPE_CORRECTNESS, {"scores": [0.5]}, "'scores': expected a list of true and false, found [0.5]"),
    (HELPSTEER2, {"preference_strength": float("nan")}, "'preference_strength': expected a finite number, found nan"),
    (HELPSTEER3, {"overall_preference": None}, "'overall_preference': expected a number, found None"),
    (HELPSTEER3, {"context": []}, "'context': expected a text or a list of turns, found []"),
    (SHP, {"labels": 2}, "'labels': expected 1 or 0, found 2"),
    (SHP, {"score_ratio": None}, "'score_ratio': expected a number, found None"),
    (HH, {"rejected": "Stay."}, "'rejected': expected a transcript that starts with 'Human:'"),
]


@pytest.mark.parametrize(("rows", "changes", "told"), BAD)
def test_a_row_that_is_not_what_it_should_be_is_one_sentence_with_its_place(tmp_path, rows, changes, told):
    path = write(tmp_path / "some.jsonl", [rows[0], rows[0] | changes])
    with pytest.raises(DataError) as caught:
        find(tmp_path)
    assert str(caught.value).startswith(f"{path}, line 2, field {told}")


def test_a_folder_without_any_and_one_that_is_none(tmp_path):
    (tmp_path / "torn.parquet").write_text("version https://git-lfs")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(
        EmptyDatasetError, match=r"no row of a benchmark that is known is in .* \(empty.jsonl: it has no"
    ):
        find(tmp_path)
    with pytest.raises(DataError, match="this is a file; name the folder"):
        find(tmp_path / "empty.jsonl")
    with pytest.raises(MissingFileError, match="no such folder"):
        find(tmp_path / "none")
    (tmp_path / "train").mkdir()
    write(tmp_path / "train/a.jsonl", SHP)
    with pytest.raises(EmptyDatasetError, match="of a split that is not counted"):
        find(tmp_path)


def test_the_block_of_a_model_card_is_put_in_once_and_replaced(found, tmp_path):
    made = block(card_of(found))
    assert (
        "| RewardBench 2 | " in made
        and "| 9 of 1865 |" in made
        and "so not comparable: RewardBench 2 (9 of 1865 rows);" in made
    )
    for before in (None, "# Mine\n\nMade by hand.\n"):
        (tmp_path / "README.md").unlink(missing_ok=True)
        if before is not None:
            (tmp_path / "README.md").write_text(before)
        file = write_block(tmp_path, card_of(found))
        once = file.read_text()
        assert once == (made if before is None else f"{before}\n{made}")
        file.write_text(once + "\n## More\n")
        write_block(tmp_path, card_of(found, limit=3))
        again = file.read_text()
        assert again.endswith(f"{END}\n\n## More\n") and again.count(BEGIN) == 1 and "only the first 3 rows" in again
        write_block(tmp_path, card_of(found))
        assert file.read_text() == once + "\n## More\n"
    file.write_text(f"{END} {BEGIN}")
    with pytest.raises(StorageError, match="not once each"):
        write_block(tmp_path, card_of(found))


class Page(HTMLParser):
    """The tags of a page, and what they refer to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.text = [], [], set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.ids |= {found["id"]} if "id" in found else set()

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else_and_shows_hostile_names_as_text(found, tmp_path):
    hostile = "<script>alert(1)</script>\u202e"
    write(
        tmp_path / "a.jsonl",
        [row | {"source": hostile} for row in JUDGEBENCH],
    )
    own = find(tmp_path)
    card = card_of(own, limit=2) | {"model": hostile}
    page = Page(text := render(card))
    assert "script" not in page.tags and "<script>alert" not in text and "\u202e" not in text and "\\u202e" in text
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert "A quick look" in page.text and "Not in the folder: RewardBench 2" in page.text
    assert "<script" not in block(card)
    whole = Page(render(card_of(found))).text
    for one in card_of(found)["benchmarks"].values():
        assert one["name"] in whole and f"{100 * one['overall']['score']:.1f} %" in whole


def test_published_figures_have_a_source_and_a_benchmark():
    for one in published():
        assert one.keys() == {"benchmark", "model", "score", "source"} and one["benchmark"] in BY_KEY
        assert 0 < one["score"] < 100 and one["source"]
    assert len(set(SUBSETS)) == len(SUBSETS) == 23
