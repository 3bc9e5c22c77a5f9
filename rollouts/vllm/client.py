"""vLLM as a server: one that this engine starts, owns and ends, or servers that run already (`settings.urls`).

Weights go by files that the server's workers read (`rollouts.vllm.push`), adapters merged into them; an own server
starts with random ones, and nothing is generated before the first `update_weights`. Every reply names the weights that
made it, by a mark that is this engine's own: a reply by other ones is refused and asked for once more.

A server that dies or hangs in the middle of a call costs time only: an own one is started again (`max_restarts` times),
gets the last weights from their file, and is asked for what is unanswered; one given by URL is left out when it fails
twice, and its share goes to the others. Every reply has its own seed, so a call gives the same replies in the end (to
the rounding of matrix products, which in bfloat16 depends on how many sequences run at once).

Several ranks share one server: `is_owner` starts, pushes and ends it, `share` tells the others where it is.
`update_weights` is for a moment when no rank generates. `generate` may run in one thread while another trains; `close`
may be called from any.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from rollouts.errors import RolloutError
from rollouts.protocol import Completion, SamplingParams
from rollouts.settings import VLLMSettings
from rollouts.vllm.backend import Backend
from rollouts.vllm.requests import check_ids, logprobs_mode
from rollouts.vllm.start import plain_model
from rollouts.vllm.wire import sampling_requests, scoring_request, to_completion, to_logprobs


def _alone(shared: Any) -> Any:
    return shared


class VLLMServerEngine:
    """Samples and scores with vLLM behind HTTP.

    Args:
        model: the trainer's module; only its configuration, names and shapes are read.
        settings: of vLLM; with `urls` those servers are used, and their key is read from `api_key_env`.
        is_owner: this rank starts the server and pushes.
        share: gives every rank the owner's object; called by all ranks together. Default: there is one rank.
        temperature: of the rollouts to come; decides which log-probabilities the server gives.

    Raises:
        RolloutError: a server does not start, cannot be reached, refuses the key, or holds another model.
    """

    shares_module = False

    def __init__(
        self,
        model: nn.Module,
        settings: VLLMSettings,
        *,
        is_owner: bool = True,
        share: Callable[[Any], Any] = _alone,
        temperature: float = 1.0,
    ):
        if settings.adapters == "adapter":
            raise RolloutError("a vLLM server takes whole weights only: set adapters: merge (or auto)")
        self.settings, self.weight_version = settings, 0
        self._vocabulary: int = plain_model(model).config.get_text_config().vocab_size
        self._mode = logprobs_mode(temperature)
        self._unusable: str | None = "has no weights yet: push them by update_weights first"
        self._busy = threading.RLock()
        self._closed = False
        self._backend = Backend(model, settings, self._mode, is_owner=is_owner, share=share, alone=share is _alone)
        atexit.register(self.close)

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        """`params.n` completions per prompt, prompt-major. Without a seed every call draws anew.

        Raises:
            RolloutError: an empty or too long prompt, an id outside the vocabulary, no weights, or no server is left.
        """
        self._check_usable()
        if params.return_support and params.temperature > 0:
            raise RolloutError("the vLLM server does not say which ids could be drawn: use rollout engine hf")
        for row, prompt in enumerate(prompts):
            self._check(prompt, f"prompt {row}", self.settings.max_model_len - params.max_new_tokens)
        with self._busy:
            self._check_usable()
            answers = self._backend.ask(sampling_requests(prompts, params, self._vocabulary))
            return [to_completion(answer, params, self._mode, self.weight_version) for answer in answers]

    def token_logprobs(self, sequences: list[list[int]]) -> list[tuple[float, ...]]:
        """See `rollouts.protocol.Scoring`.

        Raises:
            RolloutError: as `generate`.
        """
        self._check_usable()
        for row, sequence in enumerate(sequences):
            self._check(sequence, f"sequence {row}", self._backend.room - 1)
        with self._busy:
            self._check_usable()
            answers = self._backend.ask([scoring_request(sequence) for sequence in sequences])
            return [to_logprobs(answer, ids) for answer, ids in zip(answers, sequences, strict=True)]

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes every weight of the model under checkpoint names. All ranks call it; all read the stream to its end.

        Raises:
            RolloutError: a wrong or missing name or shape, no room for the files, or a server refused them; nothing is
                generated until a whole update has gone through.
            Exception: what the stream itself raises; the same then.
        """
        with self._busy:
            self._check_open()
            self._unusable = "got only a part of its last weights: push all of them again"
            self._backend.deliver(named_tensors, version)
            self._unusable, self.weight_version = None, version

    def sleep(self) -> None:
        """Frees the GPU's memory of an own server while the trainer updates. Not with several ranks, not on a CPU."""
        with self._busy:
            self._check_open()
            self._backend.sleep()

    def wake(self) -> None:
        """The server has its memory again."""
        with self._busy:
            self._check_open()
            self._backend.wake()

    def close(self) -> None:
        """Ends the own server and removes the weights' files; a call that runs in another thread fails."""
        if not self._closed:
            self._closed = True
            atexit.unregister(self.close)
            self._backend.close()

    def _check(self, ids: list[int], what: str, room: int) -> None:
        check_ids(ids, what, self._vocabulary)
        if len(ids) > room:
            raise RolloutError(
                f"{what} has {len(ids)} tokens, and {room} fit into max_model_len {self.settings.max_model_len} beside "
                "the reply: raise ppo.rollout.vllm.max_model_len or shorten it"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise RolloutError("this engine was closed")

    def _check_usable(self) -> None:
        self._check_open()
        if self._unusable is not None:
            raise RolloutError(f"the vLLM engine {self._unusable}")
