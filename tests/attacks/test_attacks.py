"""What attackers send, by hand: of five clients with given updates, and the aggregate that comes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from scipy import stats

import fedjax_tx as ftx
from fedjax_tx import aggregation as agg
from fedjax_tx import attacks
from fedjax_tx.aggregation.at_server import aggregate_rows

UPDATES = np.float32([[1.0, 4.0], [2.0, 5.0], [6.0, 0.0], [3.0, 9.0], [0.0, 0.0]])
WEIGHTS = [1.0, 2.0, 1.0, 1.0, 0.0]
ATTACKERS = [1, 4]


def fixed(aggregator) -> ftx.FederatedAlgorithm:
    """Client i sends row i of ``UPDATES`` and a count of 7."""

    def finish(broadcast, info, local):
        update = {"delta": jnp.asarray(UPDATES)[info.id], "count": jnp.int32(7)}
        return ftx.ClientResult(update, jnp.asarray(WEIGHTS)[info.id], (), {})

    trainer = ftx.ClientTrainer(lambda broadcast, key: (), None, None, finish)
    return problems.one_pass(trainer, aggregator)


def client(number: int) -> ftx.ClientInfo:
    return ftx.ClientInfo(jnp.int32(number), 0, 0, 0, 0, {}, jax.random.key(number), None)


def aggregated(algorithm):
    """What a round does after training: the clients' messages, and their aggregate."""
    (a_pass,) = algorithm.passes
    results = [a_pass.trainer.finish(None, client(number), None) for number in range(len(UPDATES))]
    updates = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[result.update for result in results])
    weights, count = jnp.stack([result.weight for result in results]), jnp.int32(len(results))
    rows, totals = ftx.Rows(updates, weights, weights > 0), ftx.Totals(jnp.float32(0), count, count, count)
    a_pass.aggregator.init_client(results[0].update)
    state = a_pass.aggregator.init(results[0].update)
    aggregate, _, info = aggregate_rows(a_pass.aggregator, rows, totals, state, jax.random.key(0))
    return updates, aggregate, info


def keep_rows() -> ftx.Aggregator:
    """An aggregator that tells the rows that reach it."""
    return agg.median()._replace(decode=lambda rows, totals, state, key: (rows.summands, state, {"totals": totals}))


def test_signs_are_flipped_for_attackers_only_and_counts_stay():
    updates, _, _ = aggregated(attacks.sign_flip(fixed(agg.total()), ATTACKERS, scale=3.0))
    np.testing.assert_array_equal(updates["delta"], UPDATES * np.float32([[1], [-3], [1], [1], [-3]]))
    np.testing.assert_array_equal(updates["count"], [7] * 5)


def test_gaussian_attackers_send_noise_of_their_own_that_does_not_know_their_update():
    updates, _, _ = aggregated(attacks.gaussian(fixed(agg.total()), [1, 4], 100.0))
    np.testing.assert_array_equal(updates["delta"][np.array([0, 2, 3])], UPDATES[[0, 2, 3]])
    first, other = np.asarray(updates["delta"][1]), np.asarray(updates["delta"][4])
    assert not np.allclose(first, other) and 1 < np.abs([first, other]).max() < 500
    wide = problems.one_pass(
        fixed(agg.total())
        .passes[0]
        .trainer._replace(
            finish=lambda broadcast, info, local: ftx.ClientResult({"delta": jnp.zeros(20_000)}, jnp.float32(1), (), {})
        )
    )
    noise = attacks.gaussian(wide, [1], 0.5).passes[0].trainer.finish(None, client(1), None).update["delta"]
    # By a chi-square test at 1e-6.
    assert abs(np.square(noise / 0.5).sum() - 20_000) < 4.9 * np.sqrt(40_000)


def test_inner_product_attackers_send_the_honest_mean_turned_around():
    # The honest are clients 0, 2 and 3: their mean is (10/3, 13/3). Client 4 takes no part.
    _, rows, info = aggregated(attacks.inner_product(fixed(keep_rows()), ATTACKERS, 0.6))
    np.testing.assert_allclose(rows["delta"][1], [-2.0, -2.6], rtol=1e-6)
    np.testing.assert_array_equal(rows["delta"][np.array([0, 2, 3])], UPDATES[[0, 2, 3]])
    assert [int(number) for number in info["totals"]] == [5, 4, 5, 5]
    # In a mean by weight: (3 * honest mean - 2 * 0.6 * honest mean) / 5.
    _, aggregate, _ = aggregated(attacks.inner_product(fixed(agg.mean()), ATTACKERS, 0.6))
    np.testing.assert_allclose(aggregate["delta"], 1.8 / 5 * np.array([10 / 3, 13 / 3]), rtol=1e-6)


def test_a_little_is_some_deviations_off_the_honest_mean():
    honest = UPDATES[[0, 2, 3]]
    _, rows, _ = aggregated(attacks.alie(fixed(keep_rows()), ATTACKERS, deviations=1.5))
    np.testing.assert_allclose(rows["delta"][1], honest.mean(0) - 1.5 * honest.std(0), rtol=1e-5)


@pytest.mark.parametrize(("clients", "attackers"), [(50, 24), (50, 12), (20, 9), (9, 5), (4, 1)])
def test_how_little_is_enough_by_the_formula(clients, attackers):
    supporters = clients // 2 + 1 - attackers
    honest = clients - attackers
    share = min((honest - supporters) / honest, 0.999)
    have = attacks.together._paper_deviations(jnp.int32(honest), jnp.int32(attackers))
    np.testing.assert_allclose(have, max(stats.norm.ppf(share), 0), rtol=1e-4, atol=1e-6)


def test_the_deviations_of_the_paper_s_table():
    # Its example: 24 corrupted workers of 50 need two supporters, so 92.3 % of the honest may be nearer: z = 1.43.
    np.testing.assert_allclose(attacks.together._paper_deviations(jnp.int32(26), jnp.int32(24)), 1.43, atol=0.005)


def test_attackers_among_whom_nobody_is_honest_send_their_own():
    _, rows, _ = aggregated(attacks.inner_product(fixed(keep_rows()), range(5), 0.6))
    np.testing.assert_array_equal(rows["delta"], UPDATES)


def test_what_a_chain_does_to_updates_it_does_to_those_of_colluding_attackers():
    # All are clipped to norm 1 where the attackers' update would be long.
    clipped = agg.chain(agg.clip_norm(1.0), agg.mean(weighted=False))
    algorithm = fixed(agg.parts(delta=clipped, count=agg.total()))
    _, aggregate, _ = aggregated(attacks.inner_product(algorithm, ATTACKERS, 1000.0))
    sent = np.stack([UPDATES[0], UPDATES[2], UPDATES[3], -UPDATES[[0, 2, 3]].mean(0)])
    want = (sent / np.linalg.norm(sent, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(aggregate["delta"], want, rtol=1e-5)
    assert int(aggregate["count"]) == 4 * 7


def test_memory_of_clients_behind_a_collusion_is_refused_by_name():
    algorithm = attacks.alie(fixed(agg.chain(agg.top_k(0.5), agg.mean())), ATTACKERS)
    with pytest.raises(ValueError, match=r"behind alie, .* to remember nothing of a client, got chain\(top_k\(0.5\), mean\(\)\)"):
        aggregated(algorithm)


def test_labels_are_flipped_for_attackers_only_and_those_outside_stay():
    def step(broadcast, info, local, batch, mask, key):
        return batch["y"]

    trainer = ftx.ClientTrainer(None, None, step, None)
    flipping = attacks.label_flip(problems.one_pass(trainer), ATTACKERS, num_classes=3).passes[0].trainer
    batch = {"x": jnp.zeros((5, 2)), "y": jnp.array([0, 1, 2, -1, 3])}
    assert flipping.step(None, client(1), None, batch, None, None).tolist() == [2, 1, 0, -1, 3]
    assert flipping.step(None, client(0), None, batch, None, None).tolist() == [0, 1, 2, -1, 3]
    with pytest.raises(ValueError, match=r"labels to be a column of \['x'\], got 'y'"):
        flipping.step(None, client(1), None, {"x": batch["x"]}, None, None)
    with pytest.raises(TypeError, match=r"column 'y' to be integers"):
        flipping.step(None, client(1), None, {"y": jnp.zeros(5)}, None, None)


def test_nobody_may_attack():
    honest = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1))
    info = client(0)
    for attacked in (attacks.sign_flip(fixed(agg.total()), []), attacks.gaussian(fixed(agg.total()), [], 1.0)):
        update = attacked.passes[0].trainer.finish(None, info, None).update
        np.testing.assert_array_equal(update["delta"], UPDATES[0])
    assert attacks.sign_flip(honest, []).evaluation is honest.evaluation
