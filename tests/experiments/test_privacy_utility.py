"""The study of what privacy costs: its noise and its extrapolation by hand, and the whole of it at smoke size."""

import json
import math

import privacy_utility as study
import pytest

from fedjax_tx import privacy
from fedjax_tx.types import Participation

SETTINGS = study.Settings(rounds=4, accountant="rdp", delta=1e-4)


def test_a_million_clients_have_the_same_noise_on_the_mean_for_a_smaller_epsilon():
    """Ten times as many in a round, so ten times the noise multiplier; and nobody comes to the tree twice."""
    tree = privacy.tree_factorization(4, 2)
    correlated = study.Method(None, None, 100, tree)
    assert tree.sensitivity(4, Participation(2)) ** 2 == pytest.approx(8)
    assert tree.sensitivity(4, Participation(1000)) ** 2 == pytest.approx(3)
    have = study.epsilon_of_many(SETTINGS, correlated, 0.1)
    assert have == pytest.approx(privacy.epsilon(0.1 * 10 * math.sqrt(8 / 3), 1.0, 1, 1e-7, "rdp"))
    independent = study.Method(None, None, 100, None)
    assert study.epsilon_of_many(SETTINGS, independent, 0.1) == privacy.epsilon(1.0, 0.001, 4, 1e-7, "rdp")


def test_noise_is_the_least_that_an_epsilon_allows():
    independent = study.Method(None, None, 100, None)
    noise = study.noise_for(SETTINGS, independent, 1000, 2.0)
    assert privacy.epsilon(noise, 0.1, 4, 1e-4, "rdp") <= 2 < privacy.epsilon(noise - 0.001, 0.1, 4, 1e-4, "rdp")
    assert study.noise_for(SETTINGS, independent, 1000, math.inf) == 0
    once = study.noise_for(SETTINGS, study.Method(None, None, 100, privacy.tree_factorization(4)), 1000, 2.0)
    assert once == privacy.calibrate_noise(2.0, 1.0, 1, 1e-4, "rdp")


@pytest.mark.slow
def test_the_study_at_smoke_size(tmp_path, capsys):
    told = study.main(study.Settings(smoke=True, run_dir=tmp_path))
    assert set(told["methods"]) == set(study.METHODS) and told["parameters"] < 5000
    for cells in told["methods"].values():
        assert cells["inf"]["noise_multiplier"] == 0 < cells["8"]["noise_multiplier"]
        assert 0 <= cells["8"]["audit"] < 8 and cells["8"]["many"] < 8 and cells["inf"]["audit"] >= 0
        assert all(1 < one < 5 for cell in cells.values() for one in cell["test"])
    assert json.loads((tmp_path / "scores.json").read_text()) == told
    assert (tmp_path / "privacy_utility.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "| DP-FTRL | 8 |" in printed and "99.97% at epsilon 8" in printed
