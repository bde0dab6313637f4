"""Fine-tuning: rounds on paper, against FedAvg of one client, who is scored with what."""

import jax
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx


def on_paper(hyper):
    return ftx.algorithms.fine_tune(scalars.TASK, optax.sgd(scalars.HALF_WAY, momentum=0.5))


@pytest.fixture(scope="module")
def played():
    """Two clients of three, in three rounds of one step."""
    train = scalars.clients([4], [0], [2], ids=["a", "b", "never"])
    cohorts = ftx.data.fixed_cohorts([[0, 1]] * 3)
    experiment = problems.experiment(on_paper, train=train, local=ftx.data.LocalWork(batch_size=1), cohorts=cohorts)
    return experiment, *problems.play(experiment, 3)


def test_three_rounds_by_hand(played):
    # The gradient is 2 (v - 4), the momentum m <- gradient + m / 2 goes on from round to round, v <- v - m / 4.
    # Round 1: m = -8, v = 2;  round 2: m = -4 - 4 = -8, v = 4;  round 3: m = 0 - 4 = -4, v = 5.  Begun anew it would be 3.5.
    _, state, infos = played
    np.testing.assert_allclose(state.device.clients.params["w"], [5, 0, 0])
    np.testing.assert_allclose(state.device.clients.optimizer[0].trace["w"], [-4, 0, 0])
    assert [info.client_metrics["loss"][0].tolist() for info in infos] == [[16, 0], [4, 0], [0, 0]]
    # FedAvg would have moved the server.
    assert state.device.server.params["w"] == 0


def test_clients_are_scored_with_their_own_model_and_others_with_where_it_began(played):
    experiment, state, _ = played
    test = scalars.clients([1], [3], [2], [7], ids=["stranger", "b", "never", "a"])
    metrics = ftx.make_evaluation(experiment, test)(state)
    np.testing.assert_allclose(metrics["loss"][0], [1, 9, 4, (5 - 7) ** 2])
    np.testing.assert_allclose(metrics["global_loss"][0], [1, 9, 4, 49])


@pytest.mark.slow
def test_each_client_has_what_federated_averaging_with_it_alone_gives(clients):
    def play(method, **changes):
        algorithm = method(problems.LOGISTIC, optax.sgd(0.1))
        return problems.play(problems.experiment(lambda hyper: algorithm, train=clients, hyper={}, **changes), 3)[0].device

    own = play(ftx.algorithms.fine_tune).clients.params
    for client in (0, 3):
        alone = play(ftx.algorithms.fed_avg, cohorts=ftx.data.fixed_cohorts([[client]] * 3)).server.params
        mine = jax.tree.map(lambda leaf, client=client: leaf[client], own)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mine, alone)


def test_nothing_is_sent(played):
    experiment, *_ = played
    result = ftx.run(experiment, 1, progress=False, execution=ftx.Execution(num_lanes=2, rounds_per_call=1))
    assert result.ledger["bytes_up"] == result.ledger["bytes_down"] == 0
