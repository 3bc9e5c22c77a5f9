"""Items for other annotation tools, and what people said there as judgments: CSV, Argilla 2, Label Studio.

Their replies are called reply_1, reply_2, … in the order of the file, and so are the columns, fields and answers:

    csv           a row an item; to be filled in: annotator, ranking ("2 > 1 = 3"; whom it leaves out comes last),
                  strength, all_bad (yes), unsafe ("1, 3"), edited (the best reply, rewritten) and comment
    argilla       records.json (`dataset.records.from_json`) and settings.json (`rg.Settings.from_json`); back comes
                  what `dataset.records.to_json` writes, which tells an order without ties
    label-studio  tasks.json, to be imported, and labels.xml, the labelling interface: a `Ranker` with a bucket a rank;
                  back comes the JSON export, in which a `Pairwise` of one's own interface is read too

A judgment's id is made of what it says, so that what is imported twice counts once.
"""

from __future__ import annotations

import csv
import io
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from align.feedback.item_files import conversation_text
from align.feedback.items import FeedbackItem
from align.feedback.judgments import STRENGTHS, HumanJudgment, JudgmentError, judgment_of
from align.runtime import files
from align.runtime.errors import StorageError
from align.runtime.json_files import Row, number
from align.runtime.paths import typed_path
from data_formats.errors import DataError
from data_formats.files import raw_rows
from data_formats.formats import keys_of, shown

SAID = ("annotator", "ranking", "strength", "all_bad", "unsafe", "edited", "comment")
ALL_BAD = "all bad"
# What a spreadsheet would compute, or rewrite as a number or date; before it stands `'`, our mark of such cells.
_COMPUTED = re.compile(r"'*([=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]|\d[\d.,:/eE+-]*$)")
_NO_XML = re.compile("[^\\t\\n\\r -\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")  # what XML 1.0 cannot hold
_GIVEN_UP = ("draft", "discarded")


def _named(at: int) -> str:
    return f"reply_{at + 1}"


def _names(items: Sequence[FeedbackItem]) -> list[str]:
    return [_named(at) for at in range(max((len(item.replies) for item in items), default=0))]


# ---- to the tools


def export_items(items: Sequence[FeedbackItem], tool: str, folder: str | Path, guideline: str = "") -> list[Path]:
    """Writes the items as one of `TOOLS` takes them; the files.

    Raises:
        StorageError: the folder cannot be written to, or holds files of these names with another content.
    """
    texts = {Path(folder) / name: text for name, text in TOOLS[tool](items, guideline).items()}
    for file, text in texts.items():
        if file.exists() and file.read_bytes() != text.encode("utf-8", "backslashreplace"):
            told = "holds something else, which somebody may have filled in: move it away, or name a folder with --out"
            raise StorageError(f"{file} {told}")
    for file, text in texts.items():
        files.write_text(file, text)
    return list(texts)


def _texts(item: FeedbackItem) -> dict[str, str]:
    return {"prompt": conversation_text(item.prompt)} | {_named(at): one.reply for at, one in enumerate(item.replies)}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _as_csv(items: Sequence[FeedbackItem], guideline: str) -> dict[str, str]:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    columns = ["prompt", *_names(items)]
    table.writerow(["item", *columns, *SAID])
    for item in items:
        texts = _texts(item)
        cells = [item.id, *(texts.get(column, "") for column in columns)]
        table.writerow([f"'{cell}" if _COMPUTED.match(cell) else cell for cell in cells] + [""] * len(SAID))
    return {"replies.csv": file.getvalue()}


def _as_argilla(items: Sequence[FeedbackItem], guideline: str) -> dict[str, str]:
    def field(name: str, required: bool) -> Row:
        return {"name": name, "title": name, "required": required, "settings": {"type": "text", "use_markdown": False}}

    def question(name: str, title: str, settings: Row) -> Row:
        return {"name": name, "title": title, "required": name == "ranking", "settings": settings}

    def options(values: Sequence[str]) -> list[Row]:
        return [{"value": one, "text": one} for one in values]

    names = _names(items)
    questions = [
        question("ranking", "From the best to the worst", {"type": "ranking", "options": options(names)}),
        question("strength", "By how much?", {"type": "label_selection", "options": options(STRENGTHS[::-1])}),
        question("all_bad", "All bad?", {"type": "label_selection", "options": options([ALL_BAD, "no"])}),
        question("unsafe", "Unsafe", {"type": "multi_label_selection", "options": options(names)}),
        question("edited", "The best one, rewritten", {"type": "text", "use_markdown": False}),
        question("comment", "Comment", {"type": "text", "use_markdown": False}),
    ]
    fields = [field(name, at < 3) for at, name in enumerate(["prompt", *names])]
    settings = {"guidelines": guideline or None, "allow_extra_metadata": False, "fields": fields}
    settings |= {"questions": questions, "metadata": [], "vectors": []}
    records = [
        {"id": item.id, "fields": _texts(item), "metadata": {}, "suggestions": {}, "responses": {}, "vectors": {}}
        for item in items
    ]
    return {"records.json": _json(records), "settings.json": _json(settings)}


def _as_label_studio(items: Sequence[FeedbackItem], guideline: str) -> dict[str, str]:
    names = _names(items)
    tasks = []
    for item in items:
        prompt, *replies = _texts(item).items()
        listed = [{"id": name, "title": name, "body": text} for name, text in replies]
        tasks.append({"data": {"item": item.id, "prompt": prompt[1], "replies": listed}})

    def choices(name: str, kind: str, values: Sequence[str]) -> list[str]:
        inside = "".join(f"<Choice value={quoteattr(value)}/>" for value in values)
        return [f'  <Choices name="{name}" toName="prompt" choice="{kind}">{inside}</Choices>']

    buckets = "".join(f'<Bucket name="rank_{at + 1}" title="Rank {at + 1}"/>' for at in range(len(names)))
    lines = ["<View>", *([f"  <Header value={quoteattr(_NO_XML.sub('', guideline))}/>"] if guideline else [])]
    lines += ['  <Text name="prompt" value="$prompt"/>', '  <List name="replies" value="$replies" title="Replies"/>']
    lines += [f'  <Ranker name="ranking" toName="replies">{buckets}</Ranker>']
    lines += choices("strength", "single-radio", STRENGTHS[::-1])
    lines += choices("all_bad", "multiple", [ALL_BAD]) + choices("unsafe", "multiple", names)
    for name in ("edited", "comment"):
        words = {"edited": "the best reply, rewritten", "comment": "comment"}[name]
        lines += [f'  <TextArea name="{name}" toName="prompt" maxSubmissions="1" rows="3" placeholder="{words}"/>']
    return {"tasks.json": _json(tasks), "labels.xml": "\n".join([*lines, "</View>", ""])}


TOOLS = {"csv": _as_csv, "argilla": _as_argilla, "label-studio": _as_label_studio}


# ---- back from them


def import_judgments(items: Sequence[FeedbackItem], path: str | Path) -> tuple[list[HumanJudgment], int]:
    """What people said of the items in a tool's export, and how many rows nobody has annotated.

    Raises:
        MissingFileError: no such file.
        DataError: another shape, an item that is not among these, or an answer that cannot be read; names the row.
    """
    by_id, found, empty = {item.id: item for item in items}, {}, 0
    for line, row in raw_rows(typed_path(path)):
        try:
            name, answers = _answers(row)
            said = list(answers)
            if said and (not isinstance(name, str) or name not in by_id):
                raise DataError(f"the item {shown(name)} is not among the {len(by_id)} items", field="item")
            for one in said:
                judgment = _judgment(by_id[name], one)
                found[judgment.id] = judgment
            empty += not said
        except DataError as error:
            raise DataError(error.problem, path=path, line=line, field=error.field) from None
        except JudgmentError as error:
            raise DataError(str(error), path=path, line=line) from None
    return list(found.values()), empty


def _answers(row: Any) -> tuple[Any, Iterator[Row]]:
    """The item of a row, and of each person the answers by question."""
    if isinstance(row, dict) and isinstance(row.get("fields"), dict):
        return row.get("id") or row.get("external_id"), _from_argilla(row)
    if isinstance(row, dict) and isinstance(row.get("data"), dict):
        return row["data"].get("item"), _from_label_studio(row)
    if isinstance(row, dict) and {"item", "ranking", "annotator"} <= row.keys():
        item = str(row["item"])
        return item[1:] if item[:1] == "'" and _COMPUTED.match(item[1:]) else item, _from_csv(row)
    told = "expected Argilla's `fields`, Label Studio's `data`, or columns `item`, `annotator` and `ranking`"
    raise DataError(f"{told}; found {keys_of(row)}")


def _from_csv(row: Row) -> Iterator[Row]:
    said = {name: str(row.get(name) or "").strip() for name in SAID}
    if not said["ranking"] and not said["all_bad"]:
        return
    ranks = [re.split(r"[=,]", rank) for rank in said["ranking"].split(">")] if said["ranking"] else []
    if said["all_bad"].lower() not in ("", "yes", "no", "true", "false", "1", "0"):
        raise DataError(f"expected yes or no, found {shown(said['all_bad'])}", field="all_bad")
    yield said | {
        "strength": said["strength"].lower(),
        "marked": True,
        "ranking": [[_numbered(one) for one in rank] for rank in ranks],
        "all_bad": said["all_bad"].lower() in ("yes", "true", "1"),
        "unsafe": [_numbered(one) for one in re.split(r"[,; ]+", said["unsafe"]) if one],
    }


def _numbered(text: str) -> str:
    """ "2" and "reply_2" are the second reply."""
    return f"reply_{text.strip().removeprefix('reply_')}"


def _from_argilla(row: Row) -> Iterator[Row]:
    """Responses by question, {question: [{value, user_id, status}]}, or by person, [{values: {question: {value}}}]."""
    people: dict[str, Row] = {}
    given = row.get("responses") or {}
    if isinstance(given, Mapping):
        each = [(name, one, one) for name, answers in given.items() for one in _objects(answers, f"responses.{name}")]
    else:
        each = [
            (name, one, person)
            for person in _objects(given, "responses")
            for name, one in _object(person.get("values") or {}, "responses.values").items()
        ]
    for name, one, person in each:
        if str(person.get("status") or "submitted").lower() not in _GIVEN_UP and isinstance(one, dict):
            people.setdefault(_who(person.get("user_id"), "user_id"), {})[name] = one.get("value")
    for person, said in people.items():  # who has to rank all names there are, also where an item has fewer replies
        ranking = [_there(row, rank, "ranking") for rank in _ranks(said.get("ranking") or [])]
        unsafe = _there(row, _texts_in(said.get("unsafe") or [], "unsafe"), "unsafe")
        bad = said.get("all_bad") == ALL_BAD
        if any(ranking) or bad:
            yield said | {"annotator": person, "ranking": ranking, "unsafe": unsafe, "all_bad": bad}


def _there(row: Row, names: Sequence[str], field: str) -> list[str]:
    """Those of the names of replies that the record has."""
    if unknown := [name for name in names if not re.fullmatch(r"reply_\d+", name)]:
        raise DataError(f"expected names like reply_1, found {shown(unknown[0])}", field=field)
    return [name for name in names if name in row["fields"]]


def _ranks(value: Any) -> list[list[str]]:
    """Names in order, or [{value, rank}] with ties."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return [[one] for one in value]
    ranks: dict[float, list[str]] = {}
    for at, one in enumerate(_objects(value, "ranking")):
        rank = number(one.get("rank"))
        ranks.setdefault(float(at) if rank is None else rank, []).append(str(one.get("value")))
    return [ranks[rank] for rank in sorted(ranks)]


def _from_label_studio(row: Row) -> Iterator[Row]:
    for annotation in _objects(row.get("annotations") or [], "annotations"):
        who = annotation.get("completed_by")
        who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
        said: Row = {"seconds": number(annotation.get("lead_time"))}
        for result in _objects(annotation.get("result") or [], "annotations.result"):
            value = result.get("value")
            value = value if isinstance(value, dict) else {}
            match result.get("type"), result.get("from_name"):
                case "ranker", _:
                    said["ranking"] = _buckets(value.get("ranker"))
                case "pairwise", _:
                    sides = ["reply_1", "reply_2"] if value.get("selected") == "left" else ["reply_2", "reply_1"]
                    said["ranking"] = [[side] for side in sides]
                case "choices", "strength" | "all_bad" | "unsafe" as name:
                    said[name] = _texts_in(value.get("choices") or [], name)
                case "textarea", "edited" | "comment" as name:
                    text = value.get("text")
                    said[name] = "\n".join(_texts_in(text, name)) if isinstance(text, list) else text
        said |= {"strength": next(iter(said.get("strength", [])), None), "all_bad": ALL_BAD in said.get("all_bad", [])}
        if not annotation.get("was_cancelled") and (said.get("ranking") or said["all_bad"]):
            yield said | {"annotator": _who(who, "completed_by")}


def _buckets(value: Any) -> list[list[str]]:
    """A bucket a rank, or one list in order; `_` holds what was put nowhere."""
    if isinstance(value, list):
        return _ranks(value)
    if not isinstance(value, dict):
        raise DataError(f"expected buckets or a list, found {shown(value)}", field="ranker")
    ranked = {name: names for name, names in value.items() if re.fullmatch(r"rank_\d+", name) and names}
    if not ranked and len(value) == 1:
        return _ranks(next(iter(value.values())))
    return [_texts_in(ranked[name], name) for name in sorted(ranked, key=lambda name: int(name[5:]))]


def _who(value: Any, field: str) -> str:
    """The name of an annotator, which may be a number."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"expected who annotated, found {shown(value)}", field=field)
    return str(value)


def _object(value: Any, field: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"expected an object, found {shown(value)}", field=field)
    return value


def _texts_in(value: Any, field: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise DataError(f"expected a list of texts, found {shown(value)}", field=field)
    return value


def _objects(value: Any, field: str) -> list[Row]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"expected a list of objects, found {shown(value)}", field=field)
    return value


def _judgment(item: FeedbackItem, said: Row) -> HumanJudgment:
    """Raises JudgmentError, or DataError where a reply is named that there is not."""
    ids = {_named(at): one.id for at, one in enumerate(item.replies)}
    ranks, unsafe = said.get("ranking") or [], said.get("unsafe") or []
    if unknown := [name for rank in (*ranks, unsafe) for name in rank if name not in ids]:
        raise DataError(f"there is no {shown(unknown[0])} among the item's {len(ids)} replies", field="ranking")
    ranking = [[ids[name] for name in rank] for rank in ranks if rank]
    left = [one for one in ids.values() if not any(one in rank for rank in ranking)]
    ranking += [left] if ranking and left else []
    best = ranking[0][0] if ranking else next(iter(ids.values()))
    for name in ("edited", "comment"):
        if not isinstance(said.get(name) or "", str):
            raise DataError(f"expected a text, found {shown(said[name])}", field=name)
    text = said.get("edited") or ""
    if said.get("marked") and text[:1] == "'" and _COMPUTED.match(item.reply(best).reply):
        text = text[1:]  # the mark of the cell that was rewritten
    changed = text.strip() and text.strip() != item.reply(best).reply.strip()
    content = {
        "item": item.id,
        "annotator": str(said["annotator"]).strip(),
        "shown": list(ids.values()),
        "ranking": ranking,
        "strength": (said.get("strength") or None) if len(ranking) > 1 else None,
        "all_bad": bool(said.get("all_bad")),
        "unsafe": [ids[name] for name in unsafe],
        "edited": {"of": best, "text": text} if changed else None,
        "comment": said.get("comment") or "",
    }
    key = str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content)))
    return judgment_of({"id": key, "seconds": max(said.get("seconds") or 0.0, 0.0), **content})
