"""IFCA: a round on paper, groups that part, its limit, who is scored with what."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import scalars

import fedjax_tx as ftx
from fedjax_tx.training.ledger import bytes_a_client

WHOLE = ftx.data.LocalWork(batch_size=4, shuffle=False)
# On paper there are always three clients with seven examples: one compiled program for all.
EVERYBODY = [[0, 1, 2]]


def two_models(hyper):
    return ftx.algorithms.ifca(scalars.TASK, optax.sgd(scalars.HALF_WAY), num_clusters=2)


def start_at(models, examples, make_algorithm=two_models, local=WHOLE, cohorts=EVERYBODY, ids=None):
    """The experiment on paper, and its state at the given models."""
    cohorts, train = ftx.data.fixed_cohorts(cohorts), scalars.clients(*examples, ids=ids)
    experiment = problems.experiment(make_algorithm, hyper={}, train=train, local=local, cohorts=cohorts)
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=2, rounds_per_call=1))
    return experiment, round_fn, round_fn.init(init_params={"w": jnp.array(models, jnp.float32)})


def assert_close(left, right, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)


# ---- on paper


def test_a_round_of_three_clients_and_two_models_by_hand():
    # Models at 0 and 10.           loss at 0           loss at 10          takes    ends, half the way to its mean
    # client 0 holds 1, 3           (1 + 9) / 2 = 5     (81 + 49) / 2       0        (0 + 2) / 2 = 1
    # client 1 holds 4              16                  36                  0        (0 + 4) / 2 = 2
    # client 2 holds 8, 8, 8, 12    84                  (3 * 4 + 4) / 4 = 4 1        (10 + 9) / 2 = 9.5
    # Model 0: (2 * 1 + 1 * 2) / 3 = 4 / 3 by numbers of examples.  Model 1: 9.5.
    _, round_fn, state = start_at([0, 10], [[1, 3], [4], [8, 8, 8, 12]])
    state, info = round_fn(state)
    np.testing.assert_allclose(state.device.server.params["w"], [4 / 3, 9.5], rtol=1e-6)
    assert info.server["cluster_clients"].tolist() == [2, 1]
    assert state.device.clients.tolist() == [0, 0, 1]
    assert info.client_metrics["cluster"][0].tolist() == [0, 0, 1]
    assert info.client_metrics["chosen_loss"][0].tolist() == [5, 16, 4]
    assert info.client_metrics["chosen_loss"][1].tolist() == [2, 1, 4]
    np.testing.assert_allclose(info.metrics["loss"], (2 * 5 + 16 + 4 * 4) / 7, rtol=1e-6)


def test_a_model_that_nobody_took_stays_with_its_optimiser_and_the_other_is_fed_avg():
    server = optax.sgd(1.0, momentum=0.9)

    def clustered(hyper):
        return ftx.algorithms.ifca(scalars.TASK, optax.sgd(scalars.HALF_WAY), 2, server)

    def averaged(hyper):
        return ftx.algorithms.fed_avg(scalars.TASK, optax.sgd(scalars.HALF_WAY), server)

    # Client 2 takes model 0 in the first round and moves it by 2, which its optimiser remembers; then it is away.
    examples = [[1, 3], [4], [1004, 1004, 1004, 1004]]
    _, round_fn, state = start_at([1000, 0], examples, clustered, cohorts=[[0, 1, 2], [0, 1], [0, 1]])
    _, plain_fn, plain = start_at(0, examples, averaged, cohorts=[[0, 1]])
    for _ in range(3):
        state, info = round_fn(state)
        plain, _ = plain_fn(plain)
    assert info.server["cluster_clients"].tolist() == [0, 2]
    left, taken = (
        jax.tree.map(lambda leaf, row=row: leaf[row], (state.device.server.params, state.device.server.optimizer))
        for row in (0, 1)
    )
    assert_close(taken, (plain.device.server.params, plain.device.server.optimizer))
    assert [float(leaf) for leaf in jax.tree.leaves(left)] == [1002.0, -2.0]


def test_the_choice_is_made_on_all_data_though_only_some_is_trained_on():
    # The first example is next to 10, the client as a whole to 0: it takes model 0 and trains it on that one example.
    local = ftx.data.LocalWork(batch_size=1, steps=1, shuffle=False)
    _, round_fn, state = start_at([0, 10], [[9, 0, 0, 0, 0, 0, 0], [], []], local=local)
    state, info = round_fn(state)
    assert state.device.server.params["w"].tolist() == [4.5, 10.0]
    np.testing.assert_allclose(info.client_metrics["chosen_loss"][0][0], 81 / 7, rtol=1e-6)
    assert info.client_metrics["loss"][0].tolist() == [81, 0, 0]


def test_a_model_that_is_not_a_number_is_not_the_best():
    _, round_fn, state = start_at([np.nan, 3], [[1, 1], [2, 2], [3, 3, 3]])
    state, info = round_fn(state)
    assert info.server["cluster_clients"].tolist() == [0, 3]
    np.testing.assert_allclose(state.device.server.params["w"], [np.nan, (2 * 2 + 2 * 2.5 + 3 * 3) / 7], rtol=1e-6)


def test_a_client_without_an_example_takes_no_model_and_a_round_of_such_clients_keeps_everything():
    _, round_fn, state = start_at([0, 10], [[1] * 3, [], [9] * 4], cohorts=[[0, 1, 2], [1]])
    first, info = round_fn(state)
    assert first.device.clients.tolist() == [0, -1, 1]
    assert info.server["cluster_clients"].tolist() == [1, 1]
    assert info.client_metrics["cluster"][1].tolist() == [1, 0, 1]
    np.testing.assert_allclose(first.device.server.params["w"], [0.5, 9.5])
    second, info = round_fn(first)
    assert info.empty
    jax.tree.map(np.testing.assert_array_equal, first.device, second.device)


# ---- laws


SLOPES = (1.0, -1.0, 1.0, -1.0, -1.0)
SLOPE_TASK = ftx.tasks.regression(
    ftx.Model(lambda key: {"a": jax.random.normal(key)}, lambda params, x, *, key=None: params["a"] * x)
)


def opposite_clients(seed: int) -> ftx.data.FederatedDataset:
    """Clients that hold y = x, and clients that hold y = -x."""
    x = np.random.default_rng(seed).normal(size=(len(SLOPES), 6)).astype(np.float32)
    y = np.array(SLOPES, np.float32)[:, None] * x
    offsets = np.arange(len(SLOPES) + 1) * 6
    return ftx.data.FederatedDataset.from_offsets({"x": x.ravel(), "y": y.ravel()}, offsets)


def slope_experiment(algorithm):
    local = ftx.data.LocalWork(batch_size=6, epochs=3)
    return problems.experiment(algorithm, hyper={}, train=opposite_clients(0), local=local)


def test_clients_of_opposite_labels_are_separated_and_each_group_reaches_its_own_optimum():
    experiment = slope_experiment(ftx.algorithms.ifca(SLOPE_TASK, optax.sgd(0.2), num_clusters=2))
    state, infos = problems.play(experiment, 15)
    clusters = state.device.clients.tolist()
    groups = {slope: {cluster for cluster, own in zip(clusters, SLOPES, strict=True) if own == slope} for slope in SLOPES}
    assert sorted(len(group) for group in groups.values()) == [1, 1]
    assert groups[1.0] != groups[-1.0]
    slopes = state.device.server.params["a"]
    assert sorted(infos[-1].server["cluster_clients"].tolist()) == [2, 3]
    for slope, (cluster,) in groups.items():
        np.testing.assert_allclose(slopes[cluster], slope, atol=1e-3)
    test = ftx.make_evaluation(experiment, opposite_clients(1))(state)
    assert test["loss"][0].max() < 1e-5

    # One model for all cannot do it: FedAvg ends between the two, and is off by about its distance to each.
    averaged = slope_experiment(ftx.algorithms.fed_avg(SLOPE_TASK, optax.sgd(0.2)))
    state, _ = problems.play(averaged, 15)
    assert ftx.make_evaluation(averaged, opposite_clients(1))(state)["loss"][0].min() > 0.1


def test_with_one_model_it_is_fed_avg():
    optimizers = {"client_optimizer": optax.sgd(0.1, momentum=0.9), "server_optimizer": optax.adam(0.05)}
    one, infos = problems.play(problems.experiment(ftx.algorithms.ifca(problems.LOGISTIC, num_clusters=1, **optimizers)), 3)
    plain, want = problems.play(problems.experiment(ftx.algorithms.fed_avg(problems.LOGISTIC, **optimizers)), 3)
    assert_close(jax.tree.map(lambda leaf: leaf[0], one.device.server.params), plain.device.server.params, rtol=1e-4)
    np.testing.assert_allclose([i.metrics["loss"] for i in infos], [i.metrics["loss"] for i in want], rtol=1e-4)


def three_models(hyper):
    return ftx.algorithms.ifca(problems.LOGISTIC, optax.sgd(0.3, momentum=0.9), num_clusters=3)


@pytest.fixture(scope="module")
def one_by_one():
    return problems.play(problems.experiment(three_models, hyper={}), 4, num_lanes=1)


@pytest.mark.parametrize(("num_lanes", "rounds_per_call"), [(2, 4), (6, 3)])
def test_lanes_and_calls_change_nothing(one_by_one, num_lanes, rounds_per_call):
    want, want_infos = one_by_one
    state, infos = problems.play(problems.experiment(three_models, hyper={}), 4, num_lanes, rounds_per_call)
    assert_close(state.device.server.params, want.device.server.params, rtol=1e-4)
    assert state.device.clients.tolist() == want.device.clients.tolist()
    counts = [info.server["cluster_clients"].tolist() for info in infos]
    assert counts == [info.server["cluster_clients"].tolist() for info in want_infos]
    assert max(map(max, counts)) < 5  # of the five clients with an example not all took the same


def test_a_client_is_charged_for_all_models_down_and_for_one_and_its_number_up():
    round_fn = ftx.make_round(problems.experiment(three_models, hyper={}), ftx.Execution(num_lanes=1))
    assert bytes_a_client(round_fn, round_fn.init()) == (3 * 36, 36 + 4)


# ---- first models


def test_the_first_models_differ_and_the_first_of_them_is_fed_avgs():
    algorithm = three_models({})
    key = jax.random.key(5)
    params = jax.jit(algorithm.init)(key, None).params
    assert params["w"].shape == (3, 2, 3)
    assert len({tuple(np.ravel(model)) for model in np.asarray(params["w"])}) == 3
    assert_close(params["w"][0], jax.jit(problems.LOGISTIC.init)(key)[0]["w"])


def test_init_params_hold_all_models_and_others_are_refused():
    _, round_fn, state = start_at([0, 10], [[1] * 7, [], []])
    assert state.device.server.params["w"].tolist() == [0, 10]
    with pytest.raises(ValueError, match=r"expected init_params\['w'\] of shape \(2,\), got \(\)"):
        round_fn.init(init_params={"w": jnp.zeros(())})
    with pytest.raises(ValueError, match=r"expected init_params\['w'\] of shape \(2,\), got \(3,\)"):
        round_fn.init(init_params={"w": jnp.zeros(3)})


def test_a_number_of_clusters_below_one_is_refused():
    with pytest.raises(ValueError, match="expected num_clusters >= 1, got 0"):
        ftx.algorithms.ifca(scalars.TASK, optax.sgd(0.1), num_clusters=0)


# ---- evaluation


def test_clients_are_scored_with_the_choice_of_their_training_data_and_strangers_with_the_popular_model():
    names = ["a", "b", "never"]
    experiment, round_fn, state = start_at([0, 8], [[0] * 3, [8] * 2, [0] * 2], cohorts=[[0], [1], [0, 1, 2]], ids=names)
    # a's test data lies at model 1, b's nearer to model 0: had the data that is scored the choice, a would score 0.
    test = scalars.clients([8], [3, 0], [8], [8], ids=[*names, "stranger"])
    evaluate = ftx.make_evaluation(experiment, test)
    before = evaluate(state)
    assert before["cluster"][0].tolist() == [0, 0, 0, 0]
    assert before["cluster_known"][0].tolist() == [0, 0, 0, 0]
    assert before["loss"][0].tolist() == [64, 9 / 2, 64, 64]
    state, _ = round_fn(state)
    state, _ = round_fn(state)
    assert state.device.server.params["w"].tolist() == [0, 8]
    after = evaluate(state)
    # The one client of the last round took model 1.
    assert after["cluster"][0].tolist() == [0, 1, 1, 1]
    assert after["cluster_known"][0].tolist() == [1, 1, 0, 0]
    assert after["loss"][0].tolist() == [64, (25 + 64) / 2, 0, 0]
    assert after["cluster_known"][1].tolist() == [1, 2, 1, 1]
