"""Parts of a data set, and schedules over processes that hold one each."""

import re

import numpy as np
import problems
import pytest

from fedjax_tx.data import FederatedDataset, gather_parts, take_part
from fedjax_tx.data.cohort import as_cohort
from fedjax_tx.data.federated import Part
from fedjax_tx.data.parts import Owners, part_bounds
from fedjax_tx.data.schedule import make_schedule, plan_capacity
from fedjax_tx.types import LocalWork


def test_parts_hold_about_equal_numbers_of_examples():
    offsets = np.append(0, np.cumsum(np.random.default_rng(0).integers(0, 20, 1000)))
    for count in (1, 2, 3, 8):
        bounds = part_bounds(offsets, count)
        assert bounds[0] == 0 and bounds[-1] == 1000 and len(bounds) == count + 1
        rows = np.diff(offsets[bounds])
        assert np.abs(rows - offsets[-1] / count).max() <= 20  # a client, whole, on either side


@pytest.mark.parametrize(
    ("sizes", "bounds"), [([], [0, 0, 0, 0]), ([5], [0, 0, 1, 1]), ([0, 0], [0, 0, 0, 2]), ([1, 9], [0, 1, 2, 2])]
)
def test_more_parts_than_clients_leave_some_empty(sizes, bounds):
    assert part_bounds(np.append(0, np.cumsum(sizes)).astype(np.int64), 3).tolist() == bounds


@pytest.mark.parametrize("saved", [False, True])
def test_the_parts_together_are_the_whole_and_each_knows_all_clients(saved, tmp_path):
    whole = problems.ragged_clients()
    if saved:
        whole.save(tmp_path / "data")
        whole = FederatedDataset.open(tmp_path / "data")
    parts = [take_part(whole, number, 3) for number in range(3)]
    for part in parts:
        assert (part.num_clients, part.num_examples) == (6, 25)
        np.testing.assert_array_equal(part.client_sizes, whole.client_sizes)
        np.testing.assert_array_equal(part.client_ids, whole.client_ids)
        assert not saved or isinstance(part.columns["x"], np.memmap)  # nothing was read
        assert saved or part.columns["x"].base is None  # the rest can go
    for name, column in whole.columns.items():
        np.testing.assert_array_equal(np.concatenate([part.columns[name] for part in parts]), column)
    assert [part.rows_held for part in parts] == [(0, 6), (6, 18), (18, 25)]


def test_a_part_gives_its_own_clients_and_names_those_of_others():
    whole, part = problems.ragged_clients(), take_part(problems.ragged_clients(), 1, 3)
    np.testing.assert_array_equal(part.client(3)["row"], whole.client(3)["row"])
    for other in (0, 1, 2, 5):
        with pytest.raises(ValueError, match=f"expected index to be of a client whose rows this process holds, got {other}"):
            part.client(other)


def test_a_mapped_part_is_the_part_of_the_mapped_whole():
    def double(columns):
        return {"x": 2 * columns["x"]}

    part = take_part(problems.ragged_clients(), 1, 2)
    want = take_part(problems.ragged_clients().map(double), 1, 2)
    np.testing.assert_array_equal(part.map(double).columns["x"], want.columns["x"])
    assert part.map(double).rows_held == want.rows_held == (15, 25)


@pytest.mark.parametrize("use", [lambda part: part.select([4]), lambda part: part.save("nowhere"), gather_parts])
def test_what_needs_all_rows_refuses_a_part(use):
    with pytest.raises(ValueError, match=re.escape("expected the data set to hold all its rows, got 'part 1 of 2'")):
        use(take_part(problems.ragged_clients(), 1, 2))


def test_columns_of_another_part_are_refused():
    whole = problems.ragged_clients()
    with pytest.raises(ValueError, match="expected columns to hold the 15 rows of part 0, got '25 rows'"):
        FederatedDataset(whole.columns, whole.offsets, whole.client_ids, Part(0, np.array([0, 4, 6])))


def test_a_run_of_one_process_refuses_the_part_of_another():
    import fedjax_tx as ftx

    experiment = problems.experiment(train=take_part(problems.ragged_clients(), 1, 2))
    with pytest.raises(
        ValueError, match="expected the data set to hold all its rows, or part 0 of 1, as this process takes part"
    ):
        ftx.make_round(experiment, ftx.Execution(num_lanes=1))


# ---- schedules


OFFSETS = np.array([0, 5, 5, 6, 15, 18, 25])
OWNERS = Owners(np.array([0, 4, 6]), np.array([0, 1, 1]))  # one device for clients 0..3, two for 4 and 5


def scheduled(ids, shuffle=False, lanes=1, owners=OWNERS, devices=3, batch_size=2):
    work = LocalWork(batch_size, epochs=2, shuffle=shuffle)
    capacity = plan_capacity(np.diff(OFFSETS), work, len(ids), lanes, devices=devices, owners=owners)
    return make_schedule(as_cohort(ids, 6, len(ids)), OFFSETS, work, capacity, 1, 4, owners)


def served(schedule, device) -> dict[int, list[int]]:
    """The rows that a device takes for each client, in order."""
    rows: dict[int, list[int]] = {}
    for tick in range(int(schedule.num_ticks[device])):
        for lane in range(schedule.slot.shape[-1]):
            first, count = schedule.first[device, tick, lane], schedule.count[device, tick, lane]
            taken = schedule.order[first : first + count].tolist()
            if taken:
                rows.setdefault(int(schedule.ids[schedule.slot[device, tick, lane]]), []).extend(taken)
    return rows


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("lanes", [1, 2])
def test_clients_train_on_devices_of_their_own_process_on_the_rows_there(shuffle, lanes):
    ids = [5, 0, 3, 1, 4, 2]
    schedule = scheduled(ids, shuffle, lanes)
    alone = scheduled(ids, shuffle, lanes, owners=None, devices=1)
    want = served(alone, 0)
    have = [served(schedule, device) for device in range(3)]
    assert set(have[0]) == {0, 2, 3} and set(have[1]) | set(have[2]) == {4, 5} and have[1] and have[2]
    for device, first_row in ((0, 0), (1, 15), (2, 15)):
        for client, rows in have[device].items():
            assert [first_row + row for row in rows] == want[client]  # the same order, counted from the process's first


def test_a_cohort_of_one_process_fits_and_leaves_the_other_idle():
    schedule = scheduled([0, 2, 3])
    assert schedule.num_ticks.tolist() == [2 * 3 + 2 * 1 + 2 * 5, 0, 0]
    assert int(schedule.finishes[0, -1]) == 3 and int(schedule.finishes[1, -1]) == 0


def test_owners_find_clients_beside_empty_parts():
    owners = Owners(np.array([0, 0, 2, 2, 6]), np.array([0, 1, 2, 3]))
    assert owners.of(np.arange(6)).tolist() == [1, 1, 3, 3, 3, 3]
    assert owners.first_rows(np.arange(6), OFFSETS).tolist() == [0, 5, 0, 1, 10, 13]
    assert owners.fewest_devices() == 1
