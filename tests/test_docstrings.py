"""The examples in docstrings run and give what they say; every public function has one."""

import doctest
import importlib
from pathlib import Path

import arguments
import pytest

import fedjax_tx

ROOT = Path(fedjax_tx.__file__).parent
MODULES = sorted(
    ".".join(["fedjax_tx", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
)


# Examples that draw and run a network compile for seconds each.
COMPILING = ("fedjax_tx.models.", "fedjax_tx.tasks.")
ROWS = [pytest.param(name, marks=[pytest.mark.slow] if name.startswith(COMPILING) else []) for name in MODULES]


@pytest.mark.parametrize("name", ROWS)
def test_examples_in_docstrings_run(name, unchecked):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", sorted(arguments.public_functions()))
def test_every_public_function_has_a_docstring_with_an_example(name):
    text = arguments.public_functions()[name].__doc__ or ""
    assert ">>>" in text, f"{name} has no example"
