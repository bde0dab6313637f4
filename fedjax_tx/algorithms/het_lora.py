"""HetLoRA: Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models".

arXiv 2401.06432, section 3. Each client k has a rank r_k of its own. It gets the first r_k columns of A and rows of B, trains
them and sends them back; the server fills them up with zeros and averages, weighted by how much each client adapts::

    A <- sum_k p_k pad(A_k),    B <- sum_k p_k pad(B_k),    p_k = ||A_k B_k||_F / sum_j ||A_j B_j||_F   (over all layers at once)

Where this deviates: the paper's pruning of a client's own rank is left out; ranks are what they are given. Whatever else the
task trains (a head) is averaged with the same weights. All clients carry arrays of the full rank, zero beyond their own, and the
ledger counts those.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from fedjax_tx import check
from fedjax_tx.aggregation import mean, nothing
from fedjax_tx.algorithms.low_rank import Path, branch, low_rank_layers
from fedjax_tx.algorithms.server import broadcast_model, init_server, optax_server
from fedjax_tx.clients import local_evaluation, local_sgd
from fedjax_tx.types import ClientTrainer, FederatedAlgorithm, Pass, PyTree, Task


def het_lora(
    task: Task, client_optimizer: optax.GradientTransformation, ranks: Sequence[int] | np.ndarray, *, norm_weighted: bool = True
) -> FederatedAlgorithm:
    """Federated averaging of low-rank adapters whose rank is each client's own.

    Args:
      task: one that trains adapters and freezes the kernels beside them, such as ``ftx.tasks.freeze(task, "*lora*")``.
      client_optimizer: starts anew at each client in each round.
      ranks: integers [client] >= 1, one for each client of the training data; a layer's whole rank where that is smaller.
      norm_weighted: whether clients count by the norm of what their adapters add; or by their numbers of examples.

    Evaluation scores on each client's data what that client would use: adapters cut to its rank. A client that is not among the
    training clients has none and is scored with the whole adapters.

    Errors: ``ValueError`` if the task trains no adapters, or naming a layer whose kernel it trains or whose A or B it freezes.

    Example:
      >>> import fedjax_tx as ftx
      >>> model = ftx.models.decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> task = ftx.tasks.freeze(ftx.tasks.next_token(ftx.models.lora(model, rank=4)), "*lora*")
      >>> len(het_lora(task, optax.sgd(0.1), ranks=[1, 2, 4]).passes)
      1
    """
    layers, table = low_rank_layers(task), _check_ranks(ranks)
    check.instance("client_optimizer", client_optimizer, optax.GradientTransformation, "an optax optimiser")
    check.boolean("norm_weighted", norm_weighted)
    server_optimizer, plain = optax.sgd(1.0), local_sgd(task, client_optimizer)

    def cut(params: PyTree, info) -> PyTree:
        whole = jnp.iinfo(jnp.int32).max
        return cut_rank(params, jnp.where(info.id < 0, whole, jnp.asarray(table)[info.id]))

    def received(broadcast, info):
        return broadcast._replace(params=cut(broadcast.params, info))

    def start(broadcast, info, state):
        return plain.start(received(broadcast, info), info, state)

    def finish(broadcast, info, local):
        # The columns of A and rows of B that start at 0 have gradients 0: they stay so, unless the optimiser adds noise.
        own = local._replace(params=cut(local.params, info))
        result = plain.finish(broadcast, info, own)
        if not norm_weighted:
            return result
        return result._replace(weight=jnp.where(result.weight > 0, added_norm(own.params, layers), 0.0))

    training = Pass(plain._replace(start=start, finish=finish), mean(), broadcast_model, optax_server(server_optimizer))
    evaluation = Pass(_as_received(local_evaluation(task), received), nothing(), broadcast_model, _keep)
    return FederatedAlgorithm(init_server(task, server_optimizer), (training,), evaluation, num_clients=table.size)


def cut_rank(params: PyTree, rank: int | Array) -> PyTree:
    """Returns parameters in which each adapter has only its first ``rank`` columns of A and rows of B, the others 0.

    Example:
      >>> params = {"head": {"lora": {"lora_a": jnp.ones((1, 2)), "lora_b": jnp.ones((2, 1))}}}
      >>> cut_rank(params, 1)["head"]["lora"]["lora_a"].tolist()
      [[1.0, 0.0]]
    """

    def cut(path, leaf):
        axis = {"lora_a": -1, "lora_b": -2}.get(path[-1].key)
        if axis is None:
            return leaf
        kept = jnp.arange(leaf.shape[axis]) < rank
        return leaf * (kept if axis == -1 else kept[:, None]).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(cut, params)


def added_norm(params: PyTree, layers: tuple[Path, ...]) -> Float[Array, ""]:
    """Returns the Frobenius norm of A B over all layers, as ||A B||^2 = sum((A^T A) * (B B^T)): no product is formed.

    Example:
      >>> adapter = {"lora_a": jnp.array([[3.0], [4.0]]), "lora_b": jnp.array([[0.0, 2.0]])}
      >>> float(added_norm({"head": {"lora": adapter}}, (("head",),)))
      10.0
    """

    def squared(layer):
        adapter = branch(params, (*layer, "lora"))
        lora_a, lora_b = (adapter[name].astype(jnp.float32) for name in ("lora_a", "lora_b"))
        inner = jnp.einsum("...ir,...is->...rs", lora_a, lora_a, precision=jax.lax.Precision.HIGHEST)
        outer = jnp.einsum("...ro,...so->...rs", lora_b, lora_b, precision=jax.lax.Precision.HIGHEST)
        return (inner * outer).sum()

    return jnp.sqrt(jnp.maximum(sum(squared(layer) for layer in layers), 0.0))


def _as_received(trainer: ClientTrainer, received) -> ClientTrainer:
    """The trainer at a client that uses what it ``received`` of the broadcast."""

    def start(broadcast, info, state):
        return trainer.start(received(broadcast, info), info, state)

    def step(broadcast, info, local, batch, mask, key):
        return trainer.step(received(broadcast, info), info, local, batch, mask, key)

    return trainer._replace(start=start, step=step)


def _keep(state, aggregate, key):
    return state, {}


def _check_ranks(ranks: Sequence[int] | np.ndarray) -> np.ndarray:
    check.instance("ranks", ranks, (list, tuple, np.ndarray), "integers, one for each client")
    table = np.asarray(ranks)
    if table.size and table.dtype.kind not in "iu":
        check.fail_type("ranks", "integers, one for each client", ranks)
    if table.ndim != 1 or not table.size or table.min() < 1:
        check.fail_value("ranks", "to be integers >= 1, one for each client", ranks)
    return np.minimum(table, np.iinfo(np.int32).max).astype(np.int32)
