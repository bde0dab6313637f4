"""The study of spoken digits on made tones: who is judged on what, and the whole of it at smoke size."""

import json

import numpy as np
import pytest
import spoken_digits as study


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return study.load_data(study.Settings(made=True, run_dir=tmp_path_factory.mktemp("run")))


def test_recordings_are_parted_by_number(data):
    numbers = [sorted(set(part.columns["number"].tolist())) for part in data]
    assert numbers == [[10, 11], [5, 6, 7, 8, 9], [0, 1, 2, 3, 4], list(range(12))]
    assert all(part.client_ids.tolist() == ["ann", "bob", "eve"] for part in data)


def test_models_have_about_as_many_parameters():
    counts = {}
    for name in ("transformer", "lstm"):
        shapes = study.jax.eval_shape(study.make_model(study.Settings(), name, 98).init, study.jax.random.key(0))
        counts[name] = sum(leaf.size for leaf in study.jax.tree.leaves(shapes))
    assert abs(counts["transformer"] - counts["lstm"]) < 500 and counts["lstm"] > 30_000


@pytest.mark.slow
def test_the_study_at_smoke_size(tmp_path, capsys):
    told = study.main(study.Settings(smoke=True, run_dir=tmp_path))
    (one,) = told.values()
    assert np.shape(one["seen"]) == np.shape(one["unseen"]) == (1, 1) and 0 <= one["unseen"][0][0] <= 1
    assert json.loads((tmp_path / "scores.json").read_text())["transformer"]["unseen"] == one["unseen"]
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "| transformer | " in capsys.readouterr().out
