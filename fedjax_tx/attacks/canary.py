"""Canaries: clients who send what is easily found again, to measure what noise hides."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tx import check, prng, tree
from fedjax_tx.attacks.wrapping import Attackers, attackers_of, in_every_pass, map_floats
from fedjax_tx.types import FederatedAlgorithm, Pass, PyTree


def canaries(
    algorithm: FederatedAlgorithm, attackers: Attackers, norm: float | Array, *, weight: float | None = None, seed: int = 0
) -> FederatedAlgorithm:
    """Attackers send, in every round, the same random direction of their own (arXiv 2302.03098).

    In many dimensions any two of these directions are nearly orthogonal, and each to honest updates too: what is left of one of
    them in the parameters is its client's. ``ftx.audit`` rests on this.

    Args:
      algorithm: any. attackers: indices of clients in the training data, >= 0.
      norm: > 0, the L2 norm of what they send as the update's part ``delta``; not below that to which updates are clipped.
      weight: > 0, what they say they weigh; None: what honest clients of their examples would. Who has none takes no part.
      seed: names the directions.

    Errors: ``ValueError``, as a round is compiled, if an update has no part ``delta``.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> honest = ftx.algorithms.fed_avg(ftx.tasks.next_token(model), optax.sgd(0.1))
      >>> len(canaries(honest, [0, 3], norm=1.0).passes)
      1
    """
    is_attacker = attackers_of(algorithm, attackers)
    check.number("norm", norm, above=0)
    if weight is not None:
        check.number("weight", weight, above=0)
    check.integer("seed", seed, low=0, high=2**32 - 1)

    def spoil(a_pass: Pass) -> Pass:
        def finish(broadcast, info, local):
            result = a_pass.trainer.finish(broadcast, info, local)
            if "delta" not in result.update:
                check.fail_value("the update of canaries", "to have the part 'delta'", sorted(result.update))
            honest = result.update["delta"]
            canary = jax.tree.map(lambda leaf: norm * leaf, canary_direction(honest, info.id, seed))
            sent = map_floats(lambda own, other: jnp.where(is_attacker(info), other, own), honest, canary)
            result = result._replace(update={**result.update, "delta": sent})
            if weight is None:
                return result
            return result._replace(weight=jnp.where(is_attacker(info) & (result.weight > 0), weight, result.weight))

        return a_pass._replace(trainer=a_pass.trainer._replace(finish=finish))

    return in_every_pass(algorithm, spoil)


def canary_direction(like: PyTree, client: int | Array, seed: int = 0) -> PyTree:
    """Returns the direction that a client sends as a canary: of norm 1, float32, in the shapes of ``like``; integers are 0.

    Args:
      like: parameters, or another pytree of arrays. client: its index in the training data. seed: names the directions.

    Example:
      >>> direction = canary_direction({"w": jnp.zeros((3, 4))}, client=7)
      >>> round(float(tree.norm(direction)), 5)
      1.0
    """
    check.integer("seed", seed, low=0, high=2**32 - 1)
    if not isinstance(client, jax.Array):
        check.integer("client", client, low=0)
    leaves, structure = jax.tree.flatten(like)
    if not leaves:
        check.fail_value("like", "to hold arrays", like)
    key = prng.fold(prng.root(seed), "canary", client)

    def draw(number, leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.random.normal(prng.fold(key, "leaf", number), leaf.shape) if floating else jnp.zeros(leaf.shape)

    drawn = [draw(number, leaf) for number, leaf in enumerate(leaves)]
    length = tree.norm(drawn)
    return jax.tree.unflatten(structure, [leaf / length for leaf in drawn])
