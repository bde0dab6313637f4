"""A folder of weights as Hugging Face lays it out: ``config.json`` and tensors in the safetensors format.

The tensors are in ``model.safetensors``, or in several files that ``model.safetensors.index.json`` lists. They are read as
float32 whatever they are stored in, and written as float32. Nothing here needs PyTorch.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from fedjax_tx import check

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def check_folder(name: str, folder: Any) -> Path:
    """Returns ``folder`` as a path; raises unless it is a string or a path.

    Example:
      >>> check_folder("folder", "weights").name
      'weights'
    """
    return Path(check.instance(name, folder, (str, os.PathLike), "a path"))


def read_config(folder: Path) -> dict[str, Any]:
    """Returns what ``config.json`` of a folder says.

    Errors: ``ValueError`` if the folder has none.
    """
    path = folder / CONFIG
    if not path.is_file():
        check.fail_value("folder", f"to hold a {CONFIG}", str(folder))
    return json.loads(path.read_text())


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Returns all tensors of a folder by name: floating-point ones as float32, others (buffers of indices) as empty arrays
    of their shape, since no model here has any.

    Errors: ``ValueError`` if there is no such file, a part of a split checkpoint is missing or is without a tensor that the
    index places there.
    """
    if (folder / TENSORS).is_file():
        return _read_file(folder / TENSORS)
    if not (folder / INDEX).is_file():
        check.fail_value("folder", f"to hold {TENSORS} or {INDEX}", str(folder))
    places: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    lost = sorted({file for file in places.values() if not (folder / file).is_file()})
    if lost:
        check.fail_value(f"{folder} to hold", "every file that its index lists", f"no {', '.join(lost)}")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(places.values())):
        tensors |= _read_file(folder / file)
    lacking = sorted(places.keys() - tensors.keys())
    if lacking:
        check.fail_value(f"the files of {folder} to hold", "every tensor that its index lists", f"no {', '.join(lacking)}")
    return tensors


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes ``config.json`` and ``model.safetensors``, which replace what was there; makes the folder if there is none.

    Errors: ``ValueError`` if the folder holds a checkpoint of several files, beside which one file would mislead.
    """
    if (folder / INDEX).exists():
        check.fail_value("folder", f"to hold no {INDEX}", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    # Readers refuse a file without this mark, and take any framework's with it.
    save_file(
        {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}, folder / TENSORS, {"format": "pt"}
    )
    (folder / CONFIG).write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n")


def _read_file(path: Path) -> dict[str, np.ndarray]:
    # Not safetensors.numpy, which knows no bfloat16.
    return {name: _as_float32(**stored) for name, stored in safetensors.deserialize(path.read_bytes())}


def _as_float32(*, shape: list[int], dtype: str, data: bytes | bytearray) -> np.ndarray:
    if dtype not in _FLOATS:
        return np.broadcast_to(np.float32(0), shape)
    return np.frombuffer(data, _FLOATS[dtype]).reshape(shape).astype(np.float32, copy=False)
