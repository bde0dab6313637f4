"""Transformers in float64 NumPy, written apart from the library: what the models are compared with."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def draw_params(model, seed: int = 0, scale: float = 0.5):
    """Parameters far from their initial values, biases and gains too, so that no part of the model is close to idle."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        gain = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(gain + scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def in_float64(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def norm(x, part, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * part["scale"] + part["bias"]


def dense(x, part):
    return x @ part["kernel"] + part["bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attend(x, part, num_heads, visible):
    """``visible[b, t, s]`` says whether position t sees s; a position that sees nothing gives whatever it likes."""
    heads = []
    query, key, value = np.split(dense(x, part["qkv"]), 3, axis=-1)
    for block in np.split(np.arange(x.shape[-1]), num_heads):
        scores = query[..., block] @ key[..., block].swapaxes(-1, -2) / math.sqrt(len(block))
        weights = np.exp(np.where(visible, scores, -1e9))
        heads.append(weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300) @ value[..., block])
    return dense(np.concatenate(heads, axis=-1), part["out"])


def layers(x, params, num_heads, visible, *, order="pre", activation=gelu, epsilon=1e-5):
    """All layers one after another: "pre" normalises before each branch, "post" after each sum."""
    for index in range(len(params["mlp_in"]["bias"])):
        part = jax.tree.map(lambda leaf: leaf[index], params)  # noqa: B023
        before, after = part["attention_norm"], part["mlp_norm"]
        if order == "pre":
            x = x + attend(norm(x, before, epsilon), part["attention"], num_heads, visible)
            x = x + dense(activation(dense(norm(x, after, epsilon), part["mlp_in"])), part["mlp_out"])
        else:
            x = norm(x + attend(x, part["attention"], num_heads, visible), before, epsilon)
            x = norm(x + dense(activation(dense(x, part["mlp_in"])), part["mlp_out"]), after, epsilon)
    return x
