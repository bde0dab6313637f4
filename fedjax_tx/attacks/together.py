"""Attackers who act together and know what all honest clients of the round send.

What they send depends on the updates of the honest, of whom each then moves more than its own message: noise of the aggregator
that is scaled to one message hides nobody, and its privacy is not accounted for.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float, Int

from fedjax_tx import check
from fedjax_tx.aggregation.chain import behind_rows
from fedjax_tx.aggregation.stacked import along
from fedjax_tx.attacks.wrapping import Attackers, attackers_of, in_every_pass, map_floats
from fedjax_tx.types import Aggregator, FederatedAlgorithm, Pass, PyTree, Rows

Collusion = Callable[[PyTree, Bool[Array, " client"], Bool[Array, " client"]], PyTree]


def alie(algorithm: FederatedAlgorithm, attackers: Attackers, *, deviations: float | Array | None = None) -> FederatedAlgorithm:
    """A little is enough (arXiv 1902.06156): all attackers send the honest mean less some standard deviations, where many are.

    mean_j - z std_j in each coordinate j, over the honest updates of the round. So far off, s honest clients are further from
    the mean than the attackers, and together with them a majority: of n clients, m of them attackers,
    z = Phi^-1((n - m - s) / (n - m)), s = floor(n / 2 + 1) - m. Where we deviate: the paper's attackers know their own honest
    updates only, and take those for a sample of all.

    Args:
      algorithm: any. attackers: indices of clients in the training data, >= 0.
      deviations: z > 0; by default that of the formula, for the clients of each round (0 where that is less; attackers who are
        the majority take s = 0.001 (n - m), three deviations).

    Errors: ``ValueError``, as a run starts, if the aggregator must remember something of each client, as ``top_k`` does.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> robust = ftx.algorithms.fed_avg(ftx.tasks.next_token(model), optax.sgd(0.1), aggregator=ftx.aggregation.median())
      >>> len(alie(robust, [0, 3]).passes)
      1
    """
    if deviations is not None:
        check.number("deviations", deviations, above=0)

    def collude(sent, honest, attacking):
        mean = _honest_mean(sent, honest)
        variance = _honest_mean(map_floats(lambda leaf, center: jnp.square(leaf - center), sent, mean), honest)
        z = _paper_deviations(honest.sum(), attacking.sum()) if deviations is None else deviations
        return map_floats(lambda center, square: center - z * jnp.sqrt(square), mean, variance)

    return _colluding(algorithm, attackers, collude, "alie")


def inner_product(algorithm: FederatedAlgorithm, attackers: Attackers, scale: float | Array) -> FederatedAlgorithm:
    """Inner-product manipulation (arXiv 1903.03936): all attackers send the mean of the honest updates times -scale.

    A small one is near the honest updates and slips through rules that look at distances; a large one turns a plain mean around,
    from scale > (n - m) / m on for m attackers among n clients of one weight.

    Args:
      algorithm: any. attackers: indices of clients in the training data, >= 0. scale: > 0, the paper's epsilon.

    Errors: ``ValueError``, as a run starts, if the aggregator must remember something of each client, as ``top_k`` does.

    Example:
      >>> import fedjax_tx as ftx, optax
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> robust = ftx.algorithms.fed_avg(ftx.tasks.next_token(model), optax.sgd(0.1), aggregator=ftx.aggregation.krum(2))
      >>> len(inner_product(robust, [0, 3], scale=0.1).passes)
      1
    """
    check.number("scale", scale, above=0)

    def collude(sent, honest, attacking):
        return map_floats(lambda center: -scale * center, _honest_mean(sent, honest))

    return _colluding(algorithm, attackers, collude, "inner_product")


def _colluding(algorithm: FederatedAlgorithm, attackers: Attackers, collude: Collusion, name: str) -> FederatedAlgorithm:
    """All attackers send ``collude(updates [client, ...], honest, attacking)``, one update; each client's tells which it is."""
    is_attacker = attackers_of(algorithm, attackers)

    def change_rows(rows: Rows, key):
        sent, attacks = rows.summands["sent"], rows.summands["attacks"]
        honest, attacking = rows.valid & ~attacks, rows.valid & attacks
        # Where nobody is honest, there is nothing to hide among.
        replaced = attacking & honest.any()
        bad = collude(sent, honest, attacking)
        changed = map_floats(lambda leaf, one: jnp.where(along(replaced, leaf), one, leaf), sent, bad)
        return Rows(changed, rows.weights, rows.valid), {}

    def spoil(a_pass: Pass) -> Pass:
        def finish(broadcast, info, local):
            result = a_pass.trainer.finish(broadcast, info, local)
            return result._replace(update={"sent": result.update, "attacks": is_attacker(info)})

        return a_pass._replace(
            trainer=a_pass.trainer._replace(finish=finish),
            aggregator=_of_sent(behind_rows(change_rows, a_pass.aggregator, f"{name}, {a_pass.aggregator.name}")),
            travels=lambda broadcast, message: a_pass.travels(broadcast, message["sent"]),
        )

    return in_every_pass(algorithm, spoil)


def _of_sent(aggregator: Aggregator) -> Aggregator:
    """The aggregator, its states made for what is sent; whether a client attacks is no part of that."""
    return aggregator._replace(
        init=lambda update: aggregator.init(update["sent"]),
        init_client=lambda update: aggregator.init_client(update["sent"]),
    )


def _honest_mean(rows: PyTree, honest: Bool[Array, " client"]) -> PyTree:
    """The mean of the honest clients' rows, all alike; in float32 where they are of floating point."""

    def mean(leaf):
        return jnp.where(along(honest, leaf), leaf, 0).sum(0, dtype=jnp.float32) / jnp.maximum(honest.sum(), 1)

    return jax.tree.map(lambda leaf: mean(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf[0], rows)


def _paper_deviations(honest: Int[Array, ""], attacking: Int[Array, ""]) -> Float[Array, ""]:
    """ALIE's z: so many standard deviations from the mean that the attackers and those beyond them are a majority."""
    supporters = (honest + attacking) // 2 + 1 - attacking
    share = (honest - supporters) / jnp.maximum(honest, 1)
    return jnp.maximum(ndtri(jnp.clip(share, 0, 0.999)), 0)
