"""The benchmark of large populations at smoke size."""

import million_clients
import pytest

pytestmark = pytest.mark.slow  # compiles for a minute


def test_the_benchmark_reports_every_population(tmp_path, capsys):
    figures = million_clients.main(million_clients.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    assert set(figures["rows"]) == {"50"}
    for row in figures["rows"].values():
        assert len(row["plan"]) == len(row["round"]) == 2
        assert row["open"] > 0 and row["peak"] > 50e6
    assert "| clients |" in capsys.readouterr().out
