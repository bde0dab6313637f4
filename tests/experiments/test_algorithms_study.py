"""The study of optimisation methods: every method is one with six settings; no text is in two sets; the whole at smoke size."""

import csv
import itertools

import algorithms
import numpy as np
import optax
import pytest

import fedjax_tx as ftx


@pytest.mark.parametrize("name", algorithms.METHODS)
def test_every_method_has_six_settings_each_of_which_can_be_built(name):
    method = algorithms.METHODS[name]
    cells = [dict(zip(method.grid, cell, strict=True)) for cell in itertools.product(*method.grid.values())]
    assert len(cells) == 6
    task = algorithms.make_task(algorithms.Settings(num_layers=1, width=8, num_heads=1))
    for cell in cells:
        assert method.make(task, optax.sgd(cell["client_lr"]), cell).passes


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("algorithms")
    return algorithms.Settings(smoke=True, run_dir=folder / "run", data_dir=folder / "data")


@pytest.mark.slow
def test_validation_is_the_end_of_a_role_and_trained_on_by_nobody(settings):
    whole = ftx.data.load("shakespeare", data_dir=settings.data_dir, sequence_length=64).train
    data = algorithms.load_data(settings)
    assert data.train.num_examples + data.validation.num_examples == whole.num_examples
    for client, size in enumerate(whole.client_sizes[:50]):
        kept = data.train.client(client)["tokens"]
        assert len(kept) == size - (max(size // 10, 1) if size > 1 else 0)
        np.testing.assert_array_equal(kept, whole.client(client)["tokens"][: len(kept)])


@pytest.mark.slow
def test_the_study_at_smoke_size_and_again_from_where_it_was(settings, capsys):
    told = algorithms.main(settings)
    one = told["mime_lite"]
    assert one["rounds"] == 1  # of two passes, as many examples as in 2 rounds of one
    rows = list(csv.DictReader((settings.run_dir / "tuning.csv").open()))
    assert len(rows) == 6
    assert float(min(rows, key=lambda row: float(row["validation/loss"]))["client_lr"]) == one["hyper"]["client_lr"]
    assert (settings.run_dir / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "| mime_lite | client_lr " in capsys.readouterr().out
    assert algorithms.main(settings) == told
