"""Validation: what passes, what is refused, and every word of the message."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tx import check


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3)])
def test_whole_numbers_pass_as_int(value):
    assert type(check.integer("n", value, low=3, high=3)) is int


@pytest.mark.parametrize("value", [3.0, "3", None, True, np.bool_(True), [3], np.array([3]), 3j])
def test_what_is_no_whole_number_is_refused_with_its_type(value):
    with pytest.raises(TypeError, match=f"expected n to be an integer, got .* \\({type(value).__name__}\\)"):
        check.integer("n", value)


@pytest.mark.parametrize(("value", "message"), [(2, "expected n >= 3, got 2"), (6, "expected n <= 5, got 6")])
def test_whole_numbers_out_of_range_are_refused(value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check.integer("n", value, low=3, high=5)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.array(0.5), fractions.Fraction(1, 2)])
def test_numbers_pass_as_they_are(value):
    assert check.number("x", value, above=0, low=0.5, high=1) is value


def test_jax_numbers_and_tracers_pass():
    value = jnp.float32(0.5)
    assert check.number("x", value, above=0) is value
    assert float(jax.jit(lambda x: check.number("x", x, above=100))(1.0)) == 1.0


@pytest.mark.parametrize("value", ["1", None, True, np.bool_(False), [1.0], np.ones(1), 1j, jnp.array(True), np.array("a")])
def test_what_is_no_number_is_refused_with_its_type(value):
    with pytest.raises(TypeError, match=f"expected x to be a number, got .* \\({type(value).__name__}\\)"):
        check.number("x", value)


@pytest.mark.parametrize(
    ("bounds", "value", "message"),
    [
        ({"above": 0}, 0.0, "expected x > 0, got 0.0"),
        ({"above": 0}, -1, "expected x > 0, got -1.0"),
        ({"low": 0.5}, 0.25, "expected x >= 0.5, got 0.25"),
        ({"high": 1}, 1.5, "expected x <= 1, got 1.5"),
        ({"below": 1}, 1.0, "expected x < 1, got 1.0"),
        ({}, float("nan"), "expected x to be finite, got nan"),
        ({"above": 0}, float("inf"), "expected x to be finite, got inf"),
    ],
)
def test_numbers_out_of_range_are_refused(bounds, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check.number("x", value, **bounds)


def test_counts_are_one_number_or_one_for_each_client():
    assert check.counts("epochs", 2) == 2
    array = check.counts("epochs", np.array([0, 3], np.uint8))
    assert array.tolist() == [0, 3]
    assert array.dtype == np.int64
    assert check.counts("epochs", jnp.array([1, 2])).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (ValueError, 0),
        (TypeError, 1.5),
        (TypeError, [1, 2]),
        (TypeError, np.array([1.0])),
        (TypeError, np.array([True])),
        (ValueError, np.array([[1]])),
        (ValueError, np.array([1, -1])),
    ],
)
def test_other_counts_are_refused_by_name(error, value):
    with pytest.raises(error, match="expected epochs .*got"):
        check.counts("epochs", value)


def test_flags():
    assert check.boolean("f", np.bool_(True)) is True
    for value in (1, 0, None, "yes"):
        with pytest.raises(TypeError, match="expected f to be True or False, got"):
            check.boolean("f", value)


def test_instances_and_functions():
    assert check.instance("s", "a", str, "a string") == "a"
    assert check.function("g", len) is len
    with pytest.raises(TypeError, match=r"^expected s to be a string, got 3 \(int\)$"):
        check.instance("s", 3, str, "a string")
    with pytest.raises(TypeError, match=r"^expected g to be a function, got 3 \(int\)$"):
        check.function("g", 3)


def test_options_and_near_misses():
    assert check.one_of("mode", None, (None, "min")) is None
    with pytest.raises(ValueError, match=r"^expected mode to be one of 'min', 'max' \(did you mean 'min'\?\), got 'mim'$"):
        check.one_of("mode", "mim", ("min", "max"))
    for value in (3, [3], {}, None):
        with pytest.raises(ValueError, match="expected mode to be one of 'min', 'max', got"):
            check.one_of("mode", value, ("min", "max"))


def test_mappings_have_strings_for_keys():
    assert check.mapping("m", {"a": 1}) == {"a": 1}
    with pytest.raises(TypeError, match=r"expected m to be a dict, got \[1\] \(list\)"):
        check.mapping("m", [1])
    with pytest.raises(TypeError, match=r"expected the keys of m to be strings, got 1 \(int\)"):
        check.mapping("m", {1: "a"})


def test_a_long_value_is_cut_short():
    with pytest.raises(TypeError) as caught:
        check.integer("n", "x" * 10000)
    assert len(str(caught.value)) < 200


TREE = {"a": jnp.zeros((2, 3)), "b": [jnp.zeros(4, jnp.int32)]}


def test_equal_trees_pass_concrete_abstract_and_traced():
    check.same_tree("p", TREE, TREE)
    check.same_tree("p", TREE, jax.eval_shape(lambda: TREE))
    jax.jit(lambda tree: check.same_tree("p", tree, TREE))(TREE)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": TREE["a"]}, r"expected p to have a leaf \['b'\]\[0\], which is missing"),
        ({**TREE, "c": jnp.zeros(1)}, r"expected p to have no leaf \['c'\], got one of shape \(1,\)"),
        ({**TREE, "a": jnp.zeros((3, 2))}, r"expected p\['a'\] of shape \(2, 3\), got \(3, 2\)"),
        ({**TREE, "a": jnp.zeros((2, 3), jnp.bfloat16)}, r"expected p\['a'\] of dtype float32, got 'bfloat16'"),
    ],
)
def test_trees_that_differ_are_refused_naming_the_leaf(value, message):
    with pytest.raises(ValueError, match=message):
        check.same_tree("p", value, TREE)
