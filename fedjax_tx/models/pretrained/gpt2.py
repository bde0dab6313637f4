"""GPT-2 ("Language Models are Unsupervised Multitask Learners", Radford et al. 2019) from and to Hugging Face's folders.

Its dense layers are stored as ours are, [inputs, outputs], query, key and value in one.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_tx import check
from fedjax_tx.models.attention import LAYER_NORM_EPSILON
from fedjax_tx.models.decoder import decoder
from fedjax_tx.models.pretrained.config import ACTIVATIONS, check_settings, config_of, saved, size
from fedjax_tx.models.pretrained.names import Weight, embedding, norm, read_weights, rename, write_weights
from fedjax_tx.models.pretrained.tensors import check_folder, read_config, read_tensors, write_folder
from fedjax_tx.types import Model, PyTree

PREFIX = "transformer."

BUFFERS = ("h.*.attn.bias", "h.*.attn.masked_bias")
"""The causal mask and what stands at masked places, which old checkpoints hold as tensors."""

SUPPORTED = {
    "activation_function": tuple(name for name, ours in ACTIVATIONS.items() if ours == "gelu_tanh"),
    "layer_norm_epsilon": (LAYER_NORM_EPSILON,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True, False),
}


def load_gpt2(
    folder: str | os.PathLike[str],
    *,
    dropout: float = 0.0,
    dtype=jnp.float32,
    implementation: str | None = None,
    unroll: bool = True,
) -> tuple[Model, PyTree]:
    """Returns a ``decoder`` of a folder's sizes and its weights: ``(model, params)``.

    Args:
      folder: with ``config.json`` and ``model.safetensors`` (or several such files and their index).
      dropout, dtype, implementation, unroll: of ``decoder``.

    Errors: ``ValueError`` naming a setting of the config that ``decoder`` has not, or listing every tensor that is missing, left
    over or of another shape.

    Example:
      >>> import tempfile
      >>> config = {"vocab_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 4}
      >>> config |= {"model_type": "gpt2", "activation_function": "gelu_new"}
      >>> params = decoder(8, 1, 2, 8, 4, tie_embeddings=True).init(jax.random.key(0))
      >>> folder = tempfile.mkdtemp()
      >>> save_gpt2(folder, params, config)
      >>> model, loaded = load_gpt2(folder)
      >>> model.apply(loaded, jnp.zeros((1, 4), jnp.int32)).shape
      (1, 4, 8)
    """
    path = check_folder("folder", folder)
    config = read_config(path)
    model, tied = _model(config, dropout=dropout, dtype=dtype, implementation=implementation, unroll=unroll)
    unused = (*BUFFERS, "lm_head.weight") if tied else BUFFERS
    tensors = rename(read_tensors(path), prefix=PREFIX)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, read_weights(str(path), tensors, _weights(tied), shapes, unused)


def save_gpt2(folder: str | os.PathLike[str], params: PyTree, config: Mapping[str, Any] | str | os.PathLike[str]) -> None:
    """Writes a decoder's parameters, float32, as a folder that ``transformers``' ``GPT2LMHeadModel`` reads.

    Args:
      folder: made if it is not there; its ``config.json`` and ``model.safetensors`` are replaced.
      params: of a ``decoder`` of the config's sizes, without adapters (``merge_lora`` first).
      config: the folder that the parameters came from, or the content of such a ``config.json``.

    Errors: ``ValueError`` naming a leaf that does not fit the config, or a setting that ``decoder`` has not.

    Example:
      >>> import tempfile
      >>> config = {"vocab_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 4}
      >>> config |= {"model_type": "gpt2", "activation_function": "gelu_new"}
      >>> params = decoder(8, 1, 2, 8, 4, tie_embeddings=True).init(jax.random.key(0))
      >>> folder = tempfile.mkdtemp()
      >>> save_gpt2(folder, params, config)
      >>> sorted(os.listdir(folder))
      ['config.json', 'model.safetensors']
    """
    path = check_folder("folder", folder)
    check.mapping("params", params)
    settings = config_of("config", config)
    model, tied = _model(settings)
    check.same_tree("params", params, jax.eval_shape(model.init, jax.random.key(0)))
    tensors = write_weights(params, _weights(tied))
    prefixed = {name if name.startswith("lm_head") else PREFIX + name: tensor for name, tensor in tensors.items()}
    write_folder(path, saved(settings, "GPT2LMHeadModel"), prefixed)


def _model(config: Mapping[str, Any], **options: Any) -> tuple[Model, bool]:
    """The decoder of a config, and whether its embeddings are tied."""
    check_settings(config, "gpt2", SUPPORTED)
    tied = config.get("tie_word_embeddings", True)
    model = decoder(
        vocab_size=size(config, "vocab_size"),
        num_layers=size(config, "n_layer"),
        num_heads=size(config, "n_head"),
        width=size(config, "n_embd"),
        max_length=size(config, "n_positions"),
        mlp_width=None if config.get("n_inner") is None else size(config, "n_inner"),
        tie_embeddings=tied,
        **options,
    )
    return model, tied


def _dense(path: str, name: str) -> list[Weight]:
    return [Weight(f"{path}/kernel", (f"{name}.weight",)), Weight(f"{path}/bias", (f"{name}.bias",))]


def _weights(tied: bool) -> list[Weight]:
    return [
        embedding("token_embedding", "wte"),
        embedding("position_embedding", "wpe"),
        *norm("layers/attention_norm", "h.{}.ln_1"),
        *_dense("layers/attention/qkv", "h.{}.attn.c_attn"),
        *_dense("layers/attention/out", "h.{}.attn.c_proj"),
        *norm("layers/mlp_norm", "h.{}.ln_2"),
        *_dense("layers/mlp_in", "h.{}.mlp.c_fc"),
        *_dense("layers/mlp_out", "h.{}.mlp.c_proj"),
        *norm("final_norm", "ln_f"),
        *([] if tied else [Weight("head/kernel", ("lm_head.weight",), axes=(1, 0))]),
    ]
