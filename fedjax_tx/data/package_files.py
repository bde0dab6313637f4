"""Data files of installed packages, found without importing the package: its code is not run."""

import hashlib
import importlib.metadata
from pathlib import Path

from fedjax_tx import check


def find_package_file(package: str, name: str, install: str, sha256: str | None = None) -> Path:
    """Returns the path of a file that an installed package brought.

    Args:
      package: the distribution's name. name: the file's path as the package lists it, such as "seglearn/data/x.npy".
      install: the command that installs it, for the message. sha256: of the file, in hexadecimal, where it must be this one.

    Raises:
      ModuleNotFoundError: if the package is not installed, or lacks the file.
      ValueError: if the file is another one.

    Example:
      >>> find_package_file("numpy", "numpy/__init__.py", "pip install numpy").name
      '__init__.py'
    """
    wanted = f"expected the package {package}, which holds {name}: {install}"
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(wanted) from error
    found = [Path(str(file.locate())) for file in files if file.as_posix() == name]
    if not found or not found[0].is_file():
        raise ModuleNotFoundError(f"{wanted}; the one installed lacks that file")
    if sha256 is not None:
        have = hashlib.sha256(found[0].read_bytes()).hexdigest()
        if have != sha256:
            check.fail_value(f"SHA-256 of {name} in the package {package}", f"to be {sha256}", have)
    return found[0]
