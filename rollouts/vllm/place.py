"""Which servers an engine works with: those named by URL or one of its own; and whether they are the right ones."""

from __future__ import annotations

import logging
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rollouts.errors import RolloutError
from rollouts.settings import VLLMSettings
from rollouts.vllm.guard import read_key
from rollouts.vllm.http import Address, ServerGone
from rollouts.vllm.server import VLLMServer
from rollouts.vllm.start import dtype_of, room_for, write_config

logger = logging.getLogger(__name__)

SHORT = 30.0  # seconds for a question that costs no work


@dataclass(frozen=True, slots=True)
class Place:
    """What the owner tells the other ranks.

    Attributes:
        servers: URL and key of each.
        home: the private folder of an own server, None for servers given by URL.
        host: the machine of that folder.
        mark: begins the name of every version of this engine's weights.
    """

    servers: tuple[tuple[str, str], ...]
    home: Path | None
    host: str
    mark: str

    def __repr__(self) -> str:
        return f"Place({[url for url, _ in self.servers]})"  # no key in any text


def given(settings: VLLMSettings) -> Place:
    """The servers that run already.

    Raises:
        RolloutError: something that is no address, or no key.
    """
    key = read_key(settings.api_key_env)
    addresses = [Address(url.rstrip("/"), key) for url in settings.urls]
    for address in addresses:
        if address.in_the_clear:
            logger.warning("%s: the key and all rollouts travel unencrypted to that machine", address.url)
    return Place(tuple((address.url, key) for address in addresses), None, "", _mark())


def start_own(model: nn.Module, settings: VLLMSettings, mode: str, folder: Path) -> VLLMServer:
    """A server with random weights in the form of `model`; `folder` goes with it when this process dies.

    Raises:
        RolloutError: it does not start.
    """
    server = VLLMServer(start_timeout=settings.start_timeout, owned_folders=[folder])
    try:
        write_config(model, server.home)
        server.arguments = serve_arguments(model, server.home, settings, mode)
        logger.info("a vLLM server is started, which takes a minute or two; its log: %s", server.log)
        server.start()
    except BaseException:
        server.stop()
        raise
    return server


def own_place(server: VLLMServer) -> Place:
    """Where a running server of one's own is."""
    assert server.address is not None
    return Place(((server.address.url, server.address.key),), server.home, socket.gethostname(), _mark())


def reachable(place: Place) -> Path:
    """The folder of another rank's server.

    Raises:
        RolloutError: it is on another machine.
    """
    if place.home is None or place.host != socket.gethostname() or not place.home.is_dir():
        raise RolloutError(
            f"the vLLM server runs on {place.host}, out of this rank's reach: start servers by hand "
            "(python -m rollouts.vllm.serve) and name them in ppo.rollout.vllm.urls"
        )
    return place.home


def describe(address: Address, config: Any, settings: VLLMSettings, mode: str) -> dict[str, Any]:
    """What a server is (`WeightPuller.align_describe`).

    Args:
        config: of the policy's text model.
        mode: vLLM's `logprobs_mode` that is needed.

    Raises:
        RolloutError: it cannot be reached, or is not what is needed.
    """
    url = address.url
    try:
        answer = address.ask("/collective_rpc", {"method": "align_describe"}, timeout=SHORT)
    except ServerGone as gone:
        raise RolloutError(f"the vLLM server {url} {gone}: is `python -m rollouts.vllm.serve` running there?") from None
    fact: dict[str, Any] = answer["results"][0]
    policy = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "layers": config.num_hidden_layers}
    for name, value in policy.items():
        if fact[name] != value:
            raise RolloutError(
                f"the vLLM server {url} holds another model: its {name} is {fact[name]}, the policy's is {value}"
            )
    if fact["max_model_len"] < settings.max_model_len:
        raise RolloutError(
            f"the vLLM server {url} takes {fact['max_model_len']} tokens, max_model_len asks for "
            f"{settings.max_model_len}: start it with --max-model-len {settings.max_model_len}"
        )
    if fact["logprobs"] != mode:
        kind = mode.removesuffix("_logprobs")
        raise RolloutError(f"the vLLM server {url} must be started with --logprobs {kind} for this temperature")
    return fact


def serve_arguments(model: nn.Module, folder: Path, settings: VLLMSettings, mode: str) -> list[str]:
    """Of `python -m rollouts.vllm.serve`."""
    words = ["--model", str(folder), "--load-format", "dummy", "--dtype", dtype_of(model, settings)]
    words += ["--max-model-len", str(room_for(model, settings)), "--memory-share", str(settings.memory_share)]
    words += ["--tensor-parallel", str(settings.tensor_parallel), "--max-num-seqs", str(settings.max_num_seqs)]
    words += ["--seed", str(settings.seed), "--logprobs", mode.removesuffix("_logprobs")]
    words += [] if settings.kv_cache_gib is None else ["--kv-cache-gib", str(settings.kv_cache_gib)]
    words += [] if settings.prefix_caching else ["--no-prefix-caching"]
    words += ["--eager"] if settings.eager else []
    words += ["--sleep"] if settings.sleep else []
    return words


def _mark() -> str:
    """What nobody else's versions of weights begin with."""
    return secrets.token_hex(8)
