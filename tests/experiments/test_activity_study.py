"""The study of activity: who is judged on what, the forest's features by hand, and the whole of it at smoke size."""

import json

import activity
import numpy as np
import pytest


@pytest.fixture(scope="module")
def data():
    return activity.load_data(activity.Settings(window=100))


def rows(part):
    """The windows as a set of bytes."""
    return {row.tobytes() for row in part.columns["x"]}


def test_recordings_are_parted_by_time_and_no_window_is_lost(data):
    assert len(rows(data.whole)) == data.whole.num_examples == 2_293
    for parts in ((data.train, data.test), (data.early, data.choice, data.late)):
        assert sum(part.num_examples for part in parts) == data.whole.num_examples
        assert set.union(*map(rows, parts)) == rows(data.whole)
        assert all(part.client_ids.tolist() == list(range(1, 11)) for part in parts)
    assert data.early.columns["progress"].max() < 0.25 <= data.choice.columns["progress"].min()
    assert data.choice.columns["progress"].max() < 0.5 <= data.late.columns["progress"].min()


def test_unseen_people_take_no_part_in_training(data):
    study = activity.make_study(activity.Settings(smoke=True, window=100), "transformer", data)
    cohorts = study.experiment([0, 2, 9], rounds=2, rate=0.1, seed=0).cohorts
    state = cohorts.init(10)
    for _ in range(2):
        ids, state = cohorts.select(state, np.random.default_rng(0), None)
        assert np.asarray(getattr(ids, "ids", ids)).tolist() == [0, 2, 9]


@pytest.mark.parametrize("name", ["transformer", "cnn", "lstm"])
def test_models_have_about_as_many_parameters(name):
    model = activity.make_model(activity.Settings(), name)
    shapes = activity.jax.eval_shape(model.init, activity.jax.random.key(0))
    assert abs(sum(leaf.size for leaf in activity.jax.tree.leaves(shapes)) - 27_200) < 300


def test_features_of_a_window_by_hand():
    # One axis: 0, 0, 4, 4 (mean 2, spread 2, crosses its mean once in three steps), the other still.
    x = np.array([[[0, 7], [0, 7], [4, 7], [4, 7]]], np.float32)
    found = activity.features(x).reshape(10, 2)
    # mean, spread, least, greatest, skewness, kurtosis, crossings, mean step, median, distance of the quartiles
    np.testing.assert_allclose(found[:, 0], [2, 2, 0, 4, 0, 1, 1 / 3, 4 / 3, 2, 4], rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], [7, 0, 7, 7, 0, 0, 0, 0, 7, 0], atol=1e-5)


@pytest.mark.slow
def test_the_study_at_smoke_size_and_again_from_what_it_left(tmp_path, capsys):
    settings = activity.Settings(smoke=True, run_dir=tmp_path)
    told = activity.main(settings)
    (one,) = told.values()
    assert sorted(sum((fold["unseen"] for fold in one["folds"]), [])) == list(range(10))
    for part in ("whole", "late", "personal", "alone"):
        assert np.shape(one[part]) == (1, 10) and 0 <= np.min(one[part]) <= np.max(one[part]) <= 1
    assert all(fold["rate"] in fold["tried"] and len(fold["tried"]) == 3 for fold in one["folds"])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["transformer"]["late"] == one["late"] and len(scores["forest"][0]) == 10
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "| transformer | 1," in capsys.readouterr().out
    again = activity.main(settings)
    assert again["transformer"]["late"] == one["late"] and again["transformer"]["personal"] == one["personal"]
