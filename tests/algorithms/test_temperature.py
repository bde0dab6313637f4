"""Temperature scaling: T = 1 is the plain task, and clients fit the T of the pooled data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx.tasks import temperature

SURE = {"w": jnp.array([[6.0, 0.0, -4.0], [0.5, -8.0, 0.0]]), "b": jnp.array([0.0, 0.1, 0.2])}
START = {**SURE, "log_temperature": jnp.zeros(())}


def noisy_clients(sizes=(30, 0, 7, 60, 3), seed=3):
    """Labels drawn from a third of the logits: a model that knows them all is three times too sure."""
    data, generator = problems.ragged_clients(sizes, seed), np.random.default_rng(seed)
    logits = (data.columns["x"] @ np.asarray(SURE["w"]) + np.asarray(SURE["b"])) / 3
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(-1).astype(np.int32)
    return ftx.data.FederatedDataset(dict(data.columns, y=labels), data.offsets, data.client_ids)


DATA = noisy_clients()
BATCH = jax.tree.map(jnp.asarray, DATA.columns)


def pooled_temperature():
    """By bisection of the slope of the pooled likelihood by 1 / T."""
    logits = np.asarray(DATA.columns["x"] @ np.asarray(SURE["w"]) + np.asarray(SURE["b"]), np.float64)
    right = logits[np.arange(len(logits)), DATA.columns["y"]]

    def slope(inverse):
        odds = np.exp(inverse * (logits - logits.max(-1, keepdims=True)))
        return ((odds * logits).sum(-1) / odds.sum(-1) - right).mean()

    low, high = 1e-3, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / middle


def experiment(algorithm, **changes):
    return problems.experiment(algorithm, train=DATA, cohorts=ftx.data.all_clients(), **changes)


def run(algorithm, rounds, **changes):
    execution = ftx.Execution(num_lanes=2, mesh=None)
    return ftx.run(
        experiment(algorithm, **changes), rounds, {"test": DATA}, START, execution, evaluate_every=rounds, progress=False
    )


@pytest.mark.slow
def test_clients_fit_the_temperature_of_the_pooled_data():
    plain = ftx.tasks.classification(
        ftx.Model(problems.init_logistic, lambda p, x, *, key=None: x @ p["w"] + p["b"]), num_classes=3
    )
    fitted = run(ftx.algorithms.fit_temperature(plain), 8)
    want = pooled_temperature()
    assert 2 < want < 4
    np.testing.assert_allclose(np.exp(fitted.params["log_temperature"]), want, rtol=1e-4)
    np.testing.assert_allclose(fitted.history[-1]["server/temperature"], want, rtol=1e-4)
    assert abs(fitted.history[-1]["server/slope"]) < 1e-4
    for name in ("w", "b"):
        np.testing.assert_array_equal(fitted.params[name], SURE[name])

    outputs = plain.apply(SURE, (), BATCH, None)
    last, first = fitted.history[-1], fitted.history[0]
    np.testing.assert_allclose(first["train/start_loss"], plain.loss(outputs, BATCH)[0].mean(), rtol=1e-5)
    np.testing.assert_allclose(last["test/accuracy"], plain.metrics(outputs, BATCH)["accuracy"][0].mean(), rtol=1e-6)
    assert last["test/loss"] < first["train/start_loss"] - 0.1
    error = plain.metrics(outputs, BATCH)["calibration_error"]
    before = ftx.summarise("a", {"e": type(error)(*(np.asarray(part) for part in error))})["a/e"]
    assert last["test/calibration_error"] < before - 0.05
    assert fitted.ledger["bytes_up"] == 8 * 5 * 12  # three numbers of each client in each round


@pytest.mark.slow
def test_it_is_a_task_like_any_other():
    scaled = temperature(problems.LOGISTIC)
    algorithm = ftx.algorithms.fed_avg(scaled, optax.sgd(0.5))
    trained = run(algorithm, 60, local=ftx.data.LocalWork(batch_size=60, shuffle=False))
    np.testing.assert_allclose(np.exp(trained.params["log_temperature"]), pooled_temperature(), rtol=1e-3)


def test_a_temperature_of_one_is_the_plain_task_and_others_divide():
    scaled, batch = temperature(problems.LOGISTIC), BATCH
    trainable, frozen = scaled.init(jax.random.key(0))
    want = problems.LOGISTIC.apply(problems.LOGISTIC.init(jax.random.key(0))[0], (), batch, None)["logits"]
    np.testing.assert_array_equal(scaled.apply(trainable, frozen, batch, None)["logits"], want)
    halved = scaled.apply({"log_temperature": jnp.log(2.0)}, frozen, batch, None)
    np.testing.assert_allclose(halved["logits"], want / 2, rtol=1e-6)


def test_training_is_by_what_evaluation_sees_and_parts_frozen_before_stay_apart():
    inner = ftx.tasks.freeze(ftx.tasks.fed_lc(problems.LOGISTIC, 1.0), "b")
    scaled = temperature(inner)
    trainable, frozen = scaled.init(jax.random.key(0))
    assert set(trainable) == {"log_temperature"}
    assert set(frozen) == {"w", "b"}
    # Without class counts: FedLC changes training alone, and the model is not trained.
    outputs = scaled.apply(trainable, frozen, BATCH, jax.random.key(1))["logits"]
    np.testing.assert_array_equal(outputs, problems.LOGISTIC.apply(frozen, (), BATCH, None)["logits"])


def test_parameters_that_are_no_dict_are_kept_as_they_are():
    model = ftx.Model(lambda key: jnp.ones((2, 3)), lambda params, x, *, key=None: x @ params)
    scaled = temperature(ftx.tasks.classification(model))
    trainable, frozen = scaled.init(jax.random.key(0))
    assert frozen.shape == (2, 3)
    np.testing.assert_array_equal(scaled.apply(trainable, frozen, {"x": jnp.ones((1, 2))}, None)["logits"], [[2, 2, 2]])


def test_a_temperature_of_a_temperature_is_refused():
    with pytest.raises(ValueError, match="the task to have no parameter 'log_temperature' yet"):
        temperature(temperature(problems.LOGISTIC))
