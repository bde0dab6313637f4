"""tensorflow-datasets' data sets, prepared here in array_record without TensorFlow."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fedjax_tx.data import from_tfds

SPEAKERS = ["eve", "bob", "eve", "ann", "bob"]


class Sounds(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Features of the kinds that data sets have; pictures are files, since TensorFlow would encode arrays."""

    VERSION = tfds.core.Version("1.0.0")
    folder: str

    def _info(self):
        features = {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int64),
            "audio/filename": tfds.features.Text(),
            "label": tfds.features.ClassLabel(num_classes=5),
            "picture": tfds.features.Image(shape=(2, 3, 1)),
            "speaker": {"name": tfds.features.Text(), "age": np.int32},
            "words": tfds.features.Sequence(tfds.features.Text()),
            "pair": tfds.features.Sequence(np.float32, length=2),
            "boxes": tfds.features.Sequence({"size": np.int32}),
            "frames": tfds.features.Dataset({"number": np.int64}),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for number in range(count):
            path = f"{self.folder}/{number}.png"
            Image.fromarray(np.full((2, 3), 10 * number, np.uint8)).save(path)
            yield (
                number,
                {
                    "audio": np.arange(number + 1),
                    "audio/filename": f"{number}_{SPEAKERS[number]}_0.wav",
                    "label": number,
                    "picture": path,
                    "speaker": {"name": SPEAKERS[number], "age": 20 + number},
                    "words": ["é"] * number,
                    "pair": [number, 0.5],
                    "boxes": {"size": list(range(number))},
                    "frames": [{"number": 1}],
                },
            )


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Sounds.folder = str(folder)
    return Sounds(data_dir=str(folder), file_format="array_record")


FIXED = ["label", "picture", "speaker/age", "pair"]


def test_examples_go_to_their_clients(builder):
    data = from_tfds(builder, "speaker/name", columns=FIXED)
    assert data.client_ids.tolist() == ["ann", "bob", "eve"] and data.client_sizes.tolist() == [1, 2, 2]
    label = data.columns["label"]
    assert sorted(data.client(1)["label"]) == [1, 4] and sorted(label) == [0, 1, 2, 3, 4]
    assert data.columns["picture"].shape == (5, 2, 3, 1) and data.columns["picture"].dtype == np.uint8
    np.testing.assert_array_equal(data.columns["picture"][:, 1, 2, 0], 10 * label)
    assert data.columns["speaker/age"].dtype == np.int32
    np.testing.assert_array_equal(data.columns["speaker/age"], 20 + label)
    assert data.columns["pair"].dtype == np.float32
    np.testing.assert_array_equal(data.columns["pair"], np.stack([label, np.full(5, 0.5)], 1))


def test_a_function_names_the_client_and_a_split_the_examples(builder):
    data = from_tfds(builder, lambda example: example["audio/filename"].split("_")[1], split="test", columns=["label"])
    assert data.client_ids.tolist() == ["bob", "eve"] and data.columns["label"].tolist() == [1, 0]
    both = from_tfds(builder, "speaker/name", split="train+test", columns=["label"])
    assert both.num_examples == 7
    by_age = from_tfds(builder, "speaker/age", split="train[:3]", columns=["label"])
    assert by_age.num_clients == by_age.num_examples == 3


def test_texts_and_lengths_that_vary_come_to_encode(builder, tmp_path):
    def encode(columns):
        assert "speaker/name" not in columns
        long = max(map(len, columns["audio"]))
        assert [len(words) for words in columns["words"]] == columns["label"].tolist() and set(sum(columns["words"], [])) <= {"é"}
        assert columns["boxes/size"][0] == list(range(columns["label"][0]))
        return {"longest": np.full(len(columns["audio"]), long), "name": [ord(name[2]) for name in columns["audio/filename"]]}

    data = from_tfds(builder, "speaker/name", encode=encode, directory=tmp_path / "data")
    assert data.columns["longest"].tolist() == [4, 5, 5, 3, 3]
    assert bytes(data.columns["name"].tolist()) == b"abbee"
    for column, message in [
        ("audio", r"'audio' of client 'bob' in .* rows of one shape .*, got \(\d,\) in row 0, \(\d,\) in row 1"),
        ("words", "'words' of client 'ann' in \"'train' of 'sounds'\" to be of numbers"),
        ("boxes/size", "'boxes/size' of client 'bob' .* rows of one shape"),
        ("frames", "'frames' of client 'ann' .* to be of numbers .*, got PythonDataSource"),
    ]:
        with pytest.raises(TypeError, match=message):
            from_tfds(builder, "speaker/name", columns=[column])


def test_what_is_prepared_is_found_again(builder):
    read_only = tfds.builder_from_directory(builder.data_path)
    assert from_tfds(read_only, "speaker/name", columns=["label"]).num_examples == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"client_key": "speaker"}, "client_key to be one of 'audio', .*'speaker/name'"),
        ({"columns": ["speakr/age"]}, "columns to be one of .*did you mean 'speaker/age'.*, got 'speakr/age'"),
        (
            {"client_key": "pair", "columns": ["label"]},
            "client_key 'pair' of 'train' of 'sounds' to hold strings or integers, got",
        ),
        ({"split": "validation"}, "split to be one of test, train, or of parts of them, got 'validation'"),
        ({"split": "train[:0]"}, r"split to have at least one example, got 'train\[:0\]'"),
        ({"name_or_builder": 3}, "name_or_builder to be a data set's name or a builder of tensorflow_datasets, got 3"),
    ],
)
def test_what_is_refused(builder, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_tfds(**{"name_or_builder": builder, "client_key": "label", **arguments})


def test_tensorflow_is_asked_for_only_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ModuleNotFoundError, match="expected TensorFlow, which tensorflow_datasets needs for 'spoken_digit'"):
        from_tfds("spoken_digit", "label")
    assert "tensorflow" not in [name for name, module in sys.modules.items() if module is not None]
