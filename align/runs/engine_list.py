"""The vLLM servers of a ppo stage that runs, in a small file beside its checkpoints: `align engine` writes it, the
first rank reads it between iterations.

A file and not a route of the trainer: the trainer listens nowhere, and the list outlives it, so that a run that is
resumed asks the servers that it asked last. From the first change on the file counts and `rollout.vllm.urls` does not.
It holds addresses; the key stays in the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from align.runs.reading import read_recipe
from align.runtime.address import server_problem
from align.runtime.errors import AlignError, MissingFileError
from align.runtime.files import write_json
from align.runtime.json_files import RunFileError, read_object
from align.runtime.lock import locked
from align.runtime.secrets import shown_url

FILE = "engines.json"
LOCK = "engine"


class EngineListError(AlignError, ValueError):
    """A change of the list that cannot be."""


def read(stage_dir: Path) -> tuple[str, ...]:
    """The servers that are listed, none where the list was never changed.

    Raises:
        RunFileError: the file is damaged.
    """
    advice = (
        f"remove it, and the run uses those of its recipe; or name servers again by `align engine add URL {stage_dir}`"
    )
    found = read_object(stage_dir / FILE, advice)
    if found is None:
        return ()
    urls = found.get("urls")
    if not (isinstance(urls, list) and urls and all(isinstance(url, str) and not server_problem(url) for url in urls)):
        raise RunFileError(f"{stage_dir / FILE} is no list of servers: {advice}")
    return tuple(urls)


def stage_of(run: Path) -> Path:
    """The folder of the ppo stage in `run`, which may be that folder.

    Raises:
        MissingFileError: there is none that has begun.
        EngineListError: it has no servers given by address.
        RunFileError: its recipe cannot be read.
    """
    folder = next((one for one in (run / "ppo", run) if (one / "recipe.yaml").is_file()), None)
    if folder is None:
        raise MissingFileError(f"{run} holds no ppo stage that has begun (no ppo/recipe.yaml)")
    if not in_recipe(folder):
        raise EngineListError(
            f"{folder} samples without servers of an address: servers join and leave where the recipe has "
            "ppo.rollout.engine: vllm_server and names the first of them in ppo.rollout.vllm.urls"
        )
    return folder


def in_recipe(stage_dir: Path) -> tuple[str, ...]:
    """The servers that the recipe of the stage names."""
    found = read_recipe(stage_dir / "recipe.yaml")
    for key in ("ppo", "rollout", "vllm", "urls"):
        found = found.get(key) if isinstance(found, dict) else None
    return tuple(url for url in found if isinstance(url, str)) if isinstance(found, list) else ()


def add(stage_dir: Path, url: str) -> tuple[str, ...]:
    """Adds a server; the list then.

    Raises:
        EngineListError: no address of a server, or one that is listed.
        FolderInUseError, RunFileError, StorageError: the list cannot be changed now.
    """
    if problem := server_problem(url):
        raise EngineListError(f"'{shown_url(url)}': {problem}")

    def change(urls: tuple[str, ...]) -> tuple[str, ...]:
        if url in urls:
            raise EngineListError(f"{url} is listed already")
        return (*urls, url)

    return _change(stage_dir, change)


def remove(stage_dir: Path, url: str) -> tuple[str, ...]:
    """Takes a server off; the list then.

    Raises:
        EngineListError: it is not listed, or is the last one.
        FolderInUseError, RunFileError, StorageError: the list cannot be changed now.
    """

    def change(urls: tuple[str, ...]) -> tuple[str, ...]:
        if url not in urls:
            raise EngineListError(f"'{shown_url(url)}' is not listed; these are: {', '.join(urls)}")
        if len(urls) == 1:
            raise EngineListError(f"{url} is the last server: add another before it goes")
        return tuple(one for one in urls if one != url)

    return _change(stage_dir, change)


def _change(stage_dir: Path, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> tuple[str, ...]:
    with locked(stage_dir, [LOCK]):
        urls = change(read(stage_dir) or tuple(one.rstrip("/") for one in in_recipe(stage_dir)))
        write_json(stage_dir / FILE, {"urls": list(urls)})
    return urls
