"""TensorFlow Federated's HDF5 files, made with the columns and dtypes that its data sets have."""

import h5py
import numpy as np
import pytest

from fedjax_tx.data import from_tff_hdf5


def write(path, clients):
    with h5py.File(path, "w") as file:
        for name, columns in clients.items():
            group = file.create_group(f"examples/{name}")
            for column, values in columns.items():
                text = h5py.string_dtype() if isinstance(values[0], str) else None
                group.create_dataset(column, data=values, dtype=text)
    return path


def test_fed_emnist_and_cifar100(tmp_path):
    pixels = np.random.default_rng(0).random((3, 28, 28), np.float32)
    emnist = {"f2": {"label": np.array([1, 2], np.int32), "pixels": pixels[:2]}}
    emnist["f1"] = {"label": np.array([3], np.int32), "pixels": pixels[2:]}
    data = from_tff_hdf5(write(tmp_path / "fed_emnist_train.h5", emnist))
    assert data.client_ids.tolist() == ["f1", "f2"]  # by name
    assert data.describe().endswith("label: int32, pixels: float32[28, 28]")
    np.testing.assert_array_equal(data.client(1)["pixels"], pixels[:2])
    image = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    cifar = {"0": {"coarse_label": np.array([4, 5]), "image": image, "label": np.array([90, 91])}}
    data = from_tff_hdf5(str(write(tmp_path / "cifar100.h5", cifar)), columns=["image", "label"])
    assert list(data.columns) == ["image", "label"]
    np.testing.assert_array_equal(data.columns["image"], image)


STACKOVERFLOW = {
    "creation_date": ["2016-01-01 00:00:00 UTC", "2017"],
    "score": np.array([3, -1], np.int64),
    "tags": ["python|jax", "c"],
    "title": ["how do i", "why — not"],
    "tokens": ["how do i sort", "a list"],
    "type": ["question", "answer"],
}


def test_texts_come_to_encode_as_strings(tmp_path):
    path = write(tmp_path / "stackoverflow.h5", {"00000001": STACKOVERFLOW})

    def encode(columns):
        assert {name: column.tolist() for name, column in columns.items()} == {
            name: list(values) for name, values in STACKOVERFLOW.items()
        }
        return {"words": [len(text.split()) for text in columns["tokens"]], "score": columns["score"]}

    data = from_tff_hdf5(path, encode=encode)
    assert data.columns["words"].tolist() == [4, 2] and data.columns["score"].tolist() == [3, -1]
    with pytest.raises(
        TypeError, match="column 'tokens' of client '00000001' in '.*h5' to be of numbers .*, got 'how do i sort'"
    ):
        from_tff_hdf5(path, columns=["tokens"])


def test_shakespeare_snippets_become_windows(tmp_path):
    path = write(tmp_path / "shakespeare.h5", {"HAMLET": {"snippets": ["to be", "or"]}, "MACBETH": {"snippets": ["is this"]}})
    encode = {"windows": lambda columns: {"tokens": [ord(letter) for text in columns["snippets"] for letter in text]}}["windows"]
    data = from_tff_hdf5(path, encode=encode, directory=tmp_path / "data", progress=False)
    assert data.client_sizes.tolist() == [7, 7] and bytes(data.client(0)["tokens"].tolist()) == b"to beor"


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "data.h5"
    with pytest.raises(FileNotFoundError, match="data.h5', which is not there"):
        from_tff_hdf5(path)
    path.write_text("no HDF5")
    with pytest.raises(ValueError, match="data.h5' to be an HDF5 file, got"):
        from_tff_hdf5(path)
    for clients, message in [
        ({}, r"data.h5' to have a group 'examples', got \[\]"),
        ({"a": {"x": np.int64([1])}}, r"client 'a' in '.*data.h5' to have the columns \['y'\], got \['x'\]"),
        (
            {"a": {"y": np.int64([1])}, "b": {"y": np.float64([1])}},
            r"'y' of client 'b' in '.*data.h5' to be int64, as of client 'a'",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            from_tff_hdf5(write(path, clients), columns=["y"])
    with h5py.File(path, "w") as file:
        file["examples/a/y"] = 3
        file["examples/b"] = 3
    with pytest.raises(ValueError, match="column 'y' of client 'a' in '.*' to be an array with one row an example"):
        from_tff_hdf5(path)
    with h5py.File(path, "a") as file:
        del file["examples/a"]
    with pytest.raises(ValueError, match="client 'b' in '.*' to be a group of columns"):
        from_tff_hdf5(path)
    with h5py.File(path, "w") as file:
        file["examples/a/y"] = np.array([b"\xff"], "S1")
    with pytest.raises(ValueError, match=r"column 'y' of client 'a' in '.*' to be text in UTF-8, got b'\\xff'"):
        from_tff_hdf5(path)
