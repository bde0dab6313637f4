"""One table over all aggregators: each row declares the laws that its definition gives; a law that it lacks is shown to fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx import aggregation as agg
from fedjax_tx.privacy import tree_factorization

CLIENTS = 8

# laws: permutes (the order of clients is nothing), agrees (equal updates give that update), scales (k times the updates give k
# times the result), shifts (adding one vector to all adds it to the result), weighs (a client's weight w is that client w times).
# Each case is one in which an aggregator without the law fails by argument, not by the numbers drawn; see at the laws.
EVERY = {"permutes", "agrees", "scales", "shifts", "weighs"}
TABLE = {
    "mean": (lambda: agg.mean(), EVERY),
    "population_mean": (lambda: agg.population_mean(), EVERY - {"weighs"}),
    "total": (lambda: agg.total(), {"permutes", "scales"}),
    "parts": (lambda: agg.parts(a=agg.mean(), b=agg.mean()), EVERY),
    "parts mixed": (lambda: agg.parts(a=agg.median(), b=agg.mean()), EVERY - {"weighs"}),
    "fixed_mean": (lambda: agg.fixed_mean(CLIENTS), EVERY - {"weighs", "shifts"}),
    "fixed_mean of weights": (lambda: agg.fixed_mean(CLIENTS, max_weight=60), EVERY - {"shifts"}),
    "clip_layers": (lambda: agg.chain(agg.clip_layers({"a": 1.0, "b/*": 2.0}), agg.mean()), {"permutes", "weighs"}),
    "clip_layers far": (lambda: agg.chain(agg.clip_layers(1e9), agg.mean()), EVERY),
    "adaptive_clip": (lambda: agg.adaptive_clip(agg.mean(), first_norm=2.0), {"permutes", "weighs"}),
    "adaptive_clip far": (lambda: agg.adaptive_clip(agg.mean(), first_norm=1e9), EVERY),
    "clip_norm": (lambda: agg.chain(agg.clip_norm(2.0), agg.mean()), {"permutes", "weighs"}),
    "clip_norm far": (lambda: agg.chain(agg.clip_norm(1e9), agg.mean()), EVERY),
    "zero_norm": (lambda: agg.chain(agg.zero_norm(2.0), agg.mean()), {"permutes", "weighs"}),
    "zero_norm far": (lambda: agg.chain(agg.zero_norm(1e9), agg.mean()), EVERY),
    "top_k": (lambda: agg.chain(agg.top_k(0.5), agg.mean()), {"permutes", "scales", "weighs"}),
    "top_k all": (lambda: agg.chain(agg.top_k(1.0), agg.mean()), EVERY),
    "drive": (lambda: agg.chain(agg.drive(), agg.mean()), {"scales"}),
    "quantize": (lambda: agg.chain(agg.quantize(4), agg.mean()), {"agrees", "scales"}),
    "integer_mean": (lambda: agg.integer_mean(500.0, 2.0**-16, 60), EVERY - {"weighs"}),
    "median": (lambda: agg.median(), EVERY - {"weighs"}),
    "trimmed_mean": (lambda: agg.trimmed_mean(0.25), EVERY - {"weighs"}),
    "trimmed_mean of all": (lambda: agg.trimmed_mean(0.0), EVERY - {"weighs"}),
    "geometric_median": (lambda: agg.geometric_median(num_iterations=2), EVERY - {"weighs"}),
    "centered_clip": (lambda: agg.centered_clip(2.0), {"permutes"}),
    "centered_clip far": (lambda: agg.centered_clip(1e9), EVERY - {"weighs"}),
    "krum": (lambda: agg.krum(2), EVERY - {"weighs"}),
    "multi_krum": (lambda: agg.multi_krum(2, 3), EVERY - {"weighs"}),
    "bulyan": (lambda: agg.bulyan(1), EVERY - {"weighs"}),
    "nearest_neighbor_mixing": (lambda: agg.chain(agg.nearest_neighbor_mixing(2), agg.median()), EVERY - {"weighs"}),
    "noise": (lambda: agg.chain(agg.clip_norm(2.0), agg.fixed_mean(CLIENTS), agg.gaussian_noise(1.0)), {"permutes"}),
    "adaptive_clip noise": (
        lambda: agg.adaptive_clip(agg.fixed_mean(CLIENTS), agg.gaussian_noise(1.0), first_norm=2.0),
        {"permutes"},
    ),
    "correlated noise": (
        lambda: agg.chain(agg.clip_norm(2.0), agg.fixed_mean(CLIENTS), agg.correlated_noise(1.0, tree_factorization(2))),
        {"permutes"},
    ),
    "local noise": (lambda: agg.chain(agg.clip_norm(2.0), agg.local_noise(1.0), agg.mean()), set()),
    "discrete gaussian": (
        lambda: agg.chain(agg.clip_norm(2.0), agg.rotate(), agg.discrete_gaussian_mean(1.0, 60, 1e-3)),
        set(),
    ),
    "skellam": (lambda: agg.chain(agg.clip_norm(2.0), agg.skellam_mean(1.0, 60, 0.1)), set()),
    "rotate": (lambda: agg.chain(agg.rotate(), agg.mean()), EVERY),
    "noise of 0": (
        lambda: agg.chain(agg.clip_norm(1e9), agg.fixed_mean(CLIENTS), agg.gaussian_noise(0.0)),
        {"permutes", "agrees", "scales"},
    ),
}


# Rules built of what other rows show, each of which compiles its own sorts and products.
SLOW = {
    "discrete gaussian",
    "rotate",
    "skellam",
    "fixed_mean of weights",
    "clip_layers",
    "clip_layers far",
    "adaptive_clip",
    "adaptive_clip far",
    "adaptive_clip noise",
    "correlated noise",
    "trimmed_mean of all",
    "geometric_median",
    "centered_clip",
    "centered_clip far",
    "multi_krum",
    "bulyan",
    "zero_norm",
    "zero_norm far",
    "nearest_neighbor_mixing",
}


def marked(*values):
    """A row of parameters, the aggregator's name first."""
    return pytest.param(*values, id="-".join(values), marks=[pytest.mark.slow] if values[0] in SLOW else [])


NAMES = [marked(name) for name in TABLE]


def updates(seed=0, clients=CLIENTS):
    generator = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(generator.standard_normal((clients, 3)), jnp.float32),
        "b": [jnp.asarray(generator.standard_normal((clients, 2, 2)) + 1, jnp.float32)],
    }


def aggregate(make, stacked, weights=None, key=0):
    weights = np.ones(jax.tree.leaves(stacked)[0].shape[0]) if weights is None else weights
    return agg.aggregate(make(), stacked, weights, key=jax.random.key(key))[0]


def close(left, right, tolerance=2e-3):
    return all(
        np.allclose(a, b, rtol=tolerance, atol=tolerance)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def permutes(make):
    order = np.random.default_rng(1).permutation(CLIENTS)
    weights = np.arange(1.0, CLIENTS + 1)
    shuffled = jax.tree.map(lambda leaf: leaf[order], updates())
    return close(aggregate(make, updates(), weights), aggregate(make, shuffled, weights[order]), 1e-6)


def agrees(make):
    # All coordinates alike: longer (7.9) than the norms that are clipped to, and none that could be left out for being small.
    one = jax.tree.map(lambda leaf: jnp.full_like(leaf[0], 3.0), updates())
    return close(aggregate(make, jax.tree.map(lambda leaf: jnp.stack([leaf] * CLIENTS), one)), one)


def scales(make):
    trebled = jax.tree.map(lambda leaf: 3 * leaf, updates())
    return close(aggregate(make, trebled), jax.tree.map(lambda leaf: 3 * leaf, aggregate(make, updates())), 1e-4)


def shifts(make):
    shift = jax.tree.map(lambda leaf: leaf[0] * 0 + 5, updates())
    moved = jax.tree.map(jnp.add, updates(), shift)
    # A denominator that is not the number of clients would not do: the clients here are one fewer than fixed_mean expects.
    some, moved = (jax.tree.map(lambda leaf: leaf[:-1], tree) for tree in (updates(), moved))
    return close(aggregate(make, moved), jax.tree.map(jnp.add, aggregate(make, some), shift), 1e-4)


def weighs(make):
    """Whether a client of weight 50 is that client 50 times, for one client and for another.

    50 times, a client is the median; and Krum's choice: of its 53 nearest neighbours 49 are itself, while 47 of any other's are
    it. So an aggregator that does not look at weights would have to give both clients at once.
    """

    def weighs_client(client):
        copies = jax.tree.map(lambda leaf: jnp.concatenate([leaf, *[leaf[client : client + 1]] * 49]), updates())
        weights = np.ones(CLIENTS)
        weights[client] = 50
        return close(aggregate(make, updates(), weights), aggregate(make, copies), 1e-4)

    return weighs_client(3) and weighs_client(5)


LAWS = {"permutes": permutes, "agrees": agrees, "scales": scales, "shifts": shifts, "weighs": weighs}
ROWS = [marked(name, law) for name in TABLE for law in LAWS]


@pytest.mark.parametrize(("name", "law"), ROWS)
def test_a_law_holds_where_it_is_declared_and_fails_where_it_is_not(name, law):
    make, declared = TABLE[name]
    assert LAWS[law](make) == (law in declared)


@pytest.mark.parametrize("name", NAMES)
def test_a_client_of_weight_zero_changes_nothing_whatever_it_sends(name):
    make, _ = TABLE[name]
    weights = np.array([1.0] * (CLIENTS - 1) + [0.0])
    quiet, loud = updates(), updates()
    quiet = jax.tree.map(lambda leaf: leaf.at[-1].set(0), quiet)
    loud = jax.tree.map(lambda leaf: leaf.at[-1].set(jnp.nan), loud)
    assert close(aggregate(make, quiet, weights), aggregate(make, loud, weights), 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_result_has_the_dtype_of_the_updates_and_is_finite(name):
    make, _ = TABLE[name]
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), updates())
    result = aggregate(make, halved)
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype(jnp.bfloat16)}
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(result))


@pytest.mark.parametrize("name", NAMES)
def test_a_key_decides_all_randomness(name):
    make, _ = TABLE[name]
    first, again = aggregate(make, updates(), key=3), aggregate(make, updates(), key=3)
    assert close(first, again, 0)
    random = name in (
        "drive",
        "quantize",
        "noise",
        "adaptive_clip noise",
        "correlated noise",
        "local noise",
        "discrete gaussian",
        "skellam",
    )
    assert close(first, aggregate(make, updates(), key=4), 1e-6) != random


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_under_jit_with_traced_weights(name):
    make, _ = TABLE[name]
    run = jax.jit(lambda stacked, weights: agg.apply.aggregate_arrays(make(), stacked, weights, None, jax.random.key(0))[0])
    assert close(run(updates(), jnp.ones(CLIENTS)), aggregate(make, updates()), 1e-6)
