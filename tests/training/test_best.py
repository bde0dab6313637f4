"""The best state of a run, callbacks, and a run read back from its directory."""

import shutil

import jax
import numpy as np
import pytest
import runs

import fedjax_tx as ftx


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of eleven rounds, evaluated after each, and its directory."""
    directory = tmp_path_factory.mktemp("best") / "run"
    return runs.run(runs.ROUNDS, directory, evaluate_every=1, keep_best="test/accuracy"), directory


def test_the_best_round_is_the_first_with_the_best_value_and_its_state_gives_that_value(kept):
    result, _ = kept
    values = [record["test/accuracy"] for record in result.history]
    assert result.best.metric == "test/accuracy"
    assert result.best.value == max(values)
    assert result.best.round == 1 + values.index(max(values)) == result.best.state.round
    scores = ftx.make_evaluation(runs.experiment(), runs.problems.ragged_clients(seed=1))(result.best.state)
    assert ftx.summarise("test", scores)["test/accuracy"] == result.best.value
    jax.tree.map(np.testing.assert_array_equal, result.best.params, result.best.state.device.server.params)


def test_losses_are_best_when_low_and_only_evaluations_that_are_due_count():
    result = runs.run(8, keep_best="test/loss")  # evaluated after 3, 6 and, since it ends there, 8
    values = {record["round"]: record["test/loss"] for record in result.history if "test/loss" in record}
    assert sorted(values) == [3, 6, 8]
    assert result.best.round == min((3, 6), key=values.__getitem__)


def test_a_run_that_goes_on_has_the_best_of_all_its_rounds(kept, tmp_path):
    result, directory = kept
    again = runs.copy(directory, tmp_path)
    runs.forget(again, 8)
    resumed = runs.run(runs.ROUNDS, again, evaluate_every=1, keep_best="test/accuracy")
    assert resumed.best._replace(params=None, state=None) == result.best._replace(params=None, state=None)
    ours, theirs = runs.leaves(resumed.best.state), runs.leaves(result.best.state)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    other = runs.run(runs.ROUNDS, again, evaluate_every=1, keep_best="test/loss")  # nothing was kept by this one
    assert other.best is None


def test_a_run_is_read_back_without_its_experiment(kept):
    result, directory = kept
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    saved = ftx.load_run(str(directory))
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
    assert saved.round == runs.ROUNDS
    jax.tree.map(np.testing.assert_array_equal, saved.params, jax.device_get(result.params))
    assert saved.ledger == result.ledger
    assert all(map(runs.same_record, saved.history, result.history))
    assert saved.summary["stopped"] == result.stopped
    metric, value, number, params = saved.best
    assert (metric, value, number) == ("test/accuracy", result.best.value, result.best.round)
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(result.best.params))


@pytest.mark.parametrize("params", [np.ones(3, np.float32), {"a": [np.ones(2), {"b 'c'": np.zeros(1)}], "d.e": np.ones(())}])
def test_parameters_of_any_nesting_are_read_back(params, tmp_path):
    task = ftx.Task(
        init=lambda key: (jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, "float32"), params), {"held": jax.numpy.ones(1)}),
        apply=lambda trainable, frozen, batch, key: {"sum": sum(leaf.sum() for leaf in jax.tree.leaves(trainable))},
        loss=lambda outputs, batch: (outputs["sum"] + 0 * batch["y"], jax.numpy.ones(batch["y"].shape)),
        metrics=lambda outputs, batch: {},
    )
    algorithm = ftx.algorithms.fed_avg(task, runs.optax.sgd(0.1))
    one = ftx.Execution(num_lanes=1)
    result = ftx.run(runs.problems.experiment(algorithm, hyper={}), 1, run_dir=tmp_path, progress=False, execution=one)
    jax.tree.map(np.testing.assert_array_equal, ftx.load_run(tmp_path).params, jax.device_get(result.params))


def test_a_directory_without_a_checkpoint_or_with_a_damaged_one_is_refused(kept, tmp_path):
    with pytest.raises(ValueError, match="expected run_dir to hold a checkpoint of ftx.run, got"):
        ftx.load_run(tmp_path)
    directory = runs.copy(kept[1], tmp_path)
    shutil.rmtree(directory / "checkpoints" / str(runs.ROUNDS) / "notes")
    with pytest.raises(ValueError, match=rf"expected checkpoint {runs.ROUNDS} in .* to be whole, got"):
        ftx.load_run(directory)


def test_a_callback_sees_all_records_and_the_state_behind_them_and_may_end_the_run(tmp_path):
    seen, states = [], []

    def look(records, state):
        seen.extend(records)
        states.append((state.round, records[-1]["round"]))
        return "seen enough" if state.round >= 5 else None

    result = runs.run(9, tmp_path / "run", callback=look)
    assert seen == result.history
    assert all(done == last for done, last in states)
    assert result.stopped == "seen enough"
    assert 5 <= result.state.round <= 6  # two rounds a call at most
    assert ftx.load_run(tmp_path / "run").round == result.state.round
