"""What duplicate removal must remember, in a private temporary file, so that memory stays flat."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Sequence
from typing import Any

from align.runtime.errors import StorageError

CACHE_KIB = 8192  # of memory per store; the rest is on disk


class Store:
    """Tables of SQLite in a file without a name, deleted with the store (it lies in SQLITE_TMPDIR, else TMPDIR).

    Raises:
        StorageError: the disk is full.
    """

    def __init__(self, *tables: str):
        # check_same_thread: a generator may be advanced by another thread than the one that made it; never by two.
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._connection.close)
        for setting in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", f"cache_size=-{CACHE_KIB}"):
            self._connection.execute(f"PRAGMA {setting}")
        for table in tables:
            self._connection.execute(f"CREATE TABLE {table}")
        self._connection.execute("BEGIN")

    def add(self, statement: str, values: Sequence[Any]) -> bool:
        """Insert one row; whether it went in (with OR IGNORE, False where the key was there)."""
        return self._do(self._connection.execute, statement, values).rowcount == 1

    def add_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows."""
        self._do(self._connection.executemany, statement, rows)

    def select(self, statement: str, values: Sequence[Any]) -> list[Any]:
        """The rows that a query finds."""
        return self._do(self._connection.execute, statement, values).fetchall()

    @staticmethod
    def _do(action: Any, statement: str, values: Any) -> Any:
        try:
            return action(statement, values)
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"the temporary file of duplicate removal failed ({error}); point TMPDIR to a folder with free space"
            ) from None
