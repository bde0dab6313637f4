"""Clients whose update is not finite are left out and named; debug mode says where the first NaN came from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx

BAD = 3
"""A client of 9 examples; the third of its rows is spoiled."""


def spoiled(value):
    """Ragged clients with one number of one client replaced."""
    data = problems.ragged_clients()
    data.columns["x"][int(data.offsets[BAD]) + 2] = value
    return data


def fed_avg_with(aggregator):
    return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=aggregator)


AGGREGATORS = {
    "mean": ftx.aggregation.mean(),
    "fixed_mean": ftx.aggregation.fixed_mean(4),
    "median": ftx.aggregation.median(),
    "top_k": ftx.aggregation.chain(ftx.aggregation.top_k(0.5), ftx.aggregation.mean()),
}


@pytest.mark.parametrize("value", [np.nan, 1e38])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_client_whose_update_is_not_finite_is_as_if_it_had_not_come(name, value):
    algorithm = fed_avg_with(AGGREGATORS[name])
    ids = [5, BAD, 0, 4]
    with_it = problems.experiment(algorithm, train=spoiled(value), cohorts=ftx.data.fixed_cohorts([ids]))
    without = problems.experiment(algorithm, cohorts=ftx.data.fixed_cohorts([[i for i in ids if i != BAD]]))
    (got, infos), (want, plain) = problems.play(with_it, 2), problems.play(without, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got.device.server, want.device.server)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got.device.encoders, want.device.encoders)
    for info, other in zip(infos, plain, strict=True):
        assert info.not_finite.tolist() == [BAD] and other.not_finite.tolist() == []
        assert info.num_clients == 3
        np.testing.assert_allclose(info.metrics["loss"], other.metrics["loss"], rtol=1e-5)
        assert not np.isfinite(info.client_metrics["loss"][0][1])


@pytest.mark.parametrize("spoiled", ["update", "state"])
def test_the_state_of_a_client_that_is_left_out_stays_as_it_was(spoiled):
    def finish(broadcast, info, local):
        count, round_number = local["state"]
        factor = jnp.where((info.id == 4) & (round_number == 2), jnp.nan, 1.0)
        update, own = (factor, 1.0) if spoiled == "update" else (1.0, factor)
        new = (count + 1) * own, round_number + 1
        return ftx.ClientResult({"w": jnp.float32(update)}, jnp.float32(1), new, {"told": (count * factor, jnp.ones(()))})

    trainer = problems.recorder(1, init_state=lambda broadcast, key: (jnp.float32(0), jnp.int32(0)), finish=finish)
    state, infos = problems.play(problems.experiment(problems.one_pass(trainer, ftx.aggregation.mean())), 4)
    assert state.device.clients[0].tolist() == [4, 4, 4, 4, 2, 4]
    assert [info.not_finite.tolist() for info in infos] == [[], [], [4], [4]]
    assert [info.metrics["told"] for info in infos] == [0, 1, 2, 3]


def test_a_client_is_left_out_of_the_passes_behind_the_one_in_which_it_was_not_finite():
    def trainer(value):
        def finish(broadcast, info, local):
            one = jnp.where(info.id == 2, value, 1.0)
            return ftx.ClientResult({"w": one}, jnp.float32(1), local["state"] + 1, {})

        return problems.recorder(1, init_state=lambda broadcast, key: jnp.float32(0), finish=finish)

    first, second = (problems.one_pass(trainer(value), ftx.aggregation.total()) for value in (jnp.inf, 1.0))
    state, (info,) = problems.play(problems.experiment(first._replace(passes=(*first.passes, *second.passes))), 1)
    assert info.not_finite.tolist() == [2] and info.num_clients == 5
    assert state.device.clients.tolist() == [2, 2, 0, 2, 2, 2]


def test_a_personal_model_that_is_not_finite_is_not_kept_and_its_client_is_named():
    # Its update is empty: only its state says that something is wrong.
    experiment = problems.experiment(ftx.algorithms.fine_tune(problems.LOGISTIC, optax.sgd(0.1)), train=spoiled(np.nan))
    state, (info,) = problems.play(experiment, 1)
    assert info.not_finite.tolist() == [BAD] and np.isfinite(info.metrics["loss"])
    own = jax.tree.map(lambda leaf: leaf[BAD], state.device.clients.params)
    jax.tree.map(np.testing.assert_array_equal, own, state.device.server.params)


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_leaves_its_client_out_too(weight):
    def finish(broadcast, info, local):
        own = jnp.where(info.id == 2, weight, 1.0)
        return ftx.ClientResult({"w": info.id.astype(jnp.float32)}, own, local["state"], {})

    algorithm = problems.one_pass(problems.recorder(1, finish=finish), ftx.aggregation.mean(), combine=None)
    _, (info,) = problems.play(problems.experiment(algorithm), 1)
    assert info.not_finite.tolist() == [2]
    assert info.num_clients == 5


def test_a_round_in_which_nobody_is_finite_is_empty():
    data = spoiled(np.nan)
    experiment = problems.experiment(train=data, cohorts=ftx.data.fixed_cohorts([[BAD]]))
    state, (info,) = problems.play(experiment, 1)
    start = ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init()
    assert info.empty and info.not_finite.tolist() == [BAD]
    jax.tree.map(np.testing.assert_array_equal, state.device.server, start.device.server)


# ---- debug


def small(**changes):
    # Few and like steps: every operation is compiled once for itself.
    settings = {"cohorts": ftx.data.fixed_cohorts([[2, 4], [4, BAD]]), "local": ftx.data.LocalWork(batch_size=4)}
    return problems.experiment(fed_avg_with(None), **{**settings, **changes})


@pytest.mark.slow
def test_debugging_computes_the_same():
    debugged = ftx.make_round(small(), ftx.Execution(debug=True))
    state, info = debugged(debugged.init())
    want, _ = problems.play(small(), 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.device.server, want.device.server)
    assert info.client_ids.tolist() == [2, 4]


def test_debugging_names_client_round_pass_and_step_of_the_first_nan():
    local = ftx.data.LocalWork(batch_size=4, shuffle=False)
    debugged = ftx.make_round(small(train=spoiled(np.nan), local=local), ftx.Execution(debug=True))
    state, _ = debugged(debugged.init())
    expected = (
        r"client 'c3', round 1, pass 0, step 0: what it carries on holds a NaN at \.params\['b'\]; so does its batch, at \['x'\]"
    )
    with pytest.raises(FloatingPointError, match=expected):
        debugged(state)


def two_passes(spoil):
    """Pass 0 does nothing; pass 1 spoils what ``spoil`` says: "step", "update" or "server"."""

    def step(broadcast, info, local, batch, mask, key):
        bad = (spoil == "step") & (info.id == 4) & (local["at"] == 1)
        return {**local, "at": local["at"] + 1, "drawn": jnp.where(bad, jnp.nan, local["drawn"])}

    def finish(broadcast, info, local):
        update = jnp.where((spoil == "update") & (info.id == 4), jnp.nan, 1.0)
        return ftx.ClientResult({"w": update}, jnp.float32(1), (), {})

    def combine(state, aggregate, key):
        return state._replace(extra=state.extra * (jnp.nan if spoil == "server" else 1.0)), {}

    quiet = problems.recorder(4, finish=lambda broadcast, info, local: ftx.ClientResult({}, jnp.float32(1), (), {}))
    first = problems.one_pass(quiet, extra=jnp.ones(()))
    second = problems.one_pass(problems.recorder(4, step=step, finish=finish), ftx.aggregation.mean(), combine=combine)
    return first._replace(passes=(*first.passes, *second.passes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("step", r"client 'c4', round 0, pass 1, step 1: what it carries on holds a NaN at \['drawn'\]"),
        ("update", r"client 'c4', round 0, pass 1: what it hands over holds a NaN at \[0\]\['w'\]"),
        ("server", r"round 0, pass 1: the server's state holds a NaN at \.extra"),
    ],
)
def test_debugging_says_what_was_spoiled(spoil, message):
    experiment = problems.experiment(two_passes(spoil), cohorts=ftx.data.fixed_cohorts([[2, 4]]))
    debugged = ftx.make_round(experiment, ftx.Execution(debug=True))
    with pytest.raises(FloatingPointError, match=f"^{message}"):
        debugged(debugged.init())
