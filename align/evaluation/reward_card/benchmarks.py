"""The benchmarks: how the files of each are known, read, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from align.evaluation.reward_card import formulas, rows
from align.evaluation.reward_card.cases import Case
from align.evaluation.reward_card.formulas import Formula
from align.evaluation.reward_card.rows import Place, Row
from data_formats.transcripts import starts_as_transcript


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A public benchmark.

    Attributes:
        fits: whether a row, in a file of this name, is one of its rows.
        formula: said in `counted`, with its source.
        splits: of the split that is counted, its names in the order in which they are preferred. Empty: the files are
            all there is.
        published_rows: of the whole benchmark; None where its rows depend on what is downloaded.
    """

    key: str
    name: str
    fits: Callable[[Row, str], bool]
    read: Callable[[Row, Place], Case]
    formula: Formula
    counted: str
    source: str
    splits: tuple[str, ...] = ()
    published_rows: int | None = None


def _has(row: Row, kind: type, *fields: str) -> bool:
    return all(isinstance(row.get(field), kind) for field in fields)


def _is_prior(row: Row, file: str) -> bool:
    return rows.prior_set(file) is not None and _has(row, str, "chosen", "rejected") and "prompt" in row


def _is_hh(row: Row, file: str) -> bool:
    return _has(row, str, "chosen", "rejected") and starts_as_transcript(row["chosen"]) and "prompt" not in row


SPLITS = ("test", "validation", "val")
BENCHMARKS: tuple[Benchmark, ...] = (  # the first that fits; those told by most fields come first
    Benchmark(
        "rewardbench2",
        "RewardBench 2",
        lambda row, file: "subset" in row and _has(row, list, "chosen", "rejected"),
        rows.rewardbench2,
        formulas.rewardbench2,
        "mean of six subsets: best of 4 (a shared first place earns its part of 1), Ties by accuracy and margins",
        "Malik et al. 2025, allenai/reward-bench-2",
        published_rows=1865,
    ),
    Benchmark(
        "rm_bench",
        "RM-Bench",
        lambda row, file: "domain" in row and _has(row, list, "chosen", "rejected"),
        rows.rm_bench,
        formulas.rm_bench,
        "mean of four domains, each over the nine pairs of styles of every prompt",
        "Liu et al. 2024, THU-KEG/RM-Bench",
        published_rows=1327,
    ),
    Benchmark(
        "prior_sets",
        "RewardBench 1's prior sets",
        _is_prior,
        rows.prior,
        formulas.prior_sets,
        f"mean of {', '.join(formulas.PRIOR_SETS)}",
        "Lambert et al. 2024, allenai/pref-test-sets",
    ),
    Benchmark(
        "rewardbench",
        "RewardBench 1",
        lambda row, file: _has(row, str, "chosen", "rejected", "subset"),
        rows.rewardbench,
        formulas.rewardbench,
        "mean of four sections, each the mean of its subsets by the published weights",
        "Lambert et al. 2024, allenai/reward-bench",
        splits=("filtered",),
        published_rows=2985,
    ),
    Benchmark(
        "judgebench",
        "JudgeBench",
        lambda row, file: {"response_A", "response_B", "label"} <= row.keys(),
        rows.judgebench,
        formulas.of_pairs("source", "replies by"),
        "share of all pairs (micro average)",
        "Tan et al. 2024, ScalerLab/JudgeBench",
        published_rows=620,
    ),
    Benchmark(
        "ppe_correctness",
        "PPE correctness",
        lambda row, file: {"scores", "response_1", "sampled_conflict_pairs"} <= row.keys(),
        rows.ppe_correctness,
        formulas.ppe_correctness,
        "mean over the sets of the share of the published pairs of a right and a wrong answer",
        "Frick et al. 2024, lmarena-ai/PPE-*-Best-of-K",
    ),
    Benchmark(
        "helpsteer2",
        "HelpSteer2 preference",
        lambda row, file: {"preference_strength", "response_1", "response_2"} <= row.keys(),
        rows.helpsteer2,
        formulas.of_pairs("strength"),
        "share of the pairs with a preference",
        "Wang et al. 2024, nvidia/HelpSteer2",
        splits=SPLITS,
    ),
    Benchmark(
        "helpsteer3",
        "HelpSteer3 preference",
        lambda row, file: {"overall_preference", "response1", "response2"} <= row.keys(),
        rows.helpsteer3,
        formulas.of_pairs("strength", "domain"),
        "share of the pairs with a preference",
        "Wang et al. 2025, nvidia/HelpSteer3",
        splits=SPLITS,
    ),
    Benchmark(
        "ppe_preference",
        "PPE human preference",
        lambda row, file: {"winner", "response_1", "response_2", "prompt"} <= row.keys(),
        rows.ppe_preference,
        formulas.of_pairs("language"),
        "share of the pairs that people did not call a tie",
        "Frick et al. 2024, lmarena-ai/PPE-Human-Preference-V1",
    ),
    Benchmark(
        "shp",
        "SHP",
        lambda row, file: {"human_ref_A", "human_ref_B", "labels"} <= row.keys(),
        rows.shp,
        formulas.shp,
        f"share of the pairs whose votes are at least {rows.MIN_RATIO:g} to 1",
        "Ethayarajh et al. 2022, stanfordnlp/SHP",
        splits=SPLITS,
    ),
    Benchmark(
        "hh",
        "HH",
        _is_hh,
        rows.hh,
        formulas.of_pairs("part"),
        "share of all pairs",
        "Bai et al. 2022, Anthropic/hh-rlhf",
        splits=SPLITS,
    ),
)
SHOWN: Sequence[str] = (  # in the order in which they are told
    *("rewardbench2", "rewardbench", "prior_sets", "rm_bench", "judgebench", "ppe_preference", "ppe_correctness"),
    *("helpsteer3", "helpsteer2", "shp", "hh"),
)
BY_KEY = {one.key: one for name in SHOWN for one in BENCHMARKS if one.key == name}
