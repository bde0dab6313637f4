"""Attackers who act each by itself: on the data that they train on, or on what they send."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from fedjax_tx import check, prng, tree
from fedjax_tx.attacks.wrapping import Attackers, attackers_of, in_every_pass, map_floats
from fedjax_tx.types import FederatedAlgorithm, Pass, PyTree


def label_flip(algorithm: FederatedAlgorithm, attackers: Attackers, num_classes: int, *, labels: str = "y") -> FederatedAlgorithm:
    """Attackers train on wrong labels: class c of C is called C - 1 - c (as in arXiv 1911.11815).

    A label outside 0 .. C - 1, which a task may leave out, stays.

    Args:
      algorithm: any. attackers: indices of clients in the training data, >= 0. num_classes: C >= 2. labels: their column.

    Errors: ``ValueError``, as a round is compiled, if the data has no such column; ``TypeError`` if it holds no integers.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> honest = ftx.algorithms.fed_avg(ftx.tasks.next_token(model), optax.sgd(0.1))
      >>> len(label_flip(honest, [0, 3], num_classes=10).passes)
      1
    """
    is_attacker = attackers_of(algorithm, attackers)
    check.integer("num_classes", num_classes, low=2)
    check.instance("labels", labels, str, "the name of a column")

    def spoil(a_pass: Pass) -> Pass:
        def step(broadcast, info, local, batch, mask, key):
            if labels not in batch:
                check.fail_value("labels", f"to be a column of {sorted(batch)}", labels)
            true = batch[labels]
            if not jnp.issubdtype(true.dtype, jnp.integer):
                check.fail_type(f"column {labels!r}", "integers", true.dtype)
            flip = is_attacker(info) & (true >= 0) & (true < num_classes)
            batch = {**batch, labels: jnp.where(flip, num_classes - 1 - true, true)}
            return a_pass.trainer.step(broadcast, info, local, batch, mask, key)

        return a_pass._replace(trainer=a_pass.trainer._replace(step=step))

    return in_every_pass(algorithm, spoil)


def sign_flip(algorithm: FederatedAlgorithm, attackers: Attackers, *, scale: float | Array = 1.0) -> FederatedAlgorithm:
    """Attackers train honestly and send their update times -scale (cf. arXiv 1811.03761).

    Args:
      algorithm: any. attackers: indices of clients in the training data, >= 0. scale: > 0.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> median = ftx.aggregation.median()
      >>> robust = ftx.algorithms.fed_avg(ftx.tasks.next_token(model), optax.sgd(0.1), aggregator=median)
      >>> len(sign_flip(robust, [0, 3], scale=10.0).passes)
      1
    """
    check.number("scale", scale, above=0)
    return _sending(algorithm, attackers, lambda update, key: map_floats(lambda leaf: -scale * leaf, update))


def gaussian(algorithm: FederatedAlgorithm, attackers: Attackers, stddev: float | Array) -> FederatedAlgorithm:
    """Attackers send noise, N(0, stddev^2) in each coordinate, in place of their update (arXiv 1703.02757).

    Args:
      algorithm: any. attackers: indices of clients in the training data, >= 0. stddev: > 0; the paper's is 200.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> krum = ftx.aggregation.krum(2)
      >>> robust = ftx.algorithms.fed_avg(ftx.tasks.next_token(model), optax.sgd(0.1), aggregator=krum)
      >>> len(gaussian(robust, [0, 3], stddev=200.0).passes)
      1
    """
    check.number("stddev", stddev, above=0)

    def noise(update, key):
        leaves, structure = jax.tree.flatten(update)
        keys = jax.tree.unflatten(structure, [prng.fold(key, "leaf", number) for number in range(len(leaves))])
        return map_floats(lambda leaf, own: stddev * jax.random.normal(own, leaf.shape), update, keys)

    return _sending(algorithm, attackers, noise)


def _sending(
    algorithm: FederatedAlgorithm, attackers: Attackers, send: Callable[[PyTree, Key[Array, ""]], PyTree]
) -> FederatedAlgorithm:
    """Attackers send ``send(update, key)`` instead of their update."""
    is_attacker = attackers_of(algorithm, attackers)

    def spoil(a_pass: Pass) -> Pass:
        def finish(broadcast, info, local):
            result = a_pass.trainer.finish(broadcast, info, local)
            sent = send(result.update, prng.fold(info.key, "attack"))
            return result._replace(update=tree.where(is_attacker(info), sent, result.update))

        return a_pass._replace(trainer=a_pass.trainer._replace(finish=finish))

    return in_every_pass(algorithm, spoil)
