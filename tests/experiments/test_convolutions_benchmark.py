"""The benchmark of convolutions at smoke size; both of its ways, and its float64 gradient, are the same layer."""

import convolutions
import jax
import numpy as np

SHAPE = (2, 9, 3, 5)


def test_the_benchmark_reports_every_layer(tmp_path, capsys):
    figures = convolutions.main(convolutions.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    assert all(len(times) == 2 and min(times) > 0 for times in figures[0]["milliseconds"].values())
    assert "| 2, 8, 3, 4 | " in capsys.readouterr().out


def test_both_ways_are_the_same_layer_and_its_exact_gradient_is_that_of_jax():
    given = convolutions.draw(SHAPE)
    direct, tiles = (convolutions.make_layer(convolve)(*given) for convolve in convolutions.WAYS.values())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), direct, tiles)
    np.testing.assert_allclose(direct[2], convolutions.exact_gradient(given[0], given[2]), rtol=1e-4, atol=1e-4)


def test_every_layer_of_the_table_is_one_that_the_library_makes_by_tiles():
    for batch, side, inputs, outputs in convolutions.SHAPES:
        kernel = (3, 3, inputs, outputs)
        assert convolutions.winograd.is_sooner((batch, side, side, inputs), kernel, np.float32), (side, kernel)
