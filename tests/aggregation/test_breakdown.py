"""How far bad clients can move each rule: f of them no further than its theorem says; one more, or some more, as they like.

Attackers know all honest updates. They try what is far, what is near, what lies together and what does not.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx import aggregation as agg

FAR = 1e6
HONEST = np.random.default_rng(7).standard_normal((9, 4)).astype(np.float32)
LOW, HIGH = HONEST.min(0), HONEST.max(0)
DIAMETER = np.sqrt(np.square(HONEST[:, None] - HONEST[None]).sum(-1).max())


def attacks(number: int, honest=HONEST) -> list[np.ndarray]:
    """What so many attackers send together: [attacker, coordinate] each."""
    mean, spread = honest.mean(0), honest.std(0)
    scattered = np.random.default_rng(number).standard_normal((number, 4))
    alike = [FAR, -FAR, 30.0, honest.max(0), honest[0], -mean, mean - 1.5 * spread, mean + 4 * spread]
    apart = [FAR * scattered, 3 * scattered, np.resize(honest, (number, 4)) + 0.01]
    return [np.broadcast_to(one, (number, 4)) for one in alike] + apart


def results(rule, number: int, honest=HONEST) -> np.ndarray:
    """[attack, coordinate]: what the rule makes of the honest updates and each of the attacks."""
    rows = np.stack([np.concatenate([honest, attack]) for attack in attacks(number, honest)]).astype(np.float32)

    def aggregate(one):
        return agg.apply.aggregate_arrays(rule, {"w": one}, jnp.ones(len(one)), None, jax.random.key(0))[0]["w"]

    return np.asarray(jax.jit(jax.vmap(aggregate))(rows))


# Of 9 honest clients and f attackers: the rules that stay within the honest range whatever f attackers do, and not with f + 1.
WITHIN = {
    "median": (agg.median(), 8),
    "trimmed_mean": (agg.trimmed_mean(0.19), 2),
    "mean": (agg.mean(), 0),
}


@pytest.mark.parametrize("name", WITHIN)
def test_f_attackers_move_no_coordinate_out_of_the_honest_range_and_one_more_does(name):
    rule, most = WITHIN[name]
    moved = results(rule, most)
    slack = 1e-5
    assert (moved >= LOW - slack).all() and (moved <= HIGH + slack).all()
    assert np.abs(results(rule, most + 1)).max() > FAR / 100


def distance_to_honest(moved: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(moved[:, None] - HONEST[None]).sum(-1).min(1))


def test_krum_takes_an_update_near_an_honest_one_until_attackers_are_each_others_neighbours():
    # n = 9 + 3 >= 2 * 3 + 3: the score of what is taken is no more than an honest one's, n - f - 2 squared diameters, and there
    # is an honest one among its neighbours.
    bound = np.sqrt(12 - 3 - 2) * DIAMETER
    assert (distance_to_honest(results(agg.krum(3), 3)) <= bound).all()
    # n - f - 1 attackers in one place are enough neighbours for each other.
    assert distance_to_honest(results(agg.krum(3), 14 - 3 - 1, HONEST[:4])).max() > FAR / 2


@pytest.mark.slow
def test_multi_krum_averages_updates_that_are_each_near_an_honest_one():
    bound = np.sqrt(12 - 3 - 2) * DIAMETER
    assert (distance_to_honest(results(agg.multi_krum(3, 9), 3)) <= DIAMETER + bound).all()
    # With four attackers, and f = 3, one of the nine that are taken may be bad.
    assert distance_to_honest(results(agg.multi_krum(3, 10), 4)).max() > FAR / 100


@pytest.mark.slow
def test_the_geometric_median_stays_within_its_bound_until_half_attack():
    # Around the honest mean: 2 (n - f) / (n - 2 f) times the distance of the furthest honest client.
    radius = np.linalg.norm(HONEST - HONEST.mean(0), axis=1).max()
    moved = results(agg.geometric_median(num_iterations=50), 7)
    assert np.linalg.norm(moved - HONEST.mean(0), axis=1).max() <= 2 * 9 / (16 - 14) * radius
    assert np.abs(results(agg.geometric_median(num_iterations=50), 10)).max() > FAR / 100


def test_what_attackers_hold_of_a_clipped_mean_is_their_share_of_the_norm():
    # Two sets of messages of 2 of 11 clients: at most 2 * 2 / 11 norms apart; the far ones are that far apart, in opposite ways.
    apart = 2 * 2 / 11 * 0.5
    for rule in (agg.centered_clip(0.5), agg.chain(agg.clip_norm(0.5), agg.mean())):
        moved = results(rule, 2)
        assert np.linalg.norm(moved[:, None] - moved[None], axis=-1).max() <= apart + 1e-5
        np.testing.assert_allclose(np.linalg.norm(moved[0] - moved[1]), apart, rtol=1e-4)
    assert np.linalg.norm(results(agg.centered_clip(0.5, num_iterations=3), 2), axis=1).max() <= 3 * 0.5
    zeroed = results(agg.chain(agg.zero_norm(5.0), agg.mean()), 2)
    honest = np.where(np.linalg.norm(HONEST, axis=1, keepdims=True) <= 5, HONEST, 0).sum(0) / 11
    assert np.linalg.norm(zeroed - honest, axis=1).max() <= 2 * 5 / 11
    np.testing.assert_allclose(zeroed[0], honest, rtol=1e-5)


@pytest.mark.slow
def test_behind_mixing_the_median_stays_near_the_honest_range_and_one_more_attacker_gets_into_every_mixture():
    # Whom an honest client is mixed with is no further away than the honest ones, of whom there are n - f = 9.
    mixed = agg.chain(agg.nearest_neighbor_mixing(3), agg.median())
    moved = results(mixed, 3)
    assert (moved >= LOW - DIAMETER).all() and (moved <= HIGH + DIAMETER).all()
    assert np.abs(results(mixed, 4)).max() > FAR / 100


@pytest.mark.slow
def test_bulyan_stays_within_the_honest_range_widened_by_itself_until_attackers_are_many():
    moved = results(agg.bulyan(2), 2)  # n = 11 = 4 f + 3
    assert (moved >= LOW - (HIGH - LOW)).all() and (moved <= HIGH + (HIGH - LOW)).all()
    assert np.abs(results(agg.bulyan(2), 7, HONEST[:4])).max() > FAR / 100
