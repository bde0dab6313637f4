"""Temperature scaling fitted over clients: Newton's method on the pooled likelihood of one number.

The method is that of Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599 (``ftx.tasks.temperature``). The
negative log-likelihood of all clients' examples is convex in b = 1 / T, so with its slope and curvature, summed over clients,

    b <- b - sum_k g_k / sum_k h_k,        g_k, h_k: client k's first and second derivative by b,

a few rounds give what the pooled data would give, exactly. A client sends three numbers a round; the third is how many examples
it has. A step at most doubles or halves b.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedjax_tx import check
from fedjax_tx.aggregation import total
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.server import broadcast_model, init_server
from fedjax_tx.clients import add_metrics, batch_loss, client_weight, no_metrics, whole_data
from fedjax_tx.tasks import temperature
from fedjax_tx.tasks.temperature import NAME
from fedjax_tx.types import ClientResult, ClientTrainer, FederatedAlgorithm, Metrics, Pass, PyTree, Task


class _Sums(NamedTuple):
    slope: Float[Array, ""]
    curvature: Float[Array, ""]
    metrics: Metrics
    state: PyTree


def fit_temperature(task: Task) -> FederatedAlgorithm:
    """Fits the temperature of a trained classifier; 5 to 10 rounds over all clients, better on data not trained on.

    The parameters are those of ``ftx.tasks.temperature(task)``: ``log_temperature`` beside the task's own, which stay.

    Args:
      task: the classification that was trained; with losses for unbalanced classes or without, since it is applied as in
        evaluation.

    Metric: ``start_loss``, the loss at the temperature that the round starts from. Round info: ``temperature``, and ``slope``,
    the mean first derivative by 1 / T, which goes to 0.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.Model(lambda key: {"w": jnp.ones((3, 2))}, lambda params, x, *, key=None: x @ params["w"])
      >>> algorithm = fit_temperature(ftx.tasks.classification(model))
      >>> sorted(algorithm.init(jax.random.key(0), {"w": jnp.ones((3, 2)), "log_temperature": jnp.zeros(())}).frozen)
      ['w']
    """
    check.instance("task", task, Task, "a Task")
    scaled = temperature(task)

    def combine(state, aggregate, key):
        inverse = jnp.exp(-state.params[NAME])
        slope, curvature = aggregate["slope"], aggregate["curvature"]
        step = jnp.where(curvature > 0, slope / jnp.where(curvature > 0, curvature, 1), 0)  # 0: all logits of an example alike
        inverse = jnp.clip(inverse - step, inverse / 2, 2 * inverse)
        told = {"temperature": 1 / inverse, "slope": slope / jnp.maximum(aggregate["weight"], 1e-6)}
        return state._replace(params={NAME: -jnp.log(inverse)}), told

    telling = Pass(_derivatives(scaled), total(), broadcast_model, combine, whole_data)
    return FederatedAlgorithm(init_server(scaled, optax.identity()), (telling,), model_evaluation(scaled))


def _derivatives(scaled: Task) -> ClientTrainer:
    """A client that sums its loss's first and second derivative by 1 / T at the server's temperature; it makes no step."""

    def start(broadcast, info, state):
        return _Sums(jnp.zeros(()), jnp.zeros(()), no_metrics({"start_loss": None}), state)

    def step(broadcast, info, local, batch, mask, key):
        def loss(inverse):
            return batch_loss(scaled, {NAME: -jnp.log(inverse)}, broadcast.frozen, batch, mask, None)

        def slope(inverse):
            (value, weight), gradient = jax.value_and_grad(loss, has_aux=True)(inverse)
            return gradient, (value, weight, gradient)

        curvature, (value, weight, gradient) = jax.grad(slope, has_aux=True)(jnp.exp(-broadcast.params[NAME]))
        metrics = add_metrics(local.metrics, {"start_loss": (value, weight)})
        return _Sums(local.slope + weight * gradient, local.curvature + weight * curvature, metrics, local.state)

    def finish(broadcast, info, local):
        update = {"slope": local.slope, "curvature": local.curvature, "weight": local.metrics["start_loss"][1]}
        return ClientResult(update, client_weight(info), local.state, local.metrics)

    return ClientTrainer(lambda broadcast, key: (), start, step, finish)
