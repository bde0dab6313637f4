"""FedEx-LoRA: Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models".

arXiv 2410.09432, section 4. Averaging clients' A_k and B_k is not averaging the models that they trained, as the mean of products
is no product of means. The server adds what is missing to the frozen kernel of each layer::

    A <- mean_k A_k,    B <- mean_k B_k,    W <- W + alpha / rank (mean_k A_k B_k - A B),

after which W + alpha / rank A B is the mean of the clients' W + alpha / rank A_k B_k. Means are weighted by numbers of examples.

Where this deviates: the products are formed one client at a time as clients end, and added up; no client's product is kept. A
client would send A_k and B_k, of which the server forms the product: that is what the ledger counts. The layers' correction has
rank at most (clients + 1) rank, and could be sent so; the ledger counts the frozen kernels that carry it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedjax_tx import check, tree
from fedjax_tx.aggregation import mean, parts
from fedjax_tx.algorithms.fed_avg import model_evaluation
from fedjax_tx.algorithms.low_rank import branch, low_rank_layers
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_sgd
from fedjax_tx.types import FederatedAlgorithm, Pass, PyTree, Task


def fed_ex_lora(
    task: Task, client_optimizer: optax.GradientTransformation, *, lora_alpha: float | None = None
) -> FederatedAlgorithm:
    """Federated averaging of low-rank adapters that averages the adapted kernels exactly.

    Frozen kernels change from round to round, so a sweep refuses the method: run its settings one after another. Whatever else
    the task trains (a head) is averaged as ever.

    Args:
      task: one that trains adapters and freezes the kernels beside them, such as ``ftx.tasks.freeze(task, "*lora*")``.
      client_optimizer: starts anew at each client in each round.
      lora_alpha: what the model was made with (None: alpha = rank).

    Round info: ``update_norm`` of the adapters, ``residual_norm`` of what is added to all kernels.

    Errors: ``ValueError`` if the task trains no adapters, or naming a layer whose kernel it trains or whose A or B it freezes.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> task = ftx.tasks.freeze(ftx.tasks.next_token(ftx.models.lora(model, rank=2)), "*lora*")
      >>> len(fed_ex_lora(task, optax.sgd(0.1)).passes)
      1
    """
    layers = low_rank_layers(task)
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    if lora_alpha is not None:
        check.number("lora_alpha", lora_alpha, above=0)
    plain, server_optimizer = local_sgd(task, client_optimizer), optax.sgd(1.0)
    average = optax_server(server_optimizer)

    def products(params: PyTree) -> dict[str, Float[Array, "..."]]:
        return {"/".join(layer): _product(branch(params, (*layer, "lora"))) for layer in layers}

    def finish(broadcast, info, local):
        result = plain.finish(broadcast, info, local)
        return result._replace(update={**result.update, "product": products(local.params)})

    def combine(state, aggregate, key):
        state, info = average(state, aggregate, key)
        residuals = tree.subtract(aggregate["product"], products(state.params))
        frozen = state.frozen
        for layer in layers:
            rank = branch(state.params, (*layer, "lora", "lora_a")).shape[-1]
            scale = 1.0 if lora_alpha is None else lora_alpha / rank
            frozen = tree.change(frozen, (*layer, "kernel"), partial(_add, scale * residuals["/".join(layer)]))
        return state._replace(frozen=frozen), {**info, "residual_norm": tree.norm(residuals)}

    def travels(broadcast, message):
        return broadcast, message.parts["delta"]

    aggregator = parts(delta=mean(), product=mean())
    training = Pass(plain._replace(finish=finish), aggregator, broadcast_model, combine, travels=travels)
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), model_evaluation(task))


def _add(added: Array, kernel: Array) -> Array:
    return (kernel + added).astype(kernel.dtype)


def _product(adapter: dict[str, Array]) -> Float[Array, "*stack inputs outputs"]:
    """A B in float32: the residual is a difference of such products, small beside them."""
    lora_a, lora_b = (adapter[name].astype(jnp.float32) for name in ("lora_a", "lora_b"))
    return jnp.matmul(lora_a, lora_b, precision=jax.lax.Precision.HIGHEST)
