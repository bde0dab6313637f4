"""Clients that start and finish side by side, as on an accelerator, are those that do so one after another, as on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from test_lanes import assert_close, assert_equal, counting, poisoned

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg
from fedjax_tx.simulation import lanes

COHORTS = ftx.data.fixed_cohorts([[0, 1, 2, 3, 4, 5], [3, 5, 2], [], [4]])


def integers():
    """Random integers of each client, over the whole range, whose sum the server tells."""

    def encode(update, weight, shared, client_state, client_key, round_key):
        return jax.random.bits(client_key, (5,), jnp.uint32), weight, client_state

    def decode(reduced, totals, state, key):
        return {"delta": jax.tree.map(jnp.zeros_like, problems.init_logistic(key))}, state, {"sum": reduced}

    return agg.mean()._replace(encode=encode, receive=lambda message, shared: message, reduce=ftx.Linear(), decode=decode)


def fed_avg(aggregator):
    return lambda hyper: ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(hyper["client_lr"]), aggregator=aggregator)


METHODS = {
    "mean": problems.make_fed_avg,
    "error feedback": fed_avg(agg.chain(agg.top_k(0.5), agg.mean())),
    "control variates": lambda hyper: ftx.algorithms.scaffold(problems.LOGISTIC, hyper["client_lr"]),
    "median": fed_avg(agg.median()),
    "integers": fed_avg(integers()),
    "two passes": lambda hyper: ftx.algorithms.mime(problems.LOGISTIC, optax.sgd(hyper["client_lr"], momentum=0.5)),
    "a state that is a key": lambda hyper: problems.one_pass(counting()),
}


def play(make_algorithm, num_lanes, rounds=4, taper=0, **changes):
    """The last state and what the rounds said; the algorithm is new, so that no program of another test is taken."""
    experiment = problems.experiment(lambda hyper: make_algorithm(hyper), **{"cohorts": COHORTS, **changes})
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=num_lanes, taper=taper, rounds_per_call=rounds, mesh=None))
    state, infos = round_fn.run(round_fn.init(), rounds)
    return state.device, [(info.client_metrics, info.aggregation, info.num_clients, info.not_finite) for info in infos]


@pytest.fixture(params=[pytest.param(2, marks=pytest.mark.slow, id="two at once"), pytest.param(6, id="all lanes at once")])
def side_by_side(request, monkeypatch):
    """How many start and finish at once from here on, in programs that are traced anew."""
    monkeypatch.setattr(lanes, "_events_at_once", lambda local, num_lanes: min(request.param, num_lanes))
    return request.param


@pytest.mark.parametrize("name", METHODS)
def test_rounds_are_those_of_one_client_after_another(name, side_by_side, monkeypatch):
    found = play(METHODS[name], 6)
    monkeypatch.undo()
    expected = play(METHODS[name], 6)
    assert_close(*[(state.server, told) for state, told in (found, expected)])
    if name in ("integers", "a state that is a key"):
        assert_equal(found[0].clients, expected[0].clients)
        sums = [[told[1].get("sum", 0) for told in rounds] for _, rounds in (found, expected)]
        np.testing.assert_array_equal(*sums)
    else:
        assert_close(found[0].clients, expected[0].clients)
        assert_close(found[0].encoders, expected[0].encoders)
    assert found[1][0][2] == 5  # client 1 has no example


def test_lanes_that_halve_lose_no_client(side_by_side, monkeypatch):
    sizes = (5, 0, 1, 9, 3, 7, 40, 2)
    changes = {"train": problems.ragged_clients(sizes), "cohorts": ftx.data.fixed_cohorts([range(8), [6, 1, 0]])}
    found = play(problems.make_fed_avg, 6, 2, 2, **changes)
    monkeypatch.undo()
    assert_close(found, play(problems.make_fed_avg, 1, 2, 0, **changes))


def test_a_client_whose_update_is_not_finite_spoils_no_other(side_by_side, monkeypatch):
    found = play(problems.make_fed_avg, 6, train=poisoned(3))
    monkeypatch.undo()
    assert_close(found, play(problems.make_fed_avg, 1, train=poisoned(3)))
    assert [told[3].tolist() for told in found[1]] == [[3], [3], [], []]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[0].server.params))


@pytest.mark.slow
def test_a_setting_of_a_sweep_is_its_run(side_by_side, monkeypatch):
    rates, execution = [0.03, 0.1], ftx.Execution(num_lanes=3, rounds_per_call=4, mesh=None)
    experiment = problems.experiment(lambda hyper: METHODS["error feedback"](hyper), cohorts=COHORTS)
    swept = ftx.sweep(experiment, rounds=4, grid={"client_lr": rates}, execution=execution, settings_at_once=2)
    monkeypatch.undo()
    for rate, history in zip(rates, swept.history, strict=True):
        _, told = play(METHODS["error feedback"], 3, hyper={"client_lr": rate})
        value, weight = told[0][0]["loss"]
        np.testing.assert_allclose(history[0]["train/loss"], np.average(value, weights=weight), rtol=1e-4)


def test_an_accelerator_serves_all_lanes_but_no_more_than_256_mb(monkeypatch):
    shapes = [{"w": jax.ShapeDtypeStruct((size,), jnp.float32)} for size in (10, 2**24, 2**28)]
    assert [lanes._events_at_once(shape, 64) for shape in shapes] == [1, 1, 1]  # a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [lanes._events_at_once(shape, 64) for shape in shapes] == [64, 4, 1]
