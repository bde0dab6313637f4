"""Makes every notebook here of its plain-text twin: python colab/make_notebooks.py

A twin is a script in percent format: ``# %%`` begins a cell of code, ``# %% [markdown]`` one of prose, each line of it a comment.
What only a notebook understands is a comment too: ``# %pip`` becomes ``%pip``.
"""

import json
import re
from pathlib import Path
from typing import Any

TWINS = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.name != "make_notebooks.py"]
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
EMPTY: dict[str, Any] = {"execution_count": None, "outputs": []}


def make_notebook(twin: str) -> str:
    """Returns the notebook (nbformat 4.5, without outputs) that holds the cells of a twin."""
    cells: list[dict[str, Any]] = []
    for prose, body in re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", twin, re.MULTILINE | re.DOTALL):
        source = re.sub(r"^# ?" if prose else r"^# (?=%\w)", "", body.strip(), flags=re.MULTILINE)
        cell = {"id": f"cell-{len(cells)}", "metadata": {}, "source": source.splitlines(keepends=True)}
        cells.append({**cell, "cell_type": "markdown"} if prose else {**cell, "cell_type": "code", **EMPTY})
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path in TWINS:
        path.with_suffix(".ipynb").write_text(make_notebook(path.read_text(encoding="utf-8")), encoding="utf-8")
