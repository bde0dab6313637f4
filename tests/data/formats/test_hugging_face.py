"""Hugging Face's data sets: features of the kinds that they have."""

import datasets
import numpy as np
import pytest
from PIL import Image

from fedjax_tx.data import from_hugging_face

PICTURES = [Image.fromarray(np.full((2, 3), 10 * number, np.uint8)) for number in range(4)]


@pytest.fixture(scope="module")
def rows():
    features = {
        "writer_id": datasets.Value("string"),
        "image": datasets.Image(),
        "character": datasets.ClassLabel(names=["a", "b", "c", "d"]),
        "stroke": datasets.Sequence(datasets.Value("float64"), length=2),
        "text": datasets.Value("string"),
        "grid": datasets.Array2D((2, 2), "int32"),
    }
    columns = {"writer_id": ["b", "a", "b", "a"], "image": PICTURES, "character": [0, 1, 2, 3]}
    columns |= {
        "stroke": [[0.1, 0.2]] * 4,
        "text": ["w", "xx", "yyy", ""],
        "grid": [[[1, 2], [3, number]] for number in range(4)],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_features_of_all_kinds(rows):
    data = from_hugging_face(rows, "writer_id", columns=["image", "character", "stroke", "grid"])
    assert data.client_ids.tolist() == ["a", "b"] and data.columns["character"].tolist() == [1, 3, 0, 2]
    assert data.columns["image"].shape == (4, 2, 3) and data.columns["image"].dtype == np.uint8
    assert data.columns["image"][:, 1, 1].tolist() == [10, 30, 0, 20]
    assert data.columns["stroke"].dtype == np.float64 and data.columns["stroke"][0].tolist() == [0.1, 0.2]
    assert data.columns["grid"].dtype == np.int32 and data.columns["grid"][:, 1, 1].tolist() == [1, 3, 0, 2]


def test_indices_and_formats_of_the_data_set_itself_are_heeded_and_left(rows):
    chosen = rows.select([2, 0, 3]).with_format("numpy")
    data = from_hugging_face(chosen, "writer_id", columns=["character"])
    assert data.columns["character"].tolist() == [3, 2, 0] and data.client_sizes.tolist() == [1, 2]
    by_class = from_hugging_face(rows, "character", columns=["stroke"])
    assert by_class.client_ids.tolist() == [0, 1, 2, 3]


def test_texts_come_to_encode(rows):
    data = from_hugging_face(rows, "writer_id", encode=lambda columns: {"length": [len(text) for text in columns["text"]]})
    assert data.columns["length"].tolist() == [2, 0, 1, 3]
    with pytest.raises(TypeError, match="column 'text' of client 'a' in 'dataset' to be of numbers .*, got 'xx'"):
        from_hugging_face(rows, "writer_id", columns=["text"])


def test_what_is_refused(rows, unchecked):
    with pytest.raises(TypeError, match="dataset to be a datasets.Dataset, so one of the splits train, test, got"):
        from_hugging_face(datasets.DatasetDict(train=rows, test=rows), "writer_id")
    with pytest.raises(TypeError, match="datasets.Dataset, not a stream"):
        from_hugging_face(rows.to_iterable_dataset(), "writer_id")
    with pytest.raises(ValueError, match="client_key to be one of .*did you mean 'writer_id'"):
        from_hugging_face(rows, "writer")
