"""The study of stragglers: whom each method hears, and the whole of it at smoke size."""

import json

import numpy as np
import pytest
import synthetic as study

from fedjax_tx import prng


def test_both_methods_meet_the_same_stragglers_who_stop_after_whole_epochs():
    settings = study.Settings()
    heard, dropped = (study.make_cohorts(settings, 0.9, drop) for drop in (False, True))
    for number in range(5):
        one, other = (
            source.select(source.init(30), prng.host_generator(0, "cohort", number), None)[0] for source in (heard, dropped)
        )
        assert one.ids.tolist() == other.ids.tolist() and (other.work_done == 1).sum() == 1
        epochs = one.work_done * 20
        np.testing.assert_allclose(epochs, epochs.round(), atol=1e-9)
        np.testing.assert_array_equal(epochs == 20, other.work_done == 1)


def test_scores_are_means_over_the_last_rounds():
    curves = {"round": [5, 10, 15, 20], "loss": [9.0, 9.0, 2.0, 4.0]}
    assert [study.late_mean(study.Settings(rounds=20), curves, "loss", last) for last in (10, 20)] == [3.0, 6.0]


@pytest.mark.slow
def test_the_study_at_smoke_size(tmp_path, capsys):
    told = study.main(study.Settings(smoke=True, run_dir=tmp_path))
    (nobody,), (most,) = told[0.0], told[0.9]
    assert nobody["FedAvg"] == nobody["FedProx, mu = 0"] != nobody["FedProx, mu = 1"]
    assert most["FedAvg"] != most["FedProx, mu = 0"] != most["FedProx, mu = 1"]
    assert json.loads((tmp_path / "scores.json").read_text())["0.9"] == [most]
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "| 90% | FedAvg | " in capsys.readouterr().out
