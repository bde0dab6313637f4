"""Sampling: what a token is drawn from, by a model whose logits are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx.models import decoder, generate
from fedjax_tx.types import Model

KEY = jax.random.key(0)


def follow(params, tokens, *, key=None):
    """The token t is followed by t + 1 modulo 8, by far most likely."""
    return 50.0 * jax.nn.one_hot((tokens + 1) % 8, 8)


def test_the_likeliest_token_follows_and_the_prompt_stays():
    tokens = generate(Model(lambda key: {}, follow), {}, jnp.array([2, 3]), 7, KEY, max_length=4)
    assert tokens.tolist() == [2, 3, 4, 5, 6, 7, 0, 1, 2]


@pytest.mark.slow
def test_near_temperature_zero_it_is_the_models_best_token_over_the_last_window():
    model = decoder(vocab_size=8, num_layers=1, num_heads=2, width=8, max_length=4)
    params = jax.tree.map(lambda leaf: 30 * leaf, model.init(KEY))
    tokens = generate(model, params, jnp.array([1, 5, 2, 7, 3]), 6, KEY, max_length=4, temperature=1e-4).tolist()
    for end in range(5, 11):
        logits = model.apply(params, jnp.array([tokens[end - 4 : end]]))[0, -1]
        assert tokens[end] == int(jnp.argmax(logits))


def test_tokens_are_drawn_from_the_models_distribution_at_the_temperature():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    always = Model(lambda key: {}, lambda params, tokens, *, key=None: jnp.broadcast_to(logits, (*tokens.shape, 3)))
    draws = 4000
    for temperature in (1.0, 0.5):
        tokens = np.asarray(generate(always, {}, jnp.array([0]), draws, KEY, max_length=2, temperature=temperature))[1:]
        want = np.asarray(jax.nn.softmax(logits / temperature))
        np.testing.assert_allclose(np.bincount(tokens, minlength=3) / draws, want, atol=4 * np.sqrt(0.25 / draws))


def test_the_key_decides():
    flat = Model(lambda key: {}, lambda params, tokens, *, key=None: jnp.zeros((*tokens.shape, 8)))
    first, again, other = (
        generate(flat, {}, jnp.array([0]), 20, jax.random.key(seed), max_length=4).tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("prompt", [np.array([], np.int32), np.array([[1]])])
def test_a_prompt_that_is_none_is_refused(prompt, unchecked):
    with pytest.raises(ValueError, match="expected prompt to be a list of at least one token"):
        generate(Model(lambda key: {}, follow), {}, prompt, 1, KEY, max_length=4)


@pytest.mark.parametrize(("prompt", "token"), [([3, 8], 8), ([-1], -1)])
def test_tokens_that_the_model_lacks_are_refused(prompt, token):
    with pytest.raises(ValueError, match=rf"expected prompt to hold tokens in 0\.\.7, those that the model has, got {token}"):
        generate(Model(lambda key: {}, follow), {}, jnp.array(prompt), 1, KEY, max_length=4)
