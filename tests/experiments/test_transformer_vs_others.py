"""The study of uneven labels at smoke size, and how its models are matched."""

import dataclasses

import matched
import numpy as np
import pytest
import transformer_vs_others as study

import fedjax_tx as ftx


def test_a_width_is_the_nearest_in_cost():
    def parameters(width):
        return ftx.models.describe(ftx.models.mlp(8, 3, (width, width)), np.ones((1, 8), np.float32)).num_parameters

    width = matched.nearest_width({width: parameters(width) for width in (4, 32, 256)}, 26_538)
    off = {near: abs(parameters(near) - 26_538) for near in (width - 1, width, width + 1)}
    assert min(off, key=lambda near: off[near]) == width


def test_every_example_is_dealt_once_and_one_class_a_client_is_the_end():
    columns = {"x": np.arange(1000, dtype=np.float32)[:, None], "y": (np.arange(1000) % 10).astype(np.int32)}
    parts = study.deal(columns, most=800)
    seen = [parts.train["x"], *(part.columns["x"] for part in (parts.public, parts.validation, parts.test))]
    assert [len(part) for part in seen] == [480, 80, 80, 160]
    assert len(np.unique(np.concatenate(seen))) == 800
    settings = study.Settings(clients=20)
    for alpha, most in ((float("inf"), 10), (0.0, 3)):
        train = study.federate(settings, parts, alpha, seed=0)
        classes = [len(np.unique(train.client(number)["y"])) for number in range(20)]
        assert set(train.client_sizes) == {24} and max(classes) <= most and (min(classes) == 1) == (alpha == 0.0)


@pytest.mark.slow
def test_the_study_at_smoke_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(study.SMOKE, "run_dir", tmp_path)
    settings = study.Settings(smoke=True)
    found = study.main(settings)
    assert len(found) == 5 * 2 * 2 and (tmp_path / "scores.png").exists()
    assert "| images | cnn, same FLOPs |" in (tmp_path / "scores.md").read_text() and capsys.readouterr().out
    wanted = {cell["model"]: cell for cell in found}
    for name, cell in wanted.items():
        what = "num_parameters" if name.endswith("parameters") else "forward_flops"
        assert abs(cell[what] / wanted["transformer"][what] - 1) < 0.05, name
    assert all(len(cell["plain"]) == len(cell["calibrated"]) == 2 for cell in found)
    # A second run computes nothing, and one with other settings everything.
    monkeypatch.setattr(study, "study_cell", lambda *arguments: pytest.fail("a finished cell is computed again"))
    assert study.main(settings) == found
    monkeypatch.setitem(study.SMOKE, "rounds", 2)
    with pytest.raises(pytest.fail.Exception):
        study.main(dataclasses.replace(settings))
