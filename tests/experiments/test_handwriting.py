"""The study of handwriting: what is read from each form of FEMNIST, what is held out, and the whole of it at smoke size."""

import json

import handwriting
import numpy as np
import pytest

import fedjax_tx as ftx
from fedjax_tx.data import FederatedDataset

INK = np.random.default_rng(0).integers(0, 256, (5, 784)) / 255
LABELS, WRITERS, IS_TEST = np.array([3, 61, 0, 7, 9]), np.array([0, 0, 1, 1, 1]), np.array([False, True, False, False, True])
NAMES = ["ann", "bob"]


def write_npz(folder):
    pixels = np.rint(255 * (1 - INK)).astype(np.uint8)
    np.savez(folder / "some.npz", x=pixels, y=LABELS.astype(np.uint8), client=WRITERS.astype(np.uint8), test=IS_TEST)
    return folder / "some.npz"


def write_leaf(folder):
    for part, rows in (("train", ~IS_TEST), ("test", IS_TEST)):
        own = [rows & (number == WRITERS) for number in range(2)]
        data = {name: {"x": (1 - INK[rows]).tolist(), "y": LABELS[rows].tolist()} for name, rows in zip(NAMES, own, strict=True)}
        content = {"users": NAMES, "num_samples": [int(rows.sum()) for rows in own], "user_data": data}
        (folder / part).mkdir()
        (folder / part / "all_data_0.json").write_text(json.dumps(content))
    return folder


def write_tff(folder):
    h5py = pytest.importorskip("h5py")
    for part, rows in (("train", ~IS_TEST), ("test", IS_TEST)):
        with h5py.File(folder / f"fed_emnist_{part}.h5", "w") as file:
            for number, name in enumerate(NAMES):
                own = rows & (number == WRITERS)
                file[f"examples/{name}/pixels"] = (1 - INK[own]).reshape(-1, 28, 28).astype(np.float32)
                file[f"examples/{name}/label"] = LABELS[own].astype(np.int32)
    return folder


@pytest.mark.parametrize("write", [write_npz, write_leaf, write_tff])
def test_each_form_of_femnist_gives_the_same(tmp_path, write):
    for data, rows in zip(handwriting.read_femnist(write(tmp_path)), (~IS_TEST, IS_TEST), strict=True):
        np.testing.assert_array_equal(data.client_sizes, np.bincount(WRITERS[rows]))
        np.testing.assert_array_equal(data.columns["y"], LABELS[rows])
        ink = data.columns["x"] * handwriting.INK_SCALE["femnist"]
        np.testing.assert_allclose(ink.reshape(-1, 784), INK[rows], atol=1e-6)
        assert data.columns["x"].dtype == np.float32 and data.columns["y"].dtype == np.int32


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="expected --femnist to be an .npz, or a folder of LEAF's or TensorFlow Federated's"):
        handwriting.read_femnist(tmp_path)


def test_the_digits_are_all_there_once_and_the_test_is_that_of_any_alpha():
    (alike, test), (apart, same) = handwriting.read_digits(np.inf), handwriting.read_digits(0.0)
    assert alike.num_clients == apart.num_clients == 20
    assert alike.num_examples + test.num_examples == 1797
    np.testing.assert_array_equal(test.columns["x"], same.columns["x"])
    for data in (alike, apart):
        np.testing.assert_array_equal(np.bincount(data.columns["y"]), np.bincount(alike.columns["y"]))
    most = [[np.bincount(data.client(client)["y"]).max() for client in range(20)] for data in (alike, apart)]
    assert np.median(most[0]) < 20 < 70 < np.median(most[1])


def test_a_tenth_of_each_client_is_held_out():
    data = FederatedDataset.from_offsets({"y": np.arange(129)}, [0, 100, 109, 129])
    rest, tenth = handwriting.hold_out(data)
    assert rest.client_sizes.tolist() == [90, 9, 18] and tenth.client_sizes.tolist() == [10, 2]
    assert tenth.client_ids.tolist() == [0, 2]
    np.testing.assert_array_equal(np.sort(np.concatenate([rest.columns["y"], tenth.columns["y"]])), np.arange(129))


def test_the_models_have_about_as_many_parameters():
    for size, classes in ((8, 10), (28, 62)):
        models = handwriting.make_models(size, classes, smoke=False)
        images = np.zeros((1, size, size, 1), np.float32)
        counts = [ftx.models.describe(model, images).num_parameters for model in models.values()]
        assert max(counts) < 1.05 * min(counts)


@pytest.mark.slow
def test_the_study_at_smoke_size(tmp_path, capsys):
    told = handwriting.main(handwriting.Settings(smoke=True, run_dir=tmp_path))
    assert list(told) == ["digits_0"] and list(told["digits_0"]["models"]) == ["vit", "cnn"]
    for one in told["digits_0"]["models"].values():
        assert one["rates"]["server_lr"] in handwriting.SMOKE.server_rates and len(one["tried"]) == 2
        assert all(0 <= run["test/accuracy"] <= 1 for run in one["runs"])
    assert json.loads((tmp_path / "scores.json").read_text())["digits_0"]["skew"] == told["digits_0"]["skew"] > 0.8
    for name in ("scores", "digits_0_clients"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "FEMNIST is not read" in said and "| digits_0 |" in said
