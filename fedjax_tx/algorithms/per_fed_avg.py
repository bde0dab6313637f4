"""A good start for everyone: Fallah et al., "Personalized Federated Learning: A Meta-Learning Approach" (Per-FedAvg).

arXiv 2002.07948, Algorithm 1. What is sought is not the best common model but the one from which a step of gradient descent on a
client's own data leads furthest: the server minimises the mean of F_i(w) = f_i(w - alpha grad f_i(w)). A step of client i takes
batches D, D' and D'' and goes

    u = w - alpha grad f_i(w; D),        w <- w - beta (I - alpha H_i(w; D'')) grad f_i(u; D'),

with H_i the Hessian; the server averages the w_i. Two variants save the Hessian: FO leaves it out; HF takes its product with
g = grad f_i(u; D') from two gradients,

    H_i(w) g = (grad f_i(w + delta g; D'') - grad f_i(w - delta g; D'')) / (2 delta).

Where we deviate: D and D' are the two halves of a batch, so that its examples are used once, and D'' is D, as in MAML (arXiv
1703.03400), of which the step is then the exact gradient. In a batch of one example both are that example. The step of w is any
optimiser's; the mean is weighted by numbers of examples and handed to a server optimiser. At alpha = 0 and batches of one example
all three are federated averaging.

Evaluation does what the method is for: each client, trained before or not, makes a step of rate alpha on its first examples and
is scored on the others (``clients/tuned.py``). In the paper that step is made on training examples, which is a run of
``fine_tune`` from ``result.params`` and uses up no example of the evaluation.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from fedjax_tx import check
from fedjax_tx.aggregation import check_complete, mean, nothing
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import batch_loss, local_sgd, small_batches, tuned_evaluation
from fedjax_tx.types import Aggregator, FederatedAlgorithm, Pass, PyTree, Task

LossOf = Callable[[PyTree, Bool[Array, " batch"]], tuple[Array, Array]]
"""(mean loss, total weight) of a batch, by parameters and mask."""


def per_fed_avg(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    personal_learning_rate: float | Array,
    *,
    tuning_steps: int = 1,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """Per-FedAvg with the Hessian, by differentiating through the personal step: about twice the memory of its variants.

    Args:
      task: what is learned, by a loss that can be differentiated twice.
      client_optimizer: takes F_i's gradient, ``optax.sgd(beta)`` is the paper's; starts anew in each round.
      personal_learning_rate: alpha >= 0. tuning_steps: how many personal steps evaluation makes, each on a batch, >= 0; at most
        on half of a client's batches.
      server_optimizer, aggregator: as of ``fed_avg``.

    Client metric in training: ``loss``, after the personal step, on the examples that it was not made on. In evaluation ``loss``
    and the task's metrics are those after it, and with the prefix ``global_`` those before, on the same examples.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(per_fed_avg(task, optax.sgd(0.1), personal_learning_rate=0.01).passes)
      1
    """

    def exact(loss: LossOf, params, first, rest):
        def after_step(params):
            return loss(_step(loss, params, first, personal_learning_rate), rest)

        return jax.value_and_grad(after_step, has_aux=True)(params)

    return _make(task, exact, client_optimizer, personal_learning_rate, tuning_steps, server_optimizer, aggregator)


def per_fed_avg_fo(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    personal_learning_rate: float | Array,
    *,
    tuning_steps: int = 1,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """Per-FedAvg (FO), first-order: without the Hessian, two gradients a step.

    Args:
      task, client_optimizer, personal_learning_rate, tuning_steps, server_optimizer, aggregator: as of ``per_fed_avg``.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(per_fed_avg_fo(task, optax.sgd(0.1), personal_learning_rate=0.01).passes)
      1
    """

    def first_order(loss: LossOf, params, first, rest):
        tuned = _step(loss, params, first, personal_learning_rate)
        return jax.value_and_grad(loss, has_aux=True)(tuned, rest)

    return _make(task, first_order, client_optimizer, personal_learning_rate, tuning_steps, server_optimizer, aggregator)


def per_fed_avg_hf(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    personal_learning_rate: float | Array,
    *,
    delta: float | Array = 1e-3,
    tuning_steps: int = 1,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
) -> FederatedAlgorithm:
    """Per-FedAvg (HF), Hessian-free: the Hessian's product by a difference of gradients, four gradients a step.

    Args:
      task, client_optimizer, personal_learning_rate, tuning_steps, server_optimizer, aggregator: as of ``per_fed_avg``.
      delta: > 0, how far the two gradients are taken from w, in lengths of g; if too small, rounding drowns the difference. They
        are taken in single precision at least; so must the task compute, or a larger delta is needed.

    Example:
      >>> import fedjax_tx as ftx
      >>> task = ftx.tasks.classification(ftx.models.logistic_regression(4, 3))
      >>> len(per_fed_avg_hf(task, optax.sgd(0.1), personal_learning_rate=0.01).passes)
      1
    """
    check.number("delta", delta, above=0)

    def hessian_free(loss: LossOf, params, first, rest):
        tuned = _step(loss, params, first, personal_learning_rate)
        pair, gradient = jax.value_and_grad(loss, has_aux=True)(tuned, rest)

        def slope(sign):
            def beside(leaf, g):
                wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))  # in fewer bits w + delta g would be w
                return (wide + sign * delta * g).astype(wide.dtype)

            return jax.grad(loss, has_aux=True)(jax.tree.map(beside, params, gradient), first)[0]

        def corrected(g, ahead, behind):
            return (g - personal_learning_rate * (ahead - behind) / (2 * delta)).astype(g.dtype)

        return pair, jax.tree.map(corrected, gradient, slope(1), slope(-1))

    return _make(task, hessian_free, client_optimizer, personal_learning_rate, tuning_steps, server_optimizer, aggregator)


def _make(task, meta_gradient, client_optimizer, personal_learning_rate, tuning_steps, server_optimizer, aggregator):
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    check.instance("task", task, Task, "a Task")
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.number("personal_learning_rate", personal_learning_rate, low=0)
    check.integer("tuning_steps", tuning_steps, low=0)
    check.instance("server_optimizer", server_optimizer, optax.GradientTransformation, "an optax optimiser")
    check_complete("aggregator", aggregator)

    def gradient(task, params, frozen, batch, mask, key):
        def loss(params, mask):
            return batch_loss(task, params, frozen, batch, mask, key)

        return meta_gradient(loss, params, *halves(mask))

    trainer = local_sgd(task, client_optimizer, gradient=gradient)
    training = Pass(trainer, aggregator, broadcast_model, optax_server(server_optimizer))
    tuning = tuned_evaluation(task, optax.sgd(personal_learning_rate), tuning_steps)
    evaluation = Pass(tuning, nothing(), broadcast_model, lambda state, aggregate, key: (state, {}), small_batches)
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), evaluation)


def halves(mask: Bool[Array, " batch"]) -> tuple[Bool[Array, " batch"], Bool[Array, " batch"]]:
    """Returns the masks of the first half of a batch's examples (the larger one) and of the rest; of one example, it twice.

    Example:
      >>> [half.tolist() for half in halves(jnp.array([True, True, True, False]))]
      [[True, True, False, False], [False, False, True, False]]
    """
    count, position = mask.sum(), jnp.cumsum(mask) - 1
    first = position < (count + 1) // 2
    return mask & first, mask & (~first | (count == 1))


def _step(loss: LossOf, params: PyTree, mask: Bool[Array, " batch"], rate: float | Array) -> PyTree:
    """A client's personal step: w - alpha grad f(w) on a part of a batch."""
    gradient, _ = jax.grad(loss, has_aux=True)(params, mask)
    return jax.tree.map(lambda leaf, slope: (leaf - rate * slope).astype(leaf.dtype), params, gradient)
