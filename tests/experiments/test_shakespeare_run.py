"""The main job at smoke size, as its user runs it: what it leaves, its configuration given back, and the comparison."""

import dataclasses
import json

import central
import jax
import numpy as np
import pytest
import shakespeare

from fedjax_tx.data.sources import shakespeare as source


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def settings(data_dir, tmp_path_factory):
    arguments = ["--smoke", "--run-dir", str(tmp_path_factory.mktemp("run")), "--data-dir", data_dir]
    return shakespeare.read_settings(arguments)


@pytest.fixture(scope="module")
def run(settings):
    return shakespeare.main(settings)


@pytest.fixture(scope="module")
def compared(run, settings):
    """The run's directory once it was compared with central training, which goes on from the finished run."""
    shakespeare.main(dataclasses.replace(settings, compare_central=True))
    return settings.run_dir


def read_records(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_the_run_directory_holds_what_a_researcher_looks_at(run, settings):
    records = read_records(settings.run_dir)
    assert [record["round"] for record in records] == [1, 2, 3, 4]
    assert {"test/loss", "unseen/loss", "test/loss/client_p10"} <= set(records[-1])
    assert (settings.run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    scores = json.loads((settings.run_dir / "scores.json").read_text())
    assert scores == run.scores
    assert 2.0 < scores["test/loss"] < np.log(source.VOCABULARY_SIZE)
    text = (settings.run_dir / "sample.txt").read_text().strip()
    assert len(text) > 100 and set(text) <= set(source.SYMBOLS)
    assert sorted(path.name for path in (settings.run_dir / "checkpoints").iterdir())[-1] == "4"


def test_the_scores_are_those_of_all_clients(run):
    test, unseen = run.splits.test, run.splits.unseen
    assert run.evaluate["test"].num_clients == 8 < test.num_clients
    everyone = shakespeare.ftx.make_evaluation(run.experiment, unseen)(run.result.state)["loss"]
    assert everyone[0].shape == (unseen.num_clients,)
    np.testing.assert_allclose(run.scores["unseen/loss"], np.average(everyone[0], weights=everyone[1]), rtol=1e-5)


@pytest.mark.slow
def test_a_configuration_given_back_is_the_same_run(run, settings, tmp_path):
    arguments = ["--config", str(settings.run_dir / "config.json"), "--run-dir", str(tmp_path), "--no-compare-central"]
    again = shakespeare.train(shakespeare.read_settings(arguments))
    assert (tmp_path / "metrics.jsonl").read_text() == (settings.run_dir / "metrics.jsonl").read_text()
    for one, other in zip(jax.tree.leaves(run.result.params), jax.tree.leaves(again.result.params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_directory_of_other_settings_is_refused_naming_the_setting(run, settings):
    arguments = ["--smoke", "--client-lr", "0.5", "--run-dir", str(settings.run_dir), "--data-dir", str(settings.data_dir)]
    with pytest.raises(ValueError, match=r"config.client_lr is 0.1 there and 0.5 here"):
        shakespeare.train(shakespeare.read_settings(arguments))
    assert json.loads((settings.run_dir / "config.json").read_text())["client_lr"] == 0.1


def test_settings_that_this_script_does_not_have_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"learning_rate": 1}')
    with pytest.raises(SystemExit, match="expected .*config.json to hold settings of this script, got learning_rate"):
        shakespeare.read_settings(["--config", str(tmp_path / "config.json")])


# ---- the comparison


@pytest.mark.slow
def test_central_and_federated_training_see_as_many_examples(run, compared):
    assert (compared / "central.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((compared / "central.json").read_text())["rows"]
    federated = rows["federated, as configured"]
    (one,) = [row for name, row in rows.items() if name.startswith("central")]
    assert federated["examples"] == one["examples"] == run.result.ledger["examples"]
    assert one["curve"][-1][0] <= federated["curve"][-1][0] == federated["examples"]
    assert federated["scores"] == run.scores


@pytest.mark.slow
def test_the_best_central_rate_is_compared(compared):
    told = json.loads((compared / "central.json").read_text())
    losses = {one["rate"]: one["scores"]["test/loss"] for one in told["rates"]}
    assert set(losses) == set(central.RATES)
    assert f"central, Adam at {min(losses, key=losses.get)}" in told["rows"]


def test_central_training_is_what_a_run_scores(run):
    # Scored by the same code, the run's own parameters get the run's own scores.
    assert central.score(run, run.result.state.device.server.params) == run.scores


def test_central_batches_go_through_all_the_data_again_and_again():
    order = central.central_order(25, 5, seed=0)
    assert order.shape == (5, central.BATCH_SIZE)
    rows = order.reshape(-1)
    assert sorted(rows[:25].tolist()) == sorted(rows[25:50].tolist()) == list(range(25))
    assert rows[:25].tolist() != rows[25:50].tolist()


def test_the_servers_rate_rises_and_falls():
    rates = [float(shakespeare.rise_and_fall(2.0, 100)(step)) for step in range(101)]
    assert np.argmax(rates) == 5
    np.testing.assert_allclose([rates[0], rates[5], rates[100]], [0.1, 2.0, 0.1], rtol=1e-5)
