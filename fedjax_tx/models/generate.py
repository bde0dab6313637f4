"""Sampling from a causal language model, one token after another."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from fedjax_tx import check
from fedjax_tx.types import Model, PyTree


def generate(
    model: Model,
    params: PyTree,
    prompt: Int[Array, " prompt"],
    num_tokens: int,
    key: Key[Array, ""],
    *,
    max_length: int,
    temperature: float = 1.0,
) -> Int[Array, " total"]:
    """Continues a prompt by sampling from a decoder; the model sees at most the last ``max_length`` tokens.

    Args:
      model, params: a decoder of at least ``max_length`` positions. prompt: int [time], at least one token,
        each of the model's.
      num_tokens: how many to add. key: a JAX key. temperature: > 0; below 1 likely tokens become likelier.

    Returns: the prompt and what follows, int [time + num_tokens]. Every token runs the whole window (no cache of keys and
    values): fit for a page of text, not for serving.

    Example:
      >>> from fedjax_tx.models import decoder
      >>> model = decoder(vocab_size=8, num_layers=1, num_heads=1, width=8, max_length=4)
      >>> tokens = generate(model, model.init(jax.random.key(0)), jnp.array([1]), 6, jax.random.key(1), max_length=4)
      >>> tokens.shape
      (7,)
    """
    check.instance("model", model, Model, "a Model")
    check.integer("num_tokens", num_tokens, low=1)
    check.integer("max_length", max_length, low=1)
    check.number("temperature", temperature, above=0)
    check.key("key", key)
    tokens = np.asarray(prompt)
    if tokens.ndim != 1 or tokens.size == 0 or tokens.dtype.kind not in "iu":
        check.fail_value("prompt", "to be a list of at least one token", tokens.tolist())
    window = jax.ShapeDtypeStruct((1, max_length), jnp.int32)
    vocab_size = jax.eval_shape(model.apply, params, window).shape[-1]
    for token in tokens[(tokens < 0) | (tokens >= vocab_size)][:1].tolist():
        check.fail_value("prompt", f"to hold tokens in 0..{vocab_size - 1}, those that the model has", token)
    return _sample(model, max_length, num_tokens, params, jnp.asarray(tokens, jnp.int32), key, temperature)


def _sample(model, max_length, num_tokens, params, prompt, key, temperature):
    start = prompt[-max_length:]
    window = jnp.zeros(max_length, jnp.int32).at[: start.size].set(start)

    def step(carry, step_key):
        window, length = carry
        logits = model.apply(params, window[None])[0, length - 1]
        token = jax.random.categorical(step_key, logits / temperature).astype(jnp.int32)
        full = length == max_length
        window = jnp.where(full, jnp.roll(window, -1), window)
        length = jnp.where(full, length, length + 1)
        return (window.at[length - 1].set(token), length), token

    keys = jax.random.split(key, num_tokens)
    _, tokens = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys))((window, start.size), keys)
    return jnp.concatenate([prompt, tokens])
