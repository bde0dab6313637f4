"""The benchmark of a script's start, at smoke size: the second start compiles nothing anew."""

import first_round
import pytest

pytestmark = pytest.mark.slow  # four starts of the main job


def test_a_warm_start_is_sooner_than_a_cold_one(tmp_path, capsys):
    seconds = first_round.main(first_round.Settings(smoke=True, out=tmp_path / "seconds.json"))
    assert (tmp_path / "seconds.json").exists()
    assert all(warm < cold for cold, warm in zip(seconds["cold"], seconds["warm"], strict=True))
    assert "| warm |" in capsys.readouterr().out
