"""Integers with noise of each client: rounding without bias and within its bound, the noise of the sum, sums modulo 2^32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chances import has_scale
from scipy import stats

from fedjax_tx import aggregation as agg
from fedjax_tx.aggregation import integer_noise
from fedjax_tx.aggregation.apply import aggregate_arrays
from fedjax_tx.types import Totals

CLIENTS, SIZE, RESOLUTION, NOISE, CLIP = 10, 4096, 0.01, 1.5, 1.0
KINDS = {"discrete gaussian": agg.discrete_gaussian_mean, "skellam": agg.skellam_mean}
# Each kind is one program to compile, and its sampler another: the second's are slow tests.
EACH = [pytest.param(kind, marks=[pytest.mark.slow] if kind == "skellam" else []) for kind in KINDS]


def test_the_bound_of_rounding_by_hand():
    # sqrt(9 + 4 / 4 + 3 + 2 / 2): of four coordinates in all, a vector of norm 3.
    assert agg.rounded_norm(3.0, 4) == pytest.approx(14**0.5)
    # It is the papers' for beta = exp(-1/2), where sqrt(2 log(1 / beta)) = 1.
    norm, size, beta = 7.0, 50, np.exp(-0.5)
    papers = norm**2 + size / 4 + np.sqrt(2 * np.log(1 / beta)) * (norm + np.sqrt(size) / 2)
    assert agg.rounded_norm(norm, size) == pytest.approx(papers**0.5)


VECTOR = np.array([2.5, -1.2, 0.7, 0.9, *[0.1] * 5, -0.3], np.float32)


@jax.jit
def rounded(bound):
    """The vector, rounded many times within a bound; its norm is 3.02."""
    keys = jax.random.split(jax.random.key(2), 400)
    return jax.vmap(lambda key: integer_noise._round_within(key, [jnp.asarray(VECTOR)], bound)[0])(keys)


def test_rounding_is_up_or_down_and_without_bias_where_the_bound_is_far():
    many = np.asarray(rounded(1e6))
    assert ((many == np.floor(VECTOR)) | (many == np.ceil(VECTOR))).all()
    spread = np.sqrt((VECTOR - np.floor(VECTOR)) * (np.ceil(VECTOR) - VECTOR) / len(many))
    assert (np.abs(many.mean(0) - VECTOR) < 5 * spread + 1e-6).all()


def test_rounding_is_anew_until_the_norm_is_within_its_bound_and_towards_zero_if_it_never_is():
    free, tight = np.asarray(rounded(1e6)), np.asarray(rounded(3.2))
    assert (np.linalg.norm(free, axis=1) > 3.2).any()
    assert (np.linalg.norm(tight, axis=1) <= 3.2).all() and len(np.unique(tight, axis=0)) > 1
    assert (np.asarray(rounded(0.5)) == np.trunc(VECTOR)).all()


@functools.cache
def sent(kind):
    """What ten clients send whose updates are 0, as the server sees it, and the chain."""
    chain = agg.chain(agg.clip_norm(CLIP), KINDS[kind](NOISE, CLIENTS, RESOLUTION))

    @jax.jit
    def messages(keys):
        update, states = {"w": jnp.zeros(SIZE)}, ((), ())
        return jax.vmap(lambda key: chain.encode(update, jnp.float32(5), states, states, key, key)[:2])(keys)

    message, weights = messages(jax.random.split(jax.random.key(7), CLIENTS))
    assert weights.tolist() == [1] * CLIENTS and message["w"].dtype == jnp.uint32
    return np.asarray(message["w"]), chain


def released(kind):
    """The sum modulo 2^32 as the server reads it, in integers, and the info."""
    messages, chain = sent(kind)
    wrapped = messages.sum(0, dtype=np.uint32)
    totals = Totals(jnp.float32(CLIENTS), jnp.int32(CLIENTS), jnp.int32(CLIENTS), jnp.int32(CLIENTS))
    mean, _, info = chain.decode({"w": jnp.asarray(wrapped)}, totals, ((), ()), jax.random.key(0))
    return np.asarray(mean["w"], np.float64) * CLIENTS / RESOLUTION, info


def noise_alone():
    """The standard deviation of the sum's noise, in integers; zeros are rounded to zeros."""
    return NOISE * agg.rounded_norm(CLIP / RESOLUTION, SIZE)


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize(("factor", "accepted"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_the_noise_of_the_sum_has_its_scale_and_no_other(kind, factor, accepted):
    noise, info = released(kind)
    assert has_scale(noise, factor * noise_alone()) == accepted
    np.testing.assert_allclose(info["noise_stddev"], noise_alone() * RESOLUTION / CLIENTS, rtol=1e-5)
    assert float(info["noise_share"]) == 1


@pytest.mark.parametrize("kind", EACH)
def test_the_server_reads_the_sum_of_the_signed_integers_from_a_sum_that_wraps_around(kind):
    noise, _ = released(kind)
    messages, _ = sent(kind)
    assert (messages.astype(np.int64).sum(0) > 2**32).any()
    np.testing.assert_allclose(noise, messages.astype(np.int32).astype(np.int64).sum(0), atol=1e-2)


@pytest.mark.parametrize("kind", EACH)
def test_noise_is_centred_and_each_clients_own(kind):
    shares = sent(kind)[0].astype(np.int32)
    assert abs(shares.mean()) < 5 * shares.std() / np.sqrt(shares.size)
    assert np.abs(np.corrcoef(shares)[np.triu_indices(CLIENTS, 1)]).max() < 5 / np.sqrt(SIZE)


def chances(kind, stddev, most):
    """The chances of -most .. most, from the definition of each distribution."""
    places = np.arange(-most, most + 1)
    if kind == "skellam":
        return stats.skellam.pmf(places, stddev**2 / 2, stddev**2 / 2)
    heights = np.exp(-(places**2) / (2 * stddev**2))
    return heights / heights.sum()


@functools.cache
def sampler(kind):
    draw = {"skellam": integer_noise.draw_skellam, "discrete gaussian": integer_noise.draw_discrete_gaussian}[kind]
    return jax.jit(lambda key, stddev: draw(key, stddev, (20_000,)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stddev", [0.4, 1.0, 6.0, 50.0])
def test_draws_are_of_their_distribution_and_of_no_other(kind, stddev):
    """A chi-square test at about 1e-6, over bins of at least 20 expected draws; other deviations are shown to fail it."""
    drawn = np.asarray(sampler(kind)(jax.random.key(11), jnp.float32(stddev)))
    most = int(8 * stddev) + 8

    def surplus(wanted):
        expected, seen = chances(kind, wanted, most) * drawn.size, np.bincount(drawn + most, minlength=2 * most + 1)
        edges = np.unique((np.cumsum(expected) // 20).astype(int), return_index=True)[1]
        expected, seen = np.add.reduceat(expected, edges), np.add.reduceat(seen, edges)
        if expected[-1] < 20:
            expected, seen = np.append(expected[:-2], expected[-2:].sum()), np.append(seen[:-2], seen[-2:].sum())
        return (np.square(seen - expected) / expected).sum() - (expected.size - 1), np.sqrt(2 * (expected.size - 1))

    excess, spread = surplus(stddev)
    assert excess < 6 * spread + 10
    for wrong in (2 / 3, 3 / 2):
        excess, spread = surplus(wrong * stddev)
        assert excess > 20 * spread


@pytest.mark.slow
def test_without_noise_a_sampler_draws_zero():
    for kind in KINDS:
        assert not np.asarray(sampler(kind)(jax.random.key(0), jnp.float32(0.0))).any()


def test_what_has_no_bound_or_no_room_is_refused():
    with pytest.raises(ValueError, match=r"before skellam_mean\(1.0, 2, 0.1\) to bound the influence of one client, got nothing"):
        agg.chain(agg.skellam_mean(1.0, 2, 0.1))
    client, key = ({"w": jnp.ones(4)}, jnp.float32(1), ((), ()), ((), ())), jax.random.key(0)
    for kind, resolution, message in (
        ("discrete gaussian", 1e-8, "to be coarser, lest a sum reach"),
        ("skellam", 1e-3, r"for a client's noise of variance <= 8192; discrete_gaussian_mean has no limit, got 5\d+"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(agg.chain(agg.clip_norm(1.0), KINDS[kind](1.0, 2, resolution)).encode, *client, key, key)
    hidden = agg.chain(agg.clip_norm(1.0), agg.skellam_mean(1.0, 2, 0.1))
    with pytest.raises(ValueError, match="the clients of a round <= 2 for chain"):
        agg.check_max_clients(hidden, 3)
    with pytest.raises(ValueError, match="shows the server only sums"):
        agg.chain(agg.nearest_neighbor_mixing(1), agg.clip_norm(1.0), agg.skellam_mean(1.0, 2, 0.1))


@pytest.mark.parametrize("kind", EACH)
def test_what_is_first_seen_in_a_round_to_have_no_room_is_no_number(kind):
    @jax.jit
    def mean(noise, norm):
        chain = agg.chain(agg.clip_norm(norm), KINDS[kind](noise, 2, 1e-2))
        return aggregate_arrays(chain, {"w": jnp.full((2, 4), 0.25)}, jnp.ones(2), None, jax.random.key(0))

    update, _, _ = mean(0.0, 1.0)
    np.testing.assert_allclose(update["w"], 0.25, rtol=1e-5)
    for noise, norm in ((1e8, 1.0), (0.0, 1e5)):
        update, _, info = mean(noise, norm)
        assert np.isnan(update["w"]).all() and np.isnan(info["noise_stddev"])


def test_a_rotation_spreads_what_is_in_one_coordinate_keeps_the_norm_and_turns_with_every_round():
    aggregator = agg.rotate()
    update, key = {"w": jnp.array([0.0, 8.0, 0.0])}, jax.random.key(0)
    state = aggregator.init(update)
    vector, _, _ = aggregator.encode(update, jnp.float32(1), state, (), key, key)
    np.testing.assert_allclose(np.abs(vector), 4.0, rtol=1e-5)  # 8 over the root of four places
    back, _, _ = aggregator.decode(vector, None, state, key)
    np.testing.assert_allclose(back["w"], update["w"], atol=1e-5)
    turns = set()
    for _ in range(8):
        vector, _, _ = aggregator.encode({"w": jnp.array([1.0, 2.0, 4.0])}, jnp.float32(1), state, (), key, key)
        _, state, _ = aggregator.decode(vector, None, state, key)
        turns.add(tuple(np.asarray(vector).tolist()))
    assert len(turns) > 2
