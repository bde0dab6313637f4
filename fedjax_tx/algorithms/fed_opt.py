"""Servers with momentum and adaptive servers: FedAvgM, FedAdagrad, FedYogi, FedAdam and FedAMS.

Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295, Algorithm 2. Clients train as in federated averaging; of the
mean D_t of their changes (client - server) the server makes

    m_t = beta_1 m_{t-1} + (1 - beta_1) D_t
    v_t = v_{t-1} + D_t^2                                           FedAdagrad
    v_t = v_{t-1} - (1 - beta_2) D_t^2 sign(v_{t-1} - D_t^2)        FedYogi
    v_t = beta_2 v_{t-1} + (1 - beta_2) D_t^2                       FedAdam
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)

with m_{-1} = 0 and v_{-1} = tau^2 (the paper: at least tau^2), and without bias correction: ``fed_avg`` with ``optax.adam`` at
the server corrects it and starts v at 0, so that its first steps are other ones. Defaults are those of the experiments there:
beta_1 = 0.9 (FedAdagrad: 0), beta_2 = 0.99, tau = 0.001.

FedAMS: Wang et al., "Communication-Efficient Adaptive Federated Learning", arXiv 2205.02719, Algorithm 1: FedAdam that divides by
the largest v so far, V_t = max(V_{t-1}, v_t). We take its second option, x_{t+1} = x_t + eta m_t / (sqrt(V_t) + tau), for which
tau means what it means above; the first has max(V_{t-1}, v_t, epsilon) under the root and adds nothing. V and v start at tau^2.

FedAvgM: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", arXiv
1909.06335: u_t = beta u_{t-1} + D_t, x_{t+1} = x_t + eta u_t.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fedjax_tx import check
from fedjax_tx.algorithms.fed_avg import fed_avg
from fedjax_tx.types import Aggregator, FederatedAlgorithm, PyTree, Task


def fed_avgm(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_learning_rate: float | Array = 1.0,
    *,
    momentum: float | Array = 0.9,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedAvgM: federated averaging with heavy-ball momentum at the server.

    Args:
      task, client_optimizer, aggregator: as of ``fed_avg``. server_learning_rate: eta > 0. momentum: beta, 0 to below 1.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(fed_avgm(task, optax.sgd(0.1), momentum=0.9).passes)
      1
    """
    check.number("server_learning_rate", server_learning_rate, above=0)
    check.number("momentum", momentum, low=0, below=1)
    return fed_avg(task, client_optimizer, optax.sgd(server_learning_rate, momentum), aggregator)


def fed_adagrad(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_learning_rate: float | Array,
    *,
    beta1: float | Array = 0.0,
    tau: float | Array = 1e-3,
    initial_accumulator: float | Array | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedAdagrad: steps of the server shrink where changes were large.

    Args:
      task, client_optimizer, aggregator: as of ``fed_avg``. server_learning_rate: eta > 0. beta1: of the momentum, 0 to below 1.
      tau: > 0, added to the root; the smaller, the more adaptive. initial_accumulator: v_{-1} >= 0, by default tau^2.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(fed_adagrad(task, optax.sgd(0.1), server_learning_rate=0.1).passes)
      1
    """
    server = adaptive(server_learning_rate, lambda v, square: v + square, beta1, tau, initial_accumulator)
    return fed_avg(task, client_optimizer, server, aggregator)


def fed_yogi(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_learning_rate: float | Array,
    *,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.99,
    tau: float | Array = 1e-3,
    initial_accumulator: float | Array | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedYogi: as FedAdam, but v falls no faster than it rises.

    Args:
      task, client_optimizer, aggregator: as of ``fed_avg``. server_learning_rate: eta > 0. beta1, beta2: 0 to below 1.
      tau: > 0, added to the root; the smaller, the more adaptive. initial_accumulator: v_{-1} >= 0, by default tau^2.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(fed_yogi(task, optax.sgd(0.1), server_learning_rate=0.01).passes)
      1
    """
    check.number("beta2", beta2, low=0, below=1)

    def accumulate(v, square):
        return v - (1 - beta2) * square * jnp.sign(v - square)

    server = adaptive(server_learning_rate, accumulate, beta1, tau, initial_accumulator)
    return fed_avg(task, client_optimizer, server, aggregator)


def fed_adam(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_learning_rate: float | Array,
    *,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.99,
    tau: float | Array = 1e-3,
    initial_accumulator: float | Array | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedAdam: the server divides the moving mean of changes by the root of that of their squares.

    Args:
      task, client_optimizer, aggregator: as of ``fed_avg``. server_learning_rate: eta > 0. beta1, beta2: 0 to below 1.
      tau: > 0, added to the root; the smaller, the more adaptive. initial_accumulator: v_{-1} >= 0, by default tau^2.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(fed_adam(task, optax.sgd(0.1), server_learning_rate=0.01).passes)
      1
    """
    server = adaptive(server_learning_rate, _moving_mean(beta2), beta1, tau, initial_accumulator)
    return fed_avg(task, client_optimizer, server, aggregator)


def fed_ams(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_learning_rate: float | Array,
    *,
    beta1: float | Array = 0.9,
    beta2: float | Array = 0.99,
    tau: float | Array = 1e-3,
    initial_accumulator: float | Array | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """FedAMS: FedAdam that divides by the root of the largest v so far, so that no step grows because changes became small.

    Args:
      task, client_optimizer, aggregator: as of ``fed_avg``. server_learning_rate: eta > 0. beta1, beta2: 0 to below 1.
      tau: > 0, added to the root; the smaller, the more adaptive. initial_accumulator: v_{-1} >= 0, by default tau^2.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(fed_ams(task, optax.sgd(0.1), server_learning_rate=0.01).passes)
      1
    """
    server = adaptive(server_learning_rate, _moving_mean(beta2), beta1, tau, initial_accumulator, keep_largest=True)
    return fed_avg(task, client_optimizer, server, aggregator)


def _moving_mean(beta2: float | Array) -> Callable[[Array, Array], Array]:
    check.number("beta2", beta2, low=0, below=1)
    return lambda v, square: beta2 * v + (1 - beta2) * square


class _Moments(NamedTuple):
    """m, v and, where the method keeps it, V; of the parameters' shapes."""

    first: PyTree
    second: PyTree
    largest: PyTree


def adaptive(
    learning_rate: Any,
    accumulate: Callable[[Array, Array], Array],
    beta1: Any,
    tau: Any,
    initial_accumulator: Any = None,
    *,
    keep_largest: bool = False,
) -> optax.GradientTransformation:
    """Returns the server's optimiser: ``accumulate(v, D^2) -> v`` is what the methods differ in.

    It takes server - client for the gradient, -D_t.
    """
    check.number("server_learning_rate", learning_rate, above=0)
    check.number("beta1", beta1, low=0, below=1)
    check.number("tau", tau, above=0)
    start = tau * tau if initial_accumulator is None else check.number("initial_accumulator", initial_accumulator, low=0)

    def init(params):
        second = jax.tree.map(lambda leaf: jnp.full_like(leaf, start), params)
        return _Moments(jax.tree.map(jnp.zeros_like, params), second, second if keep_largest else ())

    def update(delta, state, params=None):
        first = jax.tree.map(lambda m, d: (beta1 * m + (1 - beta1) * d).astype(m.dtype), state.first, delta)
        second = jax.tree.map(lambda v, d: accumulate(v, d * d).astype(v.dtype), state.second, delta)
        largest = jax.tree.map(jnp.maximum, state.largest, second) if keep_largest else ()
        divisor = largest if keep_largest else second
        steps = jax.tree.map(lambda m, v: (-learning_rate * m / (jnp.sqrt(v) + tau)).astype(m.dtype), first, divisor)
        return steps, _Moments(first, second, largest)

    return optax.GradientTransformation(init, update)
