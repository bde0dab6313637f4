"""Strict tests: shapes and types of every annotated function are checked, and warnings that our code causes are errors."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

from jaxtyping import config as annotations
from jaxtyping import install_import_hook

install_import_hook("fedjax_tx", "typechecker.check")

import problems  # noqa: E402  the package is imported under the hook
import pytest  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error:::fedjax_tx")
    config.addinivalue_line("filterwarnings", "error::FutureWarning:jax._src.ops.scatter")


@pytest.fixture
def clients():
    """Six clients of 5, 0, 1, 9, 3 and 7 examples in two dimensions and three classes."""
    return problems.ragged_clients()


@pytest.fixture
def texts():
    """Three clients of 2, 1 and 3 short texts."""
    return problems.text_clients()


@pytest.fixture
def unchecked():
    """Annotations are not checked, as for a user: what is seen are the library's own messages."""
    annotations.update("jaxtyping_disable", True)
    yield
    annotations.update("jaxtyping_disable", False)
