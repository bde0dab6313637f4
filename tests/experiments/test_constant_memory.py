"""The benchmark of memory at smoke size."""

import constant_memory
import jax
import pytest

pytestmark = pytest.mark.slow  # compiles for a minute


def test_the_benchmark_reports_every_cohort(tmp_path, capsys):
    figures = constant_memory.main(constant_memory.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    assert set(figures["rows"]) == {"4", "40"}
    assert figures["rows"]["4"]["ratio"] == [1.0]
    assert all(min(row["peak"]) > 50e6 for row in figures["rows"].values())
    assert "| clients a round |" in capsys.readouterr().out


def test_the_measured_model_has_a_hundred_thousand_parameters():
    params = jax.eval_shape(constant_memory.make_model(constant_memory.Settings().hidden).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 100_234
