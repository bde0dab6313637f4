"""The benchmark of sweeps at smoke size."""

import pytest
import sweep_speed

pytestmark = pytest.mark.slow  # compiles for a minute


def test_the_benchmark_reports_both_ways_on_both_works(tmp_path, capsys):
    figures = sweep_speed.main(sweep_speed.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    assert set(figures) == {"C", "A"}
    for found in figures.values():
        assert set(found["seconds"]) == {"one by one", "sweep"}
        assert all(len(values) == 3 and min(values) > 0 for values in found["seconds"].values())
    printed = capsys.readouterr().out
    assert "| C | sweep |" in printed and "| A | one by one | 1 lanes a device |" in printed
    assert "floor of work C" in printed and "times the floor on 1 device" in printed
