"""Going on after a stop, bit for bit, and what a checkpoint holds."""

import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import runs

import fedjax_tx as ftx
from fedjax_tx.simulation import RoundState
from fedjax_tx.training import checkpoint, records

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **kwargs: COMPILED.append(event) if "backend_compile" in event else None
)


@pytest.mark.parametrize("stop", [[3], [4], [1, 2, 7, 10]], ids=str)
def test_a_run_in_pieces_is_the_run_in_one_piece(whole, tmp_path, stop):
    for rounds in stop:
        runs.run(rounds, tmp_path / "run")
    runs.finish_and_compare(tmp_path / "run", whole)


@pytest.mark.parametrize("after", [6, 7])
def test_records_ahead_of_the_checkpoint_are_cut(whole, stopped, tmp_path, after):
    directory = runs.copy(stopped, tmp_path)
    runs.forget(directory, after)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"round": 9, "train/lo')
    runs.finish_and_compare(directory, whole)


def test_rounds_in_a_call_change_nothing(whole, stopped, tmp_path):
    directory = runs.copy(stopped, tmp_path)
    result = runs.run(runs.ROUNDS, directory, execution=ftx.Execution(num_lanes=2, rounds_per_call=5))
    runs.assert_same_run(result, whole[0])
    assert (directory / "metrics.jsonl").read_text() == (whole[1] / "metrics.jsonl").read_text()


def test_going_on_in_the_same_process_compiles_nothing(tmp_path):
    runs.run(3, tmp_path / "run")
    before = len(COMPILED)
    runs.run(6, tmp_path / "run")
    assert COMPILED[before:] == []


def test_a_finished_run_started_again_is_the_same_and_writes_nothing_new(whole, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(whole[1], directory)
    before = {path: path.stat().st_mtime_ns for path in (directory / "checkpoints").rglob("*")}
    runs.finish_and_compare(directory, whole)
    assert {path: path.stat().st_mtime_ns for path in (directory / "checkpoints").rglob("*")} == before


def test_a_run_that_ended_early_ends_there_again(tmp_path):
    stop = ftx.EarlyStop("train/loss", "max", patience=1)
    first = runs.run(30, tmp_path / "run", early_stop=stop)
    assert first.state.round < 30
    again = runs.run(30, tmp_path / "run", early_stop=stop)
    runs.assert_same_run(again, first)
    runs.forget(tmp_path / "run", first.state.round - 3)
    runs.assert_same_run(runs.run(30, tmp_path / "run", early_stop=stop), first)


def test_a_run_that_ended_early_goes_on_without_the_condition(tmp_path):
    stop = ftx.EarlyStop("test/loss", target=1e6)
    assert runs.run(runs.ROUNDS, tmp_path / "run", early_stop=stop).state.round == 3
    runs.assert_same_run(runs.run(runs.ROUNDS, tmp_path / "run"), runs.run(runs.ROUNDS))


def test_the_choices_made_for_the_machine_are_kept(tmp_path):
    execution = ftx.Execution(num_lanes=2, rounds_per_call=5)
    runs.run(3, tmp_path / "run", execution=execution)
    runs.run(4, tmp_path / "run", execution=ftx.Execution())  # measures nothing
    saved = records.read_json(tmp_path / "run" / "experiment.json")["execution"]
    assert saved == {"num_lanes": 2, "rounds_per_call": 5}


def worst_first() -> ftx.CohortSource:
    """Takes the two clients whose loss was worst, of those seen in the last round, and one more in turn."""

    def select(state, generator, last):
        worst = [] if last is None else last[0][np.argsort(-last[1]["loss"][0])[:2]].tolist()
        return np.array(list(dict.fromkeys([*worst, int(state) % 6]))), state + 1

    return ftx.CohortSource(lambda num_clients: np.int64(0), select, lambda num_clients: 3, "worst_first()", True)


def test_a_cohort_source_that_reads_metrics_goes_on_with_those_of_the_last_round(tmp_path):
    experiment = runs.experiment(cohorts=worst_first())
    one_piece = runs.run(6, experiment=experiment)
    for rounds in (2, 3, 6):
        pieces = runs.run(rounds, tmp_path / "run", experiment=experiment)
    runs.assert_same_run(pieces, one_piece)


def test_every_kind_of_array_comes_back(tmp_path):
    host = {"count": np.int64(2**40), "none": np.zeros((0, 3), np.float32), "flags": np.array([True, False])}
    device = {
        "bfloat16": jnp.array([1.5, -2.0], jnp.bfloat16),
        "int8": jnp.int8(-3),
        "uint32": jnp.array([2**32 - 1], jnp.uint32),
        "key": jax.random.split(jax.random.key(7), 3),
        "other key": jax.random.key(7, impl="rbg"),
        "a/b": jnp.zeros((2, 0)),
        "a": {"b": jnp.float32(jnp.nan)},
        "../up [0] 'x'": jnp.ones((1, 1)),
        "float8": jnp.array([0.5], ml_dtypes.float8_e4m3fn),
    }
    last = (np.array([4, 1]), {"loss": (np.array([1.0, 2.0], np.float32), np.array([3.0, 0.0], np.float32))})
    state = RoundState(device, host, seed=5, round=3, last_metrics=last)
    like = RoundState(jax.tree.map(lambda leaf: leaf, device), host, seed=0, round=0)
    manager = checkpoint.open_checkpoints(tmp_path)
    checkpoint.save(manager, state, {"rounds": 3})
    back, ledger = checkpoint.rebuild(like, checkpoint.read_last(manager))
    manager.close()
    assert (back.seed, back.round, ledger) == (5, 3, {"rounds": 3})
    ours, theirs = runs.leaves(state), runs.leaves(back)
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        assert array.tobytes() == theirs[name].tobytes(), name
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(back.device))
    assert jax.random.key_impl(back.device["other key"]) == "rbg"
    assert isinstance(back.cohorts["count"], np.int64)


def test_a_checkpoint_of_another_structure_is_refused_by_the_missing_name(tmp_path):
    manager = checkpoint.open_checkpoints(tmp_path)
    checkpoint.save(manager, RoundState({"w": jnp.ones(2)}, (), 0, 1), {})
    with pytest.raises(ValueError, match=r"the checkpoint after round 1 to hold \[0\]\['v'\], which is missing"):
        checkpoint.rebuild(RoundState({"v": jnp.ones(2)}, (), 0, 0), checkpoint.read_last(manager))
    manager.close()
