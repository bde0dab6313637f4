"""Losses for unbalanced classes: equal to the plain one in their limit, by hand beside it, and never seen in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx.clients import batch_gradient, batch_loss
from fedjax_tx.tasks import (
    class_weighted,
    effective_number_weights,
    fed_lc,
    fed_rs,
    focal,
    inverse_frequency_weights,
    logit_adjusted,
)

PLAIN, KEY = problems.LOGISTIC, jax.random.key(0)
PARAMS = {"w": jnp.array([[1.0, 0.0, -1.0], [0.5, -2.0, 0.0]]), "b": jnp.array([0.0, 0.1, 0.2])}
COUNTS = np.array([[8, 1, 0]])
BATCH = {
    "x": jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 0.5]]),
    "y": jnp.array([0, 1, 0, 1]),
    "class_counts": jnp.repeat(jnp.array(COUNTS), 4, axis=0),
}
LOGITS = np.asarray(BATCH["x"] @ PARAMS["w"] + PARAMS["b"], np.float64)
NEUTRAL = {
    "class weights of 1": class_weighted(PLAIN, [1.0, 1.0, 1.0]),
    "focal, gamma 0": focal(PLAIN, 0.0),
    "logit adjustment, tau 0": logit_adjusted(PLAIN, [8, 1, 3], 0.0),
    "FedLC, tau 0": fed_lc(PLAIN, 0.0),
    "FedRS, alpha 1": fed_rs(PLAIN, 1.0),
}
CHANGED = {
    "class weights": class_weighted(PLAIN, [0.5, 2.0, 1.0]),
    "focal": focal(PLAIN, 2.0),
    "logit adjustment": logit_adjusted(PLAIN, [8, 1, 3]),
    "FedLC": fed_lc(PLAIN, 1.0),
    "FedRS": fed_rs(PLAIN, 0.25),
    "several": class_weighted(focal(fed_lc(PLAIN, 0.5), 1.0), [0.5, 2.0, 1.0]),
}


def losses(task, key=KEY, batch=BATCH):
    return task.loss(task.apply(PARAMS, (), batch, key), batch)


def cross_entropies(logits):
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), [0, 1, 0, 1]]


def test_the_plain_loss_of_these_tests():
    np.testing.assert_allclose(losses(PLAIN)[0], cross_entropies(LOGITS), rtol=1e-6)


@pytest.mark.parametrize("task", NEUTRAL.values(), ids=NEUTRAL)
def test_the_limit_is_the_plain_loss_with_its_gradient(task):
    for have, want in zip(losses(task), losses(PLAIN), strict=True):
        np.testing.assert_array_equal(have, want)
    mask = jnp.array([True, True, False, True])
    pair, gradient = batch_gradient(task, PARAMS, (), BATCH, mask, KEY)
    wanted_pair, wanted = batch_gradient(PLAIN, PARAMS, (), BATCH, mask, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), (pair, gradient), (wanted_pair, wanted))


@pytest.mark.parametrize("task", CHANGED.values(), ids=CHANGED)
def test_evaluation_is_that_of_plain_logits(task):
    assert np.abs(losses(task)[0] - losses(PLAIN)[0]).max() > 0.05
    batch = {name: BATCH[name] for name in ("x", "y")}  # in evaluation no cohort brings counts along
    outputs, plain = (one.apply(PARAMS, (), batch, None) for one in (task, PLAIN))
    jax.tree.map(np.testing.assert_array_equal, outputs, plain)
    jax.tree.map(np.testing.assert_array_equal, task.loss(outputs, batch), PLAIN.loss(plain, batch))
    jax.tree.map(np.testing.assert_array_equal, task.metrics(outputs, batch), PLAIN.metrics(plain, batch))


@pytest.mark.parametrize("task", CHANGED.values(), ids=CHANGED)
def test_an_example_counts_as_it_did(task):
    value, weight = losses(task)
    np.testing.assert_array_equal(weight, np.ones(4))
    assert np.isfinite(value).all()


def test_class_weights_by_hand():
    want = np.array([0.5, 2.0, 0.5, 2.0]) * cross_entropies(LOGITS)
    np.testing.assert_allclose(losses(CHANGED["class weights"])[0], want, rtol=1e-6)
    alone = batch_loss(CHANGED["class weights"], PARAMS, (), BATCH, jnp.array([False, True, False, False]), KEY)
    np.testing.assert_allclose(alone, (2.0 * cross_entropies(LOGITS)[1], 1.0), rtol=1e-6)  # felt in a batch of one, too


def test_the_same_change_twice_is_the_change_of_both():
    nested = {
        "class weights": (class_weighted(CHANGED["class weights"], [3.0, 1.0, 1.0]), class_weighted(PLAIN, [1.5, 2.0, 1.0])),
        "focal": (focal(focal(PLAIN, 0.5), 1.5), CHANGED["focal"]),
        "focal within": (
            focal(class_weighted(focal(PLAIN, 0.5), [0.5, 2.0, 1.0]), 1.5),
            class_weighted(CHANGED["focal"], [0.5, 2.0, 1.0]),
        ),
    }
    for name, (twice, once) in nested.items():
        np.testing.assert_allclose(losses(twice)[0], losses(once)[0], rtol=1e-5, err_msg=name)


def test_focal_by_hand():
    plain = cross_entropies(LOGITS)
    np.testing.assert_allclose(losses(CHANGED["focal"])[0], (1 - np.exp(-plain)) ** 2 * plain, rtol=1e-5)


def test_focal_of_a_certain_example_has_a_finite_gradient():
    for gamma in (0.0, 0.5, 2.0):
        sure = {"w": jnp.array([[200.0, 0.0, 0.0], [200.0, 0.0, 0.0]]), "b": jnp.zeros(3)}
        batch = {"x": jnp.ones((1, 2)), "y": jnp.array([0])}
        (value, _), gradient = batch_gradient(focal(PLAIN, gamma), sure, (), batch, jnp.ones(1, bool), KEY)
        assert float(value) == 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_logit_adjustment_by_hand():
    want = cross_entropies(LOGITS + np.log(np.array([8, 1, 3]) / 12))
    np.testing.assert_allclose(losses(CHANGED["logit adjustment"])[0], want, rtol=1e-5)
    doubled = cross_entropies(LOGITS + 2 * np.log(np.array([8, 1, 3]) / 12))
    np.testing.assert_allclose(losses(logit_adjusted(PLAIN, [8, 1, 3], 2.0))[0], doubled, rtol=1e-5)


def test_with_logit_adjustment_frequency_alone_teaches_nothing():
    # Examples that show nothing, as often as the prior says: equal logits are the optimum, where the plain loss has a slope.
    labels = np.repeat([0, 1, 2], [8, 1, 3])
    batch, nought = {"x": jnp.zeros((12, 2)), "y": jnp.array(labels)}, jax.tree.map(jnp.zeros_like, PARAMS)
    _, adjusted = batch_gradient(logit_adjusted(PLAIN, [8, 1, 3]), nought, (), batch, jnp.ones(12, bool), KEY)
    _, plain = batch_gradient(PLAIN, nought, (), batch, jnp.ones(12, bool), KEY)
    np.testing.assert_allclose(adjusted["b"], np.zeros(3), atol=1e-6)
    assert np.abs(plain["b"]).max() > 0.2


def test_logit_adjustment_of_texts_is_at_every_place():
    model = ftx.Model(lambda key: (), lambda params, tokens, *, key=None: jnp.zeros((*tokens.shape, 8)))
    task, batch = logit_adjusted(ftx.tasks.next_token(model), np.arange(1, 9)), {"tokens": jnp.array([[1, 2, 3, 4, 0]])}
    shifted = task.apply((), (), batch, KEY)["logits"]
    np.testing.assert_allclose(shifted, np.broadcast_to(np.log(np.arange(1, 9) / 36), (1, 4, 8)), atol=1e-5)


def test_fed_lc_by_hand():
    # Of a class that the client lacks nothing is left in the softmax.
    want = cross_entropies(LOGITS - np.array([8**-0.25, 1.0, np.inf]))
    np.testing.assert_allclose(losses(CHANGED["FedLC"])[0], want, rtol=1e-5)


def test_fed_rs_by_hand():
    want = cross_entropies(LOGITS * np.array([1, 1, 0.25]))
    np.testing.assert_allclose(losses(CHANGED["FedRS"])[0], want, rtol=1e-5)


def test_weights_of_classes_by_hand():
    np.testing.assert_allclose(inverse_frequency_weights([2, 1, 0, 4]), 3 / 7 * np.array([2, 4, 0, 1]))
    counts, beta = np.array([1, 10, 1000]), 0.99
    inverse = (1 - beta) / (1 - beta**counts)
    np.testing.assert_allclose(effective_number_weights(counts, beta), 3 * inverse / inverse.sum())
    np.testing.assert_array_equal(effective_number_weights([5, 0, 2], 0.0), [1, 0, 1])
    np.testing.assert_allclose(effective_number_weights([5, 0, 2], 1 - 1e-9), inverse_frequency_weights([5, 0, 2]), rtol=1e-6)


# ---- at the clients of a run

DATA = problems.ragged_clients()
OWN = ftx.data.class_counts(DATA, 3)
WITH_COUNTS = ftx.data.with_covariates(ftx.data.all_clients(), class_counts=OWN)


def make_fed_lc(hyper):
    return ftx.algorithms.fed_avg(fed_lc(PLAIN, hyper["tau"]), client_optimizer=optax.sgd(0.5))


def make_plain(hyper):
    return ftx.algorithms.fed_avg(PLAIN, client_optimizer=optax.sgd(0.5))


def experiment(make=make_fed_lc, tau=1.0, cohorts=WITH_COUNTS):
    local = ftx.data.LocalWork(batch_size=4, epochs=2)
    return problems.experiment(make, hyper={"tau": tau}, cohorts=cohorts, local=local)


def by_hand(params, tau):
    """One round with all of a client's examples in one step, in which examples weigh alike."""
    w, b = (np.asarray(params[name], np.float64) for name in ("w", "b"))
    slope = {"w": np.zeros_like(w), "b": np.zeros_like(b)}
    for client in range(DATA.num_clients):
        own, counts = DATA.client(client), OWN[client]
        margins = np.where(counts > 0, tau * np.maximum(counts, 1) ** -0.25, np.inf)
        odds = np.exp(own["x"] @ w + b - margins)
        errors = odds / odds.sum(-1, keepdims=True) - np.eye(3)[own["y"]]
        slope = {"w": slope["w"] + own["x"].T @ errors, "b": slope["b"] + errors.sum(0)}
    return {name: params[name] - 0.5 * slope[name] / DATA.num_examples for name in slope}


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_each_client_has_its_own_margins(num_lanes):
    whole = problems.experiment(make_fed_lc, hyper={"tau": 1.0}, cohorts=WITH_COUNTS, local=ftx.data.LocalWork(batch_size=9))
    round_fn = ftx.make_round(whole, ftx.Execution(num_lanes=num_lanes, mesh=None))
    state = round_fn.init()
    want = by_hand(state.device.server.params, 1.0)
    state, _ = round_fn(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.device.server.params, want)


@pytest.mark.slow
def test_a_sweep_over_tau_holds_the_plain_run_and_the_single_one():
    execution = ftx.Execution(num_lanes=2, mesh=None)
    table = ftx.sweep(experiment(), 2, {"tau": [0.0, 1.0]}, settings_at_once=2, execution=execution, progress=False)
    _, plain = problems.play(experiment(make_plain, cohorts=ftx.data.all_clients()), 2)
    _, alone = problems.play(experiment(), 2)
    for number, infos in enumerate((plain, alone)):
        np.testing.assert_allclose(table.history[number][-1]["train/loss"], infos[-1].metrics["loss"], rtol=1e-5)
    assert abs(plain[-1].metrics["loss"] - alone[-1].metrics["loss"]) > 1e-3


def test_cohorts_without_counts_are_refused_by_name():
    with pytest.raises(ValueError, match=r"cohorts to bring 'class_counts' .*with_covariates\(cohorts, class_counts=\.\.\.\)"):
        problems.play(experiment(cohorts=ftx.data.all_clients()), 1)


def test_counts_of_another_number_of_classes_are_refused():
    cohorts = ftx.data.with_covariates(ftx.data.all_clients(), class_counts=OWN[:, :2])
    with pytest.raises(ValueError, match=r"class_counts of shape \[batch, class\] = \(4, 3\), as the logits, got \(4, 2\)"):
        problems.play(experiment(cohorts=cohorts), 1)


def test_a_covariate_named_as_a_column_is_refused():
    cohorts = ftx.data.with_covariates(ftx.data.all_clients(), row=np.arange(6))
    with pytest.raises(ValueError, match=r"covariates to be named otherwise than the data's columns .*, got 'row'"):
        problems.play(experiment(make_plain, cohorts=cohorts), 1)


@pytest.mark.parametrize(
    "change", [lambda task: class_weighted(task, np.ones(8), labels="tokens"), lambda task: focal(task, 1.0, labels="tokens")]
)
def test_a_class_at_every_place_is_refused(change):
    model = ftx.Model(lambda key: (), lambda params, tokens, *, key=None: jnp.zeros((*tokens.shape, 8)))
    with pytest.raises(ValueError, match=r"the model's logits of shape \[batch, class\], got \(2, 4, 8\)"):
        change(ftx.tasks.next_token(model)).apply((), (), {"tokens": jnp.zeros((2, 5), jnp.int32)}, KEY)


@pytest.mark.parametrize("make", [lambda: class_weighted(PLAIN, [1.0, 2.0]), lambda: logit_adjusted(PLAIN, [1.0, 2.0])])
def test_another_number_of_classes_is_named(make):
    with pytest.raises(ValueError, match="to have 3 entries, one for each class of the logits, got '2 entries'"):
        losses(make())
