"""Going on after a stop, bit for bit; damaged checkpoints; full disks."""

import errno
import os
import random
import shutil
import subprocess
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import problems
import pytest
import runs

import fedjax_tx as ftx
from fedjax_tx.simulation import RoundState
from fedjax_tx.training import checkpoint, records

ROUNDS = 11


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of eleven rounds that nothing interrupted, and its directory."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return runs.run(ROUNDS, directory), directory


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The directory of such a run with a checkpoint after each round, as it was after eight of them."""
    directory = tmp_path_factory.mktemp("runs") / "stopped"
    runs.run(8, directory, checkpoint_every=1)
    return directory


def copy(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def finish_and_compare(directory: Path, whole, **changes) -> None:
    result = runs.run(ROUNDS, directory, **changes)
    runs.assert_same_run(result, whole[0])
    runs.assert_same_directory(directory, whole[1])


def forget(directory: Path, after: int) -> None:
    """As a kill leaves it: the checkpoints after a round were never written, the records were."""
    for path in (directory / "checkpoints").iterdir():
        if int(path.name) > after:
            shutil.rmtree(path)


# ---- resume


@pytest.mark.parametrize("stop", [[3], [4], [1, 2, 7, 10]], ids=str)
def test_a_run_in_pieces_is_the_run_in_one_piece(whole, tmp_path, stop):
    for rounds in stop:
        runs.run(rounds, tmp_path / "run")
    finish_and_compare(tmp_path / "run", whole)


@pytest.mark.parametrize("after", [6, 7])
def test_records_ahead_of_the_checkpoint_are_cut(whole, stopped, tmp_path, after):
    directory = copy(stopped, tmp_path)
    forget(directory, after)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"round": 9, "train/lo')
    finish_and_compare(directory, whole)


def test_rounds_in_a_call_change_nothing(whole, stopped, tmp_path):
    directory = copy(stopped, tmp_path)
    result = runs.run(ROUNDS, directory, execution=ftx.Execution(num_lanes=2, rounds_per_call=5))
    runs.assert_same_run(result, whole[0])
    assert (directory / "metrics.jsonl").read_text() == (whole[1] / "metrics.jsonl").read_text()


def test_a_finished_run_started_again_is_the_same_and_writes_nothing_new(whole, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(whole[1], directory)
    before = {path: path.stat().st_mtime_ns for path in (directory / "checkpoints").rglob("*")}
    finish_and_compare(directory, whole)
    assert {path: path.stat().st_mtime_ns for path in (directory / "checkpoints").rglob("*")} == before


def test_a_run_that_ended_early_ends_there_again(tmp_path):
    stop = ftx.EarlyStop("train/loss", "max", patience=1)
    first = runs.run(30, tmp_path / "run", early_stop=stop)
    assert first.state.round < 30
    again = runs.run(30, tmp_path / "run", early_stop=stop)
    runs.assert_same_run(again, first)
    forget(tmp_path / "run", first.state.round - 3)
    runs.assert_same_run(runs.run(30, tmp_path / "run", early_stop=stop), first)


def test_a_run_that_ended_early_goes_on_without_the_condition(tmp_path):
    stop = ftx.EarlyStop("test/loss", target=1e6)
    assert runs.run(ROUNDS, tmp_path / "run", early_stop=stop).state.round == 3
    runs.assert_same_run(runs.run(ROUNDS, tmp_path / "run"), runs.run(ROUNDS))


def test_the_choices_made_for_the_machine_are_kept(tmp_path):
    first = runs.run(3, tmp_path / "run", execution=ftx.Execution(num_lanes=2, rounds_per_call="auto"))
    saved = records.read_json(tmp_path / "run" / "experiment.json")["execution"]
    assert saved["num_lanes"] == 2 and saved["rounds_per_call"] > 2
    records.write_json(
        tmp_path / "run" / "experiment.json",
        {**records.read_json(tmp_path / "run" / "experiment.json"), "execution": {"num_lanes": 2, "rounds_per_call": 1}},
    )
    runs.run(4, tmp_path / "run", execution=ftx.Execution())
    assert records.read_json(tmp_path / "run" / "experiment.json")["execution"] == {"num_lanes": 2, "rounds_per_call": 1}
    assert first.state.round == 3


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
    back, ledger = checkpoint.restore(manager, like)
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
        checkpoint.restore(manager, RoundState({"v": jnp.ones(2)}, (), 0, 0))
    manager.close()


# ---- damage


def largest_array(folder: Path) -> Path:
    return max((folder / "arrays").rglob("d/*"), key=lambda path: path.stat().st_size)


def truncate(folder):
    path = largest_array(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(folder):
    path = largest_array(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))


def change_the_costs(folder):
    path = folder / "notes" / "metadata"
    text = path.read_text()
    assert '"rounds": 8' in text
    path.write_text(text.replace('"rounds": 8', '"rounds": 9'))


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "a file cut short": truncate,
    "a flipped bit": flip_a_bit,
    "other costs": change_the_costs,
    "an empty folder": empty,
    "garbage": lambda folder: largest_array(folder).write_bytes(random.Random(0).randbytes(400)),
    "a missing array": lambda folder: largest_array(folder).unlink(),
    "no notes": lambda folder: (folder / "notes" / "metadata").unlink(),
    "garbage for notes": lambda folder: (folder / "notes" / "metadata").write_bytes(b"\xff\x00\xfe"),
    "empty notes": lambda folder: (folder / "notes" / "metadata").write_text("{}"),
    "no arrays": lambda folder: shutil.rmtree(folder / "arrays"),
    "a missing manifest": lambda folder: (folder / "arrays" / "manifest.ocdbt").unlink(),
    "garbage for metadata": lambda folder: (folder / "arrays" / "_METADATA").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(whole, stopped, tmp_path, damage):
    directory = copy(stopped, tmp_path)
    DAMAGES[damage](directory / "checkpoints" / "8")
    with pytest.warns(UserWarning, match=r"checkpoint 8 in '.*' is damaged \(.+\).*goes on from checkpoint 7"):
        finish_and_compare(directory, whole)
    assert (directory / "damaged" / "8").is_dir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finish_and_compare(directory, whole)


def test_when_two_are_damaged_the_third_is_used(whole, stopped, tmp_path):
    directory = copy(stopped, tmp_path)
    truncate(directory / "checkpoints" / "8")
    empty(directory / "checkpoints" / "7")
    with pytest.warns(UserWarning) as caught:
        finish_and_compare(directory, whole)
    assert [str(warning.message).split(" in ")[0] for warning in caught] == ["checkpoint 8", "checkpoint 7"]


def test_when_all_are_damaged_they_are_named_and_nothing_is_deleted(stopped, tmp_path):
    directory = copy(stopped, tmp_path)
    for number in (6, 7, 8):
        truncate(directory / "checkpoints" / str(number))
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"all are damaged: 8 \(ValueError.*\); 7 \(.*\); 6 \(.*Nothing was deleted"):
        runs.run(ROUNDS, directory)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_missing_records_are_told(stopped, tmp_path):
    directory = copy(stopped, tmp_path)
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:2] + lines[4:]))
    with pytest.warns(UserWarning, match=r"lacks the records of rounds \[3, 4\]; the run goes on without them"):
        result = runs.run(ROUNDS, directory)
    assert [record["round"] for record in result.history] == [1, 2, 5, 6, 7, 8, 9, 10, 11]


# ---- full disks


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "function", "what"),
    [
        (records, "append_lines", "the records up to round 9"),
        (checkpoint, "save", "the checkpoint after round 9"),
        (records, "flush", "the checkpoint after round 9"),
        (records, "rewrite_lines", "the records"),
        (records, "write_json", "experiment.json"),
        (checkpoint, "open_checkpoints", "the folder of checkpoints"),
    ],
)
def test_a_full_disk_is_told_in_words_and_loses_nothing(whole, stopped, tmp_path, monkeypatch, module, function, what):
    directory = copy(stopped, tmp_path)
    monkeypatch.setattr(module, function, full)
    with pytest.raises(OSError) as caught:
        runs.run(ROUNDS, directory)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(directory)
    assert f"could not write {what}: No space left on device. What was written before is kept (the last checkpoint: " in str(
        caught.value
    )
    assert "after round 8); once it can be written there, the same call goes on" in str(caught.value)
    monkeypatch.undo()
    finish_and_compare(directory, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    point = tmp_path / "disk"
    point.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount")
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(point)], check=False).returncode:
        pytest.skip("a small file system can't be mounted here")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_disk_that_is_really_full_is_told_and_the_run_goes_on_with_space(whole, small_disk):
    directory = small_disk / "run"
    runs.run(3, directory)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        free = os.statvfs(small_disk)
        file.write(bytes((free.f_bavail - 3) * free.f_frsize))
    with pytest.raises(OSError, match="could not write .*No space left on device.*after round 3") as caught:
        runs.run(ROUNDS, directory)
    assert caught.value.errno == errno.ENOSPC
    filler.unlink()
    finish_and_compare(directory, whole)


def test_a_full_disk_found_by_the_writer_of_arrays_is_told_too(tmp_path):
    resource = pytest.importorskip("resource")
    manager = checkpoint.open_checkpoints(tmp_path / "checkpoints")
    noise = np.random.default_rng(0).normal(size=20_000)
    checkpoint.save(manager, RoundState((), noise, 0, 1), {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with (
            pytest.raises(
                OSError, match=r"could not write the checkpoint after round 2: .*File too large.*after round 1\)"
            ) as caught,
            ftx.training.directory.writing("the checkpoint after round 2", tmp_path),
        ):
            checkpoint.save(manager, RoundState((), noise + 1, 0, 2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    manager.close()
    manager = checkpoint.open_checkpoints(tmp_path / "checkpoints")
    state, _ = checkpoint.restore(manager, RoundState((), noise, 0, 0))
    np.testing.assert_array_equal(state.cohorts, noise)
    manager.close()


def test_an_error_that_is_not_the_systems_passes_as_it_is(tmp_path):
    with pytest.raises(ValueError, match="^a mistake$"), ftx.training.directory.writing("x", tmp_path):
        raise ValueError("a mistake")


def test_problems_has_the_clients_that_these_tests_count_on():
    assert problems.SIZES == (5, 0, 1, 9, 3, 7)
