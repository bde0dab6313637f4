"""The benchmark of accelerators at smoke size, on a CPU: every way is timed, and the plain loops make the round's own steps."""

import accelerator
import jax
import numpy as np

import fedjax_tx as ftx

PLAIN = {"plain loop, scan", "plain loop, traced length", "plain loop, a jitted step a batch"}


def test_the_benchmark_reports_every_way(tmp_path, capsys):
    settings = accelerator.Settings(works=("C",), smoke=True, out=tmp_path / "figures.json")
    figures = accelerator.main(settings)
    rows = {row["way"]: row for row in figures["C"]}
    assert PLAIN | {"1 lane", "4 lanes"} <= set(rows)
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows.values())
    assert rows["4 lanes"]["apart"] < 1e-4 and rows["4 lanes"]["ticks"] < rows["1 lane"]["ticks"]
    assert "| 4 lanes | " in capsys.readouterr().out
    assert (tmp_path / "figures.json").exists()


def test_the_plain_loops_make_the_steps_of_a_lone_client():
    problem = accelerator.make_problem("C", smoke=True)
    alone = problem._replace(experiment=ftx.Experiment(**{**vars(problem.experiment), "cohorts": ftx.data.fixed_cohorts([[0]])}))
    way = accelerator.Rounds(alone, 1)
    way.rounds = 1
    expected = way()
    start = alone.task.init(jax.random.key(0))[0]
    for loop in accelerator.make_plain_loops(alone).values():
        found = loop()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
        assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(*map(jax.tree.leaves, (found, start)), strict=True))


def test_all_clients_are_trained_and_what_an_example_costs_is_that_by_hand():
    # Twice the products forward (8 tokens: four matrices of a block, the logits, two products of attention), four times backward.
    decoder = 3 * (2 * 8 * (12 * 32 * 32 + 32 * 96) + 2 * 2 * 8 * 8 * 32)
    # No gradient by the images; that by the first layer's outputs counts the padding of its slopes, hence the room.
    network = 2 * (2 * 26**2 * 9 * 2) + 3 * (2 * 24**2 * 18 * 3 + 2 * 144 * 3 * 4 + 2 * 4 * 62)
    for name, low, high in (("A", decoder, decoder), ("U", decoder, decoder), ("B", network, 1.25 * network)):
        problem = accelerator.make_problem(name, smoke=True)
        rows, count = accelerator.make_batches(problem)
        assert count.sum() == problem.experiment.train.num_examples and len(rows) == len(count)
        assert low <= problem.flops <= high
