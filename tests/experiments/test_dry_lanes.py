"""The benchmark at smoke size; its work is work A."""

import dry_lanes
import numpy as np
import pytest


@pytest.mark.slow  # compiles for twenty seconds
def test_the_benchmark_reports_every_program(tmp_path, capsys):
    figures = dry_lanes.main(dry_lanes.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    never, once = figures["rows"]["4"], figures["rows"]["4, 2"]
    assert never["ratio"] == [1.0, 1.0] and len(once["ratio"]) == 2
    assert all(0 < low < high <= 1 for low, high in zip(never["useful"], once["useful"], strict=True))
    assert min(*never["examples_per_second"], *once["examples_per_second"]) > 0
    assert min(never["compile_seconds"], once["compile_seconds"]) > 0
    assert "| 4, 2 |" in capsys.readouterr().out


def test_the_work_is_that_of_the_peer_benchmark():
    data, cohorts = dry_lanes.make_work(dry_lanes.Settings())
    # What make_work.py tells of work A: examples in all, and the examples and steps of its first rounds.
    assert (data.num_clients, data.num_examples) == (512, 25_986)
    assert [int(data.client_sizes[cohort].sum()) for cohort in cohorts] == [2245, 1501, 1514, 1645, 1284, 1762, 1209, 1902]
    assert [int(np.ceil(data.client_sizes[cohort] / 8).sum()) for cohort in cohorts] == [296, 200, 203, 219, 174, 234, 166, 251]
