"""Near-duplicates: exact similarities, what is found and what is kept, and the same result in every run."""

import random
import sys
from itertools import pairwise

import pytest

from align.runtime.errors import MissingPackageError
from data_formats import Demonstration, Document, Message
from data_formats.cleaning import Cleaner, NearDuplicates
from data_formats.cleaning.near import MOST, NearIndex
from data_formats.cleaning.shingles import MinHashBands, jaccard, shingles

DISTINCT = [
    "The mitochondrion is the powerhouse of the cell: it makes the ATP that drives most of its chemistry.",
    "The chloroplast is the solar panel of the plant cell: it makes sugar from light, water and carbon dioxide.",
    "Write a function that returns the sum of the even numbers in a list, and explain how long it takes.",
    "Write a function that returns the longest common prefix of two strings, with an example of its use.",
    "Paris is the capital of France; it lies on the Seine and has about two million inhabitants.",
    "Rome is the capital of Italy; it lies on the Tiber and has about three million inhabitants.",
    "北京是中国的首都，位于华北平原的北部，有三千多年的建城史，人口超过两千万。",
    "上海是中国最大的城市之一，位于长江入海口，是重要的金融中心和港口。",
    "请写一首关于春天的诗，要求押韵，并且提到柳树、燕子和细雨。",
    "请写一首关于冬天的诗，要求有雪花和梅花，长度不超过八行。",
]


def near_copy(text):
    """One small change that a copied row may show."""
    return text.replace(" about ", " some ").replace("。", "！").upper() + " "


def test_similarity_is_that_of_the_sets_of_ngrams():
    rng = random.Random(1)
    for _ in range(50):
        left, right = ("".join(rng.choices("abc 你好", k=rng.randint(1, 40))) for _ in range(2))
        left, right = " ".join(left.split()) or "a", " ".join(right.split()) or "b"
        sets = [{text[at : at + 3] for at in range(max(1, len(text) - 2))} for text in (left, right)]
        expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        assert jaccard(shingles(left, 3, "char"), shingles(right, 3, "char")) == expected


def test_similarity_by_words():
    left, right = "The cat sat on the mat", "the cat, sat on a mat!"  # 5 and 5 bigrams, 3 in common
    assert jaccard(shingles(left, 2, "word"), shingles(right, 2, "word")) == 3 / 7
    assert jaccard(shingles("我爱你", 2, "word"), shingles("我爱他", 2, "word")) == 1 / 3


def test_short_and_empty_texts():
    assert len(shingles("ab", 5, "char")) == 1 and len(shingles("", 5, "char")) == 0
    assert jaccard(shingles("", 5, "char"), shingles("", 5, "char")) == 0
    records = [Document(""), Document(""), Document("ab"), Document("cd"), Document("AB")]
    assert list(Cleaner([NearDuplicates()]).clean(records)) == records[:4]


@pytest.mark.parametrize("unit", ["char", "word"])
def test_near_copies_go_and_the_rest_stays(unit):
    originals = [Document(text) for text in DISTINCT]
    copies = [Document(near_copy(text)) for text in DISTINCT]
    step = NearDuplicates(threshold=0.6, unit=unit, ngram=5 if unit == "char" else 2)
    cleaner = Cleaner([step])
    assert list(cleaner.clean(originals + copies)) == originals
    assert cleaner.report.steps[0].examples["near-duplicate"].startswith("1 ~ 11 (1.00): THE MITO")


def test_just_over_the_threshold_goes_and_just_under_stays():
    base = "".join(chr(0x4E00 + n) for n in range(204))  # 200 different 5-grams
    for changed, stays in ((18, False), (26, True)):  # at the end: J = (200 - c) / (200 + c) = 0.835, 0.770
        other = base[:-changed] + "".join(chr(0x6E00 + n) for n in range(changed))
        kept = list(Cleaner([NearDuplicates(threshold=0.8)]).clean([Document(base), Document(other)]))
        assert (len(kept) == 2) == stays


def test_recall_just_over_the_threshold_is_as_the_bands_promise():
    rng = random.Random(3)
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = ["".join(rng.choices(letters, k=204)) for _ in range(300)]
    pairs = [Document(v) for text in texts for v in (text, text[:-18] + "".join(rng.choices(letters, k=18)))]
    found = len(pairs) - len(list(Cleaner([NearDuplicates(threshold=0.8)]).clean(pairs)))
    # J = 182 / 218; 14 bands of 9 hashes: 1 - (1 - J^9)^14 = 0.954, so 286 are expected, standard deviation 3.6
    assert found >= 268


def test_the_same_in_every_run_and_the_seed_is_of_no_great_matter():
    records = [Document(text) for text in (*DISTINCT, *map(near_copy, DISTINCT))]
    kept = [list(Cleaner([NearDuplicates(threshold=0.6, seed=seed)]).clean(records)) for seed in (1, 1, 2)]
    assert kept[0] == kept[1] == kept[2] == records[:10]


def test_bands_do_not_change_between_versions_and_processes():
    bands = MinHashBands(num_perm=32, threshold=0.5, seed=1)(shingles("pinned text", 5, "char"))
    assert bands[:2] == [-2344044007673553566, 6389147625123917982]


def test_a_signature_is_the_least_permuted_hash_however_long_the_text():
    """The definition, in Python's numbers, of more n-grams than are permuted at once."""
    bands = MinHashBands(num_perm=32, threshold=0.5, seed=1)
    own = shingles("".join(random.Random(0).choices("abcdefgh", k=6000)), 5, "char")
    assert len(own) > 4096
    permutations = zip(bands._factors.ravel().tolist(), bands._offsets.ravel().tolist(), strict=True)
    hashes = [int(value) >> 32 for value in own]
    assert bands.signature(own).tolist() == [min((a * h + b) % 2**32 for h in hashes) for a, b in permutations]
    assert len(set(bands(own))) == bands.bands


def test_verdicts_are_those_of_comparing_each_text_with_all_kept_ones():
    rng = random.Random(5)
    texts = ["".join(rng.choices("abcdefghij ", k=rng.randint(40, 120))) for _ in range(60)]
    texts += [text[:-2] + "zz" for text in rng.choices(texts, k=60)]
    rng.shuffle(texts)
    index, expected, kept = NearIndex(threshold=0.7), [], {}
    for number, text in enumerate(texts, start=1):
        own = shingles(text, 5, "char")
        near = [one for one, other in kept.items() if jaccard(own, other) >= 0.7]
        kept |= {} if near else {number: own}
        expected.append(near or [number])
    assert all(len(near) == 1 for near in expected) and len(kept) < 100
    assert [[index.leader(text)[0]] for text in texts] == expected


def test_a_row_of_a_template_costs_no_more_when_many_came_before():
    """Every text shares bands with every other; the index of a band stops growing, and so does what is looked at."""
    head = "".join(chr(0x4E00 + at) for at in range(400))
    index = NearIndex(threshold=0.95, num_perm=32)
    texts = [head + "".join(chr(0x6E00 + 40 * number + at) for at in range(40)) for number in range(3 * MOST)]
    assert [index.leader(text)[0] for text in texts] == list(range(1, len(texts) + 1))
    sizes = [count for (count,) in index._store.select("SELECT COUNT(*) FROM band GROUP BY hash", ())]
    assert max(sizes) == MOST
    assert index.leader(texts[0])[0] == 1 and index.leader(texts[-1] + "x")[0] == len(texts)


def test_by_prompt_or_by_all():
    long = " ".join(DISTINCT[:4])
    records = [Demonstration((Message("user", long), Message("assistant", reply))) for reply in DISTINCT[4:]]
    assert len(list(Cleaner([NearDuplicates(of="prompt")]).clean(records))) == 1
    assert len(list(Cleaner([NearDuplicates(threshold=0.95)]).clean(records))) == len(records)


def test_a_chain_of_copies_is_judged_by_what_was_kept():
    chain = ["".join(chr(0x4E00 + n + 12 * link) for n in range(204)) for link in range(4)]
    neighbours = [jaccard(shingles(a, 5, "char"), shingles(b, 5, "char")) for a, b in pairwise(chain)]
    assert all(value > 0.85 for value in neighbours)
    kept = list(Cleaner([NearDuplicates(threshold=0.85)]).clean(map(Document, chain)))
    assert kept == [Document(chain[0]), Document(chain[2])]  # the second is near the first, the third is not


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'align-rlhf\[dedup\]', or drop near_duplicates"):
        NearDuplicates()
