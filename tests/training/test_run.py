"""A run: what it records, what it costs, when it ends, which directories and arguments it refuses."""

import json
import re
from functools import partial

import jax
import numpy as np
import optax
import problems
import pytest
import runs

import fedjax_tx as ftx


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A finished run of seven rounds."""
    directory = tmp_path_factory.mktemp("runs") / "seven"
    runs.run(7, directory)
    return directory


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- records and costs


def test_the_ledger_is_what_one_counts_by_hand():
    cohorts = ftx.data.fixed_cohorts([[0, 3], [4, 1, 5]])  # 5 and 9 examples; 3, 0 and 7
    experiment = problems.experiment(cohorts=cohorts, local=ftx.data.LocalWork(batch_size=2, epochs=2))
    result = ftx.run(experiment, 3, execution=ftx.Execution(num_lanes=2), progress=False)
    examples, steps = [2 * 14, 2 * 10, 2 * 14], [2 * (3 + 5), 2 * (2 + 4), 2 * (3 + 5)]
    assert [record["examples"] for record in result.history] == examples
    assert [record["steps"] for record in result.history] == steps
    assert [record["clients"] for record in result.history] == [2, 2, 2]  # client 1 has nothing to say
    assert [record["round"] for record in result.history] == [1, 2, 3]
    model = 4 * (2 * 3 + 3)  # float32 weights and biases
    assert result.ledger == {
        "rounds": 3,
        "client_updates": 7,
        "examples": sum(examples),
        "steps": sum(steps),
        "bytes_down": 7 * model,
        "bytes_up": 7 * model,
    }


def test_compressed_messages_cost_what_they_hold():
    aggregator = ftx.aggregation.chain(ftx.aggregation.top_k(0.25), ftx.aggregation.mean())
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=aggregator)
    result = ftx.run(problems.experiment(algorithm), 1, execution=ftx.Execution(num_lanes=2), progress=False)
    assert result.ledger["bytes_up"] == 6 * 3 * (4 + 4)  # six clients; a quarter of 9, rounded up, values and places
    assert result.ledger["bytes_down"] == 6 * 36


def test_the_training_loss_is_the_mean_over_examples():
    experiment = problems.experiment(local=ftx.data.LocalWork(batch_size=16, epochs=1))
    result = ftx.run(experiment, 1, execution=ftx.Execution(num_lanes=2), progress=False)
    params = ftx.make_round(experiment, ftx.Execution(num_lanes=2)).init().device.server.params
    logits = experiment.train.columns["x"] @ np.asarray(params["w"]) + np.asarray(params["b"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, experiment.train.columns["y"])
    np.testing.assert_allclose(result.history[0]["train/loss"], losses.mean(), rtol=1e-6)


def test_evaluations_are_recorded_with_their_spread_over_clients():
    result = runs.run(7)
    data = problems.ragged_clients(seed=1)
    evaluated = [record["round"] for record in result.history if "test/loss" in record]
    assert evaluated == [3, 6, 7]  # every third round, and the end
    logits = data.columns["x"] @ np.asarray(result.params["w"]) + np.asarray(result.params["b"])
    losses = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, data.columns["y"]))
    own = [losses[a:b].mean() for a, b in zip(data.offsets, data.offsets[1:], strict=False) if b > a]
    last = result.history[-1]
    np.testing.assert_allclose(last["test/loss"], losses.mean(), rtol=1e-5)
    for percentile in (10, 50, 90):
        np.testing.assert_allclose(last[f"test/loss/client_p{percentile}"], np.percentile(own, percentile), rtol=1e-5)
    value, weight = result.client_metrics["test"]["loss"]
    np.testing.assert_allclose(value[weight > 0], own, rtol=1e-5)
    assert result.stopped == "finished 7 rounds"


def test_metrics_hold_no_wall_clock_figure_and_timing_does(directory):
    metrics, timing = read(directory / "metrics.jsonl"), read(directory / "timing.jsonl")
    groups = ("train", "test", "server", "aggregation")
    plain = {"round", "clients", "examples", "steps", "empty", "not_finite", "dropped"}
    for record in metrics:
        assert {name for name in record if name.split("/")[0] not in groups} == plain
    assert [record["round"] for record in metrics] == list(range(1, 8))
    assert sum(record["rounds"] for record in timing) == 7
    for record in timing:
        assert record["seconds"] > 0
        assert record["since_start"] >= record["seconds"]
        assert record["examples_per_second"] > 0
        assert 0 < record["useful"] <= 1


def test_the_summary_says_how_it_ended_and_what_it_cost(directory):
    summary = json.loads((directory / "summary.json").read_text())
    last = read(directory / "metrics.jsonl")[-1]
    assert summary["stopped"] == "finished 7 rounds"
    assert summary["ledger"]["client_updates"] == 14
    assert {name: value for name, value in summary.items() if name.startswith("test/")} == {
        name: value for name, value in last.items() if name.startswith("test/")
    }


def test_what_is_not_finite_is_null_in_the_records_and_nan_in_the_history(directory):
    result = runs.run(1)
    assert np.isnan(result.history[0]["aggregation/endless"])
    assert read(directory / "metrics.jsonl")[0]["aggregation/endless"] is None


def test_a_run_with_records_is_the_run_without(directory, tmp_path):
    with_records, without = runs.run(7, tmp_path / "again"), runs.run(7)
    runs.assert_same_run(with_records, without)
    runs.assert_same_directory(tmp_path / "again", directory)


def test_a_run_is_the_users_own_loop():
    result = runs.run(4)
    state, infos = problems.play(runs.experiment(), 4, num_lanes=2, rounds_per_call=2)
    jax.tree.map(np.testing.assert_array_equal, result.params, state.device.server.params)
    assert [record["train/loss"] for record in result.history] == [info.metrics["loss"] for info in infos]


def test_a_run_may_start_from_given_parameters():
    first = runs.run(2)
    second = runs.run(1, init_params=first.params)
    start = ftx.make_round(runs.experiment(), ftx.Execution(num_lanes=2)).init(init_params=first.params)
    jax.tree.map(np.testing.assert_array_equal, start.device.server.params, first.params)
    assert not np.array_equal(second.params["w"], first.params["w"])


# ---- when it ends


def test_a_run_ends_when_a_metric_reaches_its_target():
    free = runs.run(6)
    before, target = (record["test/loss"] for record in free.history if record["round"] % 3 == 0)
    assert target > before  # the labels are drawn at random: the more is learned of others, the worse
    result = runs.run(12, early_stop=ftx.EarlyStop("test/loss", "max", target=target))
    assert result.state.round == 6
    assert result.stopped == f"test/loss reached {target:g}, target {target}"


def test_a_run_ends_when_a_metric_has_not_improved():
    result = runs.run(30, early_stop=ftx.EarlyStop("train/loss", mode="max", patience=2))
    scores = [record["train/loss"] for record in result.history if record["round"] % 3 == 0]
    best = int(np.argmax(scores))
    assert len(scores) - 1 - best == 2
    assert result.state.round == 3 * len(scores) < 30
    assert result.stopped == f"train/loss no better for 2 evaluations than {scores[best]:g}"


def test_the_evaluation_at_the_end_alone_stops_nothing():
    result = runs.run(4, early_stop=ftx.EarlyStop("test/loss", target=100.0), evaluate_every=5)
    assert result.stopped == "finished 4 rounds"


# ---- refusals


def other_data():
    data = problems.ragged_clients()
    return ftx.data.FederatedDataset({**data.columns, "x": data.columns["x"] + 1}, data.offsets, data.client_ids)


OTHERS = {
    "seed": (lambda: {"experiment": runs.experiment(seed=4)}, "seed is 3 there and 4 here"),
    "hyper": (lambda: {"experiment": runs.experiment(hyper={"client_lr": 0.2})}, "hyper.client_lr is 0.1 there and 0.2 here"),
    "local": (
        lambda: {"experiment": runs.experiment(local=ftx.data.LocalWork(batch_size=2, epochs=3))},
        "local.epochs is 2 there and 3 here",
    ),
    "cohorts": (
        lambda: {"experiment": runs.experiment(cohorts=ftx.data.uniform_cohorts(3))},
        "cohorts is 'uniform_cohorts(clients_per_round=2)' there and 'uniform_cohorts(clients_per_round=3)' here",
    ),
    "data": (lambda: {"experiment": runs.experiment(train=other_data())}, "train.checksum is '"),
    "evaluation data": (lambda: {"evaluate": {"test": other_data()}}, "evaluate.test.checksum is '"),
    "evaluation names": (lambda: {"evaluate": {}}, "evaluate.test.clients is 6 there and None here"),
    "evaluate_every": (lambda: {"evaluate_every": 4}, "evaluate_every is 3 there and 4 here"),
    "config": (lambda: {"config": {"model": {"width": 64}}}, "config.model.width is None there and 64 here"),
    "first parameters": (
        lambda: {"init_params": {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}},
        "first_params is None there and '",
    ),
    "a constant of the algorithm": (
        lambda: {"experiment": problems.experiment(partial(runs.make_everything, server_lr=0.2), cohorts=runs.TWO_OF_SIX)},
        "program is '",
    ),
    "algorithm": (
        lambda: {"experiment": problems.experiment(problems.make_fed_avg, cohorts=runs.TWO_OF_SIX)},
        "state..aggregators[0]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_directory_of_another_configuration_is_refused(directory, name):
    change, message = OTHERS[name]
    before = (directory / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        runs.run(9, directory, **change())
    assert str(directory) in str(caught.value)
    assert (directory / "metrics.jsonl").read_text() == before


def test_a_directory_that_holds_more_rounds_is_refused(directory):
    with pytest.raises(ValueError, match=re.escape(f"expected rounds >= 7, the rounds that run_dir {str(directory)!r} holds")):
        runs.run(5, directory)


def test_a_directory_whose_description_is_damaged_is_refused_by_name(tmp_path):
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(ValueError, match=r"experiment.json' to hold JSON, but it is damaged"):
        runs.run(1, tmp_path)


TEST = problems.ragged_clients()
WRONG = [
    ({"experiment": "fedavg"}, TypeError, "expected experiment to be an Experiment, got 'fedavg' (str)"),
    ({"rounds": 2.5}, TypeError, "expected rounds to be an integer, got 2.5 (float)"),
    ({"rounds": 0}, ValueError, "expected rounds >= 1, got 0"),
    ({"evaluate": [TEST]}, TypeError, "expected evaluate to be a dict, got ["),
    ({"evaluate": {"test": {"x": 1}}}, TypeError, "expected evaluate['test'] to be a FederatedDataset, got {'x': 1} (dict)"),
    ({"evaluate": {"train": TEST}}, ValueError, "expected the names of evaluate without '/' and other than 'train'"),
    ({"evaluate": {"a/b": TEST}}, ValueError, "got 'a/b'"),
    ({"evaluate": {3: TEST}}, TypeError, "expected the keys of evaluate to be strings, got 3 (int)"),
    ({"init_params": {"w": np.zeros((2, 3), np.float32)}}, ValueError, "expected init_params to have a leaf ['b'], which is"),
    ({"execution": 4}, TypeError, "expected execution to be an Execution, got 4 (int)"),
    ({"run_dir": 3}, TypeError, "expected run_dir to be a path, got 3 (int)"),
    ({"evaluate_every": "3"}, TypeError, "expected evaluate_every to be an integer, got '3' (str)"),
    ({"evaluate_every": 0}, ValueError, "expected evaluate_every >= 1, got 0"),
    ({"checkpoint_every": True}, TypeError, "expected checkpoint_every to be an integer, got True (bool)"),
    ({"checkpoint_every": -1}, ValueError, "expected checkpoint_every >= 1, got -1"),
    ({"early_stop": 5}, TypeError, "expected early_stop to be an EarlyStop, got 5 (int)"),
    (
        {"early_stop": ftx.EarlyStop("valid/loss", patience=1)},
        ValueError,
        "expected early_stop.metric to start with one of test/, train/, got 'valid/loss'",
    ),
    ({"config": "settings"}, TypeError, "expected config to be a dict, got 'settings' (str)"),
    ({"config": {"path": np}}, ValueError, "expected config['path'] to be a plain value"),
    ({"config": {"rate": float("nan")}}, ValueError, "expected config['rate'] to be a plain value"),
    ({"progress": 1}, TypeError, "expected progress to be True or False, got 1 (int)"),
]


@pytest.mark.parametrize(("change", "kind", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_a_wrong_argument_is_named_before_anything_is_written(tmp_path, unchecked, change, kind, message):
    settings = {"experiment": runs.experiment(), "rounds": 1, "run_dir": tmp_path / "run", "evaluate": {"test": TEST}}
    with pytest.raises(kind, match=re.escape(message)):
        ftx.run(**{**settings, **change})
    assert not (tmp_path / "run").exists()


def test_a_metric_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(
        ValueError, match=r"expected early_stop.metric to be one of .*'test/loss'.* \(did you mean 'test/loss'\?\)"
    ):
        runs.run(3, early_stop=ftx.EarlyStop("test/los", patience=1))


def test_another_version_of_the_library_goes_on_with_a_warning(directory):
    path = directory / "experiment.json"
    saved = json.loads(path.read_text())
    assert saved["experiment"]["made_with"].startswith(f"JAX {jax.__version__}, fedjax_tx ")
    saved["experiment"] |= {"made_with": "JAX 0.1, fedjax_tx 0.1, tpu", "program": "another"}
    path.write_text(json.dumps(saved))
    with pytest.warns(UserWarning, match="can't be told: it was made with JAX 0.1"):
        runs.run(9, directory)


def test_drawn_parameters_that_another_machine_rounded_otherwise_are_not_compared(directory):
    assert json.loads((directory / "experiment.json").read_text())["experiment"]["first_params"] is None


def test_a_private_run_is_not_resumed_with_other_noise(tmp_path):
    def private(noise):
        stages = (ftx.aggregation.clip_norm(1.0), ftx.aggregation.fixed_mean(3), ftx.aggregation.gaussian_noise(noise))
        algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=ftx.aggregation.chain(*stages))
        return problems.experiment(algorithm, hyper={}, cohorts=ftx.data.poisson_cohorts(0.5))

    options = {"privacy": ftx.privacy.Budget(delta=1e-5, accountant="rdp"), "run_dir": tmp_path, "progress": False}
    options |= {"execution": ftx.Execution(num_lanes=1)}
    first = ftx.run(private(0.3), 2, **options)
    with pytest.raises(ValueError, match=r"aggregators is .*gaussian_noise\(0.3\).* there and .*gaussian_noise\(8.0\)"):
        ftx.run(private(8.0), 3, **options)
    assert ftx.run(private(0.3), 3, **options).ledger["epsilon"] > first.ledger["epsilon"] > 10


def test_what_only_the_first_evaluation_would_find_is_found_before_the_first_round(tmp_path):
    stop = ftx.EarlyStop("test/acuracy", mode="max", patience=2)
    for options in ({"early_stop": stop}, {"keep_best": "test/acuracy"}, {"early_stop": ftx.EarlyStop("train/los", patience=1)}):
        with pytest.raises(ValueError, match=r"did you mean '(test/accuracy|train/loss)'"):
            runs.run(9, tmp_path / "run", **options)
    with pytest.raises(ValueError, match="expected early_stop.metric of a private run to be told through noise"):
        runs.run(9, privacy=ftx.privacy.Budget(1e-5), early_stop=ftx.EarlyStop("train/loss", patience=1))
    assert not (tmp_path / "run").exists()


def test_a_result_in_place_of_its_parameters_and_a_url_are_refused():
    result = runs.run(1)
    with pytest.raises(TypeError, match="expected init_params to be parameters, such as the .params of a result"):
        runs.run(1, init_params=result)
    with pytest.raises(ValueError, match="expected run_dir to be a path .* got 'gs://bucket/run'"):
        runs.run(1, "gs://bucket/run")


def test_the_users_own_directory_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    runs.run(1, "~/run")
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_second_run_in_the_same_directory_is_refused_while_the_first_goes_on(tmp_path):
    def start_another(records, state):
        with pytest.raises(ValueError, match="expected run_dir to be no other running process's"):
            runs.run(3, tmp_path / "run")

    runs.run(3, tmp_path / "run", callback=start_another)
    assert runs.run(4, tmp_path / "run").state.round == 4  # it is free again
    rounds = [json.loads(line)["round"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rounds == [1, 2, 3, 4]


def test_clients_with_models_of_their_own_are_looked_for_by_ids_of_the_same_kind():
    data = problems.ragged_clients()
    numbered = ftx.data.FederatedDataset(data.columns, data.offsets, np.arange(6))
    with pytest.raises(ValueError, match="expected the client_ids of 'test' to be strings as in train"):
        runs.run(1, evaluate={"test": numbered})
    plain = problems.experiment()  # clients keep nothing: any ids do
    ftx.run(plain, 1, {"test": numbered}, execution=ftx.Execution(num_lanes=1), progress=False)
