"""Asynchronous training with momentum: Liu et al., "Asynchronous Local-SGD Training for Language Modeling" (arXiv 2401.09135).

Momentum at an asynchronous server amplifies what is stale. Delayed Nesterov moves along each update g_t = w_{t - tau} -
(w_{t - tau} after local steps) when it arrives, but renews its momentum only with every N-th, from the mean of the N since:

    every N-th step:     m <- beta m + (g_{t-N+1} + ... + g_t) / N,   w <- w - eta ((1 - c N + c) beta m + g_t / N),
    at the steps between:                                             w <- w - eta (c beta m + g_t / N).

c, 0 to 1 / N, spreads the push of the momentum over the N steps; the paper's default is 0. At N = 1 it is Nesterov's momentum. A
step moves by eta / N of an update, so that N updates together count like the mean of a synchronous round.

Where we deviate: a cohort of more than one client is one update, the mean weighted by numbers of examples. The paper's dynamic
local updates, steps in proportion to a client's speed, are ``LocalWork(batch_size, steps=array)``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from fedjax_tx import check
from fedjax_tx.algorithms.fed_buff import fed_buff
from fedjax_tx.types import Aggregator, FederatedAlgorithm, PyTree, Task


def delayed_nesterov(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    max_staleness: int,
    server_learning_rate: float | Array,
    momentum: float | Array = 0.9,
    momentum_every: int = 4,
    momentum_between: float | Array = 0.0,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """Asynchronous training with delayed Nesterov momentum; use it with ``ftx.data.async_cohorts`` of ``buffer_size=1``.

    Args:
      task: what is learned. client_optimizer: starts anew at each client.
      max_staleness: the oldest start that the server can serve, in server steps, >= 0: it keeps as many parameters, and one more.
        A cohort source whose ``max_staleness`` is greater is refused before anything compiles.
      server_learning_rate: eta > 0. momentum: beta, 0 <= beta < 1. momentum_every: N >= 1, in the paper the number of clients
        that train at a time.
      momentum_between: c, the part of the momentum's push at each step between, 0 to 1 / N.
      aggregator: as of ``fed_buff``.

    Client metrics: as of ``fed_buff``.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> delayed_nesterov(task, optax.sgd(0.1), max_staleness=8, server_learning_rate=0.7).max_version
      8
    """
    check.number("server_learning_rate", server_learning_rate, above=0)
    check.number("momentum", momentum, low=0, below=1)
    check.integer("momentum_every", momentum_every, low=1)
    check.number("momentum_between", momentum_between, low=0, high=1 / momentum_every)
    server = delayed_momentum(server_learning_rate, momentum, momentum_every, momentum_between)
    return fed_buff(task, client_optimizer, max_staleness, server, jnp.ones_like, aggregator)


class DelayedMomentum(NamedTuple):
    """momentum: m. total: the sum of the updates since it was renewed. updates: how many."""

    momentum: PyTree
    total: PyTree
    updates: Int[Array, ""]


def delayed_momentum(rate: Any, momentum: Any, every: int, between: Any) -> optax.GradientTransformation:
    """The server's optimiser: eta, beta, N and c of the equations above.

    Example:
      >>> optimizer = delayed_momentum(1.0, 0.5, 2, 0.0)
      >>> moves, state = optimizer.update(jnp.array(-4.0), optimizer.init(jnp.array(0.0)))
      >>> second, state = optimizer.update(jnp.array(-3.0), state)
      >>> float(moves), float(second), float(state.momentum)
      (2.0, 3.25, -3.5)
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return DelayedMomentum(zeros, zeros, jnp.int32(0))

    def update(gradient, state, params=None):
        count = state.updates + 1
        due = count == every
        total = jax.tree.map(jnp.add, state.total, gradient)
        renewed = jax.tree.map(lambda m, g: jnp.where(due, momentum * m + g / every, m).astype(m.dtype), state.momentum, total)
        push = jnp.where(due, 1 - between * (every - 1), between) * momentum

        def move(m, g):
            return (-rate * (push * m + g / every)).astype(g.dtype)

        rest = jax.tree.map(lambda g: jnp.where(due, 0, g).astype(g.dtype), total)
        return jax.tree.map(move, renewed, gradient), DelayedMomentum(renewed, rest, jnp.where(due, 0, count))

    return optax.GradientTransformation(init, update)
