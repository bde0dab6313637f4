"""Evaluation: each client's numbers by direct computation, means and spreads by NumPy, states matched by client id."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx.simulation import make_evaluation, summarise
from fedjax_tx.simulation.evaluate import evaluation_work, match_clients


def direct(params, data):
    """(loss, accuracy) of each client's own examples, nan for a client without any."""
    scores = []
    for client in range(data.num_clients):
        own = data.client(client)
        logits = np.asarray(own["x"] @ np.asarray(params["w"]) + np.asarray(params["b"]), np.float64)
        losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), own["y"]]
        scores.append((losses.mean(), (logits.argmax(-1) == own["y"]).mean()) if len(losses) else (np.nan, np.nan))
    return np.array(scores).T


@pytest.fixture(scope="module")
def trained():
    experiment = problems.experiment()
    state, _ = problems.play(experiment, 2)
    return experiment, state


@pytest.mark.parametrize("sizes", [problems.SIZES, (3,), (1, 40, 0, 2)])
def test_each_client_is_scored_on_all_of_its_examples(trained, sizes):
    experiment, state = trained
    data = problems.ragged_clients(sizes, seed=7)
    metrics = make_evaluation(experiment, data)(state)
    loss, accuracy = direct(state.device.server.params, data)
    real = np.array(sizes) > 0
    np.testing.assert_allclose(metrics["loss"][0][real], loss[real], rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"][0][real], accuracy[real], rtol=1e-6)
    assert metrics["loss"][1].tolist() == list(sizes)


def test_the_summary_is_the_mean_over_examples_and_percentiles_over_clients(trained):
    experiment, state = trained
    data = problems.ragged_clients(seed=7)
    summary = summarise("test", make_evaluation(experiment, data)(state))
    loss, accuracy = direct(state.device.server.params, data)
    weights = np.array(problems.SIZES)
    real = weights > 0
    for name, value in (("loss", loss), ("accuracy", accuracy)):
        np.testing.assert_allclose(summary[f"test/{name}"], np.average(value[real], weights=weights[real]), rtol=1e-5)
        for percentile in (10, 50, 90):
            want = np.percentile(value[real], percentile)
            np.testing.assert_allclose(summary[f"test/{name}/client_p{percentile}"], want, rtol=1e-5)
    spreads = [f"/client_{spread}" for spread in ("p10", "p50", "p90", "worst_decile", "variance")]
    assert set(summary) == {f"test/{m}{tail}" for m in ("loss", "accuracy") for tail in ("", *spreads)}
    assert {type(value) for value in summary.values()} == {float}


def test_a_summary_by_hand():
    metrics = {"loss": (np.array([1.0, 3.0, 100.0], np.float32), np.array([3.0, 1.0, 0.0], np.float32))}
    summary = summarise("a", metrics)
    assert summary["a/loss"] == 1.5
    assert summary["a/loss/client_p50"] == 2.0
    assert summary["a/loss/client_p10"] == pytest.approx(1.2)
    assert summary["a/loss/client_worst_decile"] == 3.0 and summary["a/loss/client_variance"] == 1.0


def test_the_worst_tenth_of_clients_is_rounded_up_and_lies_at_the_metrics_bad_end():
    value, weight = np.array([*np.arange(1.0, 22.0), 99.0]), np.array([7.0] * 21 + [0.0])  # the last has no example
    for names, worst in ((("loss", "global_loss", "error_4s"), (21 + 20 + 19) / 3), (("accuracy", "lossless"), (1 + 2 + 3) / 3)):
        for name in names:
            summary = summarise("a", {name: (value[::-1], weight[::-1])})
            assert summary[f"a/{name}/client_worst_decile"] == worst
            np.testing.assert_allclose(summary[f"a/{name}/client_variance"], (21**2 - 1) / 12)  # of 1 ... n


def test_a_summary_of_nobody_is_not_a_number():
    summary = summarise("a", {"loss": (np.zeros(2), np.zeros(2))})
    assert all(np.isnan(value) for value in summary.values())


def test_evaluation_leaves_the_state_as_it_is_and_repeats(trained):
    experiment, state = trained
    evaluate = make_evaluation(experiment, experiment.train)
    before = jax.device_get(state.device.server)
    first, second = evaluate(state), evaluate(state)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.device.server))


def personal():
    """Clients that keep how often they trained, from a first state of -1; evaluation reports it."""
    trainer = ftx.ClientTrainer(
        lambda broadcast, key: jnp.float32(-1.0),
        lambda broadcast, info, state: state,
        lambda broadcast, info, local, batch, mask, key: local,
        lambda broadcast, info, local: ftx.ClientResult({}, jnp.float32(1.0), local + 10.0 * (info.id + 1), {}),
    )
    report = trainer._replace(
        init_state=lambda broadcast, key: jnp.float32(jnp.nan),  # the first pass's trainer makes states, never this one
        finish=lambda broadcast, info, local: ftx.ClientResult(
            {}, jnp.float32(1.0), local, {"kept": (local, jnp.ones(())), "id": (info.id.astype(jnp.float32), jnp.ones(()))}
        ),
    )
    algorithm = problems.one_pass(trainer)
    evaluation = algorithm.passes[0]._replace(trainer=report)
    return algorithm._replace(evaluation=evaluation)


def test_clients_bring_the_state_that_they_have_in_training_matched_by_id():
    train = problems.ragged_clients()
    experiment = problems.experiment(personal(), cohorts=ftx.data.fixed_cohorts([[0, 2, 5]]))
    state, _ = problems.play(experiment, 2)
    # Known ones in another order, one that never trained, and a stranger whose position is that of a known client.
    columns = {name: column[:5] for name, column in train.columns.items()}
    data = ftx.data.FederatedDataset.from_offsets(columns, range(6), ["c5", "stranger", "c0", "c1", "c2"])
    metrics = make_evaluation(experiment, data)(state)
    assert metrics["kept"][0].tolist() == [119.0, -1.0, 19.0, -1.0, 59.0]
    # And the number that they have there, wherever they stand here.
    assert metrics["id"][0].tolist() == [5, -1, 0, 1, 2]


def test_matching_by_hand():
    assert match_clients(np.array(["b", "x", "a"]), np.array(["a", "b"])).tolist() == [1, -1, 0]
    assert match_clients(np.array([7, 3]), np.array([3, 5])).tolist() == [-1, 0]
    assert match_clients(np.array([1]), np.array(["1"])).tolist() == [-1]


def test_evaluation_never_takes_batches_larger_than_a_middling_client_or_than_training():
    experiment = problems.experiment(local=ftx.data.LocalWork(batch_size=8))
    sizes = {(3, 3, 100): 4, (1, 1): 1, (64, 64): 8, (0, 0, 0, 5): 1}
    for counts, batch_size in sizes.items():
        work = evaluation_work(experiment, problems.ragged_clients(counts))
        assert (work.batch_size, work.epochs, work.shuffle) == (batch_size, 1, False)


def test_evaluation_is_without_dropout():
    task = problems.text_task(dropout=0.5)
    data = problems.text_clients()
    algorithm = ftx.algorithms.fed_avg(task, optax.sgd(0.1))
    experiment = problems.experiment(algorithm, train=data, local=ftx.data.LocalWork(batch_size=2))
    state = ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init()
    metrics = make_evaluation(experiment, data)(state)
    params = state.device.server.params
    batch = {"tokens": jnp.asarray(data.columns["tokens"])}
    losses, _ = jax.jit(lambda params: task.loss(task.apply(params, (), batch, None), batch))(params)
    want = [np.mean(losses[data.offsets[i] : data.offsets[i + 1]]) for i in range(3)]
    np.testing.assert_allclose(metrics["loss"][0], want, rtol=1e-5)


def test_a_set_with_other_columns_is_refused_with_both_descriptions():
    data = problems.ragged_clients()
    experiment = problems.experiment()
    for change in ({"x": data.columns["x"].astype(np.float64)}, {"x": data.columns["x"][:, :1]}, {"z": data.columns["y"]}):
        other = ftx.data.FederatedDataset({**data.columns, **change}, data.offsets, data.client_ids)
        with pytest.raises(ValueError, match=r"expected the columns of an evaluation set to be \{.*float32\[2\].*\}.*, got \{"):
            make_evaluation(experiment, other)


def test_an_empty_set_is_refused():
    data = problems.ragged_clients()
    empty = ftx.data.FederatedDataset.from_offsets({n: c[:0] for n, c in data.columns.items()}, [0, 0])
    with pytest.raises(ValueError, match="expected an evaluation set to hold at least one example, got 0"):
        make_evaluation(problems.experiment(), empty)
