"""What a selection leaves in a folder, and whether what lies there is still the one that is asked for.

`rows.jsonl` has a line a row: its number, cluster, quality, difficulty, their product, of the rows of its cluster that
stood before it and are no duplicates the nearest with its cosine, whether it is kept, or why not. `examples.jsonl`
holds some rows of either kind with their texts, and `summary.json`, written last, the counts, how scores, cosines and
clusters are distributed, and what all of it was made with. The page (`align.report.selection`) is made of the last two.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from align.curation.choosing import DUPLICATE, REASONS
from align.curation.scorer import FindModel
from align.curation.selection import Scores, Selection, select
from align.data.fingerprint import fingerprint
from align.models.named import policy_at, reward_at
from align.recipe.selection_section import SelectionSection
from align.runtime import files
from align.runtime.json_files import Row, each_object, read_object
from align.runtime.made import differing
from align.runtime.terminal import say
from data_formats.cleaning.texts import prompt_text, wanted_texts
from data_formats.records import Record

SUMMARY, ROWS, EXAMPLES = "summary.json", "rows.jsonl", "examples.jsonl"
AGAIN = "remove the folder, and the same command makes it again"
SHOWN, CHARACTERS, BINS = 10, 1200, 24  # rows of each kind; of a text; of a histogram
GROUPS, DRAWN = 12, 200  # categories and sources; clusters


def choose_records(
    records: Sequence[Record], section: SelectionSection, folder: Path, find_model: FindModel = str
) -> tuple[list[int], Row]:
    """Choose among records, unless `folder` holds the same choice already.

    Args:
        records, section, find_model: as of `align.curation.selection.select`, which has the errors too.
        folder: gets the files above.

    Returns:
        The places of the rows that are kept, from 0, in order, and the counts.

    Raises:
        RunFileError: what lies in the folder is damaged.
    """
    made_with = {"selection": section.model_dump(mode="json"), "records": fingerprint(records)}
    made_with["files"] = {key: [path, files.stamp(path)] for key, path in _files(section, find_model).items()}
    former = read_object(folder / SUMMARY, AGAIN)
    if former is not None:
        other = differing(former.get("made_with", {}), made_with)
        if not other:
            return read_choice(folder)
        say(f"{folder} is made anew: other {', '.join(other)}", file=sys.stderr)
        files.remove(folder / SUMMARY)
    selection = select(records, section, folder, find_model)
    files.write_json_lines(folder / ROWS, (asdict(row) for row in selection.rows()))
    files.write_json_lines(folder / EXAMPLES, _examples(selection, records))
    told = {"figures": selection.figures(), "groups": _groups(selection, records)}
    told |= {"distributions": _distributions(selection), "made_with": made_with}
    files.write_json(folder / SUMMARY, told)
    return np.flatnonzero(selection.kept_N).tolist(), told["figures"]


def _files(section: SelectionSection, find_model: FindModel) -> Row:
    """Every model, folder and file by which a section chooses, by key: the model itself where a run or stage of one is
    named."""
    inside = {"quality.model_from": reward_at, "difficulty.model_from": policy_at}
    return {key: inside.get(key, str)(find_model(name)) for key, name in section.models()} | dict(section.files())


def read_choice(folder: Path) -> tuple[list[int], Row]:
    """What `choose_records` gave when it made the folder. Raises RunFileError: it is damaged."""
    figures = (read_object(folder / SUMMARY, AGAIN) or {}).get("figures", {})
    return [at for at, row in enumerate(each_object(folder / ROWS, AGAIN)) if row.get("kept")], figures


def _groups(selection: Selection, records: Sequence[Record]) -> Row:
    """Rows and kept rows by category and by source, the largest first; what has no name is left out."""
    found: Row = {}
    for name in ("category", "source"):
        every, kept = Counter[str](), Counter[str]()
        for record, is_kept in zip(records, selection.kept_N.tolist(), strict=True):
            value = getattr(record, name, "")
            every[value] += 1
            kept[value] += is_kept
        if len(every) > 1:
            found[name] = {value: [count, kept[value]] for value, count in every.most_common(GROUPS) if value}
    return found


def _distributions(selection: Selection) -> Row:
    """Histograms of kept and dropped rows, by what is counted, and of the clusters' sizes."""
    cosine = np.where(selection.choice.nearest_N < 0, np.nan, selection.choice.cosine_N)
    values = {"quality": selection.quality, "difficulty": selection.difficulty, "cosine": cosine.tolist()}
    found = {name: _histogram(told, selection.kept_N) for name, told in values.items() if told is not None}
    sizes = np.bincount(selection.clusters_N)
    kept = np.bincount(selection.clusters_N[selection.kept_N], minlength=len(sizes))
    largest = np.argsort(-sizes, kind="stable")[:DRAWN]
    found = {name: one for name, one in found.items() if one}
    return found | {"clusters": {"rows": sizes[largest].tolist(), "kept": kept[largest].tolist()}}


def _histogram(scores: Scores, kept_N: np.ndarray) -> Row:
    """`edges` of bins and how many rows of either kind lie in each; empty where nothing has a value."""
    values = np.array([np.nan if one is None else one for one in scores], np.float64)
    told = np.isfinite(values)
    if not told.any():
        return {}
    edges = np.histogram_bin_edges(values[told], BINS)
    kept, dropped = (np.histogram(values[told & side], edges)[0].tolist() for side in (kept_N, ~kept_N))
    return {"edges": edges.tolist(), "kept": kept, "dropped": dropped}


def _examples(selection: Selection, records: Sequence[Record]) -> Iterator[Row]:
    """Up to `SHOWN` rows that are kept, as many that are dropped, and as many duplicates beside what they are like:
    those that are the least like it, where the limit is in doubt."""
    fates, cosine = selection.choice.fate_N, selection.choice.cosine_N

    def shown(at: int) -> Row:
        return _shown(selection.row(at), records[at])

    for at in _spread(np.flatnonzero(selection.kept_N), selection, SHOWN):
        yield {"list": "kept", **shown(at)}
    reasons = [np.flatnonzero(fates == fate) for fate in range(1, len(REASONS))]
    reasons = [one for one in reasons if len(one)]
    for number, one in enumerate(reasons):
        share = SHOWN // len(reasons) + (number < SHOWN % len(reasons))
        for at in _spread(one, selection, share):
            yield {"list": "dropped", **shown(at)}
    alike = np.flatnonzero(fates == DUPLICATE)
    for at in alike[np.argsort(cosine[alike], kind="stable")][:SHOWN].tolist():
        beside = shown(int(selection.choice.nearest_N[at]))
        yield {"list": "duplicates", **shown(at), **{f"beside_{key}": value for key, value in beside.items()}}


def _spread(at: np.ndarray, selection: Selection, count: int) -> list[int]:
    """So many of the rows at these places, evenly spread in the order of their worth, the best first."""
    worth = selection.worth
    ordered = at.tolist() if worth is None else sorted(at.tolist(), key=lambda place: (-(worth[place] or 0.0), place))
    count = min(count, len(ordered))
    return [ordered[round(number * (len(ordered) - 1) / max(count - 1, 1))] for number in range(count)]


def _shown(row: Any, record: Record) -> Row:
    """The figures of a `selection.ChosenRow` with its texts, cut where they are long."""
    replies = "\n".join(wanted_texts(record))
    told = {"category": getattr(record, "category", ""), "source": record.source}
    texts = {"prompt": prompt_text(record)[:CHARACTERS], "reply": replies[:CHARACTERS]}
    return {**asdict(row), **told, **texts}
