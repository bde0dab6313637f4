"""Clients read one after another: what becomes of their columns, and what is refused, by whose name."""

import numpy as np
import pytest

from fedjax_tx.data.formats.clients import from_clients


def reader(*clients):
    return lambda start: iter(clients[start:])


def test_clients_keep_their_order_and_their_rows():
    data = from_clients(reader(("b", {"x": np.array([[1.0], [2.0]])}), ("a", {"x": []}), ("c", {"x": [[3.0]]})))
    assert data.client_ids.tolist() == ["b", "a", "c"]
    assert data.offsets.tolist() == [0, 2, 2, 3]
    assert data.columns["x"].tolist() == [[1], [2], [3]]


def test_numbers_are_cast_to_those_of_the_first_client_where_nothing_is_lost():
    data = from_clients(
        reader((1, {"x": np.array([], "U1")}), (2, {"x": [0.5]}), (3, {"x": np.array([7], ">i4")}), (4, {"x": []}))
    )
    assert data.columns["x"].dtype == np.float64
    assert data.columns["x"].tolist() == [0.5, 7]
    assert data.client_ids.dtype == np.int64 and data.client_sizes.tolist() == [0, 1, 1, 0]
    assert from_clients(reader((1, {"x": np.array([7], ">i4")}))).columns["x"].dtype == np.dtype("=i4")


def test_encode_sees_each_client_once_and_may_change_the_number_of_rows():
    seen = []

    def encode(columns):
        seen.append(columns["text"].tolist())
        return {"letter": [ord(letter) for text in columns["text"] for letter in text]}

    texts = [np.array(["ab", "c"], object), np.array([], object), np.array(["d"], object)]
    data = from_clients(reader(*((number, {"text": text}) for number, text in enumerate(texts))), encode=encode)
    assert seen == [["ab", "c"], [], ["d"]]
    assert data.columns["letter"].tolist() == [97, 98, 99, 100] and data.client_sizes.tolist() == [3, 0, 1]


def test_rows_of_one_shape_in_an_array_of_objects_are_stacked():
    rows = np.empty(2, object)
    rows[:] = [np.array([1, 2]), np.array([3, 4])]
    assert from_clients(reader((0, {"x": rows}))).columns["x"].tolist() == [[1, 2], [3, 4]]


FIRST = ("a", {"x": np.zeros((2, 3), np.float32), "y": [0, 1]})


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([("a", {"x": ["hello", "you"]})], "column 'x' of client 'a' to be of numbers .*, got 'hello' .str. in row 0"),
        ([("a", {"x": [1, None]}, "f.json")], "'x' of client 'a' in 'f.json' to be of numbers .*, got None .NoneType. in row 1"),
        ([("a", {"x": [[1, 2], [1]]})], r"to have rows of one shape .*, got \(2,\) in row 0, \(1,\) in row 1"),
        ([("a", {"x": [[[1, 2], [1]]]})], "rows of one shape .*, got uneven in row 0"),
        ([("a", {"x": np.array(["2020-01-01"], "M8[D]")})], "to be of numbers .*, got np.datetime64"),
        ([("a", {"x": 3})], "column 'x' of client 'a' to be an array with one row an example, got 3"),
        ([("a", {"x": [1], "y": [1, 2]})], "of client 'a' to be at least one, with equal numbers of rows, got {'x': 1, 'y': 2}"),
        ([("a", {})], "of client 'a' to be at least one"),
        ([("a", [1])], "the columns of client 'a' to be a dict"),
        ([("a", {"x": []})], "to give at least one example, got '1 clients without any'"),
        ([], "to give at least one example"),
        ([FIRST, ("b", {"x": np.zeros((1, 3))})], r"columns of client 'b' to be \['x', 'y'\], as of client 'a', got \['x'\]"),
        ([FIRST, ("b", {"x": np.zeros((1, 4), np.float32), "y": [0]})],
         r"column 'x' of client 'b' to be float32\[3\], as of client 'a' .*, got float32\[4\]"),
        ([FIRST, ("b", {"x": np.zeros((1, 3)), "y": [0]})], r"float32\[3\], as of client 'a' .*, got float64\[3\]"),
        ([FIRST, ("b", {"x": np.zeros((1, 3), np.float32), "y": [0.5]})], "column 'y' of client 'b' to be int64"),
        ([FIRST, FIRST], "the ids of clients to be there once, got \"client 'a'\""),
        ([FIRST, (1, FIRST[1])], "the ids of clients to be all strings or all integers, as 'a', got 1"),
        ([(0.5, FIRST[1])], "the id of a client to be a string or an integer, got 0.5"),
        ([(None, FIRST[1], "f.h5")], "the id of a client in 'f.h5' to be a string or an integer, got None"),
        ([FIRST[1]], "what read_clients gives to be a tuple .id, columns., got {"),
    ],
)  # fmt: skip
def test_what_is_refused(clients, message, unchecked):
    with pytest.raises((TypeError, ValueError), match=message):
        from_clients(reader(*clients))


def test_what_encode_gives_is_checked_by_name(unchecked):
    with pytest.raises(TypeError, match="the result of encode for client 'a' to be a dict"):
        from_clients(reader(FIRST), encode=lambda columns: columns["x"])
    with pytest.raises(ValueError, match="columns of client 'a' .*equal numbers of rows"):
        from_clients(reader(FIRST), encode=lambda columns: {"x": columns["x"], "y": [1]})
