"""The benchmark of all cores at smoke size: each system has its devices, and all compute the same."""

import os

import all_cores
import numpy as np
import pytest

pytestmark = pytest.mark.slow  # compiles for a minute


def test_the_benchmark_compares_the_systems_on_the_same_rounds(tmp_path, capsys):
    figures = all_cores.main(all_cores.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    cores = len(os.sched_getaffinity(0))
    devices = {name: row["devices"] for name, row in figures["rows"].items()}
    assert devices == {"one core": 1, "one device": 1, "a device a core": cores, "a device a core, shared pool": cores}
    assert figures["apart"] < 1e-4
    for row in figures["rows"].values():
        assert len(row["ratio"]) == 2
        one = figures["rows"]["one core"]["examples_per_second"]
        np.testing.assert_allclose(np.divide(row["examples_per_second"], one), row["ratio"])
    assert "| work A on |" in capsys.readouterr().out
