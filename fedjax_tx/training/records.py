"""The files of a run directory.

``experiment.json`` what is computed (a directory of another experiment is refused) and the choices made for this machine;
``metrics.jsonl`` a line a round; ``timing.jsonl`` wall-clock figures, apart, so that equal runs have equal metrics;
``summary.json`` how it ended; ``checkpoints/``.
"""

import json
import math
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_tx import processes
from fedjax_tx.data import FederatedDataset
from fedjax_tx.simulation import Experiment, RoundState
from fedjax_tx.simulation.fingerprint import fingerprint
from fedjax_tx.types import PyTree

_SAMPLED_ROWS = 4096
_OTHER_PROGRAM = " (program: what the algorithm, the task, the model or a constant in them computes)"


def describe(
    experiment: Experiment,
    state: RoundState,
    evaluate: Mapping[str, FederatedDataset],
    evaluate_every: int,
    config: Mapping[str, Any],
    init_params: PyTree = None,
) -> dict[str, Any]:
    """Returns what decides a run's records as flat names and plain values; two runs may share a directory if these agree.

    Parameters that are drawn are told by the seed and the program: another machine rounds them otherwise, and may go on.
    """
    local = experiment.local
    server = {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.device)
    }
    start = (state.device.server.params, state.device.server.frozen)
    nested = {
        "config": dict(config),
        "seed": experiment.seed,
        "hyper": {name: float(value) for name, value in experiment.hyper.items()},
        "cohorts": experiment.cohorts.description,
        "local": {name: _plain(getattr(local, name)) for name in ("batch_size", "epochs", "steps", "shuffle", "expected_batch")},
        "train": describe_data(experiment.train),
        "evaluate": {name: describe_data(data) for name, data in evaluate.items()},
        "evaluate_every": evaluate_every,
        "state": server,
        "first_params": None if init_params is None else digest(jax.tree.leaves(jax.device_get(start))),
        "program": fingerprint(experiment),
        "made_with": f"JAX {jax.__version__}, fedjax_tx {_own_version()}, {jax.default_backend()}",
    }
    return json.loads(json.dumps(flatten(nested)))


def _own_version() -> str:
    try:
        return version("fedjax-tx")
    except PackageNotFoundError:  # a checkout on the path, which pip knows nothing of
        return "not installed"


def describe_data(data: FederatedDataset) -> dict[str, Any]:
    """Returns clients, examples, columns and a checksum (of the sizes, and of up to 4,096 rows of each column)."""
    step = max(1, data.num_examples // _SAMPLED_ROWS)
    columns = {name: f"{column.dtype}{list(column.shape[1:])}" for name, column in sorted(data.columns.items())}
    first = -data.rows_held[0] % step  # of the rows held, the first that is sampled of all
    sample = [np.asarray(data.columns[name][first::step]) for name in sorted(data.columns)]
    if data.part is not None:  # every process adds its own, so that the checksum is that of the whole
        sample = [np.frombuffer(b"".join(processes.gather(one.tobytes())), np.uint8) for one in sample]
    checksum = digest([data.client_sizes, *sample])
    return {"clients": data.num_clients, "examples": data.num_examples, "columns": columns, "checksum": checksum}


def digest(arrays: list) -> str:
    """Returns a CRC-32 of the bytes of some arrays."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return f"{checksum:08x}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested dict as one level of dotted names."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def refuse_other(directory: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` naming each field in which a directory's experiment differs from the one at hand.

    Programs are compared where they were made with the same versions for the same kind of device; elsewhere a warning says so.
    """
    names = [name for name in sorted({*saved, *now} - {"made_with"}) if saved.get(name) != now.get(name)]
    if names == ["program"] and saved.get("made_with") != now["made_with"]:
        made = f"it was made with {saved.get('made_with')}, this is {now['made_with']}"
        told = "whether its algorithm, task and model are those at hand can't be told"
        warnings.warn(f"run_dir {str(directory)!r} goes on, but {told}: {made}", stacklevel=2)
    elif names:
        listed = "; ".join(f"{name} is {saved.get(name)!r} there and {now.get(name)!r} here" for name in names[:5])
        more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
        program = _OTHER_PROGRAM if "program" in names else ""
        raise ValueError(f"expected run_dir {str(directory)!r} to hold this experiment, but {listed}{more}{program}")


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file, None if there is none.

    Errors: ``ValueError`` naming the file if it holds something else.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"expected {str(path)!r} to hold JSON, but it is damaged: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    _replace(path, json.dumps(value, indent=2) + "\n")


def append_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Appends records to a JSONL file, one a line."""
    with path.open("a") as file:
        file.write(_lines(records))


def flush(path: Path) -> None:
    """Waits until what was appended to a file is on the disk."""
    with path.open("a") as file:
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a JSONL file; a last line cut short by a kill is left out.

    Errors: ``ValueError`` naming the file and the line if another line isn't a record.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            records.append({name: math.nan if value is None else value for name, value in json.loads(line).items()})
        except (ValueError, AttributeError) as error:
            raise ValueError(f"expected line {number} of {str(path)!r} to be a record, but it is damaged: {error}") from error
    return records


def rewrite_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Replaces a JSONL file whole or not at all."""
    _replace(path, _lines(records))


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record with nan for all that is not finite: as it will be when it is read back."""
    return {name: math.nan if _not_finite(value) else value for name, value in record.items()}


def _replace(path: Path, text: str) -> None:
    """The old file stays until the new one is on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _lines(records: Sequence[Mapping[str, Any]]) -> str:
    """JSON has no NaN: what is not finite becomes null."""
    plain = [{name: None if _not_finite(value) else value for name, value in record.items()} for record in records]
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in plain)


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _plain(value):
    return f"array {digest([value])}" if isinstance(value, np.ndarray) else value
