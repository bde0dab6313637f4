"""Bad input gets an error that names the thing, its value and what was expected, before anything compiles."""

import json
import subprocess
import sys
from pathlib import Path

import arguments
import pytest

ROWS = [
    (arguments.name_of(function), argument, number)
    for function, (_, wrong) in arguments.TABLE.items()
    for argument, values in wrong.items()
    for number in range(len(values))
]


@pytest.fixture(scope="module")
def told():
    """What the script printed, by (function, argument, number of the value)."""
    script = Path(arguments.__file__)
    path = [str(script.parent), str(script.parent.parent)]
    command = f"import sys; sys.path[:0] = {path!r}; import arguments; arguments.main()"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    rows, numbers = {}, {}
    for function, argument, *rest in json.loads(done.stdout.splitlines()[-1]):
        number = numbers[function, argument] = numbers.get((function, argument), -1) + 1
        rows[function, argument, number] = rest
    return rows


def test_the_table_holds_every_argument_of_every_public_function():
    table = {arguments.name_of(function): wrong for function, (_, wrong) in arguments.TABLE.items()}
    public = arguments.public_functions()
    assert set(table) == set(public)
    for name, function in public.items():
        missing = set(arguments.arguments_of(function)) - set(table[name]) - set(arguments.ANY_VALUE)
        assert not missing, f"{name}: {missing}"
        assert set(table[name]) <= set(arguments.arguments_of(function)), name


@pytest.mark.parametrize(("function", "argument", "number"), ROWS, ids=lambda value: str(value))
def test_a_wrong_argument_is_named_with_its_value_before_anything_compiles(told, function, argument, number):
    value, kind, message, compiled = told[function, argument, number]
    assert kind in ("TypeError", "ValueError"), f"{value}: {kind or 'no error'}: {message}"
    assert message.startswith("expected "), message
    assert argument in message, message
    assert "got" in message or "missing" in message, message
    assert compiled == 0, f"{compiled} programs compiled before: {message}"
