"""The peers' benchmark: its data is fixed, the systems that need no other package do the reference's arithmetic."""

import hashlib
import os
from pathlib import Path

import jax
import jax_loop
import numpy as np
import ours
import peers
import pytest
import works
from models_jax import product_convolution, xla_convolution
from reference import reference_round

import fedjax_tx as ftx

# Of the arrays that the first version of the benchmark was run on, by digest().
DIGESTS = {
    "A": "5980e6634d6628375fcdf489439a7a2d29c839bf261297d63049ecb76929357f",
    "B": "14dac43063489a64bd655f30d92053dc22cf026d89fcde6927363aa6ec3c648b",
}
# Of the small works; in B the sign of an activation near 0 is a matter of rounding.
APART = {"A": 1e-5, "B": 1e-4}


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file's arrays with their names, in the names' order."""
    value = hashlib.sha256()
    with np.load(path) as file:
        for name in sorted(file.files):
            value.update(name.encode())
            value.update(np.ascontiguousarray(file[name]).tobytes())
    return value.hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, works.Work]:
    paths = peers.write_works(tmp_path_factory.mktemp("works"), smoke=True)
    return {name: works.read(path, name) for name, path in paths.items()}


@pytest.fixture(scope="module")
def references(small) -> dict[str, dict]:
    return {name: reference_round(work) for name, work in small.items()}


def assert_close(name: str, params: dict, expected: dict) -> None:
    assert params.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(params[key], value, rtol=0, atol=APART[name], err_msg=key)


def test_the_works_are_always_the_same_data(tmp_path):
    assert {name: digest(path) for name, path in works.write(tmp_path).items()} == DIGESTS


def test_jobs_are_shared_out_costliest_first_to_the_worker_with_the_least():
    assert works.share_out([1, 4, 2, 3], 2) == [[1, 0], [3, 2]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A", "B"])
def test_the_reference_moves_all_parameters_far_more_than_systems_may_differ(small, references, name):
    for key, value in references[name].items():
        assert np.abs(value - small[name].params[key]).max() > 10 * APART[name], key


def test_the_convolution_as_a_product_has_the_value_and_the_gradients_of_xlas():
    draw = np.random.default_rng(0)
    x, kernel, slope = (draw.standard_normal(shape).astype(np.float32) for shape in [(2, 6, 5, 3), (3, 3, 3, 4), (2, 4, 3, 4)])
    value, pull = jax.vjp(product_convolution, x, kernel)
    expected, expected_pull = jax.vjp(xla_convolution, x, kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(pull(slope), expected_pull(slope), strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A", "B"])
def test_the_plain_jax_loop_does_the_reference_round(small, references, name):
    work = small[name]
    clients = work.cohorts[0].tolist()
    train = jax_loop.make_trainer(work)
    parts = [train(work.params, clients[:1]), train(work.params, clients[1:])]
    assert_close(name, {key: (parts[0][key] + parts[1][key]) / work.examples(0) for key in work.params}, references[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A", "B"])
def test_our_round_is_the_reference_round(small, references, name):
    work = small[name]
    round_fn = ftx.make_round(ours.make_experiment(work), ftx.Execution(num_lanes=1, mesh=None, rounds_per_call=1))
    state, info = round_fn(round_fn.init(init_params=ours.to_params(work)))
    assert info.num_examples == work.examples(0)
    assert_close(name, ours.from_params(work, jax.device_get(state.device.server.params)), references[name])


@pytest.mark.slow  # starts processes that each compile
def test_the_benchmark_compares_the_systems_that_need_no_other_package(tmp_path, capsys):
    own = tuple(name for name, system in peers.SYSTEMS.items() if not system.environment)
    figures = peers.main(peers.Settings(tmp_path, systems=own, smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists()
    for name in ("A", "B"):
        assert figures[name].keys() == set(own)
        for row in figures[name].values():
            assert row["apart"] < APART[name] and len(row["rates"]) == 2 and row["peak_bytes"] > 2**26
    assert "| work B |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif("PEERS" not in os.environ, reason="PEERS names no directory of the peers' environments, which are gigabytes")
def test_all_peers_do_the_same_arithmetic():
    figures = peers.main(peers.Settings(Path(os.environ["PEERS"]), smoke=True))
    for name in ("A", "B"):
        assert figures[name].keys() == set(peers.SYSTEMS)
        for system, row in figures[name].items():
            assert row["apart"] < APART[name], system


def test_a_system_that_disagrees_is_not_timed(tmp_path, monkeypatch, capsys):
    (tmp_path / "peers").mkdir()
    wrong = "import json, numpy as np\nfrom turns import read_arguments, turns\nwork = read_arguments()\n"
    wrong += "for number in turns((), lambda: {**work.params, 'd2_b': work.params['d2_b'] + 1}): pass\n"
    (tmp_path / "peers" / "wrong.py").write_text(wrong)
    (tmp_path / "peers" / "turns.py").write_bytes((peers.HERE / "peers" / "turns.py").read_bytes())
    (tmp_path / "works.py").write_bytes((peers.HERE / "works.py").read_bytes())
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setitem(peers.SYSTEMS, "wrong", peers.System("wrong.py"))
    figures = peers.main(peers.Settings(tmp_path, systems=("wrong",), works=("B",), smoke=True))
    assert figures["B"]["wrong"]["apart"] > 0.9 and "rates" not in figures["B"]["wrong"]
    assert "wrong is not timed" in capsys.readouterr().out
