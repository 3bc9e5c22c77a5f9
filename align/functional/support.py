"""Log-probability under a distribution cut to a recorded support: what a sampler with top-p or top-k really drew from.

With truncated sampling the ratio of two policies is that of their distributions over the sampler's own support (the
"keep sampling mask"): both are renormalised over the ids that could be drawn, and no other logit matters. Only the
logits of those ids are looked up, so the cost in memory is that of (B, T, K), not of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.functional.masked import same_shape, wide


def support_logprobs(
    logits_BTV: Tensor,
    ids_BT: Tensor,
    support_ids_BTK: Tensor,
    support_mask_BTK: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Natural log of the probability of each id under softmax(logits / temperature) restricted to the support.

    Args:
        logits_BTV: any float dtype; a (T, V) without batch is taken too.
        ids_BT: int64; each one of its support.
        support_ids_BTK: int64, distinct within a support; any valid id where the mask is 0.
        support_mask_BTK: 1 where the id belongs to the support. Empty where there is nothing to learn from (prompt,
            padding): that position gives 0 and a gradient of exactly 0, whatever its logits are.

    Returns:
        logps_BT, float32 (float64 for float64 logits), in nats; -inf for an id outside its support. The gradient is
        exactly 0 for logits outside the support.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not above 0.
    """
    same_shape(logits_BTV_without_V=logits_BTV[..., 0], ids_BT=ids_BT, support_without_K=support_ids_BTK[..., 0])
    same_shape(support_ids_BTK=support_ids_BTK, support_mask_BTK=support_mask_BTK)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    inside_BTK = support_mask_BTK.bool()
    empty_BT1 = ~inside_BTK.any(-1, keepdim=True)
    outside = torch.zeros(empty_BT1.shape, dtype=wide(logits_BTV[..., :0]).dtype, device=logits_BTV.device)
    outside = outside.masked_fill(~empty_BT1, -torch.inf)  # 0 in an empty support: log_softmax of -inf alone is NaN
    scaled_BTK = wide(logits_BTV.gather(-1, support_ids_BTK)) / temperature
    logps_BTK = torch.where(inside_BTK, scaled_BTK, outside).log_softmax(-1)
    drawn_BTK = inside_BTK & (support_ids_BTK == ids_BT[..., None])
    logps_BT = logps_BTK.masked_fill(~drawn_BTK, 0.0).sum(-1)
    return logps_BT.masked_fill(~(drawn_BTK.any(-1) | empty_BT1[..., 0]), -torch.inf)
