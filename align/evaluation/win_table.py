"""Win rates as tables of text: for a terminal, and in Markdown. Every table says by whom it was judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.evaluation.table import percent
from align.runtime.table import table

Part = Mapping[str, Any]
COUNTS = ("won", "tied", "lost", "win share", "95 % interval", "at equal length", "95 % interval")


@dataclass(frozen=True, slots=True)
class WinTable:
    """A table and the sentence over it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    def text(self) -> str:
        """For a terminal."""
        return f"{self.title}\n\n{table(self.header, self.rows)}\n" if self.rows else f"{self.title}\n"

    def markdown(self) -> str:
        """For a page."""
        if not self.rows:
            return f"{self.title}\n"
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        cells = ("|".join(f" {str(cell).replace('|', chr(92) + '|')} " for cell in line) for line in lines)
        return f"{self.title}\n\n" + "".join(f"|{line}|\n" for line in cells)


def tables(result: Part, *, whole: bool = False) -> Iterator[WinTable]:
    """The tables of what `align eval` found (`wins.json`).

    Args:
        whole: also every two models by category where there are more than two.
    """
    several = len(result["contestants"]) > 2
    for judged in result["judges"].values():
        if several:
            yield _matrix(judged, list(result["contestants"]))
            yield _ranking(judged)
        for match in judged["matches"] if whole or not several else ():
            yield _match(match)
    if len(result["judges"]) > 1:
        yield _by_judge(result["judges"])
    if result["agreement"] is not None:
        yield agreement_table(result["agreement"])


def _match(match: Part) -> WinTable:
    title = f"{match['second']} against {match['first']}, judged by {match['judged_by']}: {counted(match)}"
    rows = [("all", *_cells(match))]
    rows += [(name, *_cells(part)) for name, part in match["by_category"].items()]
    return WinTable(title, ("category", *COUNTS), rows)


def counted(part: Part) -> str:
    """`900 judgments on 300 prompts, 3 without a verdict, 2 pairs not judged`."""
    said = [f"{_number(part['judgments'], 'judgment')} on {_number(part['prompts'], 'prompt')}"]
    if part["no_verdict"]:
        said.append(f"{part['no_verdict']} more without a verdict")
    if part["unjudged"]:
        said.append(f"{_number(part['unjudged'], 'pair')} of replies not judged")
    return ", ".join(said)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _cells(part: Part) -> tuple[object, ...]:
    alike = part["length_controlled"] or {"win_share": None, "low": None, "high": None}
    return (part["win"], part["tie"], part["loss"], *_share(part), *_share(alike))


def _share(part: Part) -> tuple[str, str]:
    if part["win_share"] is None:
        return "", ""
    return percent(part["win_share"]), f"{100 * part['low']:.1f} to {percent(part['high'])}"


def _matrix(judged: Part, names: Sequence[str]) -> WinTable:
    shares = {}
    for match in judged["matches"]:
        if match["win_share"] is not None:
            shares[match["second"], match["first"]] = percent(match["win_share"])
            shares[match["first"], match["second"]] = percent(1 - match["win_share"])
    rows = [(one, *(shares.get((one, other), "") for other in names)) for one in names]
    title = f"what each row won of the column (a tie is half a win), judged by {judged['judged_by']}"
    return WinTable(title, ("", *names), rows)


def _ranking(judged: Part) -> WinTable:
    rows = [
        (row["model"], row["judgments"], *(cell for key in ("bradley_terry", "elo") for cell in _points(row, key)))
        for row in judged["ranking"]
    ]
    scale = "1000 is the mean of strengths and the first rating"
    title = f"ranked by Bradley-Terry with ties, and by Elo ({scale}), judged by {judged['judged_by']}"
    return WinTable(title, ("model", "judgments", "Bradley-Terry", "95 % interval", "Elo", "95 % interval"), rows)


def _points(row: Part, key: str) -> tuple[str, str]:
    value, low, high = row[key], row[f"{key}_low"], row[f"{key}_high"]
    interval = "" if low is None else f"{low:.0f} to {high:.0f}"
    return ("", "") if value is None else (f"{value:.0f}", interval)


def _by_judge(judges: Mapping[str, Part]) -> WinTable:
    rows = [
        (name, match["second"], match["first"], *_cells(match))
        for name, judged in judges.items()
        for match in judged["matches"]
    ]
    return WinTable("the same replies by each judge", ("judge", "model", "against", *COUNTS), rows)


def agreement_table(found: Part) -> WinTable:
    """How far those agree who judged the same (`align.evaluation.ranking.agreement`)."""
    said = [f"agreement of all who judged: {_alpha(found)}"]
    said += [f"among those of {name}: {_alpha(part)}" for name, part in found["within"].items()]
    rows = [
        (one["first"], one["second"], percent(one["equal"]), one["number"])
        for one in found["between"]
        if one["equal"] is not None
    ]
    return WinTable("; ".join(said), ("judge", "judge", "same verdict", "of"), rows)


def _alpha(part: Part) -> str:
    of = f"on {_number(part['units'], 'pair')} of replies that more than one judged"
    if part["alpha"] is None:
        return f"not to be told {of}"
    interval = "" if part["low"] is None else f" ({part['low']:.2f} to {part['high']:.2f})"
    return f"Krippendorff's alpha {part['alpha']:.2f}{interval} {of}"
