"""Curves: every metric in its panel, bands over clients; heat maps: the mean in each cell; wrong arguments."""

import json
import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedjax_tx import report
from fedjax_tx.data import FederatedDataset

FIRST = {"test/loss": 1.8, "test/loss/client_p10": 1.0, "test/loss/client_p90": 2.5, "test/accuracy": 0.5}
SECOND = {"test/loss": 1.4, "test/loss/client_p10": 0.9, "test/loss/client_p90": 2.0, "test/accuracy": 0.7}
HISTORY = [
    {"round": 1, "train/loss": 2.0, "server/update_norm": 1.0, "clients": 3},
    {"round": 2, "train/loss": 1.5, **FIRST},
    {"round": 3, "train/loss": math.nan},
    {"round": 4, "train/loss": 1.0, **SECOND},
]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    drawn = []

    class Kept(Figure):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            drawn.append(self)

    monkeypatch.setattr(report, "Figure", Kept)
    return drawn


def test_each_metric_has_a_panel_and_each_set_a_line(tmp_path, figures):
    path = report.plot_curves(HISTORY, tmp_path / "curves.png", title="A run")
    assert path.read_bytes().startswith(b"\x89PNG")
    loss, accuracy = figures[0].axes
    assert (loss.get_ylabel(), accuracy.get_ylabel(), loss.get_xlabel()) == ("loss", "accuracy", "round")
    train, test = loss.get_lines()
    np.testing.assert_array_equal(train.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(train.get_ydata(), [2.0, 1.5, np.nan, 1.0])
    np.testing.assert_array_equal(test.get_xdata(), [2, 4])
    np.testing.assert_array_equal(test.get_ydata(), [1.8, 1.4])
    assert figures[0].get_suptitle() == "A run"


def test_the_band_is_the_spread_over_clients(tmp_path, figures):
    report.plot_curves(HISTORY, tmp_path / "curves.png")
    (band,) = figures[0].axes[0].collections
    corners = {(float(x), float(y)) for x, y in band.get_paths()[0].vertices}
    assert {(2.0, 1.0), (2.0, 2.5), (4.0, 0.9), (4.0, 2.0)} <= corners
    assert not figures[0].axes[1].collections


def test_lines_of_a_file_are_drawn_as_the_history_is(tmp_path, figures):
    lines = [{name: None if value != value else value for name, value in record.items()} for record in HISTORY]
    report.plot_curves([json.loads(json.dumps(line)) for line in lines], str(tmp_path / "curves.png"))
    np.testing.assert_array_equal(figures[0].axes[0].get_lines()[0].get_ydata().astype(float), [2.0, 1.5, np.nan, 1.0])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"history": "metrics.jsonl"}, TypeError, "expected history to be a list of records, got 'metrics.jsonl' (str)"),
        ({"history": [1]}, TypeError, "expected history[0] to be a dict, got 1 (int)"),
        ({"history": [{"round": 1}]}, ValueError, "expected history to hold a metric such as 'train/loss', got []"),
        ({"path": 3}, TypeError, "expected path to be a path, got 3 (int)"),
        ({"path": "curves.xyz"}, ValueError, "expected path to end in .png, got 'curves.xyz'"),
        ({"title": 3}, TypeError, "expected title to be a string, got 3 (int)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_arguments_are_named(unchecked, tmp_path, change, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        report.plot_curves(**{"history": HISTORY, "path": tmp_path / "curves.png", **change})


COLUMNS = {
    "lr": [0.1, 0.1, 0.2, 0.2, 0.2],
    "mu": [0, 1, 0, 1, 1],
    "seed": [0, 0, 0, 0, 1],
    "loss": [1.0, 2.0, math.nan, 4.0, 5.0],
}


def test_a_heat_map_shows_the_mean_of_each_cell(tmp_path, figures):
    path = report.plot_heatmap(COLUMNS, tmp_path / "heat.png", x="lr", y="mu", metric="loss", title="A sweep")
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = figures[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("lr", "mu", "A sweep")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "0.2"]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(math.nan), [[1.0, math.nan], [2.0, 4.5]])
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "1",
        (1, 0): "nan",
        (0, 1): "2",
        (1, 1): "4.5",
    }


def test_a_heat_map_of_settings_that_all_diverged_is_drawn(tmp_path):
    columns = {**COLUMNS, "loss": [math.nan] * 5}
    assert report.plot_heatmap(columns, tmp_path / "heat.png", "lr", "mu", "loss").exists()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"table": 3}, TypeError, "expected table to be a pandas DataFrame, or a dict of columns, got 3 (int)"),
        ({"path": "heat.xyz"}, ValueError, "expected path to end in .png, got 'heat.xyz'"),
        ({"x": "rate"}, ValueError, "expected x to be one of 'lr', 'mu', 'seed', 'loss', got 'rate'"),
        ({"y": "rate"}, ValueError, "expected y to be one of"),
        ({"metric": "rate"}, ValueError, "expected metric to be one of"),
        ({"title": 3}, TypeError, "expected title to be a string, got 3 (int)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_arguments_of_a_heat_map_are_named(unchecked, tmp_path, change, kind, message):
    given = {"table": COLUMNS, "path": tmp_path / "heat.png", "x": "lr", "y": "mu", "metric": "loss", **change}
    with pytest.raises(kind, match=re.escape(message)):
        report.plot_heatmap(**given)


def test_clients_are_drawn_as_rows_of_shares_beside_their_sizes(tmp_path, figures):
    data = FederatedDataset.from_offsets({"kind": np.array([1, 1, 4, 1, 4, 4, 4])}, [0, 3, 3, 7], ["a", "b", "c"])
    path = report.plot_clients(data, tmp_path / "clients.png", labels="kind", title="Three")
    assert path.read_bytes().startswith(b"\x89PNG")
    shares, sizes = figures[0].axes[:2]
    np.testing.assert_allclose(shares.images[0].get_array(), [[2 / 3, 1 / 3], [0, 0], [1 / 4, 3 / 4]])
    assert [label.get_text() for label in shares.get_xticklabels()] == ["1", "4"]
    assert [label.get_text() for label in shares.get_yticklabels()] == ["a", "b", "c"]
    assert [bar.get_width() for bar in sizes.patches] == [3, 0, 4]
    assert sizes.get_title() == "3 clients, 7 examples" and figures[0].get_suptitle() == "Three"
    assert shares.get_ylim() == sizes.get_ylim() == (2.5, -0.5)


def test_of_very_many_clients_some_are_drawn(tmp_path, figures):
    data = FederatedDataset.from_offsets({"y": np.zeros(1000, int)}, np.append(np.arange(1000), 1000))
    report.plot_clients(data, tmp_path / "clients.png", labels=None)
    (axes,) = figures[0].axes
    assert len(axes.patches) == 200 and axes.get_ylabel() == "200 of 1,000 clients"
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "0" and names[-1] == "999"


def test_a_metric_that_was_not_finite_is_a_gap_as_records_have_it(tmp_path):
    history = [{"round": 1, "test/loss": None, "test/loss/client_p10": None, "test/loss/client_p90": None}]
    history.append({"round": 2, "test/loss": 1.0, "test/loss/client_p10": 0.5, "test/loss/client_p90": 2.0})
    assert report.plot_curves(history, tmp_path / "curves.png").stat().st_size > 1000
