"""Damaged checkpoints and full disks: told in words, and nothing that was written before is lost."""

import errno
import os
import random
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import runs

from fedjax_tx.simulation import RoundState
from fedjax_tx.training import checkpoint, records
from fedjax_tx.training.directory import writing

# ---- damage


def largest_array(folder: Path) -> Path:
    return max((folder / "arrays").rglob("d/*"), key=lambda path: path.stat().st_size)


def truncate(folder):
    for path in (folder / "arrays").rglob("d/*"):  # the largest alone may be one of which orbax reads the beginning only
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
    directory = runs.copy(stopped, tmp_path)
    DAMAGES[damage](directory / "checkpoints" / "8")
    with pytest.warns(UserWarning, match=r"checkpoint 8 in '.*' is damaged \(.+\).*goes on from checkpoint 7"):
        runs.finish_and_compare(directory, whole)
    assert (directory / "damaged" / "8").is_dir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs.finish_and_compare(directory, whole)


def test_when_two_are_damaged_the_third_is_used(whole, stopped, tmp_path):
    directory = runs.copy(stopped, tmp_path)
    truncate(directory / "checkpoints" / "8")
    empty(directory / "checkpoints" / "7")
    with pytest.warns(UserWarning) as caught:
        runs.finish_and_compare(directory, whole)
    assert [str(warning.message).split(" in ")[0] for warning in caught] == ["checkpoint 8", "checkpoint 7"]


def test_when_all_are_damaged_they_are_named_and_nothing_is_deleted(stopped, tmp_path):
    directory = runs.copy(stopped, tmp_path)
    for number in (6, 7, 8):
        truncate(directory / "checkpoints" / str(number))
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"all are damaged: 8 \(ValueError.*\); 7 \(.*\); 6 \(.*Nothing was deleted"):
        runs.run(runs.ROUNDS, directory)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_missing_records_are_told(stopped, tmp_path):
    directory = runs.copy(stopped, tmp_path)
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:2] + lines[4:]))
    with pytest.warns(UserWarning, match=r"lacks the records of rounds \[3, 4\]; the run goes on without them"):
        result = runs.run(runs.ROUNDS, directory)
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
    directory = runs.copy(stopped, tmp_path)
    monkeypatch.setattr(module, function, full)
    with pytest.raises(OSError) as caught:
        runs.run(runs.ROUNDS, directory)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(directory)
    assert f"could not write {what}: No space left on device. What was written before is kept (the last checkpoint: " in str(
        caught.value
    )
    assert "after round 8); once it can be written there, the same call goes on" in str(caught.value)
    monkeypatch.undo()
    runs.finish_and_compare(directory, whole)


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
        runs.run(runs.ROUNDS, directory)
    assert caught.value.errno == errno.ENOSPC
    filler.unlink()
    runs.finish_and_compare(directory, whole)


def test_a_full_disk_found_by_the_writer_of_arrays_is_told_too(tmp_path):
    resource = pytest.importorskip("resource")
    manager = checkpoint.open_checkpoints(tmp_path / "checkpoints")
    noise = np.random.default_rng(0).normal(size=20_000)
    checkpoint.save(manager, RoundState((), noise, 0, 1), {})
    told = r"could not write the checkpoint after round 2: File too large.*after round 1\)"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match=told) as caught, writing("the checkpoint after round 2", tmp_path):
            checkpoint.save(manager, RoundState((), noise + 1, 0, 2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    manager.close()
    manager = checkpoint.open_checkpoints(tmp_path / "checkpoints")
    state, _ = checkpoint.rebuild(RoundState((), noise, 0, 0), checkpoint.read_last(manager))
    np.testing.assert_array_equal(state.cohorts, noise)
    manager.close()


def test_an_error_that_is_not_the_systems_passes_as_it_is(tmp_path):
    with pytest.raises(ValueError, match="^a mistake$"), writing("x", tmp_path):
        raise ValueError("a mistake")
