"""Batches that are drawn: every example with its chance, in every step anew; what they have room for; empty ones count too."""

import jax.numpy as jnp
import numpy as np
import problems
import pytest
from test_schedule import plan

import fedjax_tx as ftx
from fedjax_tx.types import LocalWork

SIZES = (4, 0, 40, 1)
OFFSETS = np.append(0, np.cumsum(SIZES))


def drawn(expected=2.0, room=40, steps=500, **options):
    """Each client's batches, as sets of its own examples."""
    work = LocalWork(batch_size=room, steps=steps, expected_batch=expected)
    schedule = plan(SIZES, work, **options)
    first, count, slot, step = (getattr(schedule, name)[: schedule.num_ticks] for name in ("first", "count", "slot", "step"))
    taken = {}
    for at in zip(*np.nonzero(step < schedule.num_steps[slot]), strict=True):
        rows = schedule.order[first[at] : first[at] + count[at]]
        # A dry lane, at the end, looks like the first step of the first slot: that has been.
        taken.setdefault(int(slot[at]), {}).setdefault(int(step[at]), rows - OFFSETS[schedule.ids[slot[at]]])
    return {client: [own[number] for number in sorted(own)] for client, own in taken.items()}


ONE_LANE = {"lanes": 1}


def test_every_example_comes_with_its_chance_alone_and_independently_of_the_others():
    got = drawn(**ONE_LANE)
    assert [len(got.get(client, [])) for client in range(4)] == [500, 0, 500, 500]
    for client, chance in ((0, 0.5), (2, 0.05), (3, 1.0)):
        came = np.zeros((500, SIZES[client]))
        for step, rows in enumerate(got[client]):
            assert len(set(rows.tolist())) == len(rows)
            came[step, rows] = 1
        # Five standard deviations, of one example's count and of all examples' together; a chance half as large is far away.
        for counts, trials in ((came.sum(0), 500), (came.sum(), came.size)):
            assert np.all(np.abs(counts - trials * chance) <= 5 * np.sqrt(trials * chance * (1 - chance)))
        # Independent, so a batch's size has a binomial's variance: not that of a batch of a fixed size, 0.
        spread = SIZES[client] * chance * (1 - chance)
        assert abs(came.sum(1).var() - spread) <= 0.4 * spread


def test_a_batch_has_room_for_so_many_and_who_stays_is_a_uniform_part():
    whole, cut = drawn(expected=3.0, **ONE_LANE)[0], drawn(expected=3.0, room=3, **ONE_LANE)[0]
    assert any(len(rows) == 4 for rows in whole)
    for rows, kept in zip(whole, cut, strict=True):
        assert len(kept) == min(3, len(rows)) and set(kept.tolist()) <= set(rows.tolist())
    left_out = np.concatenate([np.setdiff1d(rows, kept) for rows, kept in zip(whole, cut, strict=True)])
    # Of about 158 batches of all four one is left out, each a quarter of the times.
    assert np.all(np.abs(np.bincount(left_out, minlength=4) - left_out.size / 4) < 5 * np.sqrt(left_out.size * 3 / 16))


def test_batches_depend_on_seed_round_client_and_step_alone():
    want = drawn(steps=6, **ONE_LANE)

    def same(have):
        return all(np.array_equal(a, b) for client in want for a, b in zip(want[client], have[client], strict=True))

    assert same(drawn(steps=6, lanes=3)) and same(drawn(steps=6, lanes=2, max_clients=4))
    assert not same(drawn(steps=6, seed=1)) and not same(drawn(steps=6, round_number=1))
    assert same({client: own[:6] for client, own in drawn(steps=8, **ONE_LANE).items()})


def test_the_executor_sees_only_rows_of_the_client_itself():
    work = LocalWork(batch_size=3, steps=20, expected_batch=0.5)
    schedule = plan(SIZES, work, lanes=2)
    tick, lane = np.nonzero(schedule.step[: schedule.num_ticks] < schedule.num_steps[schedule.slot[: schedule.num_ticks]])
    busy = schedule.order[schedule.first[tick, lane]]
    client = schedule.ids[schedule.slot[tick, lane]]
    assert ((OFFSETS[client] <= busy) & (busy < OFFSETS[client + 1])).all()


@pytest.mark.parametrize("num_lanes", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_empty_batches_are_steps_and_their_rows_count_for_nothing(num_lanes):
    """A client that counts its steps and the rows that it sees."""
    trainer = ftx.ClientTrainer(
        lambda broadcast, key: (),
        lambda broadcast, info, state: jnp.zeros(2),
        lambda broadcast, info, local, batch, mask, key: local + jnp.stack([jnp.ones(()), mask.sum()]),
        lambda broadcast, info, local: ftx.ClientResult(
            {}, ftx.clients.client_weight(info), (), {"steps": (local[0], jnp.ones(())), "rows": (local[1], jnp.ones(()))}
        ),
    )
    local = LocalWork(batch_size=9, steps=7, expected_batch=0.3)
    _, (info,) = problems.play(problems.experiment(problems.one_pass(trainer), local=local), 1, num_lanes)
    steps, rows = (info.client_metrics[name][0] for name in ("steps", "rows"))
    assert steps.tolist() == [7, 0, 7, 7, 7, 7]
    assert rows.sum() == info.num_examples < 5 * 7  # fewer rows than steps: some batches were empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2, "expected_batch": 9}, "expected_batch <= 8, got 9"),
        ({"epochs": 2, "expected_batch": 2}, "expected_batch to be None without steps"),
        ({"steps": 2, "expected_batch": 2, "shuffle": False}, "expected_batch to be None without steps, or in stored order"),
    ],
)
def test_draws_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LocalWork(batch_size=8, **options)
