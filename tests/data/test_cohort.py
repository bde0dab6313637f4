"""Cohort sources: who is drawn, by law and by hand; what a source may hand over."""

import numpy as np
import pytest

from fedjax_tx import prng
from fedjax_tx.data import all_clients, fixed_cohorts, uniform_cohorts, weighted_cohorts, with_covariates
from fedjax_tx.data.cohort import as_cohort
from fedjax_tx.types import Cohort


def draw(source, num_clients: int, rounds: int, seed: int = 0) -> list[np.ndarray]:
    state, drawn = source.init(num_clients), []
    for number in range(rounds):
        ids, state = source.select(state, prng.host_generator(seed, "cohort", number), None)
        drawn.append(ids)
    return drawn


def test_uniform_cohorts_are_distinct_clients_in_range_of_the_size_asked_for():
    for ids in draw(uniform_cohorts(4), 7, 50):
        assert len(set(ids.tolist())) == 4
        assert 0 <= ids.min() <= ids.max() < 7


def test_uniform_cohorts_draw_every_client_equally_often():
    counts = np.bincount(np.concatenate(draw(uniform_cohorts(2), 5, 2000)), minlength=5)
    # Each count is binomial(2000, 2/5): standard deviation 22.
    np.testing.assert_allclose(counts, 800, atol=5 * 22)


def test_uniform_cohorts_change_with_the_round_and_repeat_with_the_generator():
    first, second = draw(uniform_cohorts(5), 100, 2)
    again, _ = draw(uniform_cohorts(5), 100, 2)
    assert first.tolist() == again.tolist() != second.tolist()


def test_uniform_cohorts_of_everybody_take_everybody():
    assert sorted(draw(uniform_cohorts(3), 3, 1)[0].tolist()) == [0, 1, 2]


def test_uniform_cohorts_larger_than_the_population_are_refused_when_the_run_starts():
    with pytest.raises(ValueError, match=r"expected clients_per_round <= 3, the number of clients, got 4"):
        uniform_cohorts(4).init(3)


def test_all_clients_takes_each_client_once_in_order():
    assert [ids.tolist() for ids in draw(all_clients(), 4, 2)] == [[0, 1, 2, 3]] * 2
    assert all_clients().max_clients(4) == 4


def test_fixed_cohorts_take_their_rows_in_turn_and_start_again():
    source = fixed_cohorts([[2, 0], [1], []])
    assert [ids.tolist() for ids in draw(source, 3, 5)] == [[2, 0], [1], [], [2, 0], [1]]
    assert source.max_clients(3) == 2


def test_fixed_cohorts_take_an_array():
    source = fixed_cohorts(np.array([[0, 1], [2, 3]], np.uint8))
    assert [ids.tolist() for ids in draw(source, 4, 2)] == [[0, 1], [2, 3]]


def test_descriptions_tell_sources_apart():
    sources = [uniform_cohorts(2), uniform_cohorts(3), all_clients(), fixed_cohorts([[0, 1]]), fixed_cohorts([[0], [1]])]
    sources.append(fixed_cohorts([[1, 0]]))
    assert len({source.description for source in sources}) == len(sources)
    assert fixed_cohorts([[0, 1]]).description == fixed_cohorts(np.array([[0, 1]], np.int32)).description


@pytest.mark.parametrize("row", [[0, 3], [-1, 0]])
def test_fixed_cohorts_out_of_range_are_refused_when_the_run_starts_naming_the_round(row):
    with pytest.raises(ValueError, match=r"expected ids\[1\] to hold client indices in 0..2, got \[.*\]"):
        fixed_cohorts([[0], row]).init(3)


def test_fixed_cohorts_without_a_round_are_refused():
    with pytest.raises(ValueError, match="expected ids to have at least one round"):
        fixed_cohorts([])


@pytest.mark.parametrize("bad", [[[0.5]], [["a"]], [[[0]]], [0, 1], [[True]]])
def test_fixed_cohorts_of_anything_but_indices_are_refused_naming_the_round(bad):
    with pytest.raises(TypeError, match=r"expected ids\[0\] to be a list of client indices, got .* \(.*\)"):
        fixed_cohorts(bad)


def test_a_selection_is_filled_in_with_versions_of_zero():
    cohort = as_cohort([2, 1], 3, 2)
    assert cohort.ids.tolist() == [2, 1]
    assert cohort.ids.dtype == np.int64
    assert cohort.version.tolist() == [0, 0]
    assert cohort.covariates == {}


def test_a_cohort_keeps_its_versions_and_covariates():
    cohort = as_cohort(Cohort(np.array([2, 1]), np.array([0, 4]), {"delay": [0.5, 1.5]}), 3, 2)
    assert cohort.version.tolist() == [0, 4]
    assert cohort.covariates["delay"].tolist() == [0.5, 1.5]


def test_an_empty_selection_is_a_cohort():
    assert as_cohort([], 3, 2).ids.shape == (0,)


@pytest.mark.parametrize(
    ("error", "message", "selected"),
    [
        (ValueError, "the cohort's size <= 2", [0, 1, 2]),
        (ValueError, r"the cohort's ids in 0..3, got \[4\]", [4]),
        (ValueError, r"the cohort's ids in 0..3, got \[-1\]", [-1]),
        (TypeError, "the cohort's ids to be a list of client indices", [0.5]),
        (TypeError, "the cohort's ids to be a list of client indices", [[1]]),
        (TypeError, "the cohort's version to be a list", Cohort(np.array([1]), np.array([0.5]))),
        (ValueError, "the cohort's version to have 1 rows", Cohort(np.array([1]), np.array([0, 0]))),
        (ValueError, "the cohort's delay to have 2 rows", Cohort(np.array([1, 2]), None, {"delay": np.zeros(3)})),
    ],
)
def test_what_no_cohort_can_be_is_refused(error, message, selected):
    with pytest.raises(error, match=message):
        as_cohort(selected, 4, 2)


# ---- weighted


def test_weighted_cohorts_draw_the_first_client_in_proportion_to_its_weight():
    weights, draws = np.array([1, 0, 2, 5]), 4000
    source = weighted_cohorts(1, weights)
    counts = np.bincount(np.concatenate(draw(source, 4, draws)), minlength=4)
    spread = 4 * np.sqrt(draws / 4)
    assert counts[1] == 0
    np.testing.assert_allclose(counts, draws * weights / 8, atol=spread)
    assert np.abs(counts - draws / 4).max() > spread  # and uniform draws would show


@pytest.mark.parametrize("exact", [False, True])
def test_weighted_cohorts_are_distinct_clients_of_positive_weight(exact):
    source = weighted_cohorts(3, [0.1, 9.0, 0.0, 3.0, 1.0], exact=exact)
    cohorts = draw(source, 5, 50)
    assert all(len(set(ids.tolist())) == 3 and 2 not in ids for ids in cohorts)
    assert len({tuple(sorted(ids.tolist())) for ids in cohorts}) > (1 if exact else 2)
    assert source.description != weighted_cohorts(3, [0.1, 9.0, 0.0, 3.0, 1.0], exact=not exact).description


@pytest.mark.parametrize(
    ("weights", "chances"),
    [
        ([6, 5, 4, 3, 2], [0.9, 0.75, 0.6, 0.45, 0.3]),
        # The first always comes; the two other places are for the rest in proportion, of whom the second always comes too.
        ([50, 20, 10, 5, 5], [1, 1, 0.5, 0.25, 0.25]),
    ],
)
def test_exact_weighted_cohorts_take_each_client_as_often_as_its_weight_says(weights, chances):
    draws = 4000
    source = weighted_cohorts(3, weights, exact=True)
    counts = np.bincount(np.concatenate(draw(source, 5, draws)), minlength=5)
    spread = 4 * np.sqrt(draws / 4)
    np.testing.assert_allclose(counts, draws * np.array(chances), atol=spread)
    one_by_one = np.bincount(np.concatenate(draw(weighted_cohorts(3, weights), 5, draws)), minlength=5)
    assert np.abs(one_by_one - draws * np.array(chances)).max() > spread


def test_any_two_clients_may_come_together_to_an_exact_weighted_cohort():
    pairs = {tuple(sorted(ids.tolist())) for ids in draw(weighted_cohorts(2, np.ones(5), exact=True), 5, 200)}
    assert len(pairs) == 10


@pytest.mark.parametrize(
    ("error", "message", "count", "weights"),
    [
        (TypeError, "clients_per_round", 1.5, [1.0]),
        (ValueError, "expected clients_per_round <= 1, the clients of positive weight, got 2", 2, [1.0, 0.0]),
        (TypeError, "weights to be an array of numbers, one for each client, got \\['big'\\]", 1, ["big"]),
        (ValueError, "expected weights to be finite and >= 0, got -1.0", 1, [1.0, -1.0]),
        (ValueError, "expected weights to be finite and >= 0, got nan", 1, [1.0, np.nan]),
        (ValueError, r"expected weights to have shape \[client\], got \(1, 1\)", 1, [[1.0]]),
    ],
)
def test_weights_that_cannot_be_are_refused(error, message, count, weights):
    with pytest.raises(error, match=message):
        weighted_cohorts(count, weights)


def test_weights_of_another_number_of_clients_are_refused_when_the_run_starts():
    with pytest.raises(ValueError, match="expected weights to have 3 entries, one for each client, got '2 entries'"):
        weighted_cohorts(1, [1, 2]).init(3)


def test_covariates_are_rows_of_the_cohorts_clients_beside_those_it_had():
    ids, delays = np.array([3, 0, 1]), np.array([0.5, 1.5, 0.0])
    inner = fixed_cohorts([ids])._replace(
        select=lambda state, *_: (Cohort(ids, np.array([1, 0, 0]), {"delay": delays}), state + 1)
    )
    source = with_covariates(inner, counts=np.arange(8).reshape(4, 2), share=[0.5, 0.25, 0.125, 1.0])
    cohort, state = source.select(source.init(4), np.random.default_rng(0), None)
    assert int(state) == 1
    assert cohort.version.tolist() == [1, 0, 0]
    assert cohort.covariates["delay"].tolist() == delays.tolist()
    assert cohort.covariates["counts"].tolist() == [[6, 7], [0, 1], [2, 3]]
    assert cohort.covariates["share"].tolist() == [1.0, 0.5, 0.25]
    assert (cohort.covariates["counts"].dtype, cohort.covariates["share"].dtype) == (np.int32, np.float32)


def test_covariates_for_other_clients_are_refused_and_other_tables_have_other_names():
    source = with_covariates(all_clients(), counts=[1, 2])
    with pytest.raises(ValueError, match="counts to have 3 rows, one for each client, got '2 rows'"):
        source.init(3)
    assert source.description != with_covariates(all_clients(), counts=[1, 3]).description
    with pytest.raises(ValueError, match="a table, such as class_counts=..., got none"):
        with_covariates(all_clients())
