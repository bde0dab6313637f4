"""Work C at smoke size; its bare arithmetic ends where the rounds end, however its clients are grouped."""

import jax
import numpy as np
import pytest
import tiny_clients

import fedjax_tx as ftx

pytestmark = pytest.mark.slow  # compiles for a minute


def test_the_benchmark_reports_every_system_and_part(tmp_path, capsys):
    figures = tiny_clients.main(tiny_clients.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    bare = {f"bare, {grouping}" for grouping in tiny_clients.GROUPINGS}
    assert {*bare, "2 lanes", "4 lanes", "loop over clients"} <= set(figures["rows"])
    assert figures["bare"] in bare
    assert figures["rows"][figures["bare"]]["ratio"] == [1.0, 1.0]
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in figures["rows"].values())
    assert 0 < figures["rows"]["2 lanes"]["useful"] <= 1
    assert set(figures["parts"]) == {"sampling and scheduling", "handing over", "device", "whole round"}
    assert "| system |" in capsys.readouterr().out


def test_groups_hold_every_batch_of_the_cohort_once():
    settings = tiny_clients.Settings(clients=60, clients_per_round=20, features=2, classes=3, batch_size=4, shuffle=True)
    data = tiny_clients.make_data(settings)
    round_fn = ftx.make_round(tiny_clients.make_experiment(settings, data), ftx.Execution(num_lanes=2))
    state = round_fn.init()
    plan = round_fn.plan(state, 1)
    want = np.concatenate([data.client(int(client))["x"] for client in plan.cohorts[0].ids])
    for grouping in tiny_clients.GROUPINGS:
        groups = tiny_clients.make_groups(settings, plan, data.columns, grouping)
        rows = np.concatenate([np.asarray(x)[np.asarray(mask)] for x, _, mask, _ in groups])
        np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(want, axis=0))
        assert len(rows) == len(want) == sum(float(sizes.sum()) for *_, sizes in groups)
        assert [len(sizes) for *_, sizes in groups] == [x.shape[1] for x, *_ in groups]
    assert all(np.asarray(mask).any(axis=(0, 2)).all() for _, _, mask, _ in groups)


def test_a_masked_batch_moves_nothing():
    params = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
    moved = tiny_clients.step(params, np.ones((4, 2), np.float32), np.zeros(4, np.int32), np.zeros(4, bool))
    jax.tree.map(np.testing.assert_array_equal, moved, params)
