"""Text that no person finished: unfilled templates, blanks, a model speaking about itself, scans read wrongly.

By rules, over the wanted replies and documents, outside code; English and Chinese. What rules cannot see (fluent
nonsense, Chinese scans) a model may: `data_formats.cleaning.perplexity`. A reply that was asked for a model letter has
its blanks rightly, and an assistant may say what it is: "keep" counts only, and `kinds` chooses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import wanted_texts
from data_formats.records import Record

Kind = Literal["template", "blank", "assistant", "ocr"]
KINDS: tuple[Kind, ...] = ("template", "blank", "assistant", "ocr")
MIN_OCR_WORDS = 20  # fewer say nothing about a share
MAX_OCR_SHARE = 0.08  # of the words that look misread
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]{0,500}`", re.DOTALL)
_AROUND = 24

# {{name}}, <<NAME>>, %NAME%, [INSERT …], lorem ipsum; not LaTeX's braces, not GSM8K's <<48/2=24>>, not a calculation.
_TEMPLATE = re.compile(
    r"(?<![\\$^_}{\w])\{\{ {0,3}[^\W\d][\w .|-]{0,40}\}\}(?!\})|<<[A-Z][A-Z_ ]{1,40}>>|(?<!\w)%[A-Z][A-Z_]{2,30}%"
    r"|[\[<](?:INSERT|FILL|PLACEHOLDER|TBD|TODO)\b[^\]>\n]{0,80}[\]>]"
    r"|\[(?:[Ii]nsert|[Ff]ill in|[Pp]laceholder)\b[^\]\n]{0,80}\]"
    r"|[【\[（(](?:插入|填写|请填|在此处?(?:插入|填写))[^】\]）)\n]{0,40}[】\]）)]|\b(?i:lorem ipsum)\b"
)
_BLANK_NOUN = (
    r"(?:your|my|the|our|their|recipient|recruiter|sender|customer|client|company|manager|candidate|employee|friend|contact|"
    r"product|job|hiring|first|last|full)"
)
_BLANK = re.compile(
    rf"\[(?:{_BLANK_NOUN}['’]?s?[ _-][\w '’/_-]{{1,40}}"
    r"|user|name|names|date|address|title|company|position|city|phone|email|email address|phone number|amount"
    r"|signature)\](?![\(:])"
    r"|[\[【](?:你的|您的|我的|收件人|发件人|用户|公司|客户|姓名|名字|日期|地址|职位|电话|联系|产品|时间|地点|具体)[^\]】\n]{0,16}[\]】]"
    r"|(?<![A-Za-z])[Xx]{2,4}(?=公司|先生|女士|经理|大学|有限|部门|学校|项目|同学|老师|产品|医院)|(?<!_)_{5,60}(?!_)",
    re.IGNORECASE,
)
_ASSISTANT = re.compile(
    r"\b(?:as|being|i['’]?m|i am|am) (?:just |only |merely )?an? (?:"
    r"(?:AI|artificial intelligence)(?:[ -](?:language|powered|based))? (?:model|assistant|chatbot|program|system)\b"
    r"|(?:large )?language model\b|(?:virtual|digital) assistant\b|chatbot\b|(?:AI|artificial intelligence)"
    r"(?=[,.;:!?]|$| (?:I|and|that|developed|created|trained|built|designed|without)\b))"
    r"|\bas of my (?:last|latest|most recent) (?:knowledge |training )?(?:update|cut-?off)"
    r"|\bmy (?:knowledge|training) cut-?off"
    r"|作为(?:一[个名款位种])?(?:由\w{1,12}(?:开发|训练)的)?(?:AI|人工智能|大型?语言|语言|大|聊天|虚拟)(?:语言)?"
    r"(?:模型|助手|助理|机器人|程序)|作为(?:一[个名])?(?:AI|人工智能)[，,]"
    r"|我(?:只是|是|叫)[^。！？\n]{0,40}(?:AI|人工智能|大型?语言|语言) ?(?:语言)?(?:模型|助手|助理|机器人|程序)"
    r"|\b[Rr]egenerate response\b|截至我的(?:最后|最近|知识)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\s]{1,64}")
_MOJIBAKE = re.compile(
    r"Ã[\x80-\xbf]|â€[\x80-\xbf™œ“”¦]?|Â[\xa0-\xbf]|(?<=[a-z])Â(?=\s)|ï¿½|锟斤拷|烫烫烫|&(?:apos|quot|nbsp|amp|#\d{1,5});"
)
_MISREAD = re.compile(
    r"[a-z]{2}[0135|!\]\[}{~^¬§\\][a-z]|[a-z][0135|!\]\[}{~^¬§\\][a-z]{2}"  # c0me, wi||, th]s
    r"|^[b-df-hj-np-tv-xz]{5,12}[.,;:]?$|^[~^¬§¦■□\\]{1,4}$"  # no vowel in five letters; lone marks
    r"|[a-z]{2}[A-Z]{1,2}[a-z]{2}[A-Z]|[a-z][,;:][a-z]|[a-z]\.[a-z]{1,12}[.,;:][a-z]"  # woRDsW, wo,rds, w.or.ds
    r"|^(?:t(?:b|li|ii)(?:e|at|is|ey|ere|en)|w(?:b|li)(?:ich|o|ere|en|at)|wit(?:b|li)|(?:li|b)(?:is|im|ave|ad)|ancl|thc)\W?$"
)
_KNOWN = re.compile(r"https?:|www\.|@|\.(?:com|org|net|cn|io|py|js)|^[A-Z]+$|^[<>{}\[\]()=+*/-]|::|->|=|\(\)")
_SPREAD = re.compile(r"(?<![\w'’])(?:[A-Za-z] ){4,40}[A-Za-z](?!\w)")  # t h e  w o r d


def misread_share(text: str) -> float:
    """The share of the words with letters that look misread; letters set apart count as one word each."""
    words = [word for word in _WORD.findall(text) if not _KNOWN.search(word)]
    if len(words) < MIN_OCR_WORDS:
        return 0.0
    spread = sum(len(run[0].split()) for run in _SPREAD.finditer(text))
    return (spread + sum(_MISREAD.search(word) is not None for word in words)) / len(words)


def _search(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def found(text: str) -> str | None:
        at = pattern.search(text)
        return None if at is None else text[max(0, at.start() - _AROUND) : at.end() + _AROUND]

    return found


def _ocr(text: str) -> str | None:
    broken = _MOJIBAKE.search(text)
    if broken is not None:
        return text[max(0, broken.start() - _AROUND) : broken.end() + _AROUND]
    return text if misread_share(text) > MAX_OCR_SHARE else None


_FINDERS: dict[str, tuple[str, Callable[[str], str | None]]] = {
    "template": ("unfilled template", _search(_TEMPLATE)),
    "blank": ("blank to be filled in", _search(_BLANK)),
    "assistant": ("a model speaks of itself", _search(_ASSISTANT)),
    "ocr": ("misread or wrongly encoded", _ocr),
}


class MachineMade:
    """Texts that rules give away as unfinished or made by a machine.

    Args:
        kinds: "template" (`{{name}}`, `[INSERT …]`), "blank" (`[Your Name]`, `_____`), "assistant" ("As an AI language
            model"), "ocr" (misread words, wrong encodings).
        action: "drop" leaves the record out, "keep" counts only.
    """

    name = "machine_made"
    looks_for = "unfilled templates, blanks, a model speaking of itself, misread scans"

    def __init__(self, kinds: Sequence[Kind] = KINDS, action: Literal["drop", "keep"] = "drop"):
        self._kinds = tuple(kinds)
        self._action: Literal["drop", "note"] = "drop" if action == "drop" else "note"

    def check(self, record: Record) -> Finding | None:
        texts = [_CODE.sub(" ", text) for text in wanted_texts(record)]
        for kind in self._kinds:
            reason, find = _FINDERS[kind]
            for text in texts:
                if (excerpt := find(text)) is not None:
                    return Finding(self._action, reason, excerpt)
        return None
