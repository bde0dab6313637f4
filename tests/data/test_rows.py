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
    assert both.client_ids.tolist() == [3, 4, 5]
    assert [both.client(number)["x"].tolist() for number in range(3)] == [[2], [8], [9, 1]]


def test_other_columns_are_named():
    with pytest.raises(ValueError, match=r"expected the columns of parts\[1\] to be \['x', 'y'\], got \['x'\]"):
        ftx.data.concatenate([DATA, ftx.data.FederatedDataset.from_columns({"x": [1]}, ["a"])])
