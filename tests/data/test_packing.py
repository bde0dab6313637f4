"""Packing by its laws: lanes are never shared and halve in time; halving costs no tick and no slot, and pays where chosen."""

import numpy as np
import pytest

from fedjax_tx.data.packing import choose_halvings, count_slots, narrowings, pack


def slots(packing, halvings: int) -> int:
    """Lanes over all ticks of all devices, tick by tick."""
    total, (_, lanes) = 0, packing.ends.shape
    for ends, narrow in zip(packing.ends, narrowings(packing.ends, halvings), strict=True):
        total += sum(lanes >> int((narrow <= tick).sum()) for tick in range(ends.max()))
    return total


@pytest.mark.parametrize("case", range(40))
def test_every_client_has_its_lane_to_itself_and_the_lane_lasts_as_long(case):
    generator = np.random.default_rng(case)
    spans = np.maximum(generator.lognormal(1, 1.2, generator.integers(0, 30)), 1).astype(int)
    for lanes, devices in ((1, 1), (2, 1), (6, 1), (32, 1), (3, 2), (4, 5)):
        flat = pack(spans, lanes, devices)
        for halvings in range(lanes.bit_length()):
            packing = pack(spans, lanes, devices, halvings)
            narrow = narrowings(packing.ends, halvings)
            busy = np.zeros((devices, packing.ends.max(), lanes), int)
            for device, lane, start, span in zip(packing.device, packing.lane, packing.start, spans, strict=True):
                busy[device, start : start + span, lane] += 1
            assert busy.max(initial=0) <= 1 and busy.sum() == spans.sum()
            np.testing.assert_array_equal(busy.sum(1), packing.ends)  # a lane is busy until it is dry
            assert (np.diff(packing.ends, axis=1) <= 0).all() and (np.diff(narrow, axis=1) >= 0).all()
            for number, ticks in enumerate(narrow.T, start=1):
                width = lanes >> number
                for device, tick in enumerate(ticks):
                    assert not busy[device, tick:, width:].any()
                    # Not a tick later than need be: at the tick before, more lanes were at work.
                    assert tick == 0 or busy[device, tick - 1, width:].any()
            assert packing.ends.max() <= flat.ends.max()
            assert slots(packing, halvings) <= slots(flat, halvings) <= slots(flat, 0)
            counted = count_slots(narrow, packing.ends[:, 0], lanes)
            assert counted.shape == (devices,) and counted.sum() == slots(packing, halvings)


def test_lanes_that_the_longest_client_would_leave_dry_are_left_empty_by_hand():
    spans = np.array([1, 1, 8, 1, 1, 1, 1, 1])
    flat = pack(spans, 8)
    assert flat.ends.tolist() == [[8, 1, 1, 1, 1, 1, 1, 1]]
    assert slots(flat, 0) == 64
    # At most four lanes: 8; 1 + 1 + 1; 1 + 1; 1 + 1. From tick 2 on, two of them are enough.
    once = pack(spans, 8, halvings=1)
    assert once.ends.tolist() == [[8, 3, 2, 2, 0, 0, 0, 0]]
    assert narrowings(once.ends, 2).tolist() == [[0, 2]]
    assert slots(once, 1) == 4 * 8
    # Two lanes: 8; seven times 1. The last tick needs one lane. One lane alone would take 15 ticks.
    often = pack(spans, 8, halvings=3)
    assert often.lane.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    assert often.start.tolist() == [0, 1, 0, 2, 3, 4, 5, 6]
    assert narrowings(often.ends, 3).tolist() == [[0, 0, 7]]
    assert slots(often, 3) == 2 * 7 + 1


def test_lanes_that_all_clients_fill_halve_only_as_they_run_dry_by_hand():
    # 5 and 4 and 3 and 2: four lanes end one by one; two lanes would take 7 ticks.
    packing = pack(np.array([2, 3, 4, 5]), 4, halvings=2)
    assert packing.lane.tolist() == [3, 2, 1, 0]
    assert narrowings(packing.ends, 2).tolist() == [[3, 4]]
    assert slots(packing, 2) == 4 * 3 + 2 * 1 + 1 * 1


def test_an_odd_number_of_lanes_halves_to_the_next_lower():
    packing = pack(np.array([9, 7, 4, 2, 2]), 5, halvings=2)
    assert narrowings(packing.ends, 2).tolist() in ([[4, 7]], [[0, 8]])
    assert slots(packing, 2) <= 4 * 5 + 3 * 2 + 2


def test_each_device_halves_its_lanes_when_its_own_run_dry():
    packing = pack(np.array([9, 8, 5, 4, 2, 1]), 3, devices=2, halvings=1)
    assert packing.ends.tolist() == [[9, 5, 2], [8, 4, 1]]
    assert narrowings(packing.ends, 1).tolist() == [[5], [4]]
    assert count_slots(narrowings(packing.ends, 1), packing.ends[:, 0], 3).tolist() == [19, 16]


def test_halvings_are_chosen_as_long_as_each_saves_a_twentieth():
    # All end together: nothing to save.
    assert choose_halvings(np.full(32, 5), 32) == 0
    # 100 and 31 x 1: 3200 slots; 16 lanes 1600; 8 lanes 800; 4 lanes 400; 2 lanes 200; then one lane from tick 31 on, 131.
    spans = np.append(100, np.ones(31, int))
    assert [slots(pack(spans, 32, 1, halvings), halvings) for halvings in range(6)] == [3200, 1600, 800, 400, 200, 131]
    assert choose_halvings(spans, 32) == 5
    # 20 and 19: 40 slots; 39 with one lane at the end, which is no twentieth less; with 20 and 18 it is.
    assert choose_halvings(np.array([200, 190]), 2) == 0
    assert choose_halvings(np.array([200, 180]), 2) == 1
    assert choose_halvings(np.array([20, 1]), 2) == 0  # too short
    assert choose_halvings(np.array([], int), 4) == 0
    assert choose_halvings(np.array([7]), 1) == 0


def test_work_a_on_32_lanes_reaches_the_share_that_halving_is_for():
    generator = np.random.default_rng(0)
    sizes = np.exp(np.log(32) + generator.standard_normal(512)).round().clip(4, 512).astype(int)
    shares = {0: [], 5: []}
    for _ in range(50):
        cohort = generator.choice(512, 32, replace=False)
        for halvings, share in shares.items():
            packing = pack(-(-sizes[cohort] // 8), 32, halvings=halvings)
            share.append(sizes[cohort].sum() / 8 / slots(packing, halvings))
    assert np.mean(shares[0]) < 0.25
    assert np.min(shares[5]) > 0.7 and np.mean(shares[5]) > 0.85
