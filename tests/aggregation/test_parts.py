"""Aggregators by part: each part as if alone, whatever stands beside it, also in a round; and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg
from fedjax_tx.aggregation.chain import as_is, stage
from fedjax_tx.types import Linear, Rows, Stacked

CLIENTS = 5
WEIGHTS = np.array([2.0, 0.0, 1.0, 5.0, 0.5])


def updates(seed=0):
    generator = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(generator.standard_normal((CLIENTS, *shape)), jnp.float32)  # noqa: E731
    return {"delta": {"w": draw(3, 2), "b": draw(2)}, "control": draw(4)}


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def bits() -> ftx.Aggregator:
    """Sums of large integers, exact and modulo 2^32; the server may see each."""

    def encode(update, weight, shared, client_state, client_key, round_key):
        return jax.tree.map(lambda leaf: (leaf * 2.0**30).astype(jnp.int32), update), weight, client_state

    return stage("bits()", encode=encode, reduce=Linear())


# Without a receive, so that a mean is weighed at the client; with one, so that the server weighs; and rows side by side.
KINDS = {
    "mean": agg.mean,
    "total": agg.total,
    "fixed_mean": lambda: agg.fixed_mean(3),
    "population_mean": agg.population_mean,
    "clipped": lambda: agg.chain(agg.clip_norm(0.5), agg.mean()),
    "top_k": lambda: agg.chain(agg.top_k(0.5), agg.mean()),
    "median": agg.median,
    "krum": lambda: agg.krum(1),
    "integers": bits,
}


@pytest.mark.parametrize("beside", ["mean", "top_k", "median"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_part_is_aggregated_as_if_alone_bit_for_bit(kind, beside):
    both = agg.parts(delta=KINDS[kind](), control=KINDS[beside]())
    update, state, _ = agg.aggregate(both, updates(), WEIGHTS)
    for name, make in (("delta", KINDS[kind]), ("control", KINDS[beside])):
        alone, alone_state, _ = agg.aggregate(make(), updates()[name], WEIGHTS)
        assert_equal(update[name], alone)
        assert_equal(state[name], alone_state)


def test_how_parts_are_reduced_and_received_follows_from_what_they_hold():
    mean, sparse, median = agg.mean(), agg.chain(agg.top_k(0.5), agg.mean()), agg.median()
    assert agg.parts(a=mean, b=agg.total()).reduce == Linear(weighted=False)
    assert agg.parts(a=mean, b=agg.total()).receive is as_is  # so a secure sum can stand before it
    assert agg.parts(a=mean, b=sparse).receive is not as_is
    assert agg.parts(a=mean, b=median).reduce == Stacked()
    assert agg.parts(a=mean, b=agg.total()).name == "parts(a=mean(), b=total())"
    assert [agg.parts(a=mean, b=b).releases_empty for b in (agg.total(), agg.fixed_mean(2))] == [False, True]
    exact = agg.integer_mean(1.0, 0.1, 10)
    assert [agg.parts(a=mean, b=b).sums_only for b in (agg.total(), exact)] == [False, True]


@pytest.mark.parametrize("other", [agg.total, agg.median])
def test_a_client_may_weigh_in_one_part_and_not_in_another(other):
    def only(clients):
        """A mean over some clients only; whoever is left out sends what would spoil it."""

        def encode(update, weight, shared, client_state, client_key, round_key):
            takes_part = jnp.isin(update[0], jnp.asarray(clients, jnp.float32))
            return jnp.where(takes_part, update, jnp.nan), jnp.where(takes_part, weight, 0), client_state

        return agg.chain(stage("only()", encode=encode), agg.mean())

    rows = jnp.arange(5.0)[:, None]
    stacked = {"a": rows, "b": rows, "c": rows, "d": rows}
    mixed = agg.parts(a=only([0, 3]), b=agg.mean(), c=only([9]), d=other())
    update, _, _ = agg.aggregate(mixed, stacked, [1.0, 1.0, 1.0, 2.0, 1.0])
    # a: (0 + 2 * 3) / 3;  b: (0 + 1 + 2 + 2 * 3 + 4) / 6;  c: nobody.
    np.testing.assert_allclose([update[name][0] for name in "abc"], [2.0, 13 / 6, 0.0], rtol=1e-6)
    assert update["d"][0] == {agg.total: 10.0, agg.median: 2.0}[other]


@pytest.mark.parametrize("other", [agg.total, agg.median])
def test_each_part_is_decoded_with_totals_of_its_own(other):
    def told(scale):
        def encode(update, weight, shared, client_state, client_key, round_key):
            return update, jnp.maximum(scale * weight - 1, 0), client_state

        def decode(reduced, totals, state, key):
            return reduced, state + 1, {"totals": jnp.stack([jnp.float32(one) for one in totals])}

        return stage("told()", encode=encode, decode=decode, reduce=Linear(), init=lambda update: jnp.int32(0))

    stacked = {name: jnp.ones((5, 2)) for name in "abcd"}
    aggregator = agg.parts(a=told(1), b=told(2), c=told(0), d=other())
    _, state, info = agg.aggregate(aggregator, stacked, [2.0, 0.0, 1.0, 5.0, 0.5])
    # Weights of a: 1, 0, 0, 4, 0; of b: 3, 0, 1, 9, 0; of c: none, so c keeps its state.
    assert {name: value.tolist() for name, value in info.items()} == {
        "a/totals": [5, 2, 5, 5],
        "b/totals": [13, 3, 5, 5],
        "c/totals": [0, 0, 5, 5],
    }
    assert [int(state[name]) for name in "abc"] == [1, 1, 0]


def test_what_only_one_part_reports_keeps_its_name():
    updates = {name: jnp.ones((5, 1)) for name in "abc"}
    assert set(agg.aggregate(agg.parts(a=agg.krum(1), b=agg.mean(), c=agg.mean()), updates, np.ones(5))[2]) == {
        "krum_chosen",
        "krum_too_few",
    }
    info = agg.aggregate(agg.parts(a=agg.krum(1), b=agg.krum(1), c=agg.mean()), updates, np.ones(5))[2]
    assert set(info) == {f"{part}/{name}" for part in "ab" for name in ("krum_chosen", "krum_too_few")}


def test_parts_can_be_nested_and_stand_in_a_chain():
    stacked = {"model": updates(), "count": jnp.arange(5.0)}
    nested = agg.parts(model=agg.parts(delta=agg.mean(), control=agg.median()), count=agg.total())
    update, _, _ = agg.aggregate(nested, stacked, WEIGHTS)
    assert_equal(update["model"]["delta"], agg.aggregate(agg.mean(), updates()["delta"], WEIGHTS)[0])
    assert_equal(update["model"]["control"], agg.aggregate(agg.median(), updates()["control"], WEIGHTS)[0])
    assert update["count"] == 0 + 2 + 3 + 4
    # Clipping before the parts sees them all together: 3 and 4 have norm 5, half of it is kept.
    clipped = agg.chain(agg.clip_norm(2.5), agg.parts(a=agg.mean(), b=agg.total()))
    update, _, _ = agg.aggregate(clipped, {"a": jnp.array([3.0]), "b": jnp.array([4.0])}, [7.0])
    np.testing.assert_allclose([update["a"], update["b"]], [1.5, 2.0])


def test_half_precision_is_weighed_in_float32():
    stacked = {"a": jnp.array([[256.0]] + [[1.0]] * 256, jnp.bfloat16)}
    update, _, _ = agg.aggregate(agg.parts(a=agg.mean()), stacked, np.ones(257))
    assert update["a"].dtype == jnp.bfloat16
    np.testing.assert_allclose(float(update["a"][0]), 512 / 257, rtol=2**-8)


# ---- in rounds


def two_parts():
    """Clients that send FedAvg's difference, the number of their examples and their id."""
    trainer = ftx.clients.local_sgd(problems.LOGISTIC, optax.sgd(0.1))

    def finish(broadcast, info, local):
        result = trainer.finish(broadcast, info, local)
        facts = jnp.stack([info.num_examples, info.id]).astype(jnp.float32)
        return result._replace(update={**result.update, "facts": facts})

    return trainer._replace(finish=finish)


def with_parts(**aggregators):
    def make_algorithm(hyper):
        algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1))
        combine = algorithm.passes[0].combine

        def told(state, aggregate, key):
            state, info = combine(state, aggregate, key)
            return state, {**info, "facts": aggregate["facts"]}

        training = algorithm.passes[0]._replace(trainer=two_parts(), aggregator=agg.parts(**aggregators), combine=told)
        return algorithm._replace(passes=(training,))

    return make_algorithm


@pytest.mark.parametrize(
    ("facts", "want", "num_lanes"),
    [(agg.total, [25, 14], 1), (agg.population_mean, [25 / 6, 14 / 6], 3), (agg.median, [5, 3], 6)],
)
def test_in_a_round_the_model_moves_as_in_fed_avg_whatever_travels_beside_it(facts, want, num_lanes):
    plain, _ = problems.play(problems.experiment(ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1))), 2)
    state, infos = problems.play(problems.experiment(with_parts(delta=agg.mean(), facts=facts())), 2, num_lanes)
    for name, leaf in plain.device.server.params.items():
        np.testing.assert_allclose(state.device.server.params[name], leaf, rtol=1e-4, atol=1e-6)
    # Sizes 5, 0, 1, 9, 3 and 7; client 1 has no example and takes no part.
    np.testing.assert_allclose(infos[0].server["facts"], want, rtol=1e-6)
    assert infos[0].num_clients == 5


# ---- what is refused


def test_parts_that_the_update_lacks_or_has_beside_are_named():
    aggregator = agg.parts(delta=agg.mean(), control=agg.total())
    with pytest.raises(ValueError, match=r"expected the update to have the part 'control' .* got \['delta'\]"):
        agg.aggregate(aggregator, {"delta": jnp.ones((2, 1))}, [1.0, 1.0])
    more = {name: jnp.ones((2, 1)) for name in ("delta", "control", "extra")}
    with pytest.raises(ValueError, match=r"an aggregator for the update's part 'extra', got \['control', 'delta'\]"):
        agg.aggregate(aggregator, more, [1.0, 1.0])
    with pytest.raises(TypeError, match="expected an update aggregated by parts.* to be a dict"):
        agg.aggregate(aggregator, jnp.ones((2, 1)), [1.0, 1.0])
    with pytest.raises(ValueError, match=r"expected the update to have the part 'control'"):
        experiment = problems.experiment(
            ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=agg.parts(delta=agg.mean(), control=agg.mean()))
        )
        ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init()


@pytest.mark.parametrize(
    ("kind", "message", "make"),
    [
        (ValueError, "an aggregator for each part, such as .*, got none", lambda: agg.parts()),
        (
            ValueError,
            r"expected parts\(delta=...\) to reduce, such as chain\(clip_norm\(1.0\), mean\(\)\), got 'clip_norm\(1.0\)'",
            lambda: agg.parts(delta=agg.clip_norm(1.0)),
        ),
        (
            ValueError,
            r"each client's message for b=median\(\), but a=integer_mean\(1.0, 0.1, 10\) shows the server only sums",
            lambda: agg.parts(a=agg.integer_mean(1.0, 0.1, 10), b=agg.median()),
        ),
        (
            ValueError,
            r"each client's message for b=chain\(top_k\(0.5\), mean\(\)\), but a=integer_mean",
            lambda: agg.parts(b=agg.chain(agg.top_k(0.5), agg.mean()), a=agg.integer_mean(1.0, 0.1, 10)),
        ),
        (
            ValueError,
            r"expected parts\(a=mean\(\)\) before top_k\(0.5\), which packs",
            lambda: agg.chain(agg.top_k(0.5), agg.parts(a=agg.mean())),
        ),
        (
            ValueError,
            r"what comes before gaussian_noise\(1.0\) to bound",
            lambda: agg.chain(agg.clip_norm(1.0), agg.parts(a=agg.fixed_mean(2)), agg.gaussian_noise(1.0)),
        ),
    ],
)
def test_what_can_not_work_is_refused_by_name(kind, message, make):
    with pytest.raises(kind, match=message):
        make()


def test_clients_that_the_executor_leaves_out_are_out_of_every_part():
    """A row that is not valid counts nowhere, though its message says that it weighs."""
    aggregator = agg.parts(a=agg.mean(), b=agg.median())
    encode = lambda value, weight: aggregator.encode(  # noqa: E731
        {"a": value, "b": value}, weight, {"a": (), "b": ()}, {"a": (), "b": ()}, jax.random.key(0), jax.random.key(1)
    )
    sent, weights, _ = jax.vmap(encode)(jnp.array([1.0, 5.0, jnp.nan]), jnp.array([1.0, 3.0, 1.0]))
    valid = jnp.array([True, True, False])
    totals = ftx.Totals(jnp.float32(4), jnp.int32(2), jnp.int32(3), jnp.int32(3))
    rows = Rows(sent, jnp.where(valid, weights, 0), valid)
    update, _, _ = aggregator.decode(rows, totals, {"a": (), "b": ()}, jax.random.key(0))
    assert {name: float(value) for name, value in update.items()} == {"a": 4.0, "b": 3.0}
