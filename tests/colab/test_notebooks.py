"""Every notebook is its plain-text twin, cell by cell, and does what it says at a tiny size."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from colab.make_notebooks import TWINS, make_notebook

COLAB = Path(__file__).parent.parent.parent / "colab"
TWO_CELLS = "# %% [markdown]\n# # Title\n#\n# prose\n\n# %%\n# %pip install it\nx = 1  # %% no cell\n\n\ndef f():\n    return x\n"


def test_a_twin_becomes_its_cells():
    prose, code = json.loads(make_notebook(TWO_CELLS))["cells"]
    assert (prose["cell_type"], "".join(prose["source"])) == ("markdown", "# Title\n\nprose")
    assert code["cell_type"] == "code"
    assert "".join(code["source"]) == "%pip install it\nx = 1  # %% no cell\n\n\ndef f():\n    return x"


def test_every_notebook_has_a_twin():
    assert TWINS and [path.stem for path in sorted(COLAB.glob("*.ipynb"))] == [path.stem for path in TWINS]


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_a_notebook_equals_its_twin_and_holds_no_outputs(twin):
    text, saved = twin.read_text(encoding="utf-8"), twin.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert text.startswith("# %%") and text.count("\n# %%") + 1 == len(json.loads(saved)["cells"])
    assert saved == make_notebook(text), "run python colab/make_notebooks.py"
    assert not any(cell.get("outputs") for cell in json.loads(saved)["cells"])


@pytest.mark.slow
def test_the_quickstart_at_a_tiny_size(tmp_path):
    script = (COLAB / "quickstart.py").read_text(encoding="utf-8")
    for name, tiny in {"ROUNDS": 4, "EVALUATE_EVERY": 2, "WIDTH": 16, "LENGTH": 16}.items():
        script, found = re.subn(rf"^{name} = \d+", f"{name} = {tiny}", script, flags=re.MULTILINE)
        assert found == 1
    own = {"MPLBACKEND": "Agg", "PYTHONPATH": str(COLAB.parent), "TFDS_DATA_DIR": str(tmp_path / "data")}
    own |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/quickstart/loss.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in (tmp_path / "runs/quickstart/metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records if "test/loss" in record] == [2, 4]
    assert all(math.isfinite(records[-1][f"{name}/loss"]) for name in ("train", "test", "unseen"))
    assert len(re.findall(r"^(?:test|unseen) +\d+ clients +loss [\d.]+ .* worst tenth [\d.]+$", done.stdout, re.MULTILINE)) == 2
    assert "My lord, " in done.stdout and "server_lr" in done.stdout
