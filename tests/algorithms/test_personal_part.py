"""Shared bodies and own heads, FedPer, FedRep and FedBABU: rounds on paper, who is scored with what, what is sent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx
from fedjax_tx.algorithms.personal_part import split_task
from fedjax_tx.training.ledger import bytes_a_client

SGD = optax.sgd(scalars.HALF_WAY)
MODEL = ftx.Model(
    lambda key: {"body": {"a": jnp.zeros(())}, "head": {"b": jnp.ones(())}},
    lambda params, x, *, key=None: jnp.broadcast_to(params["body"]["a"] + params["head"]["b"], x.shape),
)
"""a + b; the body a begins at 0, the head b at 1. A step moves what it trains by half of the error x - (a + b)."""
TASK = ftx.tasks.regression(MODEL, inputs="x", targets="x")
TRAIN = scalars.clients([5], [1], [3], ids=["five", "one", "never"])
TEST = scalars.clients([4], [2, 1], [2], [7], ids=["stranger", "one", "never", "five"])
ONE_STEP = ftx.data.LocalWork(batch_size=1)


def play(algorithm):
    """Two rounds of the clients that hold 5 and 1, a step each: (state, infos, metrics of ``TEST``)."""
    cohorts = ftx.data.fixed_cohorts([[0, 1]] * 2)
    experiment = problems.experiment(algorithm, hyper={}, train=TRAIN, local=ONE_STEP, cohorts=cohorts)
    state, infos = problems.play(experiment, 2, rounds_per_call=2)
    return state, infos, ftx.make_evaluation(experiment, TEST)(state)


def test_fed_per_by_hand():
    # Body and head each take half of the error, so a client ends its step at x.
    # Round 1, five: a = 0 + 2, b = 1 + 2;  one: nothing moves.                            a = (2 + 0) / 2 = 1.
    # Round 2, five: the error is 5 - 4: a = 1.5, b = 3.5;  one: 1 - 2: a = 0.5, b = 0.5.  a = (1.5 + 0.5) / 2 = 1.
    state, infos, metrics = play(ftx.algorithms.fed_per(TASK, SGD))
    assert state.device.server.params == {"body": {"a": 1.0}}
    np.testing.assert_allclose(state.device.clients["head"]["b"], [3.5, 0.5, 1])
    assert [info.client_metrics["loss"][0].tolist() for info in infos] == [[16, 0], [1, 1]]
    # 1 and the own head, or the first one; of federated averaging the head would be 2 for everyone.
    np.testing.assert_allclose(metrics["loss"][0], [(2 - 4) ** 2, (0.5**2 + 0.5**2) / 2, 0, (4.5 - 7) ** 2])


def test_fed_rep_by_hand():
    # First the head takes half of the error, then the body half of what is left.
    # Round 1, five: b = 1 + 2 = 3, a = 0 + 1;  one: nothing moves.                              a = 0.5.
    # Round 2, five: b = 3 + 0.75, a = 0.5 + 0.375;  one: b = 1 - 0.25, a = 0.5 - 0.125.         a = 1.25 / 2.
    state, infos, metrics = play(ftx.algorithms.fed_rep(TASK, SGD))
    assert state.device.server.params == {"body": {"a": 0.625}}
    np.testing.assert_allclose(state.device.clients["head"]["b"], [3.75, 0.75, 1])
    assert infos[1].client_metrics["personal_loss"][0].tolist() == [1.5**2, 0.5**2]
    assert infos[1].client_metrics["loss"][0].tolist() == [0.75**2, 0.25**2]
    np.testing.assert_allclose(metrics["loss"][0][[0, 3]], [(1.625 - 4) ** 2, (4.375 - 7) ** 2])


def test_fed_babu_by_hand():
    # The head stays 1. Round 1: a = 2 of five, 0 of one: 1.  Round 2: the errors are 3 and -1: a = 2.5 and 0.5: 1.5.
    algorithm = ftx.algorithms.fed_babu(TASK, SGD)
    state, _, metrics = play(algorithm)
    assert state.device.server.params == {"body": {"a": 1.5}} and state.device.server.frozen == {"head": {"b": 1.0}}
    # A client of two examples tunes the head on the first, 2: b = 1 - 0.25. One of a single example tunes nothing.
    np.testing.assert_allclose(metrics["loss"][0], [1.5**2, 1.25**2, 0.5**2, 4.5**2])
    np.testing.assert_allclose(metrics["global_loss"][0], [1.5**2, 1.5**2, 0.5**2, 4.5**2])
    assert metrics["loss"][1].tolist() == metrics["global_loss"][1].tolist() == [1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "scored"), [(0, 7), (2, 5), (9, 4)])
def test_at_most_half_of_the_batches_are_tuned_on(steps, scored):
    experiment = problems.experiment(
        ftx.algorithms.fed_babu(TASK, SGD, tuning_steps=steps), hyper={}, train=TRAIN, local=ONE_STEP
    )
    state = ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init()
    x = [3, 5, 4, 6, 2, 1, 8]
    metrics = ftx.make_evaluation(experiment, scalars.clients(x))(state)
    tuned = 1.0
    for number in x[: 7 - scored]:
        tuned += (number - tuned) / 2
    np.testing.assert_allclose(metrics["loss"][0], np.mean([(tuned - number) ** 2 for number in x[7 - scored :]]), rtol=1e-6)
    assert metrics["loss"][1] == scored


@pytest.mark.slow
def test_a_stranger_fits_a_head_to_what_training_left():
    quiet = {"execution": ftx.Execution(num_lanes=1, mesh=None), "progress": False}
    cohorts = ftx.data.fixed_cohorts([[0, 1]] * 2)
    trained = problems.experiment(ftx.algorithms.fed_babu(TASK, SGD), hyper={}, train=TRAIN, local=ONE_STEP, cohorts=cohorts)
    result = ftx.run(trained, 2, **quiet)
    assert result.params == {"body": {"a": 1.5}, "head": {"b": 1.0}}
    tuning = problems.experiment(
        ftx.algorithms.fine_tune(ftx.tasks.freeze(TASK, "head/*"), SGD), hyper={}, train=scalars.clients([4, 4]), local=ONE_STEP
    )
    tuned = ftx.run(tuning, 1, evaluate={"test": scalars.clients([5])}, init_params=result.params, **quiet)
    # Two steps half of the way from 1.5 + 1 to 4.
    np.testing.assert_allclose(tuned.history[-1]["test/loss"], (3.625 - 5) ** 2)
    np.testing.assert_allclose(tuned.history[-1]["test/global_loss"], (2.5 - 5) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        lambda task: ftx.algorithms.fed_per(task, optax.sgd(0.1), personal="*norm*"),
        lambda task: ftx.algorithms.fed_rep(task, optax.sgd(0.1)),
        lambda task: ftx.algorithms.per_fed_avg(task, optax.sgd(0.1), 0.05),
    ],
    ids=["local norms", "fed_rep", "per_fed_avg"],
)
def test_a_transformer_learns(method):
    train = problems.text_clients((6, 4, 5))
    experiment = problems.experiment(
        method(problems.text_task()), hyper={}, train=train, local=ftx.data.LocalWork(batch_size=2, epochs=4)
    )
    options = {"execution": ftx.Execution(num_lanes=1, mesh=None), "progress": False, "evaluate_every": 1}
    first, *_, last = ftx.run(experiment, 4, evaluate={"train_set": train}, **options).history
    assert last["train_set/loss"] < 0.97 * first["train_set/loss"]


def test_only_what_is_shared_is_sent_and_once():
    body = 4  # bytes
    for method in (ftx.algorithms.fed_per, ftx.algorithms.fed_rep, ftx.algorithms.fed_babu):
        experiment = problems.experiment(method(TASK, SGD), hyper={}, train=TRAIN, local=ONE_STEP)
        round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=1, rounds_per_call=1))
        assert bytes_a_client(round_fn, round_fn.init()) == (body, body)


def test_the_personal_part_of_a_task_with_frozen_parameters():
    part = split_task(ftx.tasks.freeze(problems.ADAPTED, ["*lora*", "*bias"]), "*bias")
    shared, frozen = jax.eval_shape(part.shared.init, jax.random.key(0))
    assert sorted(shared["head"]) == ["lora"] and sorted(frozen["head"]) == ["bias", "kernel"]
    broadcast = ftx.clients.ModelBroadcast(shared, frozen)
    own = {"head": {"bias": "own"}}
    whole = part.for_whole(broadcast, own)
    assert whole.params["head"]["bias"] == "own" and sorted(whole.frozen["head"]) == ["kernel"]
    assert part.for_shared(broadcast, own).frozen["head"]["bias"] == "own"
    assert part.for_personal(broadcast, own).params == own
    assert sorted(part.for_personal(broadcast, own).frozen["head"]) == ["kernel", "lora"]


def test_norm_layers_are_found_by_their_names():
    part = split_task(problems.text_task(), "*norm*")
    params, _ = jax.eval_shape(part.whole.init, jax.random.key(0))
    sizes = {leaf.shape[-1] for leaf in jax.tree.leaves(jax.eval_shape(part.personal.init, jax.random.key(0))[0])}
    assert {path[0] for path in part.paths} == {"final_norm", "layers"} and sizes == {8}
    assert len(part.paths) < len(jax.tree.leaves(params))


@pytest.mark.parametrize("method", [ftx.algorithms.fed_per, ftx.algorithms.fed_rep, ftx.algorithms.fed_babu])
def test_something_must_be_shared(method):
    with pytest.raises(ValueError, match=r"expected personal to leave parameters that clients share, got '\*'"):
        method(TASK, SGD, personal="*")
