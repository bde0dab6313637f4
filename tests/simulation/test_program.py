"""Which options the executor's programs are compiled with."""

import jax
import jax.numpy as jnp
import pytest

from fedjax_tx.simulation import program

FLAG = "xla_gpu_enable_command_buffer"


@pytest.fixture
def options(monkeypatch):
    """Asks for the options anew; other tests get those of this machine."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    program.compiler_options.cache_clear()
    yield lambda: program.compiler_options.__wrapped__()
    program.compiler_options.cache_clear()


def test_a_cpu_and_a_tpu_get_none(options, monkeypatch):
    assert options() is None
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert options() is None


def test_a_gpu_records_loops_as_graphs_unless_the_user_says_otherwise(options, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (commands,) = options().values()
    assert {"WHILE", "CONDITIONAL", "FUSION", "CUBLAS"} <= set(commands.split(","))
    assert "COLLECTIVES" not in commands.split(",")
    monkeypatch.setenv("XLA_FLAGS", f"--{FLAG}=")
    assert options() is None


def test_a_command_that_xla_does_not_know_is_left_out(options, monkeypatch):
    monkeypatch.setattr(program, "_COMMANDS", ("WHILE", "NO_SUCH_COMMAND", "FUSION"))
    assert program.known_commands() == "WHILE,FUSION"


def test_a_program_is_jitted_with_the_options(monkeypatch):
    monkeypatch.setattr(program, "compiler_options", lambda: {FLAG: "WHILE"})
    add = program.Program(lambda x, y: x + y, static_argnames="y")
    assert int(add(jnp.int32(2), 3)) == 5
    assert add.jitted._cache_size() == 1
    monkeypatch.setattr(program, "compiler_options", lambda: {FLAG: "NO_SUCH_COMMAND"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="NO_SUCH_COMMAND"):
        program.Program(lambda x: x)(jnp.int32(2))
