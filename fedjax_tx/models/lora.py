"""Low-rank adapters: LoRA, "Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1.

A dense layer with kernel W [in, out] gets A [in, rank] and B [rank, out] beside it::

    y = x W + (alpha / rank) (x A) B + b

B starts at 0, so the layer starts as what it was; A is Gaussian, here of variance 1 / in (the paper leaves it open). W + AB is
never formed: under a per-client ``vmap`` in which only A and B differ between clients, x W stays one product with one W.
There is no dropout on the adapters' input. ``ftx.tasks.freeze(task, "*lora*")`` trains the adapters alone.

In a tree of parameters a layer with adapters is ``{"kernel", "bias", "lora": {"lora_a", "lora_b"}}``.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from fedjax_tx import check, tree
from fedjax_tx.types import Model, PyTree


class LoRALinear(nnx.Linear):
    """A dense layer with an ``nnx.LoRA`` beside it; ``nnx.LoRALinear`` has no alpha, and would shift the draws of the kernels.

    Args:
      inputs, outputs: sizes.
      rank: >= 1. alpha: > 0; the adapters' part is scaled by alpha / rank. None: alpha = rank, as the paper recommends to begin.
      rngs: draws the kernel from its ``params`` and A from its ``lora`` stream.
      options: of ``nnx.Linear``.

    Example:
      >>> layer = LoRALinear(4, 8, rank=2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((1, 4))).shape, layer.lora.lora_a.shape
      ((1, 8), (4, 2))
    """

    def __init__(self, inputs: int, outputs: int, *, rank: int, alpha: float | None = None, rngs: nnx.Rngs, **options):
        super().__init__(inputs, outputs, rngs=rngs, **options)
        self.scale = _scale(rank, alpha)
        gaussian = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        adapter_rngs = nnx.Rngs(rngs.lora())
        self.lora = nnx.LoRA(inputs, rank, outputs, dtype=self.dtype, a_initializer=gaussian, rngs=adapter_rngs)

    def __call__(self, x: Float[Array, "*batch inputs"], out_sharding=None) -> Float[Array, "*batch outputs"]:
        """Returns x W + b + (alpha / rank) (x A) B."""
        return super().__call__(x, out_sharding=out_sharding) + self.scale * self.lora(x)


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


def add_lora(params: PyTree, model: Model, key: Key[Array, ""]) -> PyTree:
    """Returns the parameters of ``model``, made with ``lora_rank > 0``, from a plain one's: pretrained weights, new adapters.

    The result gives the logits that ``params`` gave. As ``init_params`` of a run it starts from there.

    Args:
      params: of the same model without adapters. model: the one with. key: draws the adapters.

    Errors: ``ValueError`` if the model has no adapters, or naming a leaf that ``params`` lacks or has in another shape or dtype.

    Example:
      >>> sizes = {"vocab_size": 8, "num_layers": 1, "num_heads": 1, "width": 8, "max_length": 4}
      >>> from fedjax_tx.models import decoder
      >>> plain, adapted = decoder(**sizes), decoder(**sizes, lora_rank=2)
      >>> params = add_lora(plain.init(jax.random.key(0)), adapted, jax.random.key(1))
      >>> params["layers"]["mlp_in"]["lora"]["lora_a"].shape
      (1, 8, 2)
    """
    check.instance("model", model, Model, "a Model(init, apply)")
    check.key("key", key)
    shapes = jax.eval_shape(model.init, key)
    _check_has_adapters("the model's parameters", shapes)
    _, plain = tree.partition(shapes, _is_adapter)
    check.same_tree("params", params, plain)
    adapters = jax.jit(lambda key: tree.partition(model.init(key), _is_adapter)[0])(key)
    return tree.join(adapters, params)


def _is_adapter(path: tuple[str, ...]) -> bool:
    return "lora" in path


def _check_has_adapters(name: str, params: PyTree) -> None:
    adapters, _ = tree.partition(params, _is_adapter)
    if not adapters:
        check.fail_value(name, "to hold adapters, as of decoder(..., lora_rank=4)", sorted(params))


def _scale(rank: int, alpha: float | None) -> float:
    check.integer("lora_rank", rank, low=1)
    return 1.0 if alpha is None else float(check.number("lora_alpha", alpha, above=0)) / rank
