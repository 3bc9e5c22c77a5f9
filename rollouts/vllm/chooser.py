"""How vLLM is told which token comes next (`rollouts.exact`): a logits processor that leaves one possible.

vLLM builds it from its name (`setup.engine_arguments`) and asks it about every request of a call made inside
`choosing` that says which response it is. All else is sampled by vLLM as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, RequestLogitsProcessor

from rollouts.sampling import Choose

RESPONSE = "response"  # the request's place in the call, in vLLM's `extra_args`


class Chooser(AdapterLogitsProcessor):
    """Of this process's one engine that chooses at a time."""

    choose: ClassVar[Choose | None] = None

    def is_argmax_invariant(self) -> bool:
        """It is not: it decides what the largest logit is."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
        """What is asked at each step of a request: (ids so far, logits_V) -> logits_V."""
        response, choose = (params.extra_args or {}).get(RESPONSE), type(self).choose
        if response is None or choose is None:
            return None

        def only_the_chosen(output_ids: list[int], logits_V: Tensor) -> Tensor:
            place_2 = torch.tensor([response, len(output_ids)], device=logits_V.device)
            own_1V = logits_V.to(torch.float32, copy=True)[None]
            token = choose(own_1V, *place_2[:, None].unbind(0))
            return torch.full_like(logits_V, -torch.inf).index_fill_(0, token, 0.0)

        return only_the_chosen


@contextmanager
def choosing(choose: Choose) -> Iterator[None]:
    """Requests that begin meanwhile are chosen by `choose`."""
    Chooser.choose = staticmethod(choose)
    try:
        yield
    finally:
        Chooser.choose = None
