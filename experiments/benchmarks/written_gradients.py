"""Gradients written by hand, to be measured against the automatic ones; the library uses none of them (see step_profile.py).

Each has the value of what it stands for, and saves for its gradient only what cannot be had again cheaply::

    layer norm      n = (x - mean) r, r = 1 / sqrt(variance + epsilon):  dx = r (g s - mean(g s) - n mean(g s n))
    cross-entropy   d logits = g (softmax(logits) - one_hot(labels))
    lookup          d table = one_hot(tokens)^T g, a matrix product where JAX writes a scatter
    GELU (tanh)     the derivative from x again, where JAX saves the tanh

All are float32, and differentiable in reverse mode only.
"""

import jax
import jax.numpy as jnp
import numpy as np

EPSILON = 1e-5
ROOT = float(np.sqrt(2 / np.pi))
CUBE = 0.044715


@jax.custom_vjp
def layer_norm(x, scale, bias):
    """Returns (x - mean) / sqrt(variance + 1e-5) * scale + bias over the last axis."""
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x, scale, bias):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True) + EPSILON)
    return (x - mean) * (inverse * scale) + bias, (x, mean, inverse, scale)


def _layer_norm_backward(saved, g):
    x, mean, inverse, scale = saved
    normal, rows = (x - mean) * inverse, tuple(range(x.ndim - 1))
    slope = g * scale
    slope = slope - jnp.mean(slope, axis=-1, keepdims=True) - normal * jnp.mean(slope * normal, axis=-1, keepdims=True)
    return inverse * slope, jnp.sum(g * normal, axis=rows), jnp.sum(g, axis=rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def cross_entropy(logits, labels):
    """Returns logsumexp(logits) - logits[label] over the last axis."""
    return _cross_entropy_forward(logits, labels)[0]


def _cross_entropy_forward(logits, labels):
    total = jax.nn.logsumexp(logits, axis=-1)
    return total - jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0], (logits, labels, total)


def _cross_entropy_backward(saved, g):
    logits, labels, total = saved
    hot = labels[..., None] == jnp.arange(logits.shape[-1])
    return g[..., None] * (jnp.exp(logits - total[..., None]) - hot), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


@jax.custom_vjp
def look_up(table, tokens):
    """Returns ``table[tokens]``."""
    return jnp.take(table, tokens, axis=0)


def _look_up_backward(saved, g):
    table, tokens = saved
    hot = (tokens.reshape(-1, 1) == jnp.arange(table.shape[0])).astype(g.dtype)
    return jnp.matmul(hot.T, g.reshape(-1, g.shape[-1]), precision=jax.lax.Precision.HIGHEST), None


look_up.defvjp(lambda table, tokens: (jnp.take(table, tokens, axis=0), (table, tokens)), _look_up_backward)


@jax.custom_vjp
def gelu(x):
    """Returns x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³)))."""
    return 0.5 * x * (1 + jnp.tanh(ROOT * (x + CUBE * x * x * x)))


def _gelu_backward(x, g):
    tanh = jnp.tanh(ROOT * (x + CUBE * x * x * x))
    return (0.5 * g * (1 + tanh + x * (1 - tanh * tanh) * ROOT * (1 + 3 * CUBE * x * x)),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)
