"""The Vision Transformer (arXiv:2010.11929) from and to Hugging Face's folders.

Its patches go through a convolution there, with a kernel [width, channel, row, column], and through a dense layer here, with
a kernel [row * column * channel, width]: the same numbers in another order.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from fedjax_tx import check
from fedjax_tx.models.pretrained.config import ACTIVATIONS, check_settings, config_of, labels, saved, size
from fedjax_tx.models.pretrained.names import Weight, dense, norm, read_weights, rename, write_weights
from fedjax_tx.models.pretrained.tensors import check_folder, read_config, read_tensors, write_folder
from fedjax_tx.models.vit import vit
from fedjax_tx.types import Model, PyTree

PREFIX = "vit."

UNUSED = ("pooler.dense.*", "embeddings.mask_token")
"""What checkpoints made before a classifier was trained hold beside the layers."""

SUPPORTED = {"hidden_act": tuple(ACTIVATIONS), "qkv_bias": (True,)}


def load_vit(
    folder: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    key: Key[Array, ""] | None = None,
    dropout: float = 0.0,
    dtype=jnp.float32,
    implementation: str | None = None,
    unroll: bool = True,
) -> tuple[Model, PyTree]:
    """Returns a ``vit`` of a folder's sizes and its weights: ``(model, params)``; images are [height, width, channel].

    Args:
      folder: with ``config.json`` and ``model.safetensors`` (or several such files and their index).
      num_classes: None: as many as the folder's classifier has.
      key: draws the head anew, whatever the folder has. None: the head is read from the folder.
      dropout, dtype, implementation, unroll: of ``vit``.

    Errors: ``ValueError`` naming a setting of the config that ``vit`` has not, or listing every tensor that is missing, left over
    or of another shape.

    Example:
      >>> import tempfile
      >>> config = {"model_type": "vit", "image_size": 4, "patch_size": 2, "num_channels": 1, "hidden_size": 8}
      >>> config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
      >>> params = vit(4, 2, 3, 1, 2, 8, channels=1).init(jax.random.key(0))
      >>> folder = tempfile.mkdtemp()
      >>> save_vit(folder, params, config)
      >>> model, loaded = load_vit(folder)
      >>> model.apply(loaded, jnp.zeros((5, 4, 4, 1))).shape
      (5, 3)
    """
    path = check_folder("folder", folder)
    if key is not None:
        check.key("key", key)
    config = read_config(path)
    check_settings(config, "vit", SUPPORTED)
    tensors = rename(read_tensors(path), prefix=PREFIX)
    if num_classes is None:
        if "classifier.bias" not in tensors:
            check.fail_value("num_classes", f"to be given, since {path} has no 'classifier.bias'", None)
        num_classes = tensors["classifier.bias"].shape[0]
    model = _model(config, num_classes, dropout=dropout, dtype=dtype, implementation=implementation, unroll=unroll)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    if key is None:
        return model, read_weights(str(path), tensors, _weights(config, shapes), shapes, UNUSED)
    kept = {name: part for name, part in shapes.items() if name != "head"}
    params = read_weights(str(path), tensors, _weights(config, kept), kept, (*UNUSED, "classifier.*"))
    return model, {**params, "head": jax.jit(lambda key: model.init(key)["head"])(key)}


def save_vit(folder: str | os.PathLike[str], params: PyTree, config: Mapping[str, Any] | str | os.PathLike[str]) -> None:
    """Writes a ``vit``'s parameters, float32, as a folder that ``transformers``' ``ViTForImageClassification`` reads.

    Args:
      folder: made if it is not there; its ``config.json`` and ``model.safetensors`` are replaced.
      params: of a ``vit`` with a class token, of the config's sizes, without adapters (``merge_lora`` first).
      config: the folder that the parameters came from, or the content of such a ``config.json``.

    Errors: ``ValueError`` naming a leaf that does not fit the config, or a setting that ``vit`` has not.

    Example:
      >>> import tempfile
      >>> config = {"model_type": "vit", "image_size": 4, "patch_size": 2, "num_channels": 1, "hidden_size": 8}
      >>> config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
      >>> params = vit(4, 2, 3, 1, 2, 8, channels=1).init(jax.random.key(0))
      >>> folder = tempfile.mkdtemp()
      >>> save_vit(folder, params, config)
      >>> sorted(os.listdir(folder))
      ['config.json', 'model.safetensors']
    """
    path = check_folder("folder", folder)
    settings = config_of("config", config)
    check_settings(settings, "vit", SUPPORTED)
    if "head" not in check.mapping("params", params):
        check.fail_value("params", "to have a leaf ['head']['kernel']", sorted(params))
    num_classes = params["head"]["kernel"].shape[-1]
    check.same_tree("params", params, jax.eval_shape(_model(settings, num_classes).init, jax.random.key(0)))
    tensors = write_weights(params, _weights(settings, params))
    prefixed = {name if name.startswith("classifier.") else PREFIX + name: tensor for name, tensor in tensors.items()}
    write_folder(path, saved(settings, "ViTForImageClassification", **labels(settings, num_classes)), prefixed)


def _model(config: Mapping[str, Any], num_classes: int, **options: Any) -> Model:
    return vit(
        image_size=config["image_size"] if isinstance(config.get("image_size"), list) else size(config, "image_size"),
        patch_size=size(config, "patch_size"),
        num_classes=num_classes,
        num_layers=size(config, "num_hidden_layers"),
        num_heads=size(config, "num_attention_heads"),
        width=size(config, "hidden_size"),
        channels=size(config, "num_channels"),
        mlp_width=size(config, "intermediate_size"),
        activation=ACTIVATIONS[config.get("hidden_act", "gelu")],
        layer_norm_epsilon=config.get("layer_norm_eps", 1e-12),
        pool="cls",
        **options,
    )


def _weights(config: Mapping[str, Any], params: PyTree) -> list[Weight]:
    """The map of names; without the classifier where ``params`` has no head."""
    patch, channels = size(config, "patch_size"), size(config, "num_channels")
    positions, width = params["position_embedding"]["embedding"].shape
    projection, attention = "embeddings.patch_embeddings.projection", "encoder.layer.{}.attention"
    return [
        Weight("patch_embedding/kernel", (f"{projection}.weight",), axes=(2, 3, 1, 0), shape=(patch, patch, channels, width)),
        Weight("patch_embedding/bias", (f"{projection}.bias",)),
        Weight("class_token/embedding", ("embeddings.cls_token",), shape=(1, 1, width)),
        Weight("position_embedding/embedding", ("embeddings.position_embeddings",), shape=(1, positions, width)),
        *norm("layers/attention_norm", "encoder.layer.{}.layernorm_before"),
        *dense("layers/attention/qkv", *(f"{attention}.attention.{name}" for name in ("query", "key", "value"))),
        *dense("layers/attention/out", f"{attention}.output.dense"),
        *norm("layers/mlp_norm", "encoder.layer.{}.layernorm_after"),
        *dense("layers/mlp_in", "encoder.layer.{}.intermediate.dense"),
        *dense("layers/mlp_out", "encoder.layer.{}.output.dense"),
        *norm("final_norm", "layernorm"),
        *(dense("head", "classifier") if "head" in params else []),
    ]
