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


def test_works_a_and_b_train_all_their_clients_and_know_what_an_example_costs():
    # A: of each of 8 tokens, 12 + 3 matrices' numbers of width 32 and 96 logits, twice forward and four times backward.
    least = {"A": 6 * 8 * 32 * (12 * 32 + 96), "B": 6 * 144 * 3 * 4, "U": 6 * 8 * 32 * (12 * 32 + 96)}
    for name, flops in least.items():
        problem = accelerator.make_problem(name, smoke=True)
        rows, count = accelerator.make_batches(problem)
        assert count.sum() == problem.experiment.train.num_examples and len(rows) == len(count)
        assert flops <= problem.flops < 3 * flops or name == "B"
