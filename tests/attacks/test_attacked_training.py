"""Training with three attackers among ten clients, from lanes to evaluation: FedAvg's mean fails where robust rules learn."""

import numpy as np
import optax
import problems
import pytest
import quadratics

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg
from fedjax_tx import attacks

ATTACKERS = [0, 4, 7]
ROUNDS = 15


def clouds(own_examples: int) -> ftx.data.FederatedDataset:
    """Ten clients of 30 examples of three clouds, by class; attackers have ``own_examples`` instead."""
    generator = np.random.default_rng(0)
    sizes = np.full(10, 30)
    sizes[ATTACKERS] = own_examples
    y = generator.integers(0, 3, sizes.sum()).astype(np.int32)
    centers = np.array([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])
    x = (centers[y] + 0.7 * generator.standard_normal((y.size, 2))).astype(np.float32)
    return ftx.data.FederatedDataset.from_offsets({"x": x, "y": y}, np.append(0, np.cumsum(sizes)))


def experiment(make_algorithm, own_examples: int = 30, hyper=None) -> ftx.Experiment:
    return problems.experiment(
        make_algorithm, hyper=hyper or {}, train=clouds(own_examples), local=ftx.data.LocalWork(batch_size=10)
    )


def scores(params) -> tuple[float, float]:
    """The mean loss, and the share of right answers."""
    test = clouds(30).columns
    logits = test["x"] @ np.asarray(params["w"], np.float64) + np.asarray(params["b"])
    chosen = logits[np.arange(len(logits)), test["y"]]
    most = logits.max(1)
    losses = most + np.log(np.exp(logits - most[:, None]).sum(1)) - chosen
    return losses.mean(), (chosen == most).mean()


def trained(attack, rule, own_examples: int = 30) -> tuple[float, float]:
    def make(hyper):
        return attack(ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.3), aggregator=rule))

    state, _ = problems.play(experiment(make, own_examples), ROUNDS, num_lanes=4, rounds_per_call=ROUNDS)
    return scores(state.device.server.params)


ATTACKS = {
    "sign_flip": (lambda algorithm: attacks.sign_flip(algorithm, ATTACKERS, scale=10.0), 30),
    "gaussian": (lambda algorithm: attacks.gaussian(algorithm, ATTACKERS, 50.0), 30),
    "inner_product": (lambda algorithm: attacks.inner_product(algorithm, ATTACKERS, 10.0), 30),
    # In a mean by examples three attackers are the majority; in one by clients they are not.
    "label_flip": (lambda algorithm: attacks.label_flip(algorithm, ATTACKERS, num_classes=3), 120),
}
RULES = {
    "median": agg.median(),
    "trimmed_mean": agg.trimmed_mean(0.3),
    "krum": agg.krum(3),
    "multi_krum": agg.multi_krum(3, 5),
    "geometric_median": agg.geometric_median(),
    "centered_clip": agg.centered_clip(0.5),
    "mixing": agg.chain(agg.nearest_neighbor_mixing(3), agg.trimmed_mean(0.3)),
    "zero_norm": agg.chain(agg.zero_norm(1.5), agg.mean()),
}
PAIRS = [("sign_flip", rule) for rule in RULES] + [(attack, "median") for attack in ATTACKS if attack != "sign_flip"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_the_mean_fails_under_an_attack_and_learns_without(name):
    attack, own_examples = ATTACKS[name]
    loss, _ = trained(attack, agg.mean(), own_examples)
    assert loss > np.log(3)  # that of a guess
    loss, right = trained(lambda honest: honest, agg.mean(), own_examples)
    assert loss < 0.3 and right > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "rule"), PAIRS)
def test_a_robust_rule_learns_under_an_attack(attack, rule):
    change, own_examples = ATTACKS[attack]
    loss, right = trained(change, RULES[rule], own_examples)
    assert loss < 0.5 and right > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        lambda one, scale: attacks.alie(one, ATTACKERS, deviations=scale),
        lambda one, scale: attacks.sign_flip(one, ATTACKERS, scale=scale),
    ],
)
def test_attacked_settings_side_by_side_are_what_they_are_alone(attack):
    def make(hyper):
        algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.3), aggregator=agg.trimmed_mean(hyper["fraction"]))
        return attack(algorithm, hyper["scale"])

    own = experiment(make, hyper={"scale": 1.0, "fraction": 0.1})
    table = ftx.sweep(own, rounds=3, grid={"scale": [0.5, 3.0], "fraction": [0.1, 0.3]})
    for cell, history in zip(table.settings, table.history, strict=True):
        _, infos = problems.play(experiment(make, hyper=cell), 3)
        alone = [info.metrics["loss"] for info in infos]
        np.testing.assert_allclose([line["train/loss"] for line in history], alone, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [agg.median(), agg.trimmed_mean(0.48)], ids=["median", "trimmed_mean"])
def test_a_little_is_enough_to_move_a_rule_farther_than_a_crude_attack_does(rule):
    # Each client's own optimum is drawn from a standard normal; how far from the honest ones' mean training ends, in deviations.
    centres = np.random.default_rng(0).standard_normal((50, 40))
    attackers, honest = range(24), centres[24:]
    train = quadratics.quadratic_clients(np.ones(50), centres)
    task = quadratics.task(start=np.zeros(40))

    def shift(attack):
        def make(hyper):
            return attack(ftx.algorithms.fed_avg(task, optax.sgd(0.3), aggregator=rule))

        state, _ = quadratics.play(make, 60, steps=1, train=train)
        return (np.asarray(state.device.server.params["x"]) - honest.mean(0)) / honest.std(0)

    deviations = 1.426  # Phi^-1(24 / 26): two honest clients in 26 are as far off
    moved = shift(lambda one: attacks.alie(one, attackers))
    assert moved.mean() > 0.8 * deviations and moved.min() > 0.5
    crude = shift(lambda one: attacks.sign_flip(one, attackers, scale=10.0))
    assert np.linalg.norm(crude) < 0.7 * np.linalg.norm(moved) and abs(crude.mean()) < 0.3  # and to no side
    # No rule of quantiles follows attackers beyond the honest.
    farthest = (honest.max(0) - honest.mean(0)) / honest.std(0)
    assert (shift(lambda one: attacks.alie(one, attackers, deviations=100.0)) <= farthest).all()
