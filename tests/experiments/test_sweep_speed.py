"""The benchmark of sweeps at smoke size."""

import pytest
import sweep_speed

pytestmark = pytest.mark.slow  # compiles for a minute


def test_the_benchmark_reports_both_ways_on_both_works(tmp_path, capsys):
    figures = sweep_speed.main(sweep_speed.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    assert set(figures) == {"C", "A"}
    for found in figures.values():
        assert set(found["seconds"]) == {"one by one", "auto"}
        assert all(len(values) == 3 and min(values) > 0 for values in found["seconds"].values())
    printed = capsys.readouterr().out
    assert "| C | 2 | auto |" in printed and "| A | 1 | one by one |" in printed
