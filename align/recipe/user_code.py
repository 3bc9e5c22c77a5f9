"""What of the user's own code a recipe names: `path/to/file.py:name`, the path from the working folder, or
`package.module:name`. Said here without running any of it; loaded by `align.stages.user_code`.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from align.runtime.errors import PathError
from align.runtime.packages import is_installed
from align.runtime.paths import typed_path


def spelling_problem(spec: str) -> str | None:
    """Why `spec` is neither `file.py:name` nor `package.module:name`, or None."""
    place, _, name = spec.rpartition(":")
    return None if place and name.isidentifier() else f"'{spec}' must be package.module:name or path/to/file.py:name"


def code_problem(spec: str) -> str | None:
    """What would keep the name from being loaded: no file or package, or a file that does not bind it."""
    if spelling_problem(spec):  # told by the section itself
        return None
    place, _, name = spec.rpartition(":")
    if not place.endswith(".py"):
        package = place.partition(".")[0]
        if not package.isidentifier() or not is_installed(package):
            return f"there is no package '{package}' to import; install it, or name the file (file.py:{name})"
        return None
    try:
        file = typed_path(place)
    except PathError as error:
        return str(error)
    if not file.is_file():
        return f"no such file {file}"
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ast's own words for what is too much
        return f"{file} is not Python ({error})"
    bound = {getattr(node, "name", None) for node in ast.walk(tree)}
    for node in ast.walk(tree):  # blocks too: what they bind is seen when the file is run
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
    return None if name in bound or "*" in bound else f"{file} has no '{name}'"


def content_hash(spec: str) -> str | None:
    """Of the file that `spec` names, 12 hexadecimal digits; None for a package, or where there is no such file."""
    place = spec.rpartition(":")[0]
    try:
        return hashlib.sha256(Path(typed_path(place)).read_bytes()).hexdigest()[:12] if place.endswith(".py") else None
    except (OSError, PathError):
        return None
