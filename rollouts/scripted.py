"""An engine that says what it was told to: for tests and examples, where a model would be slow or random.

It obeys the protocol in full: n replies a prompt in prompt-major order, cut at the first stop token or at
`max_new_tokens`, carrying the weight version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from rollouts.errors import RolloutError
from rollouts.protocol import Completion, SamplingParams

Script = Callable[[list[int], int], Sequence[int]]


class ScriptedEngine:
    """Answers from a script.

    Args:
        script: called with a prompt's ids and the number of the reply to it (0 to n - 1); gives the reply's ids.
        logprob: the log-probability written beside every token, None for none.

    `calls` lists every `generate` call as (prompts, params).
    """

    shares_module = True

    def __init__(self, script: Script, logprob: float | None = None):
        self.script, self.logprob = script, logprob
        self.weight_version = 0
        self.calls: list[tuple[list[list[int]], SamplingParams]] = []
        self.closed = False

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        """`params.n` completions per prompt, prompt-major."""
        if self.closed:
            raise RolloutError("this engine was closed")
        self.calls.append(([list(prompt) for prompt in prompts], params))
        return [self._reply(prompt, number, params) for prompt in prompts for number in range(params.n)]

    def _reply(self, prompt: list[int], number: int, params: SamplingParams) -> Completion:
        ids = [int(token) for token in self.script(list(prompt), number)]
        end = next((at + 1 for at, token in enumerate(ids) if token in params.stop_token_ids), None)
        stopped = end is not None and end <= params.max_new_tokens
        ids = ids[:end] if stopped else ids[: params.max_new_tokens]
        if not ids:
            raise RolloutError(f"the script gave no token for reply {number} to prompt {prompt}")
        return Completion(
            token_ids=tuple(ids),
            logprobs=None if self.logprob is None else (self.logprob,) * len(ids),
            finish_reason="stop" if stopped else "length",
            weight_version=self.weight_version,
        )

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes the version number alone."""
        self.weight_version = version

    def sleep(self) -> None:
        """Nothing to free."""

    def wake(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Later calls are refused."""
        self.closed = True
