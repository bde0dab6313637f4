"""The study of the fleet: its scores on made numbers, and the whole of it at smoke size."""

import types

import fleet as study
import jax
import numpy as np
import pytest

import fedjax_tx as ftx


def scored(choice):
    return types.SimpleNamespace(client_metrics={"choice": {"error": (np.array(choice), np.array([1.0, 3.0]))}})


def test_errors_are_means_over_windows_and_the_least_is_chosen():
    runs = {"a": scored([8.0, 0.0]), "b": scored([0.0, 2.0])}
    assert [study.mean_error(run, "choice") for run in runs.values()] == [2.0, 1.5]
    assert study.choose(runs) == "b"


def test_straight_on_misses_by_the_targets_length():
    y = np.array([[[0, 0], [3, 4], [0, 0], [0, 5]], [[0, 0], [0, 0], [0, 0], [8, 6]]], np.float32)
    data = ftx.data.FederatedDataset.from_columns({"y": y}, np.array([0, 1]))
    assert study.straight_on(data) == {"error": 2.5, "error_4s": 7.5}


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_networks_have_about_as_many_parameters_and_errors_are_distances(name):
    task = study.make_task(study.Settings(), name)
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    assert abs(sum(leaf.size for leaf in jax.tree.leaves(params)) - 26_500) < 400
    outputs = {"logits": np.zeros((1, 4, 2))}
    told = task.metrics(outputs, {"y": np.array([[[3, 4], [0, 0], [0, 0], [6, 8]]], np.float32)})
    assert (float(told["error"][0][0]), float(told["error_4s"][0][0])) == (3.75, 10.0)


@pytest.mark.slow
def test_the_study_at_smoke_size(tmp_path, capsys):
    pytest.importorskip("highway_env")
    told = study.main(study.Settings(smoke=True, run_dir=tmp_path))
    assert set(told) == {"transformer"} and len(told["transformer"]["alone, vehicles"][0]) == 6
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "| transformer | then its own | " in capsys.readouterr().out
