"""Clipping to a norm that follows a quantile of the updates' norms, which is itself learned in private.

Andrew et al., "Differentially Private Learning with Adaptive Clipping", arXiv 1905.03871, Algorithm 1. With the clipping norm C,
b_k = 1 where ||update_k|| <= C and else 0, and b their noised mean, a round makes of C

    C <- C exp(-learning_rate (b - quantile)).

The counts take some of the noise. In the paper the sum of the b_k has noise of standard deviation sigma_b, that of the clipped
updates z_update C, and both together are a Gaussian mechanism of the multiplier z (its Theorem 1):

    z^-2 = z_update^-2 + (2 sigma_b)^-2.

Here this is done by the shape of what travels. A client sends a vector of norm 1 at most, whatever C is:

    ( sqrt(1 - count_share) clip(update_k / C, 1),   sqrt(count_share) (2 b_k - 1) ),

and what stands behind treats it as one: noise of the multiplier z, calibrated to the norm 1. It is z that is accounted for.
Divided by the factors again, sums of updates have noise of z_update C, z_update = z / sqrt(1 - count_share), and counts of
sigma_b = z / (2 sqrt(count_share)), so the theorem's equation holds. The paper's sigma_b = m / 20, at m = 100 clients and z = 1,
is a share of 0.01, our default. Noise that is correlated over rounds is as private in this place, but takes less back of what a
round with another norm added.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_tx import check, tree
from fedjax_tx.aggregation.chain import as_is, chain, stage
from fedjax_tx.aggregation.clip import clipped
from fedjax_tx.types import Aggregator, PyTree


class AdaptiveClipState(NamedTuple):
    """clip_norm: the C of the next round. behind: the state of what stands behind."""

    clip_norm: Float[Array, "..."]
    behind: PyTree


def adaptive_clip(
    *behind: Aggregator,
    quantile: float | Array = 0.5,
    first_norm: float | Array = 0.1,
    learning_rate: float | Array = 0.2,
    count_share: float | Array = 0.01,
) -> Aggregator:
    """Clips updates to a norm that follows a quantile of their norms, in front of other stages (arXiv 1905.03871).

    ``adaptive_clip(fixed_mean(100), gaussian_noise(1.0))`` is private with the noise multiplier 1, the learning of the norm
    included: the noise on the mean is 1 / sqrt(1 - count_share) times what a fixed norm would ask for, the rest is on the counts.
    The norm is state of the aggregator, so a run that is resumed goes on with it. info holds the norm that was used
    (``clip_norm``) and the noised share of the clients whose updates were no longer (``within_clip_norm``).

    Args:
      behind: what the clipped updates go through, as in ``chain``; it reduces by a mean, since of a sum shares can't be told. A
        mean of fixed denominator takes clients that did not come for half within, half not. In a mean by weight the counts are
        weighed too: the quantile is then one of examples, and of clients in ``mean(weighted=False)``.
      quantile: 0 to 1, the share of updates to be left unclipped. first_norm: > 0, the norm of the first round.
      learning_rate: >= 0, by how much the norm's logarithm moves at most in a round, but for noise.
      count_share: 0 < count_share < 1, the part of the squared length of what one client sends that its count has.

    Errors: ``ValueError`` naming the stages, if they can't follow each other.

    Example:
      >>> import fedjax_tx as ftx
      >>> private = adaptive_clip(ftx.aggregation.fixed_mean(2), ftx.aggregation.gaussian_noise(0.0), first_norm=1.0)
      >>> update, state, info = ftx.aggregation.aggregate(private, {"w": jnp.array([4.0, 8.0])}, [1.0, 1.0])
      >>> round(float(update["w"]), 3), round(float(state.clip_norm), 3)  # both were longer: exp(0.2 * 0.5)
      (1.0, 1.105)
    """
    check.number("quantile", quantile, low=0, high=1)
    check.number("first_norm", first_norm, above=0)
    check.number("learning_rate", learning_rate, low=0)
    check.number("count_share", count_share, above=0, below=1)
    rest = chain(stage("adaptive_clip()", sensitivity=lambda bound: 1.0), *behind)
    update_scale, count_scale = (1 - count_share) ** 0.5, count_share**0.5

    def sent(update: PyTree, clip_norm: Array) -> dict[str, PyTree]:
        within = tree.norm(update) <= clip_norm
        scale = update_scale / clip_norm
        # Not in fewer bits than float32: what is scaled could be rounded to something longer.
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), update)
        scaled = jax.tree.map(lambda leaf: leaf * scale, clipped(wide, clip_norm))
        return {"update": scaled, "count": jnp.where(within, count_scale, -count_scale).astype(jnp.float32)}

    def init(update):
        first = jnp.float32(first_norm)
        return AdaptiveClipState(first, rest.init(sent(update, first)))

    def encode(update, weight, shared, client_state, client_key, round_key):
        vector = sent(update, shared.clip_norm)
        return rest.encode(vector, weight, shared.behind, client_state, client_key, round_key)

    def decode(reduced, totals, state, key):
        vector, behind_state, info = rest.decode(reduced, totals, state.behind, key)
        aggregate = jax.tree.map(lambda leaf: leaf * (state.clip_norm / update_scale), vector["update"])
        within = (vector["count"] / count_scale + 1) / 2
        clip_norm = state.clip_norm * jnp.exp(-learning_rate * (within - quantile))
        said = {"clip_norm": state.clip_norm, "within_clip_norm": within}
        return aggregate, AdaptiveClipState(clip_norm, behind_state), {**info, **said}

    return rest._replace(
        init=init,
        init_client=lambda update: rest.init_client(sent(update, jnp.float32(first_norm))),
        encode=encode,
        receive=as_is if rest.receive is as_is else lambda message, shared: rest.receive(message, shared.behind),
        decode=decode,
        name=f"adaptive_clip({', '.join(one.name for one in behind)}, quantile={quantile})",
        sensitivity=lambda bound: None,
        reads_update=True,
    )
