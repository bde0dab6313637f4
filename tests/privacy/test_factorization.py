"""Factorisations of the running sum: C and its inverse, what one client changes, noise that is taken back, and accounting."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_privacy.matrix_factorization import sensitivity as reference
from jax_privacy.matrix_factorization import toeplitz

from fedjax_tx import aggregation as agg
from fedjax_tx import data, privacy
from fedjax_tx.types import Participation

ROUNDS = 12
DECAY, SCALE = [0.75, 0.25], [0.25, 0.25]
BANDS = [0.8, 0.4, 0.2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Coefficients as an optimiser would leave them, so that none has to run."""
    directory = tmp_path_factory.mktemp("factorizations")
    (directory / f"blt-{ROUNDS}-3-2-2.0.0.json").write_text(json.dumps({"decay": DECAY, "scale": SCALE}))
    (directory / f"banded-{ROUNDS}-3-2.0.0.json").write_text(json.dumps({"coefficients": BANDS}))
    return directory


@pytest.fixture(scope="module")
def families(cache):
    return {
        "blt": privacy.blt_factorization(ROUNDS, 3, 2, cache_dir=cache),
        "banded": privacy.banded_factorization(ROUNDS, 3, 2, cache_dir=cache),
        "tree": privacy.tree_factorization(ROUNDS, 3, 2),
    }


def matrices(rounds=ROUNDS):
    """C of each family, written down; the tree's row t sums what the node does that round t completes and a running sum uses."""
    blt = [1.0] + [sum(w * d**lag for w, d in zip(SCALE, DECAY, strict=True)) for lag in range(rounds - 1)]
    banded = BANDS + [0.0] * (rounds - 3)

    def node(end):
        return [float(end - (end & -end) <= one < end) for one in range(rounds)]

    def lower(column):
        return np.array([[column[t - i] if t >= i else 0.0 for i in range(rounds)] for t in range(rounds)])

    return {"blt": lower(blt), "banded": lower(banded), "tree": np.array([node(end) for end in range(1, rounds + 1)])}


def changed_at_most(matrix, min_separation, most):
    """The norm of what a client changes of C x by updates of norm 1, over all that it may do; entries of C are >= 0."""
    rounds, largest = len(matrix), 0.0
    for times in range(1, most + 1):
        for chosen in itertools.combinations(range(rounds), times):
            if all(later - one >= min_separation for one, later in itertools.pairwise(chosen)):
                largest = max(largest, np.linalg.norm(matrix[:, list(chosen)].sum(1)))
    return largest


NAMES = ("blt", "banded", "tree")


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_the_inverse_matrix(families, name):
    one = families[name]
    noise = np.random.default_rng(0).standard_normal((ROUNDS, 2)).astype(np.float32)
    _, rows = jax.lax.scan(lambda state, z: one.correlate({"w": z}, state)[::-1], one.init({"w": jnp.zeros(2)}), noise)
    np.testing.assert_allclose(matrices()[name] @ np.asarray(rows["w"]), noise, atol=2e-6)


def test_the_sum_of_the_trees_rows_is_the_noise_of_the_nodes_in_use(families):
    """After round 6 = 4 + 2 the nodes of the first four and of the next two rounds, made in rounds 4 and 6."""
    one = families["tree"]
    state, total = one.init(jnp.zeros(())), 0.0
    for number in range(1, 7):
        row, state = one.correlate(jnp.float32(10.0**number), state)
        total += float(row)
    assert total == 10.0**4 + 10.0**6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("participation", [(1, 1), (3, 2), (3, None), (2, 3)])
@pytest.mark.parametrize("rounds", [1, 5, ROUNDS])
def test_no_client_changes_more_than_is_said(families, name, participation, rounds):
    said = families[name].sensitivity(rounds, Participation(*participation))
    most = participation[1] or rounds
    true = changed_at_most(matrices()[name][:rounds, :rounds], participation[0], min(most, -(-rounds // participation[0])))
    if name == "tree" and participation != (1, 1):  # a bound, level by level
        assert true * 0.999999 <= said <= 1.5 * true
    else:
        assert said == pytest.approx(true, rel=1e-6)


@pytest.mark.slow
def test_sensitivities_are_those_of_jax_privacy(families):
    for name in ("blt", "banded"):
        column, one = matrices()[name][:, 0], families[name]
        theirs = math.sqrt(toeplitz.minsep_sensitivity_squared(jnp.asarray(column), 3, 2))
        assert one.sensitivity(ROUNDS, one.participation) == pytest.approx(theirs, rel=1e-6)
    bound = reference.get_min_sep_sensitivity_upper_bound(jnp.asarray(matrices()["tree"]), 3, 2)
    assert families["tree"].sensitivity(ROUNDS, Participation(3, 2)) <= 1.3 * bound


def test_what_was_found_once_is_not_looked_for_again(tmp_path, monkeypatch):
    asked = []

    def optimize(rounds, bands):
        asked.append((rounds, bands))
        return jnp.array([0.9, 0.3, 0.1])

    monkeypatch.setattr(toeplitz, "optimize_banded_toeplitz", optimize)
    first = privacy.banded_factorization(8, 3, cache_dir=tmp_path / "new")
    again = privacy.banded_factorization(8, 4, 1, bands=3, cache_dir=tmp_path / "new")
    assert asked == [(8, 3)]
    once = Participation(3, 1)
    assert first.sensitivity(8, once) == again.sensitivity(8, once) == pytest.approx(math.sqrt(0.91), rel=1e-6)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["banded-8-3-2.0.0.json"]


def test_coefficients_that_the_sensitivity_does_not_hold_for_are_refused(tmp_path):
    (tmp_path / "banded-4-2-2.0.0.json").write_text('{"coefficients": [0.4, 0.9]}')
    with pytest.raises(ValueError, match="the coefficients of banded_factorization to be >= 0 and not to grow"):
        privacy.banded_factorization(4, 2, cache_dir=tmp_path)


# ---- accounting


def test_dp_ftrl_of_its_paper_by_the_accountant_of_today():
    """Stack Overflow of arXiv 2103.00039: 1,600 rounds, 1.13 times the clipping norm a node, published as 19.74."""
    tree = privacy.tree_factorization(1600, max_participations=1)
    noise = 1.13 / tree.sensitivity(1600, tree.participation)
    assert privacy.epsilon_of_correlated_noise(noise, tree, 1600, 1e-6, "rdp") == pytest.approx(18.71, abs=0.005)


def test_a_run_is_one_gaussian_mechanism_and_part_of_it_costs_less(families):
    one, delta = families["banded"], 1e-5
    whole = privacy.epsilon(2.0, 1.0, 1, delta, "rdp")
    costs = [privacy.epsilon_of_correlated_noise(2.0, one, rounds, delta, "rdp") for rounds in range(ROUNDS + 1)]
    assert costs[0] == 0 and costs == sorted(costs) and costs[-1] == whole
    assert costs[1] == privacy.epsilon(2.0 * math.sqrt(2 * 0.84) / 0.8, 1.0, 1, delta, "rdp")
    assert privacy.epsilon_of_correlated_noise(0.0, one, 3, delta) == math.inf
    with pytest.raises(
        ValueError, match=r"expected rounds <= 12, those that banded_factorization\(12, 3, 2\) is made for, got 13"
    ):
        privacy.epsilon_of_correlated_noise(2.0, one, 13, delta)


def private(factorization, noise=2.0):
    return agg.chain(agg.clip_norm(1.0), agg.fixed_mean(2), agg.correlated_noise(noise, factorization))


def test_how_often_a_client_comes_is_read_off_the_cohorts(families):
    one, budget = families["blt"], privacy.Budget(delta=1e-5, accountant="rdp")
    seen = {}
    for b, k in ((3, 2), (6, 2), (1, None)):
        cohorts = data.with_dropout(data.separated_cohorts(2, b, k), 0.5)  # who drops out comes no oftener for that
        seen[b] = privacy.spending(budget, [private(one)], cohorts, num_clients=20)(ROUNDS)
        assert seen[b] == privacy.epsilon_of_correlated_noise(2.0, one, ROUNDS, 1e-5, "rdp", participation=Participation(b, k))
    assert seen[6] < seen[3] < seen[1]
    assert seen[3] == privacy.epsilon(2.0, 1.0, 1, 1e-5, "rdp")
    for cohorts in (data.uniform_cohorts(2), data.poisson_cohorts(0.5), data.all_clients()):
        with pytest.raises(ValueError, match=r"by blt_factorization\(12, 3, 2\) to bound how often a client takes part"):
            privacy.spending(budget, [private(one)], cohorts, num_clients=20)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blt", "banded"])
def test_optimised_factorisations_beat_the_tree_and_independent_noise(kind, tmp_path):
    """Root mean square of the running sums' noise, times the sensitivity: 40 rounds, a client in every tenth, four times."""
    rounds, pattern = 40, (10, 4)
    make = {"blt": privacy.blt_factorization, "banded": privacy.banded_factorization}[kind]

    def error(one):
        def step(carry, unit):
            row, state = one.correlate(unit, carry[0])
            return (state, carry[1] + row), carry[1] + row

        _, sums = jax.lax.scan(step, (one.init(jnp.zeros(rounds)), jnp.zeros(rounds)), jnp.eye(rounds))
        return one.sensitivity(rounds, one.participation) * float(jnp.sqrt(jnp.square(sums).sum(1).mean()))

    found = error(make(rounds, *pattern, cache_dir=tmp_path))
    independent = math.sqrt(4 * (rounds + 1) / 2)
    assert error(privacy.banded_factorization(rounds, *pattern, bands=1)) == pytest.approx(independent)
    assert found < 0.6 * independent
    assert found < 0.8 * error(privacy.tree_factorization(rounds, *pattern))
