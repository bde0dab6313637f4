"""LEAF's JSON files, made as its preprocessing writes them."""

import json

import numpy as np
import pytest

from fedjax_tx.data import from_leaf, make_splits


def write(path, user_data, /, **changes):
    """A file as LEAF's scripts write it: of numbers, or of Shakespeare's 80 characters and the next one."""
    content = {"users": list(user_data), "num_samples": [len(columns["y"]) for columns in user_data.values()]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"user_data": user_data} | changes))


def images(count, first):
    pixels = (np.arange(count * 784).reshape(count, 784) % 255 / 255.0).tolist()
    return {"x": pixels, "y": list(range(first, first + count))}


def test_femnist(tmp_path):
    write(tmp_path / "all_data_10.json", {"f3": images(2, 7)})
    write(tmp_path / "all_data_2.json", {"f1": images(1, 0), "f0": images(0, 0), "f2": images(3, 1)})
    data = from_leaf(tmp_path)
    assert data.client_ids.tolist() == ["f1", "f0", "f2", "f3"]  # file 2 before file 10
    assert data.client_sizes.tolist() == [1, 0, 3, 2]
    assert data.columns["x"].shape == (6, 784) and data.columns["x"].dtype == np.float64
    assert data.columns["y"].tolist() == [0, 1, 2, 3, 7, 8]
    np.testing.assert_array_equal(data.client(2)["x"], images(3, 1)["x"])


def test_shakespeare_by_encode(tmp_path):
    lines = {"x": ["to be or not to be "[:8], "o be or "], "y": [" ", "n"]}
    write(tmp_path / "all_data_0.json", {"HAMLET": lines})

    def encode(columns):
        return {name: [[ord(letter) for letter in text] for text in texts] for name, texts in columns.items()}

    data = from_leaf(tmp_path, encode=encode)
    assert bytes(data.columns["x"][1].tolist()).decode() == "o be or " and data.columns["y"].shape == (2, 1)
    with pytest.raises(
        TypeError, match=r"'x' of client 'HAMLET' in '.*all_data_0.json' .* encode= .*, got 'to be or' .str. in row 0"
    ):
        from_leaf(tmp_path)


def test_reddit_nested_lists_come_as_they_are(tmp_path):
    x, y = [[["<BOS>", "a"], ["b"]], [["c"]]], [{"count_tokens": 3}, {"count_tokens": 1}]
    write(tmp_path / "all_data_0.json", {"user": {"x": x, "y": y}})

    def encode(columns):
        assert columns["x"].tolist() == x
        return {"count": [row["count_tokens"] for row in columns["y"]]}

    assert from_leaf(tmp_path, encode=encode).columns["count"].tolist() == [3, 1]


def test_folders_of_splits(tmp_path):
    write(tmp_path / "train" / "all_data_0_niid_0_keep_0_train_9.json", {"a": images(2, 0), "b": images(2, 0)})
    write(tmp_path / "test" / "all_data_0_niid_0_keep_0_test_9.json", {"b": images(1, 5), "a": images(1, 6)})
    splits = make_splits(from_leaf(tmp_path / "train"), from_leaf(tmp_path / "test"))
    assert splits.test.client_ids.tolist() == ["a", "b"] and splits.test.columns["y"].tolist() == [6, 5]
    with pytest.raises(FileNotFoundError, match="hold LEAF's .json files, got one with the folders train, test"):
        from_leaf(tmp_path)


def test_conversion_reads_the_same_from_any_client_on(tmp_path):
    for number in range(3):
        write(tmp_path / "leaf" / f"all_data_{number}.json", {f"u{number}{part}": images(2, part) for part in range(2)})
    write(tmp_path / "leaf" / "all_data_3.json", {"late": {"x": [["1"]], "y": [0]}})
    with pytest.raises(TypeError, match="column 'x' of client 'late'"):
        from_leaf(tmp_path / "leaf", directory=tmp_path / "data")
    (tmp_path / "leaf" / "all_data_3.json").unlink()
    on_disk, in_memory = from_leaf(tmp_path / "leaf", directory=tmp_path / "data"), from_leaf(tmp_path / "leaf")
    assert on_disk.client_ids.tolist() == in_memory.client_ids.tolist() == ["u00", "u01", "u10", "u11", "u20", "u21"]
    np.testing.assert_array_equal(on_disk.columns["x"], in_memory.columns["x"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": None}, r"users of '.*all_data_0.json' to be as LEAF writes it, got None"),
        ({"num_samples": []}, r"num_samples of '.*' to have 1 entries, one a user, got 0"),
        ({"num_samples": [3]}, r"column 'x' of client 'a' in '.*' to have 3 entries, as num_samples says, got 1"),
        ({"users": ["b"]}, r"user_data' to have an entry 'b', got \['a'\]"),
        ({"user_data": {"a": [1]}}, r"client 'a' in '.*' to be a dict, got \[1\]"),
        ({"user_data": {"a": {"x": 1}}}, r"column 'x' of client 'a' in '.*' to be a list, got 1"),
        ({"users": ["a", "a"], "num_samples": [1, 1]}, r"to be there once, got .*client 'a' in '.*all_data_0.json'"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, changes, message):
    write(tmp_path / "all_data_0.json", {"a": images(1, 0)}, **changes)
    with pytest.raises((TypeError, ValueError), match=message):
        from_leaf(tmp_path)


def test_what_is_no_leaf_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="got one without"):
        from_leaf(tmp_path)
    (tmp_path / "all_data_0.json").write_text("{")
    with pytest.raises(ValueError, match="all_data_0.json' to be JSON, got"):
        from_leaf(tmp_path)
    (tmp_path / "all_data_0.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"all_data_0.json' to have an entry 'users', got \[1\]"):
        from_leaf(tmp_path)
