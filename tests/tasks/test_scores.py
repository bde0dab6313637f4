"""Recall by class and calibration by confidence: by hand, and pooled over clients as NumPy does over all examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx.clients import add_metrics, batch_metrics, masked_mean, no_metrics
from fedjax_tx.tasks.scores import AUROC, F1, CalibrationError, Recall, auroc, calibration_error, f1, recall

MODEL = ftx.Model(problems.init_logistic, lambda p, x, *, key=None: x @ p["w"] + p["b"])
SCORED = ftx.tasks.classification(MODEL, num_classes=3, num_bins=5)
PARAMS = {"w": jnp.array([[2.0, 0.0, -1.0], [0.5, -3.0, 0.0]]), "b": jnp.array([0.0, 0.1, 0.2])}


def logits_of(probabilities):
    return jnp.log(jnp.array(probabilities, jnp.float32))


def by_numpy(params, columns, num_bins=5):
    """(recall of each class, their mean, expected calibration error) of examples taken together."""
    logits = np.asarray(columns["x"] @ np.asarray(params["w"]) + np.asarray(params["b"]), np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    confidence, guess, labels = (odds / odds.sum(-1, keepdims=True)).max(-1), logits.argmax(-1), columns["y"]
    recalls = np.array([np.mean(guess[labels == c] == c) if (labels == c).any() else np.nan for c in range(3)])
    error = 0.0
    for low in np.arange(num_bins) / num_bins:
        chosen = (confidence > low) & (confidence <= low + 1 / num_bins)
        if chosen.any():
            error += chosen.mean() * abs(np.mean(guess[chosen] == labels[chosen]) - confidence[chosen].mean())
    return recalls, np.nanmean(recalls), error


def test_recall_by_hand():
    logits = logits_of([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    pair = recall(logits, jnp.array([0, 1, 1, 1]))
    means = Recall(*masked_mean(*pair, jnp.ones(4, bool)))
    np.testing.assert_allclose(means.value, [1.0, 1 / 3, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(means.weight, [1.0, 3.0, 0.0])
    np.testing.assert_allclose(means.overall(), (1 + 1 / 3) / 2, rtol=1e-6)


def test_calibration_error_by_hand():
    # Bins (0.5, 0.75] and (0.75, 1]: 0.6 right, 0.7 wrong; 0.9 right, 0.8 right. A bin holds its upper end.
    logits = logits_of([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [0.2, 0.8]])
    means = CalibrationError(*masked_mean(*calibration_error(logits, jnp.array([0, 1, 1, 1]), 4), jnp.ones(4, bool)))
    np.testing.assert_allclose(means.value, [0, 0, 0.5 - 0.65, 1 - 0.85], atol=1e-6)
    np.testing.assert_array_equal(means.weight, [0, 0, 2, 2])
    np.testing.assert_allclose(means.overall(), (2 * 0.15 + 2 * 0.15) / 4, rtol=1e-5)
    assert int(calibration_error(jnp.zeros((1, 2)), jnp.array([0]), 4).weight[0].argmax()) == 1


def test_f1_by_hand():
    logits = logits_of([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    means = F1(*masked_mean(*f1(logits, jnp.array([0, 1, 1, 1])), jnp.ones(4, bool)))
    # Class 0: precision 1/2, recall 1. Class 1: precision 1, recall 1/3. Class 2: guessed once, wrongly.
    np.testing.assert_allclose(means.value, [2 / 3, 1 / 2, 0.0], rtol=1e-6)
    np.testing.assert_allclose(means.overall(), (2 / 3 + 1 / 2) / 3, rtol=1e-6)
    assert set(means.parts()) == {"class_0", "class_1", "class_2"}


def area(scores, labels):
    """The share of pairs of one of class 1 and one of class 0 that are in the right order, ties half."""
    above = scores[labels == 1][:, None] - scores[labels == 0]
    return np.mean((above > 0) + 0.5 * (above == 0))


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (-8.0, 2.0), (3.0, 30.0)])
def test_the_area_under_the_curve_is_that_of_the_scores_themselves(shift, scale):
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.2).astype(np.int32)
    scores = (shift + scale * (rng.normal(size=2000) + 1.2 * labels)).astype(np.float32)
    pair = auroc(jnp.stack([jnp.zeros(2000), jnp.asarray(scores)], 1), jnp.asarray(labels))
    means = AUROC(*masked_mean(*pair, jnp.ones(2000, bool)))
    assert abs(means.overall() - area(scores, labels)) < 2e-3
    assert means.weight.sum() == 2000


def test_the_area_by_hand():
    # The negative of 1 stands above one of the two positives; the last two are tied.
    logits = jnp.array([[0.0, -3.0], [0.0, 1.0], [0.0, 0.5], [0.0, 2.0], [0.0, 2.0]])
    means = AUROC(*masked_mean(*auroc(logits, jnp.array([0, 0, 1, 1, 0])), jnp.ones(5, bool)))
    np.testing.assert_allclose(means.overall(), (1 + 0 + 0 + 1 + 1 + 0.5) / 6, rtol=1e-6)
    certain = auroc(jnp.array([[0.0, jnp.inf], [jnp.inf, 0.0]]), jnp.array([1, 0]))
    assert AUROC(*masked_mean(*certain, jnp.ones(2, bool))).overall() == 1.0
    lost = auroc(jnp.array([[0.0, jnp.nan], [0.0, 1.0]]), jnp.array([1, 0]))
    assert np.isnan(AUROC(*masked_mean(*lost, jnp.ones(2, bool))).overall())


def test_a_client_of_one_class_has_no_area_and_takes_no_part_in_the_spread():
    value, weight = np.array([[0.0, 1.0], [0.0, 0.0], [0.5, 0.0]]), np.array([[1.0, 1.0], [2.0, 0.0], [2.0, 0.0]])
    summary = ftx.summarise("a", {"auroc": AUROC(value, weight)})
    assert summary["a/auroc/client_p10"] == pytest.approx(0.55) and summary["a/auroc/client_p50"] == 0.75
    assert summary["a/auroc"] == pytest.approx((1 * 4 / 2 + 1 * 4) / (2 * 4))  # pooled: 4 of class 0 and one of 1 are tied
    alone = ftx.summarise("a", {"auroc": AUROC(value[1:2], weight[1:2])})
    assert np.isnan(alone["a/auroc"]) and np.isnan(alone["a/auroc/client_p50"])
    lost = ftx.summarise("a", {"auroc": AUROC(np.array([[np.nan, 0.0]]), np.array([[1.0, 0.0]]))})
    assert np.isnan(lost["a/auroc/client_p50"])


def test_perplexity_is_of_the_pooled_loss_and_of_each_clients_own():
    task = ftx.tasks.next_token(
        ftx.Model(lambda key: {}, lambda params, tokens, *, key=None: jnp.zeros((*tokens.shape, 8))), pad_id=0
    )
    told = task.metrics({"logits": jnp.zeros((2, 3, 8))}, {"tokens": jnp.array([[1, 2, 3, 0], [1, 0, 0, 0]])})["perplexity"]
    means = type(told)(*masked_mean(*told, jnp.ones(2, bool)))
    np.testing.assert_allclose(means.overall(), 8.0, rtol=1e-6)
    losses = np.log([[2.0], [8.0], [4.0]])
    summary = ftx.summarise("a", {"perplexity": type(told)(losses, np.array([[1.0], [3.0], [0.0]]))})
    np.testing.assert_allclose(summary["a/perplexity"], (2 * 8**3) ** 0.25, rtol=1e-6)
    np.testing.assert_allclose(summary["a/perplexity/client_worst_decile"], 8.0)
    assert type(told)(np.array([2000.0]), np.ones(1)).overall() == np.inf


def test_confidence_of_one_and_a_single_class_in_doubt_have_bins():
    sure = calibration_error(jnp.array([[100.0, 0.0]]), jnp.array([0]), 15)
    assert int(sure.weight[0].argmax()) == 14
    np.testing.assert_allclose(sure.value[0, 14], 0.0, atol=1e-6)


def test_masked_rows_and_batches_change_nothing():
    data = problems.ragged_clients((12,), seed=4).client(0)
    data = {name: jnp.asarray(column) for name, column in data.items()}
    score = jax.jit(partial(batch_metrics, SCORED))
    whole = score(PARAMS, (), data, jnp.ones(12, bool))
    pieces = no_metrics(whole)
    for rows, real in (([0, 1, 2, 0], 3), ([3, 4, 5, 6], 4), ([7, 8, 7, 7], 2), ([9, 10, 11, 9], 3)):
        batch = {name: column[jnp.array(rows)] for name, column in data.items()}
        pieces = jax.jit(add_metrics)(pieces, score(PARAMS, (), batch, np.arange(4) < real))
    assert {name: type(pair) for name, pair in pieces.items()} == {name: type(pair) for name, pair in whole.items()}
    for name, (value, weight) in whole.items():
        np.testing.assert_allclose(pieces[name][0], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(pieces[name][1], weight)
    np.testing.assert_allclose(pieces["recall"].overall(), by_numpy(PARAMS, data)[1], rtol=1e-5)
    np.testing.assert_allclose(pieces["calibration_error"].overall(), by_numpy(PARAMS, data)[2], rtol=1e-4)


def make_scored(hyper):
    return ftx.algorithms.fed_avg(SCORED, client_optimizer=optax.sgd(hyper["client_lr"]))


@pytest.fixture(scope="module")
def scored():
    """An experiment, its state after a round, and other clients to score, of which two have no example of some class."""
    experiment = problems.experiment(make_scored, hyper={"client_lr": 0.5})
    state, _ = problems.play(experiment, 1)
    return experiment, state, problems.ragged_clients((1, 40, 0, 2, 9), seed=7)


def test_an_evaluation_pools_over_clients_of_any_size(scored):
    experiment, state, data = scored
    metrics = ftx.make_evaluation(experiment, data)(state)
    summary = ftx.summarise("test", metrics)
    recalls, balanced, error = by_numpy(state.device.server.params, data.columns)
    np.testing.assert_allclose([summary[f"test/recall/class_{c}"] for c in range(3)], recalls, rtol=1e-5)
    np.testing.assert_allclose(summary["test/recall"], balanced, rtol=1e-5)
    np.testing.assert_allclose(summary["test/calibration_error"], error, rtol=1e-4)
    each = [by_numpy(state.device.server.params, data.client(i)) for i in (0, 1, 3, 4)]
    for name, place in (("recall", 1), ("calibration_error", 2)):
        want = np.percentile([one[place] for one in each], 50)
        np.testing.assert_allclose(summary[f"test/{name}/client_p50"], want, rtol=1e-4)
    assert error < np.average([one[2] for one in each], weights=[1, 40, 2, 9]) - 1e-3  # pooled: not the clients' mean
    assert {type(value) for value in summary.values()} == {float}


@pytest.mark.slow
def test_a_sweep_says_of_each_setting_what_its_run_says(scored):
    experiment, state, data = scored
    options = {"evaluate": {"test": data}, "progress": False, "settings_at_once": 2}
    execution = ftx.Execution(num_lanes=2, mesh=None)
    table = ftx.sweep(experiment, 1, {"client_lr": [0.1, 0.5]}, execution=execution, **options)
    for name, value in ftx.summarise("test", ftx.make_evaluation(experiment, data)(state)).items():
        np.testing.assert_allclose(table.history[1][-1][name], value, rtol=1e-4, err_msg=name)
    assert table.history[0][-1]["test/calibration_error"] != table.history[1][-1]["test/calibration_error"]


def test_a_set_without_any_example_of_a_class_has_no_recall_of_it():
    summary = ftx.summarise("a", {"recall": Recall(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [2.0, 0.0]]))})
    assert summary["a/recall"] == summary["a/recall/class_0"] == 0.5
    assert np.isnan(summary["a/recall/class_1"])


def test_without_the_number_of_classes_there_is_only_accuracy():
    batch = {"x": jnp.ones((2, 2)), "y": jnp.array([0, 1])}
    assert set(problems.LOGISTIC.metrics({"logits": jnp.zeros((2, 3))}, batch)) == {"accuracy"}


def test_another_number_of_classes_is_named():
    batch = {"x": jnp.ones((2, 2)), "y": jnp.array([0, 1])}
    with pytest.raises(ValueError, match=r"logits of 3 classes, as num_classes says, got \(2, 4\)"):
        SCORED.metrics({"logits": jnp.zeros((2, 4))}, batch)
