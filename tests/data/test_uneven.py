"""Stragglers, drop-out and deadlines: what share of its work each client does, and which steps that leaves it."""

import numpy as np
import pytest

from fedjax_tx import prng
from fedjax_tx.data import all_clients, fixed_cohorts, uniform_cohorts, with_deadline, with_dropout, with_stragglers
from fedjax_tx.data.cohort import as_cohort
from fedjax_tx.data.schedule import make_schedule, plan_capacity
from fedjax_tx.types import Cohort, LocalWork


def draw(source, num_clients: int, rounds: int) -> list[Cohort]:
    state, drawn = source.init(num_clients), []
    for number in range(rounds):
        selected, state = source.select(state, prng.host_generator(0, "cohort", number), None)
        drawn.append(as_cohort(selected, num_clients, source.max_clients(num_clients)))
    return drawn


def in_epochs(generator, count):
    return generator.integers(1, 20, count) / 20


# ---- which steps a share is


def steps_of(sizes, shares, work):
    sizes = np.array(sizes)
    capacity = plan_capacity(sizes, work, sizes.size, 2)
    cohort = as_cohort(Cohort(np.arange(sizes.size), work_done=np.array(shares)), sizes.size, sizes.size)
    schedule = make_schedule(cohort, np.append(0, np.cumsum(sizes)), work, capacity, 0, 0)
    return schedule, schedule.num_steps[: sizes.size].tolist()


def test_steps_are_the_share_rounded_up():
    # 5 examples in batches of 2 are 3 steps an epoch, 9 in all; 4 examples are 6 steps; nothing of nothing is nothing.
    shares, work = [1.0, 1 / 9, 0.5, 0.01, 0.0, 0.5], LocalWork(batch_size=2, epochs=3)
    schedule, steps = steps_of([5, 5, 5, 4, 4, 0], shares, work)
    assert steps == [9, 1, 5, 1, 0, 0]
    rows = [int(schedule.count[schedule.slot == slot].sum()) for slot in range(6)]
    assert rows == [15, 2, 5 + 4, 2, 0, 0]


def test_a_number_of_epochs_over_all_is_that_number_of_epochs():
    epochs = np.arange(1, 21)
    _, steps = steps_of(np.full(20, 7), epochs / 20, LocalWork(batch_size=2, epochs=20))
    assert steps == (4 * epochs).tolist()


def test_a_straggler_sees_the_first_of_the_batches_that_it_would_see():
    sizes, work = [7, 6], LocalWork(batch_size=2, epochs=2)

    def batches(shares):
        schedule, steps = steps_of(sizes, shares, work)
        return [
            [
                schedule.order[schedule.first[tick, lane]][None].tolist()
                for tick, lane in zip(*np.nonzero((schedule.slot == slot) & (schedule.count > 0)), strict=True)
            ]
            for slot in range(2)
        ], steps

    (whole, _), (cut, steps) = batches([1.0, 1.0]), batches([0.7, 1.0])
    assert steps == [6, 6] and cut[0] == whole[0][:6] and cut[1] == whole[1]


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_a_share_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="expected the cohort's work_done to be 0 to 1, got"):
        as_cohort(Cohort(np.array([0, 1]), work_done=np.array([1.0, bad])), 2, 2)


def test_shares_have_an_entry_for_each_client():
    with pytest.raises(ValueError, match="the cohort's work_done to have 2 rows"):
        as_cohort(Cohort(np.array([0, 1]), work_done=np.ones(3)), 2, 2)


# ---- stragglers


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.5, 5), (0.9, 9), (1.0, 10)])
def test_a_fraction_of_each_cohort_straggles(fraction, count):
    for cohort in draw(with_stragglers(uniform_cohorts(10), fraction, in_epochs), 30, 20):
        late = cohort.work_done < 1
        assert late.sum() == count
        assert set((20 * cohort.work_done[late]).round(6)) <= set(range(1, 20))


def test_everybody_straggles_equally_often_and_shares_are_uniform():
    cohorts = draw(with_stragglers(all_clients(), 0.4), 5, 2000)
    made = np.array([cohort.work_done for cohort in cohorts])
    # Each count is binomial(2000, 0.4): standard deviation 22.
    np.testing.assert_allclose((made < 1).sum(0), 800, atol=5 * 22)
    shares = made[made < 1]  # 4,000 of a standard deviation of 0.289
    assert shares.mean() == pytest.approx(0.5, abs=5 * 0.289 / np.sqrt(4000)) and shares.min() > 0
    assert shares.std() == pytest.approx(0.289, abs=0.01)


def test_who_straggles_does_not_depend_on_whether_stragglers_are_heard():
    heard, dropped = (draw(with_stragglers(uniform_cohorts(6), 0.5, in_epochs, drop), 20, 10) for drop in (False, True))
    for one, other in zip(heard, dropped, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        np.testing.assert_array_equal(one.work_done < 1, other.work_done == 0)


# ---- drop-out


def test_clients_drop_out_with_their_own_chance():
    chances = [0.0, 0.1, 0.5, 1.0]
    dropped = np.array([cohort.work_done == 0 for cohort in draw(with_dropout(fixed_cohorts([[3, 2, 1, 0]]), chances), 4, 4000)])
    # Counts of client 1 and 2 are binomial(4000, 0.1 and 0.5), of standard deviations 19 and 32.
    np.testing.assert_allclose(dropped.sum(0)[::-1], [0, 400, 2000, 4000], atol=5 * 32)
    assert dropped[:, 0].all() and not dropped[:, 3].any()
    both = (dropped[:, 1] & dropped[:, 2]).mean()
    assert both == pytest.approx(0.05, abs=5 * np.sqrt(0.05 * 0.95 / 4000))  # independently


def test_shares_of_wrappers_around_wrappers_are_multiplied():
    source = with_dropout(with_stragglers(all_clients(), 1.0, lambda generator, count: [0.25] * count), [1.0, 0.0])
    assert draw(source, 2, 1)[0].work_done.tolist() == [0.0, 0.25]


# ---- deadlines


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({"deadline": 4.0}, [1, 0, 1, 0]),
        ({"deadline": 4.0, "drop": False}, [1, 0.5, 1, 0.8]),
        ({"wanted": 3}, [1, 0, 1, 1]),
        ({"wanted": 3, "drop": False}, [1, 0.625, 1, 1]),
        ({"wanted": 3, "deadline": 4.0}, [1, 0, 1, 0]),
        ({"wanted": 1, "deadline": 4.0}, [1, 0, 0, 0]),
        ({"wanted": 9}, [1, 1, 1, 1]),
        ({"deadline": 1.0}, [0, 0, 0, 0]),
        ({"deadline": 1.0, "drop": False}, [0.5, 0.125, 0.25, 0.2]),
    ],
)
def test_a_round_ends_at_the_deadline_or_with_the_last_that_is_wanted(options, made):
    (cohort,) = draw(with_deadline(all_clients(), [2.0, 8.0, 4.0, 5.0], **options), 4, 1)
    np.testing.assert_allclose(cohort.work_done, made)


def test_of_clients_done_at_once_those_that_stand_first_count():
    (cohort,) = draw(with_deadline(fixed_cohorts([[2, 0, 1]]), [1.0, 1.0, 1.0], wanted=2), 3, 1)
    assert cohort.work_done.tolist() == [1, 1, 0]


def test_durations_may_be_drawn_anew():
    source = with_deadline(uniform_cohorts(3), lambda generator, ids: generator.exponential(1.0, ids.size), wanted=2)
    cohorts = draw(source, 3, 50)
    assert all(cohort.work_done.sum() == 2 for cohort in cohorts)
    assert {int(cohort.ids[cohort.work_done == 0][0]) for cohort in cohorts} == {0, 1, 2}


def test_a_round_to_which_nobody_comes_ends():
    assert draw(with_deadline(fixed_cohorts([[]]), [1.0], wanted=1), 1, 1)[0].ids.size == 0


# ---- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_dropout(all_clients(), [0.5, 0.5]).init(3), "expected chance to have 3 entries, one for each client"),
        (lambda: with_deadline(all_clients(), [1.0], 1.0).init(3), "expected durations to have 3 entries, one for each client"),
        (lambda: with_deadline(all_clients(), [1.0]), "expected .* a deadline, a number of wanted clients, or both, got neither"),
        (lambda: draw(with_stragglers(all_clients(), 1.0, lambda *_: [2.0]), 1, 1), "expected what work_done draws to be 0 to 1"),
        (lambda: draw(with_stragglers(all_clients(), 1.0, lambda *_: []), 1, 1), "work_done draws to have 1 entries, one for"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_descriptions_tell_sources_apart():
    cohorts = all_clients()
    sources = [with_stragglers(cohorts, 0.5), with_stragglers(cohorts, 0.5, in_epochs), with_stragglers(cohorts, 0.5, drop=True)]
    sources += [with_dropout(cohorts, chance) for chance in (0.5, 0.25, [0.5, 0.5], [0.5, 0.25])]
    sources += [with_deadline(cohorts, [1.0, 2.0], *rest) for rest in ((1.0,), (2.0,), (1.0, 1), (1.0, 1, False))]
    sources += [with_deadline(cohorts, [2.0, 1.0], 1.0)]
    assert len({source.description for source in sources}) == len(sources)
