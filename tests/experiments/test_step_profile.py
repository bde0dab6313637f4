"""The profile at smoke size; its exchanged parts do the same arithmetic, and its floor makes the step's products."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_profile

import fedjax_tx as ftx

pytestmark = pytest.mark.slow  # compiles for a minute

SETTINGS = step_profile.Settings(
    model={"vocab_size": 12, "num_layers": 1, "num_heads": 2, "width": 8, "max_length": 6}, batch_size=3, steps=2
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 12, (3, 7)), jnp.int32)
LEFT_OUT = ("no activation", "no softmax")


@functools.cache
def step_of(name: str):
    """The compiled step of a row, and its trace."""
    parts, other_loss = step_profile.ROWS[name]
    params = jax.jit(ftx.models.decoder(**SETTINGS.model).init)(jax.random.key(0))
    with step_profile.exchanged(parts):
        traced = jax.jit(step_profile.make_step(SETTINGS, other_loss)).trace(params, TOKENS)
        return traced.lower().compile()(params, TOKENS), str(traced.jaxpr)


def test_the_profile_reports_every_row_and_lane_count(tmp_path, capsys):
    figures = step_profile.main(step_profile.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    assert set(figures) == {"2"}
    for rows in figures.values():
        assert set(rows) == {"bare products", *step_profile.ROWS}
        assert all(len(times) == 2 and min(times) > 0 for times in rows.values())
    printed = capsys.readouterr().out
    assert "| step | 2 lanes |" in printed and "| the library | " in printed


@pytest.mark.parametrize("name", ["all three written", "optax's cross-entropy", "written GELU", "added mask"])
def test_exchanged_parts_make_the_same_step_by_another_way(name):
    (want, library), (have, trace) = step_of("the library"), step_of(name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), have, want)
    assert trace != library


@pytest.mark.parametrize("name", LEFT_OUT)
def test_left_out_parts_make_another_step(name):
    (want, _), (have, _) = step_of("the library"), step_of(name)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True)) > 1e-6


def test_the_floor_makes_as_many_products_as_the_step_and_stays_finite():
    settings = dataclasses.replace(SETTINGS, model={**SETTINGS.model, "num_layers": 2})
    params = jax.eval_shape(ftx.models.decoder(**settings.model).init, jax.random.key(0))
    step = jax.make_jaxpr(step_profile.make_step(settings, None))(params, TOKENS)
    floor = jax.jit(step_profile.make_floor(settings)).trace(step_profile.floor_params(settings), jnp.ones((3, 6, 8)))
    # Six products a layer and the head, each with the gradients by both of its sides; the step's trace shows its layers once.
    assert str(floor.jaxpr).count("dot_general") == 3 * (2 * 6 + 1)
    assert str(step).count("dot_general") == 3 * (6 + 1)
    after = floor.lower().compile()(step_profile.floor_params(settings), jnp.ones((3, 6, 8)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
