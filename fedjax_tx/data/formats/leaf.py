"""LEAF's JSON files (arXiv 1812.01097): ``users``, ``num_samples`` and ``user_data``, a hundred or so clients a file."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedjax_tx import check
from fedjax_tx.data.federated import FederatedDataset
from fedjax_tx.data.formats.clients import check_options, from_clients
from fedjax_tx.data.formats.columns import Client, Encode, as_column


def from_leaf(
    folder: str | os.PathLike[str],
    *,
    encode: Encode | None = None,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FederatedDataset:
    """Reads the JSON files of a folder that LEAF's ``preprocess.sh`` wrote: ``all_data``, ``train`` or ``test``.

    Columns are those of ``user_data``, ``x`` and ``y``; clients come in the order of the files' numbers, then of ``users``.
    Join ``train`` and ``test`` with ``make_splits``. Numbers need nothing (FEMNIST, synthetic); texts and nested lists
    (Shakespeare, Sent140, Reddit) come to ``encode`` as arrays of what the JSON holds. JSON says neither float32 nor int32, so
    columns are float64 and int64 unless ``encode`` makes them others. One file is in memory at a time.

    Args:
      folder: holds the ``.json`` files. encode, directory, progress: see ``from_clients``.

    Raises:
      FileNotFoundError: if the folder holds no JSON file.
      TypeError, ValueError: naming file, client and column, if a file is not of LEAF's form; see ``from_clients``.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> content = {"users": ["a"], "num_samples": [2], "user_data": {"a": {"x": [[0.5], [1.0]], "y": [0, 1]}}}
      >>> _ = (folder / "all_data_0.json").write_text(json.dumps(content))
      >>> from_leaf(folder)
      FederatedDataset(1 clients, 2 examples, 2/2/2 (min/median/max) a client, x: float64[1], y: int64)
    """
    check.instance("folder", folder, (str, os.PathLike), "a path")
    check_options(encode, directory, progress)
    files = _find_files(Path(folder))

    def read_clients(start: int) -> Iterator[Client]:
        for path in files:
            users, user_data = _read_file(path)
            for user in users[start:]:
                yield Client(user, {name: as_column(rows) for name, rows in user_data[user].items()}, str(path))
            start = max(start - len(users), 0)

    return from_clients(read_clients, encode=encode, directory=directory, progress=progress)


def _find_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.json"), key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)] + [path.name])
    if not files:
        parts = [part.name for part in (folder / "all_data", folder / "train", folder / "test") if part.is_dir()]
        found = f"one with the folders {', '.join(parts)}: give one of them" if parts else "one without"
        raise FileNotFoundError(f"expected folder {str(folder)!r} to hold LEAF's .json files, got {found}")
    return files


def _read_file(path: Path) -> tuple[list[str], dict[str, dict[str, list]]]:
    """Returns the users of a file and their columns, checked."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected {str(path)!r} to be JSON, got {error}") from error
    users, counts, user_data = (
        check.instance(f"{name} of {str(path)!r}", _entry(content, name, str(path)), kind, "as LEAF writes it")
        for name, kind in (("users", list), ("num_samples", list), ("user_data", dict))
    )
    if len(counts) != len(users):
        check.fail_value(f"num_samples of {str(path)!r}", f"to have {len(users)} entries, one a user", len(counts))
    for user, count in zip(users, counts, strict=True):
        columns = check.mapping(f"client {user!r} in {str(path)!r}", _entry(user_data, user, f"{path}, user_data"))
        for name, rows in columns.items():
            where = f"column {name!r} of client {user!r} in {str(path)!r}"
            if len(check.instance(where, rows, list, "a list")) != count:
                check.fail_value(where, f"to have {count} entries, as num_samples says", len(rows))
    return users, user_data


def _entry(content: Any, name: str, where: str) -> Any:
    if not isinstance(content, dict) or name not in content:
        found = sorted(content) if isinstance(content, dict) else content
        check.fail_value(f"{where!r}", f"to have an entry {name!r}", found)
    return content[name]
