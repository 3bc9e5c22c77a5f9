"""How many rows a run trains on and a hash of them: whether it resumes on the data it was begun with."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import Any

from align.data.packing import PackedRows

Fingerprint = dict[str, Any]


def fingerprint(rows: Any) -> Fingerprint:
    """`rows`, their number, and `sha256` of their content in order; of a dataset that may draw its rows anew each time
    (no list) the number alone."""
    rows = rows.rows if isinstance(rows, PackedRows) else rows
    if not isinstance(rows, list | tuple):
        return {"rows": len(rows) if hasattr(rows, "__len__") else None, "sha256": None}
    digest = hashlib.sha256()
    for row in rows:
        _take(digest, row)
    return {"rows": len(rows), "sha256": digest.hexdigest()}


def difference(was: Any, now: Fingerprint) -> str | None:
    """What tells two fingerprints apart, in words; None where nothing does."""
    if not isinstance(was, dict) or was == now:
        return None
    if was.get("rows") != now["rows"]:
        return f"{was.get('rows')} rows, now there are {now['rows']}"
    return f"{now['rows']} rows, now there are others" if was.get("sha256") and now["sha256"] else None


def _take(digest: Any, value: Any) -> None:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            _take(digest, str(key))
            _take(digest, value[key])
    elif isinstance(value, list | tuple):
        _take_all(digest, value)
    elif hasattr(value, "tolist"):
        _take(digest, value.tolist())
    else:
        digest.update(repr(value).encode("utf-8", "surrogatepass") + b"\n")


def _take_all(digest: Any, values: Sequence[Any]) -> None:
    digest.update(b"[%d]" % len(values))
    try:
        digest.update(array("q", values).tobytes())  # token ids, a thousand times faster than one by one
    except (TypeError, OverflowError):
        for value in values:
            _take(digest, value)
