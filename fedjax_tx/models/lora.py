"""Low-rank adapters: LoRA, "Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1.

A dense layer with kernel W [in, out] gets A [in, rank] and B [rank, out] beside it::

    y = x W + (alpha / rank) (x A) B + b

B starts at 0, so the layer starts as what it was; A is Gaussian, here of variance 1 / in (the paper leaves it open). W + AB is
never formed (``models.layers.Dense``). There is no dropout on the adapters' input.

In a tree of parameters a layer with adapters is ``{"kernel", "bias", "lora": {"lora_a", "lora_b"}}``.
``ftx.tasks.freeze(task, "*lora*")`` trains the adapters alone, ``freeze(task, ["*lora*", "head/*"])`` a new head with them, and
``freeze(task, "*lora_b")`` only B, with A as it was drawn: FFA-LoRA, "Improving LoRA in Privacy-preserving Federated Learning"
(arXiv 2403.12313), in which the mean of the clients' products A B is the product of A and the mean B.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_tx import check, tree
from fedjax_tx.models import extras
from fedjax_tx.types import Model, PyTree


def lora(model: Model, rank: int, alpha: float | None = None, *, where: str | Sequence[str] = "*") -> Model:
    """Returns the model with low-rank adapters beside its dense layers; everything else is drawn as without them.

    Args:
      model: one of ``ftx.models``. rank: >= 1. alpha: > 0, the adapters' part is scaled by alpha / rank; None: alpha = rank, as
        the paper recommends to begin.
      where: patterns of paths of dense layers, such as ``"layers/*"`` or ``["*qkv", "*out"]``; all of them by default, the
        head too. "*" stands for any characters, "/" too.

    Errors: ``ValueError`` if a pattern matches no dense layer (some are named), or one that has adapters already.

    Example:
      >>> from fedjax_tx.models import decoder
      >>> model = decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> params = lora(model, rank=2, where="*qkv").init(jax.random.key(0))
      >>> params["layers"]["attention"]["qkv"]["lora"]["lora_b"].shape
      (1, 2, 24)
    """
    scale = _scale(check.integer("rank", rank, low=1), alpha, "alpha")
    kernels = extras.places(model, where, extras.dense_kernels, "dense layers", without="lora")

    def draw(path, kernel, key):
        *stack, inputs, outputs = kernel.shape
        gaussian = jax.random.normal(key, (*stack, inputs, rank), kernel.dtype) / jnp.sqrt(inputs)
        return {"lora_a": gaussian, "lora_b": jnp.zeros((*stack, rank, outputs), kernel.dtype)}

    def scaled(params):
        for path in kernels:
            params = tree.change(params, (*path, "lora", "lora_b"), lambda lora_b: scale * lora_b)
        return params

    adapted = extras.add(model, kernels, "lora", draw)
    # The scale goes into B here, so that layers need not know it.
    return adapted if scale == 1.0 else adapted._replace(apply=extras.before(adapted.apply, scaled))


def merge_lora(params: PyTree, lora_alpha: float | None = None) -> PyTree:
    """Returns the plain model's parameters, W + (alpha / rank) A B in place of W wherever there are adapters.

    Args:
      params: nested dicts, such as ``result.params``. lora_alpha: what the model was made with (None: alpha = rank).

    Errors: ``ValueError`` if there is no adapter.

    Example:
      >>> sizes = {"vocab_size": 8, "num_layers": 1, "num_heads": 1, "width": 8, "max_length": 4}
      >>> from fedjax_tx.models import decoder
      >>> params = decoder(**sizes, lora_rank=2).init(jax.random.key(0))
      >>> plain = decoder(**sizes).init(jax.random.key(0))
      >>> jax.tree.structure(merge_lora(params)) == jax.tree.structure(plain)
      True
    """
    if lora_alpha is not None:
        check.number("lora_alpha", lora_alpha, above=0)
    _check_has_adapters("params", check.mapping("params", params))

    def merged(branch):
        if not isinstance(branch, dict):
            return branch
        rest = {name: merged(part) for name, part in branch.items() if name != "lora"}
        if "lora" not in branch:
            return rest
        lora_a, lora_b = branch["lora"]["lora_a"], branch["lora"]["lora_b"]
        product = jnp.matmul(lora_a, lora_b, precision=jax.lax.Precision.HIGHEST)
        return {**rest, "kernel": branch["kernel"] + _scale(lora_a.shape[-1], lora_alpha) * product}

    return merged(params)


def _check_has_adapters(name: str, params: PyTree) -> None:
    adapters, _ = tree.partition(params, lambda path: "lora" in path)
    if not adapters:
        check.fail_value(name, "to hold adapters, as of decoder(..., lora_rank=4)", sorted(params))


def _scale(rank: int, alpha: float | None, name: str = "lora_alpha") -> float:
    return 1.0 if alpha is None else float(check.number(name, alpha, above=0)) / rank
