"""Schedules by their laws: every example of every epoch once, lanes never shared, room for every cohort, order from names."""

import time

import jax
import numpy as np
import pytest

from fedjax_tx import prng
from fedjax_tx.data.cohort import as_cohort, uniform_cohorts
from fedjax_tx.data.schedule import (
    PER_DEVICE,
    count_steps,
    cut_short,
    half_of,
    make_schedule,
    plan_capacity,
    slots_by_device,
    stack,
    useful_share,
)
from fedjax_tx.types import Cohort, LocalWork


def plan(sizes, work, ids=None, lanes=2, max_clients=None, seed=0, round_number=0, taper=0, devices=None):
    sizes = np.asarray(sizes)
    ids = np.arange(sizes.size) if ids is None else np.asarray(ids, np.int64)
    capacity = plan_capacity(sizes, work, ids.size if max_clients is None else max_clients, lanes, devices=devices, taper=taper)
    cohort = as_cohort(ids, sizes.size, capacity.clients)
    offsets = np.append(0, np.cumsum(sizes))
    return make_schedule(cohort, offsets, work, capacity, seed, round_number)


def events(bounds, lanes, slots) -> list[tuple[int, int, int]]:
    """(tick, lane, slot) of each event."""
    ticks = range(bounds.size - 1)
    return [(tick, int(lanes[at]), int(slots[at])) for tick in ticks for at in range(bounds[tick], bounds[tick + 1])]


def batches(schedule) -> dict[int, list[list[int]]]:
    """Replays a schedule as the executor does and returns each slot's batches of data rows, checking the laws of lanes."""
    assert schedule.num_ticks <= schedule.count.shape[0]
    starts = events(schedule.starts, schedule.start_lane, schedule.start_slot)
    finishes = events(schedule.finishes, schedule.finish_lane, schedule.finish_slot)
    slots = list(range(schedule.num_clients))
    assert sorted(slot for _, _, slot in starts) == sorted(slot for _, _, slot in finishes) == slots
    at_work: dict[int, int] = {}
    taken: dict[int, list[list[int]]] = {slot: [] for slot in slots}
    for tick in range(schedule.num_ticks):
        width = schedule.count.shape[1] >> (0 if schedule.narrow is None else int((schedule.narrow <= tick).sum()))
        assert not schedule.count[tick, width:].any(), "a lane is busy that does not run"
        for _, lane, slot in (event for event in starts if event[0] == tick):
            assert lane < width
            assert lane not in at_work, "a lane serves two clients"
            at_work[lane] = slot
        for lane in range(schedule.count.shape[1]):
            count, first = schedule.count[tick, lane], schedule.first[tick, lane]
            if count:
                slot = at_work[lane]
                assert schedule.slot[tick, lane] == slot
                assert schedule.step[tick, lane] == len(taken[slot])
                taken[slot].append(schedule.order[first : first + count].tolist())
        for _, lane, slot in (event for event in finishes if event[0] == tick):
            assert lane < width
            assert at_work.pop(lane) == slot
    assert not at_work
    assert not schedule.count[schedule.num_ticks :].any()
    return taken


def check_laws(sizes, work, ids, lanes, **options):
    schedule = plan(sizes, work, ids, lanes, **options)
    sizes, offsets = np.asarray(sizes), np.append(0, np.cumsum(sizes))
    taken = batches(schedule)
    for slot, client in enumerate(ids):
        size = int(sizes[client])
        rows = list(range(offsets[client], offsets[client] + size))
        per_epoch = -(-size // work.batch_size)
        got = taken[slot]
        epochs = work.epochs if work.epochs is None or isinstance(work.epochs, int) else int(work.epochs[client])
        steps = work.steps if work.steps is None or isinstance(work.steps, int) else int(work.steps[client])
        wanted = epochs * per_epoch if steps is None else (steps if size else 0)
        assert len(got) == wanted == schedule.num_steps[slot]
        assert schedule.num_examples[slot] == size
        for start in range(0, len(got), max(per_epoch, 1)):
            epoch = got[start : start + per_epoch]
            lengths = [len(batch) for batch in epoch]
            full = [min(work.batch_size, size - number * work.batch_size) for number in range(per_epoch)]
            assert lengths == full[: len(epoch)]
            used = [row for batch in epoch for row in batch]
            assert len(set(used)) == len(used)
            assert set(used) <= set(rows)
            if len(epoch) == per_epoch:
                assert sorted(used) == rows
            if not work.shuffle:
                assert used == rows[: len(used)]
    # Lanes are contiguous from tick 0: a lane that falls dry stays dry, but for the empty tick of a client without a step.
    busy = schedule.count[: schedule.num_ticks] > 0
    short = schedule.count.max(1, initial=0) <= half_of(work.batch_size)
    halved = short & (np.arange(short.size) < schedule.num_ticks)
    assert schedule.half is None or (schedule.half == halved[:, None]).all()
    if schedule.num_steps[: len(ids)].all():
        assert (np.diff(busy.astype(int), axis=0) <= 0).all()
    return schedule


def random_work(case, generator) -> tuple[np.ndarray, LocalWork]:
    """Sizes of up to 11 clients and a local work of one of the four kinds."""
    num_clients = int(generator.integers(1, 12))
    sizes = np.minimum(generator.lognormal(1.0, 1.2, num_clients), 40).astype(int)
    amount = [
        {"epochs": int(generator.integers(1, 4))},
        {"steps": int(generator.integers(1, 9))},
        {"epochs": generator.integers(0, 4, num_clients)},
        {"steps": generator.integers(0, 9, num_clients)},
    ][case % 4]
    return sizes, LocalWork(batch_size=int(generator.integers(1, 7)), shuffle=bool(case % 3), **amount)


@pytest.mark.parametrize("case", range(60))
def test_laws_hold_for_random_sizes_lanes_batches_and_work(case):
    generator = np.random.default_rng(case)
    sizes, work = random_work(case, generator)
    num_clients = sizes.size
    most = int(generator.integers(0, num_clients + 1))
    for lanes, taper in ((1, 0), (1, "auto"), (2, 0), (3, 1), (5, 9), (16, 3), (16, "auto")):
        cohort = generator.permutation(num_clients)[: generator.integers(0, most + 1)]
        check_laws(sizes, work, cohort.tolist(), lanes, max_clients=most, round_number=case, taper=taper)


def order_by_hand(sizes, work, ids, seed, round_number) -> list[int]:
    """The rows of a cohort, client after client and epoch after epoch, from the whole population's table of steps."""
    steps, rows = count_steps(sizes, work)
    order = []
    for client in ids.tolist():
        first, size, taken = int(sizes[:client].sum()), int(sizes[client]), []
        for epoch in range(-(-int(rows[client]) // max(size, 1))):
            within = np.arange(size)
            if work.shuffle:
                within = within[np.argsort(prng.host_bits(seed, "shuffle", round_number, client, epoch, within), kind="stable")]
            taken += (first + within).tolist()
        order += taken[: rows[client]]
    return order


@pytest.mark.parametrize("case", range(40))
def test_a_cohorts_rows_are_those_found_client_by_client_in_the_whole_population(case):
    generator = np.random.default_rng(case)
    sizes, work = random_work(case, generator)
    ids = generator.permutation(sizes.size)[: generator.integers(1, sizes.size + 1)]
    schedule = plan(sizes, work, ids, seed=case, round_number=case + 1)
    want = order_by_hand(sizes, work, ids, case, case + 1)
    assert schedule.order[: len(want)].tolist() == want
    steps, _ = count_steps(sizes, work)
    assert schedule.num_steps[: ids.size].tolist() == steps[ids].tolist()


def seconds_of_a_round(num_clients: int) -> float:
    """The least time in which 100 of so many clients of 10 examples are drawn and scheduled."""
    offsets = 10 * np.arange(num_clients + 1)
    work = LocalWork(batch_size=5, epochs=np.ones(num_clients, int))
    capacity = plan_capacity(np.diff(offsets), work, 100, 8)
    source = uniform_cohorts(100)
    state, generator, took = source.init(num_clients), np.random.default_rng(0), []
    for number in range(20):
        began = time.perf_counter()
        ids, state = source.select(state, generator, None)
        make_schedule(as_cohort(ids, num_clients, 100), offsets, work, capacity, 0, number)
        took.append(time.perf_counter() - began)
    return min(took)


def test_a_round_costs_the_host_the_same_in_a_population_of_a_thousand_and_of_two_million():
    assert seconds_of_a_round(2_000_000) < 5 * seconds_of_a_round(1_000)


def test_a_schedule_looks_up_no_client_but_its_cohort():
    offsets, work, cohort = 3 * np.arange(10), LocalWork(batch_size=2), as_cohort([7, 2], 9, 2)
    capacity = plan_capacity(np.diff(offsets), work, 2, 1)
    want = make_schedule(cohort, offsets, work, capacity, 0, 0)
    nonsense = np.full(10, -1_000_000)
    nonsense[[2, 3, 7, 8]] = offsets[[2, 3, 7, 8]]
    have = make_schedule(cohort, nonsense, work, capacity, 0, 0)
    for name in want._fields[:-1]:
        np.testing.assert_array_equal(getattr(have, name), getattr(want, name))


@pytest.mark.parametrize("amount", ["epochs", "steps"])
def test_a_schedule_refuses_work_for_another_number_of_clients(amount):
    work = LocalWork(batch_size=2, **{amount: np.array([1, 2])})
    capacity = plan_capacity(np.array([1, 1]), work, 2, 1)
    with pytest.raises(ValueError, match=f"expected {amount} to have 3 entries, one for each client, got '2 entries'"):
        make_schedule(as_cohort([0, 1], 3, 2), np.arange(4), work, capacity, 0, 0)


def test_capacities_hold_the_most_demanding_cohorts():
    sizes = np.array([1, 30, 2, 29, 3, 28, 0, 4])
    for batch_size in (1, 4):
        work = LocalWork(batch_size=batch_size, epochs=2)
        for most in range(1, 9):
            largest = np.argsort(-sizes, kind="stable")[:most]
            for lanes in range(1, 9):
                check_laws(sizes, work, largest.tolist(), lanes, max_clients=most, taper=lanes % 3)


def test_capacities_do_not_depend_on_the_cohort_and_bound_what_is_stored():
    sizes = np.arange(10)
    work = LocalWork(batch_size=2)
    shapes = {
        tuple(np.shape(array) for array in plan(sizes, work, ids, 3, max_clients=4)[:-1])
        for ids in ([], [0], [9, 8], [1, 2, 3, 4])
    }
    assert len(shapes) == 1


def test_room_for_a_client_that_comes_more_than_once_is_made_where_the_source_says_so():
    sizes, work = np.array([9, 1, 1]), LocalWork(batch_size=2)
    capacity = plan_capacity(sizes, work, 2, 1, repeats=True)
    cohort = as_cohort([0, 0], 3, 2)
    taken = batches(make_schedule(cohort, np.array([0, 9, 10, 11]), work, capacity, 0, 0))
    assert [sorted(sum(rows, [])) for rows in taken.values()] == [list(range(9))] * 2


def test_more_places_than_clients_hold_repeats_too():
    sizes, work = np.array([9, 1]), LocalWork(batch_size=2)
    capacity = plan_capacity(sizes, work, 3, 2, repeats=True)
    schedule = make_schedule(as_cohort([0, 0, 0], 2, 3), np.array([0, 9, 10]), work, capacity, 0, 0)
    assert [len(rows) for rows in batches(schedule).values()] == [5, 5, 5]


def test_the_longest_client_starts_first_and_each_goes_to_the_lane_that_is_free_soonest():
    schedule = plan([1, 4, 2, 3, 2], LocalWork(batch_size=1), lanes=2)
    starts = events(schedule.starts, schedule.start_lane, schedule.start_slot)
    # 4 on lane 0; 3 on lane 1; then 2 at tick 3 on lane 1; 2 at tick 4 on lane 0; 1 at tick 5 on lane 1.
    assert sorted(starts) == [(0, 0, 1), (0, 1, 3), (3, 1, 2), (4, 0, 4), (5, 1, 0)]
    assert schedule.num_ticks == 6


def test_the_last_batch_of_each_epoch_is_short():
    schedule = plan([5], LocalWork(batch_size=2, epochs=2, shuffle=False), lanes=1)
    assert schedule.count[: schedule.num_ticks, 0].tolist() == [2, 2, 1, 2, 2, 1]
    assert batches(schedule)[0] == [[0, 1], [2, 3], [4], [0, 1], [2, 3], [4]]


def test_steps_go_through_the_data_as_often_as_that_takes_and_stop_in_the_middle():
    schedule = plan([3], LocalWork(batch_size=2, steps=5, shuffle=False), lanes=1)
    assert batches(schedule)[0] == [[0, 1], [2], [0, 1], [2], [0, 1]]


def test_steps_and_rows_by_hand():
    sizes = np.array([5, 0, 1])
    steps, rows = count_steps(sizes, LocalWork(batch_size=2, epochs=3))
    assert (steps.tolist(), rows.tolist()) == ([9, 0, 3], [15, 0, 3])
    steps, rows = count_steps(sizes, LocalWork(batch_size=2, steps=4))
    assert (steps.tolist(), rows.tolist()) == ([4, 0, 4], [7, 0, 4])
    steps, rows = count_steps(sizes, LocalWork(batch_size=2, epochs=np.array([2, 5, 0])))
    assert (steps.tolist(), rows.tolist()) == ([6, 0, 0], [10, 0, 0])
    steps, rows = count_steps(sizes, LocalWork(batch_size=2, steps=np.array([2, 3, 1])))
    assert (steps.tolist(), rows.tolist()) == ([2, 0, 1], [4, 0, 1])


@pytest.mark.parametrize("amount", ["epochs", "steps"])
def test_work_for_another_number_of_clients_is_refused_by_name(amount):
    work = LocalWork(batch_size=2, **{amount: np.array([1, 2])})
    with pytest.raises(ValueError, match=f"expected {amount} to have 3 entries, one for each client, got '2 entries'"):
        count_steps(np.array([1, 1, 1]), work)


def orders(ids, lanes=2, seed=0, round_number=0, epochs=2, batch_size=3) -> dict[int, list[int]]:
    sizes = [8, 3, 12, 9]
    schedule = plan(sizes, LocalWork(batch_size=batch_size, epochs=epochs), ids, lanes, None, seed, round_number)
    return {int(ids[slot]): sum(taken, []) for slot, taken in batches(schedule).items()}


def test_shuffles_do_not_depend_on_cohort_order_lanes_or_batches():
    want = orders([0, 1, 2, 3])
    assert orders([3, 0, 2, 1], lanes=1) == want
    assert orders([2, 3, 1, 0], lanes=4) == want
    assert orders([0, 1, 2, 3], batch_size=5) == want
    assert orders([2]) == {2: want[2]}


def test_a_shorter_run_of_epochs_is_the_beginning_of_a_longer_one():
    longer = orders([0, 2], epochs=3)
    assert {client: rows[: len(rows) * 2 // 3] for client, rows in longer.items()} == orders([0, 2], epochs=2)


def test_shuffles_differ_between_seeds_rounds_clients_and_epochs():
    one = orders([0, 2, 3])
    assert orders([0, 2, 3], seed=1)[2] != one[2]
    assert orders([0, 2, 3], round_number=1)[2] != one[2]
    assert one[2][:12] != one[2][12:]
    same_size = plan([12, 12], LocalWork(batch_size=12), lanes=1)
    first, second = (taken[0] for taken in batches(same_size).values())
    assert first != [row - 12 for row in second]


def test_shuffles_are_uniform():
    counts = np.zeros((3, 3))
    for round_number in range(600):
        taken = batches(plan([3], LocalWork(batch_size=1), lanes=1, round_number=round_number))[0]
        for place, (row,) in enumerate(taken):
            counts[place, row] += 1
    np.testing.assert_allclose(counts, 200, atol=5 * np.sqrt(600 * 2 / 9))


def test_without_shuffling_the_stored_order_is_kept_in_every_round():
    for round_number in range(3):
        schedule = plan([4, 2], LocalWork(batch_size=3, shuffle=False), round_number=round_number)
        assert batches(schedule) == {0: [[0, 1, 2], [3]], 1: [[4, 5]]}


def test_useful_share_by_hand():
    # Lane 0: 5 examples in 3 batches; lane 1: 2 in 1, then 1 in 1. 3 ticks x 2 lanes x batches of 2 = 12 slots.
    schedule = plan([5, 2, 1], LocalWork(batch_size=2), lanes=2)
    assert schedule.num_ticks == 3
    assert useful_share(schedule, 2) == 8 / 12


@pytest.mark.parametrize("lanes, taper, devices", [(1, 0, None), (1, "auto", 2), (4, 0, 2), (4, 2, None)])
def test_no_array_of_a_schedule_is_empty(lanes, taper, devices):
    # jaxlib 0.11.2 dies (a segmentation fault) as it compiles a program that gets an empty array on a mesh.
    for sizes in ([9, 5, 4, 2], [0]):
        schedule = plan(sizes, LocalWork(batch_size=2), lanes=lanes, taper=taper, devices=devices)
        assert all(np.size(leaf) for leaf in jax.tree.leaves(schedule))


def test_useful_share_counts_the_lanes_that_are_left_by_hand():
    # Batches: 5; 3; 2; 1. Two lanes would take 6 ticks. Four lanes for 2 ticks, two for 1, one for 2: 12 slots of 2 rows.
    schedule = plan([9, 5, 4, 2], LocalWork(batch_size=2), lanes=4, taper=2)
    assert (schedule.num_ticks, schedule.narrow.tolist()) == (5, [2, 3])
    assert slots_by_device(schedule) == 4 * 2 + 2 * 1 + 1 * 2
    assert useful_share(schedule, 2) == 20 / 24
    flat = plan([9, 5, 4, 2], LocalWork(batch_size=2), lanes=4)
    assert (flat.narrow, useful_share(flat, 2)) == (None, 20 / 40)


def test_short_batches_are_stepped_at_half_size_where_that_pays():
    def halves(sizes, lanes=1, taper="auto", **work):
        return plan_capacity(np.array(sizes), LocalWork(batch_size=4, **work), len(sizes), lanes, taper=taper).halves

    assert halves([5] * 12)  # of 24 batches, 12 have one row
    assert not halves([7] * 12)  # three rows are more than half
    assert not halves([8] * 12)
    assert not halves([5] * 11)  # over too soon
    assert not halves([5] * 12, lanes=2)
    assert not halves([5] * 12, taper=0)
    assert halves([45] * 2) and not halves([401])  # one of 12, one of 101
    assert not halves([5] * 24, steps=1) and halves([5] * 12, steps=2)
    assert halves([50] * 2, steps=12, expected_batch=2) and not halves([50] * 2, steps=12, expected_batch=3)


def test_useful_share_counts_half_batches_by_hand():
    schedule = plan([5] * 12, LocalWork(batch_size=4), lanes=1, taper="auto")
    assert schedule.half[:, 0].sum() == 12
    assert useful_share(schedule, 4) == 60 / (12 * 4 + 12 * 2)


def test_lanes_halve_as_often_as_they_can_or_as_pays():
    sizes, work = np.array([64, 2, 2, 2, 2, 2, 2, 2]), LocalWork(batch_size=2)
    halvings = {
        (lanes, taper): plan_capacity(sizes, work, 8, lanes, taper=taper).halvings
        for lanes in (1, 6, 8)
        for taper in (0, 1, 9, "auto")
    }
    assert [halvings[1, taper] for taper in (0, 1, 9, "auto")] == [0, 0, 0, 0]
    assert [halvings[6, taper] for taper in (0, 1, 9, "auto")] == [0, 1, 2, 2]
    assert [halvings[8, taper] for taper in (0, 1, 9, "auto")] == [0, 1, 3, 3]
    assert plan_capacity(np.full(8, 6), work, 8, 8, taper="auto").halvings == 0
    # Of many clients, four typical ones: no long one is among them.
    assert plan_capacity(np.append(64, np.full(99, 2)), work, 4, 4, taper="auto").halvings == 0
    assert plan_capacity(np.array([], int), work, 0, 4, taper="auto").halvings == 0


def test_a_schedule_cut_short_keeps_the_proportion_of_the_widths():
    schedule = plan([80, 40, 20, 10], LocalWork(batch_size=1), lanes=4, taper=2)
    assert (schedule.num_ticks, schedule.narrow.tolist()) == (80, [0, 70])  # two lanes: 80 and 70
    cut = cut_short(schedule, 8, 80)
    assert (cut.num_ticks, cut.narrow.tolist()) == (8, [0, 7])
    assert slots_by_device(cut) * 10 == slots_by_device(schedule)
    assert (cut_short(schedule, 1, 80).num_ticks, cut_short(schedule, 0, 80).num_ticks) == (1, 0)
    for name in set(schedule._fields) - {"num_ticks", "narrow", "covariates"}:
        assert getattr(cut, name) is getattr(schedule, name)
    np.testing.assert_array_equal(cut_short(schedule, 80, 80).narrow, schedule.narrow)


def test_one_lane_of_whole_batches_wastes_nothing():
    assert useful_share(plan([4, 8, 2], LocalWork(batch_size=2), lanes=1), 2) == 1.0


def test_an_empty_cohort_has_no_tick_and_no_useful_share():
    schedule = plan([3, 4], LocalWork(batch_size=2), ids=[], max_clients=2)
    assert (schedule.num_ticks, schedule.num_clients) == (0, 0)
    assert batches(schedule) == {}
    assert useful_share(schedule, 2) == 0.0


def test_a_client_without_an_example_starts_and_finishes_without_a_batch():
    schedule = plan([0, 3], LocalWork(batch_size=2), lanes=1)
    assert batches(schedule)[0] == []
    assert sorted(sum(batches(schedule)[1], [])) == [0, 1, 2]
    assert schedule.num_steps[:2].tolist() == [0, 2]
    assert schedule.num_ticks == 3  # the client without data holds its lane for one


def test_only_clients_without_an_example_still_come_and_go():
    schedule = plan([0, 0, 0], LocalWork(batch_size=2), lanes=2)
    assert batches(schedule) == {0: [], 1: [], 2: []}
    assert schedule.num_ticks == 2


def test_versions_and_covariates_go_to_their_slots():
    sizes, work = np.array([2, 2, 2]), LocalWork(batch_size=2)
    capacity = plan_capacity(sizes, work, 3, 1)
    cohort = as_cohort(Cohort(np.array([2, 0]), np.array([5, 6]), {"delay": np.array([0.5, 1.5])}), 3, 3)
    schedule = make_schedule(cohort, np.array([0, 2, 4, 6]), work, capacity, 0, 0)
    assert schedule.ids.tolist() == [2, 0, 0]
    assert schedule.version.tolist() == [5, 6, 0]
    assert schedule.covariates["delay"].tolist() == [0.5, 1.5, 0.0]


def test_stacked_schedules_repeat_the_last_to_fill_up():
    sizes, work = [3, 5], LocalWork(batch_size=2)
    one, two = (plan(sizes, work, ids, max_clients=2) for ids in ([0], [1, 0]))
    stacked = stack([one, two], 4)
    assert stacked.num_clients.tolist() == [1, 2, 2, 2]
    np.testing.assert_array_equal(stacked.order[0], one.order)
    np.testing.assert_array_equal(stacked.order[3], two.order)


@pytest.mark.parametrize(("devices", "lanes", "taper"), [(1, 2, 0), (3, 2, 0), (4, 1, 0), (8, 2, 0), (2, 3, 1)])
def test_the_lanes_of_a_mesh_are_those_of_one_device_dealt_out_in_turn(devices, lanes, taper):
    sizes, work = np.array([9, 0, 4, 7, 1, 12, 3, 5]), LocalWork(batch_size=2, epochs=2)
    cohort, offsets = as_cohort([6, 0, 3, 1, 5, 4], 8, 7), np.append(0, np.cumsum(sizes))
    capacity = plan_capacity(sizes, work, 7, lanes, devices=devices, taper=taper)
    # With room for no more than 7 clients, 8 devices have one lane each.
    assert capacity.lanes == min(lanes, -(-7 // devices))
    mesh = make_schedule(cohort, offsets, work, capacity, 5, 2)
    one = make_schedule(cohort, offsets, work, capacity._replace(lanes=devices * capacity.lanes, devices=None), 5, 2)
    for name in ("first", "count", "slot", "step"):
        assert getattr(mesh, name).shape == (devices, capacity.ticks, capacity.lanes)
        for device in range(devices):
            np.testing.assert_array_equal(getattr(mesh, name)[device], getattr(one, name)[:, device::devices])
    for kind in ("start", "finish"):
        names = ("starts" if kind == "start" else "finishes", f"{kind}_lane", f"{kind}_slot")
        wanted = events(*(getattr(one, name) for name in names))
        got = [
            (tick, lane * devices + device, slot)
            for device in range(devices)
            for tick, lane, slot in events(*(getattr(mesh, name)[device] for name in names))
        ]
        assert sorted(got) == sorted(wanted) and len(got) == 6
        last = [max((tick for tick, lane, _ in wanted if lane % devices == device), default=-1) for device in range(devices)]
        if kind == "finish":  # each device has its own number of ticks, and its own end of the wider lanes
            assert mesh.num_ticks.tolist() == [tick + 1 for tick in last]
            for device in range(devices if taper else 0):
                wide = [tick + 1 for tick, lane, _ in wanted if lane % devices == device and lane // devices >= lanes // 2]
                assert mesh.narrow[device].tolist() == [max(wide)]
    for name in set(one._fields) - set(PER_DEVICE) - {"covariates"}:
        np.testing.assert_array_equal(getattr(mesh, name), getattr(one, name))


def test_a_cohort_smaller_than_the_lanes_leaves_no_device_idle():
    sizes, work = np.full(8, 4), LocalWork(batch_size=2)
    capacity = plan_capacity(sizes, work, 8, 4, devices=2)
    schedule = make_schedule(as_cohort([0, 1, 2, 3], 8, 8), np.arange(9) * 4, work, capacity, 0, 0)
    assert schedule.num_ticks.tolist() == [2, 2]
    # 16 examples in 2 devices x 2 ticks x 4 lanes x 2 rows.
    assert useful_share(schedule, 2) == 0.5
