"""The benchmarks of the host's work at smoke size."""

import host_placement
import pytest
import small_rounds

pytestmark = pytest.mark.slow  # compiles in five processes


def test_the_benchmark_of_overlap_compares_three_systems_on_each_kind_of_cohort(tmp_path, capsys):
    figures = host_placement.main(host_placement.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    assert set(figures["rows"]) == {"uniform, stored order", "uniform, shuffled", "poisson, shuffled"}
    for told in figures["rows"].values():
        assert set(told) == set(host_placement.SYSTEMS)
        assert told["device"]["examples"] == told["host"]["examples"]
        for name in ("device", "host"):
            one = told[name]
            assert len(one["prepare"]) == len(one["round"]) == 2
            assert all(0 <= both <= took for both, took in zip(one["overlap"], one["prepare"], strict=True))
    for one in figures["traced"].values():
        assert 0 <= one["overlap"] <= one["prepare"] and one["prepare"] > 0  # rounds this small may end sooner
    assert figures["memory"]["host"]["VmHWM"] > figures["memory"]["host"]["RssAnon"] > 50e6
    assert "| uniform, stored order | host |" in capsys.readouterr().out


def test_spans_within_others_count_once():
    assert host_placement.join_spans([(5, 6), (0, 3), (1, 2), (2.5, 4)]) == [(0, 4), (5, 6)]


def test_the_benchmark_of_small_rounds_tells_the_hosts_time(tmp_path, capsys):
    figures = small_rounds.main(small_rounds.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    assert {len(took) for took in figures["seconds"].values()} == {2}
    assert all(took > 0 for name in ("planning", "reading") for took in figures["seconds"][name])
    assert "| the host's time, planning ahead |" in capsys.readouterr().out
