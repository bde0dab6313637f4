"""Who imports whom: the layers of the design, read from the source; and that importing starts nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_tx

ROOT = Path(fedjax_tx.__file__).parent
LAYERS = (
    {"types", "tree", "prng", "check", "devices", "processes"},
    {"data", "models", "tasks", "clients", "aggregation"},
    {"privacy", "attacks"},
    {"algorithms"},
    {"simulation"},
    {"training"},
    {"deploy", "report", "launch"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
APART = LAYERS[1]
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> list[tuple[str, ...]]:
    """The dotted names that a file imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [(*node.module.split("."), alias.name) for alias in node.names]
    return found


def test_every_file_belongs_to_a_layer():
    assert {part_of(path) for path in FILES} <= LEVEL.keys()
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_the_layers_only(path):
    here = part_of(path)
    for name in imports(path):
        if name[0] == "fedjax_tx":
            assert len(name) > 1 and name[1] in LEVEL, f"{here} imports {'.'.join(name)}, which is in no layer"
            there = name[1]
            assert LEVEL[there] <= LEVEL[here], f"{here} imports {there}, which is above it"
            assert not (there != here and {there, here} <= APART), f"{here} imports {there}, which stands beside it"


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) != "models"], ids=lambda path: path.name)
def test_only_models_see_flax(path):
    assert not [name for name in imports(path) if name[0] == "flax"]


def run_fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_starts_no_backend_reads_no_flags_and_says_nothing():
    code = """
import fedjax_tx
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
import jax
jax.config.update("jax_num_cpu_devices", 2)
assert jax.local_device_count() == 2
"""
    assert run_fresh(code) == ""


def test_importing_does_not_load_what_only_some_need():
    code = """
import sys
import fedjax_tx
print([name for name in ("tensorflow", "tensorflow_datasets", "matplotlib.pyplot", "torch", "pandas") if name in sys.modules])
"""
    assert run_fresh(code) == "[]"
