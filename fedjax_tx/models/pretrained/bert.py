"""BERT (arXiv:1810.04805) and what has its layout, such as MiniLM, from and to Hugging Face's folders.

What BERT has beside its layers is read as the head asks: the pooler by heads of classes that have one, the masked language
model's head by the head "tokens". What a head does not read may be in the folder all the same, and is left there.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from fedjax_tx import check
from fedjax_tx.models.encoder import encoder
from fedjax_tx.models.pretrained.config import ACTIVATIONS, check_settings, config_of, labels, saved, size
from fedjax_tx.models.pretrained.names import Weight, dense, embedding, norm, read_weights, rename, write_weights
from fedjax_tx.models.pretrained.tensors import check_folder, read_config, read_tensors, write_folder
from fedjax_tx.types import Model, PyTree

PREFIX = "bert."

OLD_ENDINGS = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}
"""Checkpoints converted from TensorFlow name the gain and the bias of a layer norm so."""

BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Indices that old checkpoints hold as tensors."""

HEADS = {
    "classes": ("classifier.*",),
    "tokens": ("cls.predictions.*",),
    "pooler": ("pooler.dense.*",),
    "next sentence": ("cls.seq_relationship.*",),
}
"""The tensors of each part that a model need not have."""

SUPPORTED = {
    "hidden_act": tuple(ACTIVATIONS),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
}


def load_bert(
    folder: str | os.PathLike[str],
    *,
    head: str = "embeddings",
    num_classes: int | None = None,
    key: Key[Array, ""] | None = None,
    pool: str = "mean",
    pooler: bool = False,
    normalise: bool = False,
    dropout: float = 0.0,
    dtype=jnp.float32,
    implementation: str | None = None,
    unroll: bool = True,
) -> tuple[Model, PyTree]:
    """Returns an ``encoder`` of a folder's sizes and its weights: ``(model, params)``.

    Args:
      folder: with ``config.json`` and ``model.safetensors`` (or several such files and their index).
      head: "embeddings", "classes" or "tokens". A ``BertForSequenceClassification`` is "classes" with ``pool="cls"`` and
        ``pooler=True``, a ``BertForMaskedLM`` is "tokens", sentence-transformers' MiniLM "embeddings" with ``normalise=True``.
      num_classes: of the head "classes"; None: as many as the folder's classifier has.
      key: draws the head anew, whatever the folder has. None: the head is read from the folder.
      pool, pooler, normalise, dropout, dtype, implementation, unroll: of ``encoder``.

    Errors: ``ValueError`` naming a setting of the config that ``encoder`` has not, or listing every tensor that is missing, left
    over or of another shape.

    Example:
      >>> import tempfile
      >>> config = {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
      >>> config |= {"intermediate_size": 32, "max_position_embeddings": 6}
      >>> model = encoder(9, 1, 2, 8, 6, num_segments=2, head="embeddings")
      >>> folder = tempfile.mkdtemp()
      >>> save_bert(folder, model.init(jax.random.key(0)), config)
      >>> classifier, params = load_bert(folder, head="classes", num_classes=3, key=jax.random.key(1))
      >>> classifier.apply(params, jnp.zeros((4, 6), jnp.int32)).shape
      (4, 3)
    """
    path = check_folder("folder", folder)
    check.one_of("head", head, ("embeddings", "classes", "tokens"))
    if key is not None:
        check.key("key", key)
        if head == "embeddings":
            check.fail_value("key", "to be None where head='embeddings', which has no weights to draw", key)
    config = read_config(path)
    _check_settings(config, head)
    tensors = rename(read_tensors(path), prefix=PREFIX, endings=OLD_ENDINGS)
    if head == "classes" and num_classes is None and key is None:
        num_classes = _count_classes(path, tensors)
    options = {"dropout": dropout, "dtype": dtype, "implementation": implementation, "unroll": unroll}
    options |= {"head": head, "num_classes": num_classes, "pool": pool, "pooler": pooler, "normalise": normalise}
    model = _model(config, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    drawn = {name: part for name, part in shapes.items() if key is not None and name in ("transform", "transform_norm", "head")}
    kept = {name: part for name, part in shapes.items() if name not in drawn}
    params = read_weights(str(path), tensors, _weights(kept), kept, _unused(kept))
    return model, params | (jax.jit(lambda key: {name: model.init(key)[name] for name in drawn})(key) if drawn else {})


def save_bert(folder: str | os.PathLike[str], params: PyTree, config: Mapping[str, Any] | str | os.PathLike[str]) -> None:
    """Writes an encoder's parameters, float32, as a folder that ``transformers`` reads.

    A head of classes with a pooler is written as a ``BertForSequenceClassification``; one without as a ``BertModel``, which has
    no such head and passes over the classifier, stored all the same; a head of tokens as a ``BertForMaskedLM``.

    Args:
      folder: made if it is not there; its ``config.json`` and ``model.safetensors`` are replaced.
      params: of an ``encoder`` with ``norm="post"`` of the config's sizes, without adapters (``merge_lora`` first).
      config: the folder that the parameters came from, or the content of such a ``config.json``.

    Errors: ``ValueError`` naming a leaf that does not fit the config, or a setting that ``encoder`` has not.

    Example:
      >>> import tempfile
      >>> config = {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
      >>> config |= {"intermediate_size": 32, "max_position_embeddings": 6}
      >>> model = encoder(9, 1, 2, 8, 6, num_segments=2, head="embeddings")
      >>> folder = tempfile.mkdtemp()
      >>> save_bert(folder, model.init(jax.random.key(0)), config)
      >>> sorted(os.listdir(folder))
      ['config.json', 'model.safetensors']
    """
    path = check_folder("folder", folder)
    settings = config_of("config", config)
    check.mapping("params", params)
    options: dict[str, Any] = {"head": "embeddings"}
    changes: dict[str, Any] = {}
    architecture = "BertModel"
    if "transform" in params:
        options, architecture = {"head": "tokens"}, "BertForMaskedLM"
    elif "head" in params:
        num_classes, pooler = params["head"]["bias"].shape[0], "pooler" in params
        options = {"head": "classes", "num_classes": num_classes, "pooler": pooler}
        changes = labels(settings, num_classes)
        architecture = "BertForSequenceClassification" if pooler else "BertModel"
    _check_settings(settings, options["head"])
    check.same_tree("params", params, jax.eval_shape(_model(settings, **options).init, jax.random.key(0)))
    tensors = write_weights(params, _weights(params))
    prefix = "" if architecture == "BertModel" else PREFIX
    prefixed = {name if name.startswith(("classifier.", "cls.")) else prefix + name: tensor for name, tensor in tensors.items()}
    write_folder(path, saved(settings, architecture, **changes), prefixed)


def _check_settings(config: Mapping[str, Any], head: str) -> None:
    # Only the head of tokens uses the kernel that may be the embeddings'; untied, its bias would be another one too.
    tied = {"tie_word_embeddings": (True,)} if head == "tokens" else {}
    check_settings(config, "bert", {**SUPPORTED, **tied})


def _model(config: Mapping[str, Any], **options: Any) -> Model:
    return encoder(
        vocab_size=size(config, "vocab_size"),
        num_layers=size(config, "num_hidden_layers"),
        num_heads=size(config, "num_attention_heads"),
        width=size(config, "hidden_size"),
        max_length=size(config, "max_position_embeddings"),
        mlp_width=size(config, "intermediate_size"),
        num_segments=config.get("type_vocab_size", 2),
        activation=ACTIVATIONS[config.get("hidden_act", "gelu")],
        layer_norm_epsilon=config.get("layer_norm_eps", 1e-12),
        norm="post",
        **options,
    )


def _count_classes(path, tensors: Mapping[str, Any]) -> int:
    if "classifier.bias" not in tensors:
        check.fail_value("key", f"to be a JAX key, to draw the head, since {path} has no 'classifier.bias'", None)
    return tensors["classifier.bias"].shape[0]


def _weights(params: PyTree) -> list[Weight]:
    """The map of names for those parts that a tree of parameters has."""
    weights = [
        embedding("token_embedding", "embeddings.word_embeddings"),
        embedding("position_embedding", "embeddings.position_embeddings"),
        embedding("segment_embedding", "embeddings.token_type_embeddings"),
        *norm("embedding_norm", "embeddings.LayerNorm"),
        *dense("layers/attention/qkv", *(f"encoder.layer.{{}}.attention.self.{name}" for name in ("query", "key", "value"))),
        *dense("layers/attention/out", "encoder.layer.{}.attention.output.dense"),
        *norm("layers/attention_norm", "encoder.layer.{}.attention.output.LayerNorm"),
        *dense("layers/mlp_in", "encoder.layer.{}.intermediate.dense"),
        *dense("layers/mlp_out", "encoder.layer.{}.output.dense"),
        *norm("layers/mlp_norm", "encoder.layer.{}.output.LayerNorm"),
    ]
    if "pooler" in params:
        weights += dense("pooler", "pooler.dense")
    if "transform" in params:
        weights += dense("transform", "cls.predictions.transform.dense")
        weights += norm("transform_norm", "cls.predictions.transform.LayerNorm")
        weights += [Weight("head/bias", ("cls.predictions.bias",))]
    elif "head" in params:
        weights += dense("head", "classifier")
    return weights


def _unused(params: PyTree) -> tuple[str, ...]:
    """Names that may be in a folder and that a model of these parts does not read."""
    read = {"pooler": "pooler" in params, "tokens": "transform" in params}
    read["classes"] = "head" in params and not read["tokens"]
    unused = [pattern for part, patterns in HEADS.items() if not read.get(part, False) for pattern in patterns]
    # The masked language model's own copies of the tied kernel and of its bias.
    copies = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias") if read["tokens"] else ()
    return (*BUFFERS, *unused, *copies)
