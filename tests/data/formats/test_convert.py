"""Conversion to disk: the files of FederatedDataset.save bit for bit, whenever it was killed on the way, in bounded memory."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fedjax_tx.data import FederatedDataset, from_clients
from fedjax_tx.data.formats import convert

SIZES = [0, 2, 3, 0, 1, 4, 2]


def read_clients(start):
    for number in range(start, len(SIZES)):
        generator = np.random.default_rng(number)
        x = generator.random((SIZES[number], 2, 3), np.float32)
        yield f"client {number}", {"x": x, "a/b": generator.integers(0, 9, SIZES[number])}


@pytest.fixture
def saved(tmp_path):
    """The folder that ``save`` makes of the same clients."""
    from_clients(read_clients).save(tmp_path / "saved")
    return tmp_path / "saved"


def assert_same_files(have, want):
    assert sorted(path.name for path in have.iterdir()) == sorted(path.name for path in want.iterdir())
    for path in want.iterdir():
        assert (have / path.name).read_bytes() == path.read_bytes(), path.name


def test_files_are_those_of_save(saved, tmp_path):
    data = from_clients(read_clients, directory=tmp_path / "new" / "data")
    assert isinstance(data.columns["x"], np.memmap)
    assert_same_files(tmp_path / "new" / "data", saved)
    assert os.listdir(tmp_path / "new") == ["data"]


def test_killed_at_any_moment_it_goes_on_bit_for_bit(saved, tmp_path, monkeypatch):
    """What a kill leaves is copied before and after everything that is made safe, then finished."""
    monkeypatch.setattr(convert, "CLIENTS_AT_ONCE", 2)
    moments, sync = [], convert._sync

    def copy_and_sync(file):
        for step in (lambda: None, lambda: sync(file)):
            step()
            moments.append(tmp_path / f"moment_{len(moments)}")
            shutil.copytree(tmp_path / "work", moments[-1])

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_sync", copy_and_sync)
        from_clients(read_clients, directory=tmp_path / "work" / "data", progress=False)
    monkeypatch.setattr(convert, "_sync", lambda file: file.flush())
    assert len(moments) > 30
    starts = []

    def read(start):
        starts.append(start)
        return read_clients(start)

    for number, moment in enumerate(moments):
        making = moment / ".data.converting"
        if number % 2:  # rows of a client that was not done, and a torn line
            for path in making.glob("data/column_*.npy"):
                path.write_bytes(path.read_bytes() + b"torn")
            (making / "clients.jsonl").write_bytes((making / "clients.jsonl").read_bytes() + b'["cli')
        from_clients(read, directory=moment / "data", progress=False)
        assert_same_files(moment / "data", saved)
    assert set(starts) == {0, 1, 3, 5, 6}  # the last client that was safe is read again


def test_an_error_of_the_source_keeps_what_came_before(saved, tmp_path):
    def fail(start):
        for number, client in enumerate(read_clients(start), start):
            if number == 5:
                raise OSError("the network is gone")
            yield client

    with pytest.raises(OSError, match="gone"):
        from_clients(fail, directory=tmp_path / "data")
    assert len((tmp_path / ".data.converting" / "clients.jsonl").read_text().splitlines()) == 5
    from_clients(
        lambda start: read_clients(start) if start == 4 else pytest.fail("read from the beginning"), directory=tmp_path / "data"
    )
    assert_same_files(tmp_path / "data", saved)


def test_what_is_there_is_opened_if_it_is_of_the_same_source(tmp_path):
    def other(start):
        return ((f"client {number}", {"x": np.zeros((1, 2, 3), np.float32), "a/b": [1]}) for number in range(start, 3))

    from_clients(other, directory=tmp_path / "data")
    (tmp_path / ".data.converting").mkdir()  # as a kill right after the last act would leave it
    assert from_clients(other, directory=tmp_path / "data").num_clients == 3
    assert os.listdir(tmp_path) == ["data"]
    with pytest.raises(ValueError, match=r"column 'x' of client 'client 0' to be as it is in '.*data' .*, got 'other values'"):
        from_clients(other, encode=lambda columns: {**columns, "x": columns["x"] + 1}, directory=tmp_path / "data")
    with pytest.raises(ValueError, match=r"client 'client 0' of '.*data' to have 1 rows as there .*, got 0"):
        from_clients(read_clients, directory=tmp_path / "data")
    with pytest.raises(
        ValueError, match=r"columns of client 'client 0' to be \['a/b', 'x'\], as of those in '.*data', got \['x'\]"
    ):
        from_clients(other, encode=lambda columns: {"x": columns["x"]}, directory=tmp_path / "data")
    with pytest.raises(ValueError, match="source of what is in '.*data' to go on with client 'client 0' .*, got 'someone'"):
        from_clients(lambda start: [("someone", next(iter(other(0)))[1])], directory=tmp_path / "data")


def test_a_conversion_goes_on_with_the_same_source_only(tmp_path):
    def fail(start):
        yield from list(read_clients(start))[:3]
        raise OSError

    with pytest.raises(OSError):
        from_clients(fail, directory=tmp_path / "data")
    with pytest.raises(ValueError, match="column 'x' of client 'client 2' to be as it is in .*got 'other values'"):
        from_clients(read_clients, encode=lambda columns: {**columns, "x": -columns["x"]}, directory=tmp_path / "data")
    with pytest.raises(ValueError, match="go on with client 'client 2' .*, got 'no more client'"):
        from_clients(lambda start: [], directory=tmp_path / "data")
    (tmp_path / ".data.converting" / "data" / "column_0.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"column_0.npy to have 248 bytes, of the 5 rows that were written, got .0 .delete"):
        from_clients(read_clients, directory=tmp_path / "data")


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a saved FederatedDataset, got .*, without metadata.json"):
        from_clients(read_clients, directory=tmp_path)
    with pytest.raises(ValueError, match="at least one example, got '2 clients without any'"):
        from_clients(lambda start: [("a", {"x": []}), ("b", {"x": []})], directory=tmp_path / "data")


SOURCE = """
import sys
import numpy as np
from fedjax_tx.data import from_clients
from fedjax_tx.data.formats import convert

convert.CLIENTS_AT_ONCE = 500

def read_clients(start):
    for number in range(start, int(sys.argv[2])):
        generator = np.random.default_rng(number)
        yield str(number), {"tokens": generator.integers(0, 9, (int(generator.integers(50)), 64))}

from_clients(read_clients, directory=sys.argv[1], progress=False)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(1024 * int(peak.split()[1]))
"""


def start(directory, num_clients):
    command = [sys.executable, "-c", SOURCE, str(directory), str(num_clients)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_process_killed_again_and_again_writes_the_same_files(tmp_path):
    """Each process is killed some time after it has made more clients safe than those before it."""
    start(tmp_path / "whole", 8_000).communicate()
    listed, generator = tmp_path / ".killed.converting" / "clients.jsonl", np.random.default_rng(0)
    size = 0
    for _ in range(6):
        process = start(tmp_path / "killed", 8_000)
        while process.poll() is None and (not listed.exists() or listed.stat().st_size <= size):
            time.sleep(0.01)
        time.sleep(0.05 * generator.random())
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        size = listed.stat().st_size
    start(tmp_path / "killed", 8_000).communicate()
    assert_same_files(tmp_path / "killed", tmp_path / "whole")
    assert FederatedDataset.open(tmp_path / "killed").num_clients == 8_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory where Linux tells it")
def test_ten_times_the_clients_take_no_more_memory_than_their_ids(tmp_path):
    peaks, sizes = [], []
    for clients in (5_000, 50_000):
        out, _ = start(tmp_path / str(clients), clients).communicate()
        peaks.append(int(out))
        sizes.append((tmp_path / str(clients) / "column_0.npy").stat().st_size)
    assert sizes[1] - sizes[0] > 500e6
    assert peaks[1] - peaks[0] < 45_000 * 500 + 10e6


@pytest.mark.slow
def test_processes_that_want_the_same_directory_share_the_work(tmp_path):
    processes = [start(tmp_path / "data", 5_000) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert FederatedDataset.open(tmp_path / "data").num_clients == 5_000
    assert os.listdir(tmp_path) == ["data"]
