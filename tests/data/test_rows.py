"""Rows kept and put together: against the same done client by client, and taking apart what was put together."""

import numpy as np
import pytest

import fedjax_tx as ftx

DATA = ftx.data.FederatedDataset.from_columns(
    {"x": np.arange(6), "y": np.arange(12.0).reshape(6, 2)}, ["a", "a", "b", "c", "c", "c"]
)


def test_rows_stay_with_their_clients_and_clients_without_rows_are_gone():
    kept = np.array([False, True, False, True, False, True])
    some = ftx.data.keep_rows(DATA, kept)
    assert some.client_ids.tolist() == ["a", "c"] and some.client_sizes.tolist() == [1, 2]
    assert some.client(1)["x"].tolist() == [3, 5] and some.client(1)["y"].tolist() == [[6, 7], [10, 11]]


@pytest.mark.parametrize("cut", range(7))
def test_what_is_taken_apart_is_whole_again_when_put_together(cut):
    early = np.arange(6) < cut
    whole = ftx.data.concatenate([ftx.data.keep_rows(DATA, early), ftx.data.keep_rows(DATA, ~early)])
    assert ftx.data.row_clients(whole).tolist() == ftx.data.row_clients(DATA).tolist()
    for name, column in DATA.columns.items():
        np.testing.assert_array_equal(whole.columns[name], column)


def test_rows_of_one_client_follow_the_order_of_the_parts():
    left = ftx.data.FederatedDataset.from_columns({"x": [1, 2]}, [5, 3])
    right = ftx.data.FederatedDataset.from_columns({"x": [8, 9]}, [4, 5])
    both = ftx.data.concatenate([right, left])
    assert both.client_ids.tolist() == [4, 5, 3]
    assert [both.client(number)["x"].tolist() for number in range(3)] == [[8], [9, 1], [2]]


UNSORTED = ftx.data.FederatedDataset.from_offsets({"x": np.arange(4)}, [0, 2, 2, 3, 4], ["take_2", "take_10", "take_1", "a"])


def test_clients_stay_in_their_order():
    kept = ftx.data.keep_rows(UNSORTED, np.array([False, True, True, True]))
    assert kept.client_ids.tolist() == ["take_2", "take_1", "a"]
    assert [kept.client(number)["x"].tolist() for number in range(3)] == [[1], [2], [3]]
    assert ftx.data.keep_rows(UNSORTED, np.zeros(4, bool)).num_clients == 0


def test_put_together_they_come_as_they_first_appear_and_empty_ones_stay():
    one = ftx.data.concatenate([UNSORTED])
    assert one.client_ids.tolist() == UNSORTED.client_ids.tolist() and one.client_sizes.tolist() == [2, 0, 1, 1]
    np.testing.assert_array_equal(one.columns["x"], UNSORTED.columns["x"])
    later = ftx.data.FederatedDataset.from_offsets({"x": [7, 8, 9]}, [0, 1, 2, 3], ["new one", "take_10", "take_2"])
    both = ftx.data.concatenate([UNSORTED, later])
    assert both.client_ids.tolist() == ["take_2", "take_10", "take_1", "a", "new one"]
    assert [both.client(number)["x"].tolist() for number in range(5)] == [[0, 1, 9], [8], [2], [3], [7]]


def test_nothing_is_put_together_to_nothing():
    none = ftx.data.keep_rows(UNSORTED, np.zeros(4, bool))
    assert ftx.data.concatenate([none, none]).num_clients == 0
    assert ftx.data.concatenate([none, UNSORTED]).client_ids.tolist() == UNSORTED.client_ids.tolist()


RAGGED = ftx.data.FederatedDataset.from_offsets(
    {"x": np.arange(131)}, np.append(0, np.cumsum([1, 100, 0, 2, 3, 20, 5])), ["z", "b", "empty", "y", "a", "c", "d"]
)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_each_row_is_in_one_set_and_all_sets_have_all_clients(seed):
    parts = ftx.data.split_rows(RAGGED, [0.8, 0.1, 0.1], seed=seed)
    for part in parts:
        assert part.client_ids.tolist() == RAGGED.client_ids.tolist()
        assert all(np.all(np.diff(part.client(number)["x"]) > 0) for number in range(7))  # in stored order
    for number in range(7):
        rows = np.concatenate([part.client(number)["x"] for part in parts])
        np.testing.assert_array_equal(np.sort(rows), RAGGED.client(number)["x"])
    assert [part.client_sizes.tolist() for part in parts] == [
        [1, 80, 0, 2, 2, 16, 4],
        [0, 10, 0, 0, 1, 2, 0],
        [0, 10, 0, 0, 0, 2, 1],
    ]


def test_in_stored_order_the_last_rows_are_the_last_set():
    train, test = ftx.data.split_rows(RAGGED, [0.75, 0.25], seed=None)
    assert train.client(5)["x"].tolist() == list(range(106, 121)) and test.client(5)["x"].tolist() == list(range(121, 126))


def test_the_seed_names_a_random_choice_of_a_clients_rows():
    first, again, other = (ftx.data.split_rows(RAGGED, [0.5, 0.5], seed=seed)[1].columns["x"].tolist() for seed in (0, 0, 1))
    assert first == again != other
    counts = np.zeros(131)
    for seed in range(400):
        counts[ftx.data.split_rows(RAGGED, [0.8, 0.2], seed=seed)[1].columns["x"]] += 1
    assert np.all(np.abs(counts[1:101] / 400 - 0.2) < 5 * np.sqrt(0.16 / 400))


def test_a_first_set_of_a_small_share_has_a_row_of_each_client():
    first, _, third = ftx.data.split_rows(RAGGED, [0.1, 0.1, 0.8], seed=0)
    assert first.client_sizes.tolist() == [1, 10, 0, 1, 1, 2, 1] and third.client_sizes[3] == 1


@pytest.mark.parametrize(
    ("shares", "message"),
    [([0.8, 0.1], "shares to sum to 1"), ([1.0, 0.0], "a share of shares > 0, got 0.0"), ([], "to sum to 1")],
)
def test_shares_that_are_none_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        ftx.data.split_rows(RAGGED, shares, seed=0)


def test_parts_that_differ_in_kind_are_named():
    def data(x, client):
        return ftx.data.FederatedDataset.from_columns({"x": x}, [client])

    for parts, message in (
        (
            [data([1], 7), data([2], "7")],
            r"expected the client ids of parts\[1\] to be integers, as of parts\[0\], got 'strings'",
        ),
        ([data([[1, 2]], 7), data([[2]], 8)], r"column 'x' of parts\[1\] to be int64\[2\], as of parts\[0\], got 'int64\[1\]'"),
        ([data([1], 7), data(["a"], 8)], r"column 'x' of parts\[1\] to be int64, as of parts\[0\], got '<U1'"),
    ):
        with pytest.raises(ValueError, match=message):
            ftx.data.concatenate(parts)


def test_other_columns_are_named():
    with pytest.raises(ValueError, match=r"expected the columns of parts\[1\] to be \['x', 'y'\], got \['x'\]"):
        ftx.data.concatenate([DATA, ftx.data.FederatedDataset.from_columns({"x": [1]}, ["a"])])
