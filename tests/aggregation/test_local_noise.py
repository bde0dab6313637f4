"""Noise of each client on its own message: its scale, that of sums and means, and what a chain refuses behind it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chances import has_scale, is_gaussian

from fedjax_tx import aggregation as agg
from fedjax_tx.types import Rows, Totals

CLIP, NOISE, CLIENTS, SIZE = 2.0, 1.5, 20, 3000
WEIGHTS = np.array([3.0] + [1.0] * (CLIENTS - 1), np.float32)
CHAINS = {
    "message": agg.stage(
        "rows()", reduce=agg.median().reduce, decode=lambda rows, totals, state, key: (rows.summands, state, {})
    ),
    "sum": agg.total(),
    "mean": agg.mean(),
    "fixed_mean": agg.fixed_mean(10.0),
}
STDDEV = NOISE * CLIP
SCALES = {
    "message": STDDEV,
    "sum": STDDEV * np.sqrt(CLIENTS),
    "mean": STDDEV * np.sqrt(np.square(WEIGHTS).sum()) / WEIGHTS.sum(),
    "fixed_mean": STDDEV * np.sqrt(CLIENTS) / 10,
}


@functools.cache
def noise(name):
    """What a chain with noise gives beyond what it gives without, and its info."""
    updates = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((CLIENTS, SIZE)), jnp.float32)}
    results = []
    for multiplier in (NOISE, 0.0):
        chain = agg.chain(agg.clip_norm(CLIP), agg.local_noise(multiplier), CHAINS[name])
        state = chain.init({"w": updates["w"][0]})
        results.append(agg.apply.aggregate_rows(chain, *_rows(updates), state, jax.random.key(1)))
    (loud, _, info), (quiet, _, _) = results
    return np.asarray(loud["w"] - quiet["w"]).ravel(), info


def _rows(updates):
    weights, count = jnp.asarray(WEIGHTS), jnp.int32(CLIENTS)
    return Rows(updates, weights, weights > 0), Totals(weights.sum(), count, count, count)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_noise_has_its_scale_on_messages_sums_and_means_and_no_other(name, factor, accepted):
    assert has_scale(noise(name)[0], factor * SCALES[name]) == accepted
    np.testing.assert_allclose(noise(name)[1]["summed_noise_stddev"], SCALES["sum"], rtol=1e-6)


def test_noise_is_each_clients_own_and_centred():
    rows = noise("message")[0].reshape(CLIENTS, SIZE)
    assert np.abs(np.corrcoef(rows)[np.triu_indices(CLIENTS, 1)]).max() < 5 / np.sqrt(SIZE)
    assert abs(rows.mean()) < 5 * STDDEV / np.sqrt(rows.size)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_noise_on_updates_of_few_bits_is_drawn_and_sent_in_single_precision(dtype):
    chain, update = agg.chain(agg.clip_norm(1.0), agg.local_noise(1.0), agg.mean()), {"w": jnp.zeros(20_000, dtype)}
    keys = jax.random.key(0), jax.random.key(1)
    message, _, _ = chain.encode(update, jnp.float32(1), chain.init(update), chain.init_client(update), *keys)
    assert message["w"].dtype == jnp.float32
    assert is_gaussian(message["w"], 1.0) and len(np.unique(message["w"])) > 19_900


def test_what_has_no_bound_is_refused_before_it_and_behind_it():
    with pytest.raises(ValueError, match=r"before local_noise\(1.0\) to bound the influence of one client, got nothing"):
        agg.chain(agg.local_noise(1.0), agg.mean())
    with pytest.raises(ValueError, match=r"before gaussian_noise\(1.0\) to bound .* got clip_norm\(2.0\), local_noise\(1.0\)"):
        agg.chain(agg.clip_norm(2.0), agg.local_noise(1.0), agg.fixed_mean(3.0), agg.gaussian_noise(1.0))
    # What is promised to a client of its message is not a promise of a cohort: nothing accounts for it as that.
    assert agg.chain(agg.clip_norm(2.0), agg.local_noise(1.0), agg.mean()).noise_multiplier is None
