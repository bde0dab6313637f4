"""Gradients with differential privacy for single examples: Abadi et al., "Deep Learning with Differential Privacy".

arXiv 1607.00133, Algorithm 1. Each example's gradient is clipped to the norm C, and their sum is given noise before anything else
sees it:

    g~ = 1 / L (sum_i g_i min(1, C / ||g_i||) + N(0, z^2 C^2 I)),

z the noise multiplier and L a number that does not depend on who came. What is promised of a client's whole training, and for
which ways of making batches, ``ftx.privacy.epsilon_of_examples`` says.

The clipped sum is that of the library jax-privacy. An example counts by its own mean loss: weights, such as numbers of tokens, do
not weigh examples against each other. A gradient that is not finite counts with its finite coordinates.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tx import check, prng
from fedjax_tx.clients.objective import batch_loss, masked_mean


def private_gradient(clip_norm: float | Array, noise_multiplier: float | Array, denominator: float | Array) -> Callable:
    """Returns a ``gradient`` for ``local_sgd``: the noisy sum of clipped gradients of single examples over a fixed number.

    The loss that it hands on beside the gradient has no noise.

    Args:
      clip_norm: C > 0. noise_multiplier: z >= 0. denominator: L > 0, as a rule how many examples a batch has, on average.

    Raises:
      TypeError, ValueError: if an argument is of the wrong type or out of range.
      ModuleNotFoundError: if ``jax-privacy`` is not installed.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> trainer = ftx.clients.local_sgd(task, optax.sgd(0.1), gradient=private_gradient(1.0, 0.8, denominator=8))
      >>> trainer.init_state(None, None)
      ()
    """
    check.number("clip_norm", clip_norm, above=0)
    check.number("noise_multiplier", noise_multiplier, low=0)
    check.number("denominator", denominator, above=0)
    clipped_grad = _library().clipped_grad

    def gradient(task, trainable, frozen, batch, mask, key):
        def loss(trainable, example, key):
            return batch_loss(task, trainable, frozen, example, jnp.ones(1, bool), key)

        options = {"prng_argnum": 2, "return_values": True, "dtype": jnp.float32}
        clipped_sum = clipped_grad(loss, has_aux=True, l2_clip_norm=clip_norm, **options)
        total, told = clipped_sum(trainable, batch, prng.fold(key, "examples"), is_padding_example=~mask)
        leaves, structure = jax.tree.flatten(total)
        noisy = [
            leaf + noise_multiplier * clip_norm * jax.random.normal(prng.fold(key, "noise", number), leaf.shape)
            for number, leaf in enumerate(leaves)
        ]
        means = [(leaf / denominator).astype(own.dtype) for leaf, own in zip(noisy, jax.tree.leaves(trainable), strict=True)]
        return masked_mean(told.values, told.aux, mask), jax.tree.unflatten(structure, means)

    return gradient


def _library():
    try:
        import jax_privacy
    except ModuleNotFoundError as error:
        install = "pip install 'fedjax-tx[privacy]'"
        raise ModuleNotFoundError(f"expected jax-privacy, which clips the gradients of examples: {install}") from error
    return jax_privacy
