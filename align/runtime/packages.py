"""Packages that only some features need: whether they are there, and the one sentence that says how to get them."""

from __future__ import annotations

from importlib.util import find_spec

from align.runtime.errors import MissingPackageError

# As they are imported -> the extra of this project that holds them, and what pip and people call them.
EXTRAS = {"bitsandbytes": "bitsandbytes", "datasketch": "dedup", "math_verify": "maths", "vllm": "vllm"}
EXTRAS |= {"zstandard": "zst"}
NAMES = {"azureml": "azureml-core", "comet_ml": "comet-ml", "math_verify": "math-verify", "vllm": "vLLM"}


def is_installed(package: str) -> bool:
    """Whether `package` can be imported; looks without importing it."""
    return find_spec(package) is not None


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
