"""Activity from a smartwatch: which of seven shoulder exercises is a person doing? One client a person.

The recordings are those of the PyPI package ``seglearn`` 1.2.5 (BSD; Burns et al., "Shoulder physiotherapy exercise recognition:
machine learning the inertial signals from a smartwatch", arXiv 1802.01489): 10 people, each exercise once with each arm, 20
repetitions: 140 series of 3 axes of acceleration (g) and 3 of angular velocity (rad/s) at 50 Hz. They are cut into windows.

The last fifth of each recording is test. The people of ``unseen`` stay whole and are never trained on.

The file is a pickle, and a pickle may run anything: so it must be the known one by its SHA-256, and is read by an unpickler that
makes arrays and nothing else.
"""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float64

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset, FederatedSplits
from fedjax_tx.data.package_files import find_package_file

SAMPLING_RATE = 50
"""Steps a second."""

CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")

EXERCISES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
"""Pendulum, abduction, forward elevation, internal and external rotation, trapezius extension, upright row."""

INSTALL = "pip install 'fedjax-tx[sensors]'"
_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"


class Recording(NamedTuple):
    """One person's repetitions of an exercise: ``series`` [steps, 6]; ``side`` is 1 for the right arm, 0 for the left."""

    person: int
    exercise: int
    side: int
    series: Float64[np.ndarray, "steps channels"]


def load(
    window: int = 100, stride: int | None = None, unseen: Sequence[int] = (9, 10), test_share: float = 0.2
) -> FederatedSplits:
    """Returns the people as clients: ``.train``, ``.test``, ``.unseen`` and the counts of the ``.report``.

    Columns: ``x`` float32[rows, window, 6], g and rad/s; ``y`` int32[rows], the exercise; ``side`` int32[rows], 1 for the right
    arm; ``progress`` float32[rows], where in its recording the window begins, 0 to 1.

    Args:
      window: steps of a window, at 50 a second. stride: steps from one window to the next; by default they touch.
      unseen: people of 1 to 10 who are kept out of training. test_share: of each recording's end, 0 to 1.

    Raises:
      TypeError: if an argument is of the wrong type.
      ValueError: if it is out of range, nobody would be left to train on, or the file is not the known one.
      ModuleNotFoundError: if ``seglearn`` is not installed.

    Example:
      >>> load(window=200, unseen=[1]).train.num_clients  # doctest: +SKIP
      9
    """
    window = check.integer("window", window, low=1)
    stride = window if stride is None else check.integer("stride", stride, low=1)
    check.number("test_share", test_share, low=0, high=1)
    recordings = read_recordings()
    people = sorted({recording.person for recording in recordings})
    check.instance("unseen", unseen, (list, tuple), "a list of people")
    for person in unseen:
        check.one_of("a person of unseen", person, people)
    if set(unseen) >= set(people):
        check.fail_value("unseen", "to leave somebody to train on", unseen)
    seen = [recording for recording in recordings if recording.person not in unseen]
    ends = [round(len(recording.series) * (1 - test_share)) for recording in seen]
    held_out = [recording for recording in recordings if recording.person in unseen]
    train = _cut(seen, [0] * len(seen), ends, window, stride)
    test = _cut(seen, ends, [len(recording.series) for recording in seen], window, stride)
    whole = _cut(held_out, [0] * len(held_out), [len(recording.series) for recording in held_out], window, stride)
    report = {"people": len(people), "recordings": len(recordings), "steps": sum(len(one.series) for one in recordings)}
    report |= {"windows train": train.num_examples, "windows test": test.num_examples, "windows unseen": whole.num_examples}
    if stride == window:
        report["steps left out"] = report["steps"] - window * sum(data.num_examples for data in (train, test, whole))
    return FederatedSplits(train, test, whole, report)


def read_recordings() -> list[Recording]:
    """Returns all recordings in the order of the package's file.

    Raises:
      ModuleNotFoundError: if ``seglearn`` is not installed.
      ValueError: if its file is not the known one.

    Example:
      >>> len(read_recordings())  # doctest: +SKIP
      140
    """
    path = find_package_file("seglearn", "seglearn/data/watch_dataset.npy", INSTALL, _SHA256)
    read = read_pickled_array(path).item()
    columns = (read[name] for name in ("subject", "y", "side", "X"))
    return [Recording(int(person), int(y), int(side), series) for person, y, side, series in zip(*columns, strict=True)]


def read_pickled_array(path: Path) -> np.ndarray:
    """Returns the array of objects in an ``.npy`` file; its pickle may hold arrays, numbers, texts and containers, nothing else.

    Raises:
      ValueError: if the file is no array of objects.
      pickle.UnpicklingError: if its pickle names anything else, with that name.

    Example:
      >>> read_pickled_array(Path("watch_dataset.npy")).item().keys()  # doctest: +SKIP
      dict_keys(['X', 'y_labels', 'y', 'subject', 'side', 'X_labels'])
    """
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            check.fail_value(f"the version of {path.name}", "to be (1, 0)", np.lib.format.read_magic(file))
        _, _, dtype = np.lib.format.read_array_header_1_0(file)
        if not dtype.hasobject:
            check.fail_value(f"the dtype of {path.name}", "to be object", dtype)
        return _ArrayUnpickler(io.BytesIO(file.read())).load()


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the four names by which NumPy's arrays are pickled, whose work it does itself where they could do more."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "numpy.core.multiarray._reconstruct": _empty_array,
            "numpy.ndarray": "numpy.ndarray",  # only ever an argument of _reconstruct
            "numpy.dtype": np.dtype,
            "_codecs.encode": _latin1,
        }
        if f"{module}.{name}" not in known:
            _refuse(f"{module}.{name}")
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        _refuse("a persistent id")


def _refuse(what: str) -> NoReturn:
    raise pickle.UnpicklingError(f"expected a pickle of arrays, numbers and texts only, got one that asks for {what}")


def _empty_array(kind: str, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    if (kind, shape) != ("numpy.ndarray", (0,)):
        _refuse(f"numpy.core.multiarray._reconstruct{(kind, shape)}")
    return np.empty(0, np.int8)  # its shape, dtype and content follow as its state


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        _refuse(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _cut(recordings: list[Recording], begins: list[int], ends: list[int], window: int, stride: int) -> FederatedDataset:
    """Windows that lie between each recording's begin and end."""
    rows = [
        (recording, start)
        for recording, begin, end in zip(recordings, begins, ends, strict=True)
        for start in range(begin, end - window + 1, stride)
    ]
    x = np.empty((len(rows), window, len(CHANNELS)), np.float32)
    for row, (recording, start) in enumerate(rows):
        x[row] = recording.series[start : start + window]
    labels = np.array([(one.exercise, one.side) for one, _ in rows], np.int32).reshape(-1, 2)
    progress = np.array([start / len(one.series) for one, start in rows], np.float32)
    columns = {"x": x, "y": labels[:, 0], "side": labels[:, 1], "progress": progress}
    return FederatedDataset.from_columns(columns, np.array([one.person for one, _ in rows], np.int64))
