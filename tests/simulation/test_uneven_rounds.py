"""Rounds of clients that stop early or leave: who leaves is as if it had not come, on the server and in its own state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx
from fedjax_tx.training.ledger import charge, new_ledger


def rounds_of(*cohorts):
    """A source of the cohorts written down; a list, or a list with the shares of work done."""

    def select(state, generator, last):
        ids, *shares = cohorts[int(state) % len(cohorts)]
        return ftx.Cohort(np.array(ids), work_done=np.array(shares[0], float) if shares else None), state + 1

    return ftx.data.all_clients()._replace(init=lambda num_clients: np.int64(0), select=select)


def test_a_straggler_is_heard_with_what_it_did_by_hand():
    # From 0, half the way to 8 at each step: 4, 6, 7, 7.5. Client 0 makes all four steps, client 1 two of its four.
    data, work = scalars.clients([8] * 4, [8] * 4), ftx.data.LocalWork(batch_size=1)
    algorithm = ftx.algorithms.fed_avg(scalars.TASK, optax.sgd(scalars.HALF_WAY))
    cohorts = rounds_of([[0, 1], [1, 0.5]], [[0, 1], [0, 0.25]], [[0, 1], [0, 0]])
    experiment = problems.experiment(algorithm, hyper={}, train=data, local=work, cohorts=cohorts)
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=2, rounds_per_call=1))
    state, first = round_fn(round_fn.init())
    np.testing.assert_allclose(state.device.server.params["w"], (7.5 + 6) / 2, rtol=1e-6)
    assert (first.num_steps, first.num_clients, first.dropped.tolist(), first.empty) == (6, 2, [], False)
    state, second = round_fn(state)  # then client 0 leaves, and client 1 makes one step from 6.75
    np.testing.assert_allclose(state.device.server.params["w"], (6.75 + 8) / 2, rtol=1e-6)
    assert (second.num_steps, second.num_clients, second.dropped.tolist()) == (1, 1, [0])
    np.testing.assert_allclose(second.metrics["loss"], (8 - 6.75) ** 2, rtol=1e-6)
    after, third = round_fn(state)  # then both leave
    assert after.device.server.params == state.device.server.params
    assert (third.empty, third.dropped.tolist()) == (True, [0, 1])
    ledger = charge(new_ledger(), [first, second, third], (3, 5))
    assert (ledger["client_updates"], ledger["bytes_down"], ledger["bytes_up"], ledger["steps"]) == (3, 18, 15, 7)


def restless(hyper):
    """Clients count their rounds, and count alike whether they made a step or not."""

    def finish(broadcast, info, local):
        one = jnp.ones(())
        return ftx.ClientResult({"w": one}, one, local["state"] + 1, {"told": (1.0 * info.id, one)})

    trainer = problems.recorder(1, init_state=lambda broadcast, key: jnp.zeros(()), finish=finish)
    return problems.one_pass(trainer, ftx.aggregation.fixed_mean(2))


def test_who_drops_out_is_as_if_it_had_not_come_and_keeps_its_state():
    left = rounds_of([[0, 3, 4]], [[5, 0, 3, 4], [1, 0, 1, 0]], [[3, 5, 4]])
    absent = rounds_of([[0, 3, 4]], [[5, 3]], [[3, 5, 4]])
    states, infos = zip(
        *(problems.play(problems.experiment(restless, cohorts=source), 3) for source in (left, absent)), strict=True
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *(state.device for state in states))
    assert infos[0][1].dropped.tolist() == [0, 4] and infos[0][1].num_clients == infos[1][1].num_clients == 2
    for one, other in zip(*infos, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-5)
        assert one.not_finite.size == 0


@pytest.mark.slow
def test_in_a_sweep_too():
    def make(hyper):
        return ftx.algorithms.fed_prox(problems.LOGISTIC, optax.sgd(0.1), hyper["mu"])

    cohorts = ftx.data.with_dropout(ftx.data.with_stragglers(ftx.data.uniform_cohorts(4), 0.5), 0.5)
    experiment = problems.experiment(make, hyper={"mu": 0.0}, cohorts=cohorts)
    swept = ftx.sweep(experiment, 4, {"mu": [0.0, 1.0]}, execution=ftx.Execution(num_lanes=2, mesh=None), progress=False)
    for mu, history in zip((0.0, 1.0), swept.history, strict=True):
        single = problems.experiment(make, hyper={"mu": mu}, cohorts=cohorts)
        result = ftx.run(single, 4, execution=ftx.Execution(num_lanes=2, mesh=None), progress=False)
        for line, want in zip(history, result.history, strict=True):
            for name in ("train/loss", "clients", "dropped", "steps"):
                assert line[name] == pytest.approx(want[name], rel=1e-5)
        assert max(line["dropped"] for line in history) > 0
