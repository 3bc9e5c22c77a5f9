"""Pure tensor maths, torch alone: no models, no recipe, no state, nothing distributed.

Legend of the shape suffixes used in the whole project:

    B  batch: one row per sequence          V  vocabulary
    T  time: token positions                N  anything flat; in PPO the replies of the global batch
    S  states: T - 1 positions of PPO       G  groups: prompts with their replies

so `rewards_BT` is (batch, time). A name without a suffix takes any shape. Masks are named `*_mask…`; 1 or True means
*counts*. What stands at a masked position (NaN and infinity included) changes neither a value nor a gradient.

Losses and statistics are SUMS over the tokens that count. The caller divides by the token count of the whole
optimizer step over all ranks, so that nothing depends on micro-batch size, packing or the number of ranks.

Inputs of half precision are computed with in float32, float64 stays float64; a result has the precision it was
computed in. Shapes must agree exactly: nothing is broadcast in silence.
"""

from align.functional.advantages import discounted_returns, gae, grpo_advantages, rloo_advantages
from align.functional.clipped_losses import importance_weights, policy_loss, token_weights, value_loss
from align.functional.kl import kl_estimate, kl_loss
from align.functional.logprobs import token_entropy, token_kl, token_logprobs
from align.functional.masked import Moments, explained_variance, masked_mean, masked_sum, masked_var, whiten
from align.functional.reductions import loss_weights
from align.functional.shaping import penalize, shape_rewards
from align.functional.support import support_logprobs

__all__ = [
    "Moments",
    "discounted_returns",
    "explained_variance",
    "gae",
    "grpo_advantages",
    "importance_weights",
    "kl_estimate",
    "kl_loss",
    "loss_weights",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "penalize",
    "policy_loss",
    "rloo_advantages",
    "shape_rewards",
    "support_logprobs",
    "token_entropy",
    "token_kl",
    "token_logprobs",
    "token_weights",
    "value_loss",
    "whiten",
]
