"""Packages: those that only some features need, with the one sentence that says how to get them; and our own, in whose
place Python may find something else."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from align.runtime.errors import MissingPackageError, ShadowedPackageError

OURS = ("data_formats", "reward", "rollouts")  # beside `align`, at the top level where a user's files may stand first

# As they are imported -> the extra of this project that holds them, and what pip and people call them.
EXTRAS = {"bitsandbytes": "bitsandbytes", "datasketch": "dedup", "gguf": "gguf", "math_verify": "maths"}
EXTRAS |= {"lm_eval": "lm-eval", "tensorboard": "trackers", "trl": "dpo", "vllm": "vllm", "zstandard": "zst"}
EXTRAS |= dict.fromkeys(("fastapi", "uvicorn", "openai"), "serve")
EXTRAS |= dict.fromkeys(("py3langid", "sklearn"), "curation") | {"presidio_analyzer": "pii"}
NAMES = {"azureml": "azureml-core", "comet_ml": "comet-ml", "lm_eval": "lm-eval", "math_verify": "math-verify"}
NAMES |= {"presidio_analyzer": "presidio-analyzer", "sklearn": "scikit-learn", "vllm": "vLLM"}


SPACY_MODELS = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")  # of English, the best first
NO_SPACY_MODEL = (
    "names need an English model of spaCy, and none is installed: python -m spacy download en_core_web_lg, or leave "
    "name out of kinds"
)


def is_installed(package: str) -> bool:
    """Whether `package` can be imported; looks without importing it."""
    return find_spec(package) is not None


def spacy_model() -> str | None:
    """The best English model of spaCy that is installed."""
    return next((name for name in SPACY_MODELS if is_installed(name)), None)


def how_to_install(package: str) -> str:
    """The command that installs `package`: with the extra of ours that has the right version of it, where one has."""
    if package not in EXTRAS:
        return f"pip install {NAMES.get(package, package)}"
    command = f"pip install 'align-rlhf[{EXTRAS[package]}]'"
    return f"{command} (make install-vllm in a checkout)" if package == "vllm" else command


def missing_package(who: str, package: str) -> str:
    """`who needs math-verify, which is not installed: pip install 'align-rlhf[maths]'`, for a sentence of one's own."""
    return f"{who} needs {NAMES.get(package, package)}, which is not installed: {how_to_install(package)}"


def require_package(who: str, package: str, instead: str = "") -> None:
    """Nothing, where `package` can be imported.

    Args:
        who: what needs it, the sentence's subject: a key of the recipe, a file.
        instead: how to do without it (`drop near_duplicates`).

    Raises:
        MissingPackageError: it is not there; names the command that installs it.
    """
    if not is_installed(package):
        raise MissingPackageError(missing_package(who, package) + (f", or {instead}" if instead else ""))


def require_own_packages(root: Path) -> None:
    """Nothing, where Python finds our packages in `root`, beside `align`; imports none of them.

    Raises:
        ShadowedPackageError: a file `reward.py` in the working directory, say, or beside the user's script, is found
            first; names it.
    """
    for name in OURS:
        found = _place_of(name)
        if found is None or found == (root / name).resolve():
            continue
        if not (root / name).is_dir():
            told = f"align is imported from {root}, but its package '{name}' from {found.parent}"
            raise ShadowedPackageError(f"{told}: keep one of the two off Python's path, or install align again")
        cure = "rename the file" if found.is_file() else "rename the folder, or keep one of the two off that path"
        told = f"{found} stands before align's own package '{name}' ({root / name}) on Python's path"
        raise ShadowedPackageError(f"{told}: {cure}")


def _place_of(name: str) -> Path | None:
    """The folder of a package, or the file of a module, that `import name` gives."""
    spec = getattr(sys.modules[name], "__spec__", None) if name in sys.modules else find_spec(name)
    if spec is None:
        return None
    place = next(iter(spec.submodule_search_locations or ()), None) or spec.origin
    return Path(place).resolve() if place else None
