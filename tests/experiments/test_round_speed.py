"""The benchmark at smoke size; its plain loop does the arithmetic of the federated round."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import round_speed

import fedjax_tx as ftx


@pytest.mark.slow
def test_the_benchmark_reports_every_lane_count(tmp_path, capsys):
    figures = round_speed.main(round_speed.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    assert {"plain", "1", "2"} <= set(figures["rows"])
    for row in figures["rows"].values():
        assert len(row["examples_per_second"]) == 2 and min(row["examples_per_second"]) > 0
    assert figures["rows"]["plain"]["ratio"] == [1.0, 1.0]
    assert 0 < figures["rows"]["1"]["useful"] <= 1
    assert "| lanes |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_plain_loop_makes_the_steps_of_one_client():
    settings = round_speed.Settings(
        clients=8, model={"vocab_size": 96, "num_layers": 1, "num_heads": 1, "width": 8, "max_length": 8}
    )
    data = round_speed.make_data(settings)
    task = ftx.tasks.next_token(ftx.models.decoder(**settings.model))
    client = int(np.argmin(data.client_sizes))
    experiment = ftx.Experiment(
        ftx.algorithms.fed_avg(task, optax.sgd(0.1)),
        train=data,
        cohorts=ftx.data.fixed_cohorts([[client]]),
        local=ftx.data.LocalWork(batch_size=4, shuffle=False),
    )
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=1))
    start = round_fn.init()
    end, _ = round_fn(start)
    tokens, mask = round_speed.round_batches(data, np.array([client]), 4)
    plain = round_speed.make_plain_loop(task, 0.1)(start.device.server.params, tokens, mask)
    assert int(jnp.sum(mask)) == data.client_sizes[client]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), end.device.server.params, plain)
