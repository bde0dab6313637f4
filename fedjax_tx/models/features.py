"""What a model's head reads: the same model without its last dense layer."""

from fedjax_tx import check, tree
from fedjax_tx.models import extras
from fedjax_tx.types import Model


def features(model: Model, head: str = "head") -> Model:
    """Returns the model whose output is what enters its head; it takes the model's own parameters, those of the head included.

    With the logits ``f @ kernel + bias`` of a linear head, statistics of the features f and another head are all that
    a calibration of classifiers needs.

    Args:
      model: one of ``ftx.models``. head: the path of a dense layer, names joined by "/".

    Errors: ``ValueError`` if the model has no such layer (a decoder with tied embeddings has no head), or, when it is applied,
      if its output is not of the layer's input size.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from fedjax_tx.models import decoder
      >>> model = decoder(vocab_size=5, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> params = model.init(jax.random.key(0))
      >>> features(model).apply(params, jnp.zeros((2, 4), jnp.int32)).shape
      (2, 4, 8)
    """
    check.instance("head", head, str, "a string")
    (path, place), *_ = extras.places(model, head, extras.dense_kernels, "dense layers").items()

    def without_head(params):
        return tree.change(params, path, lambda layer: {**layer, "features": {}})

    def apply(params, inputs, *, key=None):
        outputs = model.apply(without_head(params), inputs, key=key)
        if outputs.shape[-1] != place.shape[-2]:
            check.fail_value("the model", f"to give the {place.shape[-2]} inputs of {head!r}", f"shape {outputs.shape}")
        return outputs

    return Model(model.init, apply)
