"""Low-rank adapters against their formula; freezing; a federated run in which the base is held once and never changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from flax import nnx

import fedjax_tx as ftx
from fedjax_tx import tree
from fedjax_tx.models import add_extras, decoder, lora, merge_lora
from fedjax_tx.models.layers import Dense, merge
from fedjax_tx.simulation.round import run_rounds
from fedjax_tx.simulation.rounds import RoundState
from fedjax_tx.tasks import freeze, next_token


def one_layer(inputs, outputs):
    """A model of one dense layer."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = Dense(inputs, outputs, rngs=rngs)

    def make(key):
        return nnx.split(Model(nnx.Rngs(key)))

    graph = jax.eval_shape(make, jax.random.key(0))[0]
    init = lambda key: nnx.to_pure_dict(make(key)[1])  # noqa: E731
    return ftx.Model(init, lambda params, x, *, key=None: merge(graph, params).dense(x))


SIZES = {"vocab_size": 8, "num_layers": 2, "num_heads": 2, "width": 8, "max_length": 4}
PLAIN = decoder(**SIZES)
ADAPTED = decoder(**SIZES, lora_rank=3, lora_alpha=6.0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 8, (3, 4)), jnp.int32)
FROZEN = freeze(next_token(ADAPTED), "*lora*")
DENSE = one_layer(400, 3)
ONE_LANE = ftx.Execution(num_lanes=1, rounds_per_call=1)


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_close(left, right, tolerance=1e-5):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), left, right)


def is_adapter(path):
    return "lora" in path


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def draw(shapes, seed=0, scale=0.5):
    """Numbers far from initial values, so that every adapter matters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


@functools.cache
def drawn():
    """What one key draws: the adapted decoder, its frozen task, the plain decoder."""
    return jax.jit(lambda key: (ADAPTED.init(key), FROZEN.init(key), PLAIN.init(key)))(jax.random.key(0))


# ---- the layer


@pytest.mark.slow
def test_every_dense_layer_of_the_blocks_has_adapters_and_nothing_else_has():
    params, _, plain = drawn()
    adapters, base = tree.partition(params, is_adapter)
    shapes = {"/".join(path[1:]): leaf for path, leaf in flat(adapters).items()}
    layers = {"attention/qkv": (8, 24), "attention/out": (8, 8), "mlp_in": (8, 32), "mlp_out": (32, 8)}
    want = {f"{name}/lora/lora_a": (2, inputs, 3) for name, (inputs, _) in layers.items()}
    want |= {f"{name}/lora/lora_b": (2, 3, outputs) for name, (_, outputs) in layers.items()}
    assert {name: leaf.shape for name, leaf in shapes.items()} == want
    assert all(leaf.dtype == jnp.float32 for leaf in shapes.values())
    # Everything else is what the plain decoder draws, bit for bit.
    assert_equal(base, plain)


def flat(nested, path=()):
    found = {}
    for name, part in nested.items():
        found |= flat(part, (*path, name)) if isinstance(part, dict) else {(*path, name): part}
    return found


def test_a_is_gaussian_of_variance_one_over_the_inputs_and_b_is_zero():
    added = lora(DENSE, 30).init(jax.random.key(0))["dense"]["lora"]
    assert added["lora_a"].shape == (400, 30) and added["lora_b"].shape == (30, 3) and not added["lora_b"].any()
    values = np.asarray(added["lora_a"]) * np.sqrt(400)
    assert abs(values.std() - 1) < 0.03 and abs(np.mean(values**4) - 3) < 0.3


@pytest.mark.slow
def test_every_layer_and_place_draws_its_own_adapters_and_b_starts_at_zero():
    layers = drawn()[0]["layers"]
    drawn_a = [
        np.asarray(layer["lora"]["lora_a"])
        for layer in (layers["attention"]["qkv"], layers["attention"]["out"], layers["mlp_in"])
    ]
    assert all(np.abs(a[0] - a[1]).max() > 0.01 for a in drawn_a)
    assert np.abs(drawn_a[0] - drawn_a[1]).max() > 0.01 < np.abs(drawn_a[0] - drawn_a[2]).max()
    assert not any(leaf.any() for path, leaf in flat(layers).items() if path[-1] == "lora_b")


def test_a_layer_by_hand():
    rng = np.random.default_rng(0)
    x, w, b, lora_a, lora_b = (rng.standard_normal(shape) for shape in ((6, 400), (400, 3), (3,), (400, 2), (2, 3)))
    layer = {"kernel": w / 20, "bias": b, "lora": {"lora_a": lora_a / 20, "lora_b": lora_b}}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), {"dense": layer})
    want = x @ w / 20 + b + 5.0 / 2 * (x @ lora_a / 20) @ lora_b
    have = lora(DENSE, 2, 5.0).apply(params, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


def test_new_adapters_change_no_logit():
    params = draw(shapes_of(PLAIN))
    added = add_extras(params, ADAPTED, jax.random.key(5))
    assert_equal(jax.jit(ADAPTED.apply)(added, TOKENS), jax.jit(PLAIN.apply)(params, TOKENS))
    assert_equal(tree.partition(added, is_adapter)[1], params)


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_merged_parameters_of_the_plain_decoder_give_the_same_logits(alpha):
    model = decoder(**SIZES, lora_rank=3, lora_alpha=alpha)
    params = draw(shapes_of(model))
    merged = merge_lora(params, alpha)
    want = jax.jit(model.apply)(params, TOKENS)
    have = jax.jit(PLAIN.apply)(merged, TOKENS)
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)
    # Another alpha would be another model, and so would be no adapters.
    others = merge_lora(params, 5.0), tree.partition(params, is_adapter)[1]
    assert all(np.abs(jax.jit(PLAIN.apply)(other, TOKENS) - want).max() > 1e-2 for other in others)


def test_merging_by_hand_adds_the_scaled_product_to_each_layers_kernel():
    params = draw(shapes_of(ADAPTED))
    merged = merge_lora(params, 6.0)
    layer = jax.tree.map(np.asarray, params["layers"]["mlp_out"])
    for number in range(2):
        product = layer["lora"]["lora_a"][number] @ layer["lora"]["lora_b"][number]
        want = layer["kernel"][number] + 6.0 / 3 * product
        np.testing.assert_allclose(merged["layers"]["mlp_out"]["kernel"][number], want, rtol=1e-5, atol=1e-6)
    assert_equal(merged["token_embedding"], params["token_embedding"])
    assert "lora" in params["layers"]["mlp_out"]  # what was given is not touched


def test_half_precision_adapters_stay_float32_outside():
    half = decoder(**SIZES, lora_rank=3, dtype=jnp.bfloat16)
    params = draw(shapes_of(half), scale=0.2)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    logits, want = jax.jit(half.apply)(params, TOKENS), jax.jit(decoder(**SIZES, lora_rank=3).apply)(params, TOKENS)
    assert logits.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(logits - want) < 0.05 * jnp.linalg.norm(want)


def test_the_product_of_the_adapters_is_never_formed_and_the_base_is_multiplied_once_for_all_lanes():
    lanes, rank = 5, 3
    adapters, base = tree.partition(shapes_of(ADAPTED), is_adapter)
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((lanes, *leaf.shape), leaf.dtype), adapters)

    def loss(adapters, base, tokens):
        return jnp.square(ADAPTED.apply(tree.join(adapters, base), tokens)).mean()

    gradient = jax.vmap(jax.value_and_grad(loss), (0, None, 0))
    traced = str(jax.make_jaxpr(gradient)(stacked, base, jnp.stack([TOKENS] * lanes)))
    for inputs, outputs in ((8, 24), (8, 32), (32, 8)):
        # Neither W + AB nor a stack of W: no array of [lane, in, out] but adapters' own.
        assert f"f32[{lanes},{inputs},{outputs}]" not in traced
        assert f"f32[{lanes},2,{inputs},{outputs}]" not in traced
        assert f"f32[{lanes},{inputs},{rank}]" in traced or f"f32[{lanes},1,{inputs},{rank}]" in traced


# ---- freezing


def test_freezing_splits_the_parameters_and_computes_the_same():
    task = next_token(ADAPTED)
    whole, (trainable, frozen), plain = drawn()
    assert_equal((trainable, frozen), tree.partition(whole, is_adapter))
    assert_equal(tree.join(trainable, frozen), whole)
    assert_equal(frozen, plain)
    batch = {"tokens": jnp.concatenate([TOKENS, TOKENS[:, :1]], 1)}
    assert_equal(jax.jit(FROZEN.apply)(trainable, frozen, batch, None), jax.jit(task.apply)(whole, (), batch, None))


def test_several_patterns_choose_the_leaves_that_any_of_them_matches():
    trainable, frozen = jax.eval_shape(freeze(next_token(PLAIN), ["head/*", "*norm/bias"]).init, jax.random.key(0))
    names = {"/".join(path) for path in tree.paths(trainable)}
    assert names == {"head/kernel", "final_norm/bias", "layers/attention_norm/bias", "layers/mlp_norm/bias"}
    assert len(tree.paths(frozen)) == len(jax.tree.leaves(shapes_of(PLAIN))) - 4


def test_everything_may_be_trained():
    trainable, frozen = jax.eval_shape(freeze(next_token(PLAIN), "*").init, jax.random.key(0))
    assert trainable == shapes_of(PLAIN) and frozen == {}


def test_of_a_task_that_freezes_some_already_more_may_be_frozen():
    twice, at_once = (freeze(task, "*lora_b") for task in (problems.LOW_RANK, problems.ADAPTED))
    parts = [jax.eval_shape(task.init, jax.random.key(0)) for task in (twice, at_once)]
    assert parts[0] == parts[1]
    whole = {"head": {"kernel": jnp.eye(2, 3), "bias": jnp.zeros(3), "lora": {"lora_a": jnp.ones((2, 2))}}}
    trained = {"head": {"lora": {"lora_b": jnp.ones((2, 3))}}}
    logits = [task.apply(trained, whole, {"x": jnp.ones((1, 2))}, None)["logits"].tolist() for task in (twice, at_once)]
    assert logits[0] == logits[1] != [[1, 1, 0]]


def test_two_parts_are_joined_if_they_are_one_tree_and_stay_a_pair_if_not():
    assert tree.join({"a": {"x": 1}}, {"a": {"y": 2}}) == {"a": {"x": 1, "y": 2}}
    assert tree.join({"a": 1}, ()) == {"a": 1} and tree.join({"a": 1}, {"b": {}}) == {"a": 1}
    for pair in (({"a": 1}, {"a": {"y": 2}}), ({"a": {"y": 2}}, {"a": 1}), (1, {"a": 2}), ({"a": 1}, 2)):
        assert tree.join(*pair) == pair


WRONG = [
    (ValueError, r"to match parameters, such as .*final_norm/.*, got '\*lora\*'", lambda: freeze(next_token(PLAIN), "*lora*")),
    (ValueError, r"to match parameters, such as .*, got 'haed/\*'", lambda: freeze(next_token(PLAIN), ["head/*", "haed/*"])),
    (ValueError, "trainable to have at least one pattern", lambda: freeze(next_token(PLAIN), [])),
    (TypeError, "trainable", lambda: freeze(next_token(PLAIN), [3])),
    (TypeError, "task", lambda: freeze(PLAIN, "*")),
    (ValueError, r"to match parameters, such as .*lora_a.*, got 'head/kernel'", lambda: freeze(FROZEN, "head/kernel")),
    (TypeError, "lora_rank", lambda: decoder(**SIZES, lora_rank=1.0)),
    (ValueError, "lora_rank >= 0, got -1", lambda: decoder(**SIZES, lora_rank=-1)),
    (ValueError, "lora_alpha > 0, got 0.0", lambda: decoder(**SIZES, lora_rank=1, lora_alpha=0.0)),
    (
        ValueError,
        "dense layers, such as head, layers/attention/out, .*, got 'haed'",
        lambda: lora(PLAIN, 1, where=["head", "haed"]),
    ),
    (ValueError, "layers without 'lora' only, got 'layers/mlp_in'", lambda: lora(ADAPTED, 1, where="*mlp_in")),
    (ValueError, "no 'lora' at final_norm, a LayerNorm", lambda: PLAIN.apply(misplaced(), TOKENS)),
    (ValueError, "params to hold adapters", lambda: merge_lora(shapes_of(PLAIN))),
    (ValueError, "the model's parameters to hold extras", lambda: add_extras({}, PLAIN, jax.random.key(0))),
    (ValueError, r"params to have a leaf \['head'\]\['kernel'\]", lambda: add_extras(without_head(), ADAPTED, jax.random.key(0))),
]


@pytest.mark.parametrize(("error", "message", "call"), WRONG)
def test_wrong_arguments_are_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


def misplaced():
    params = draw(shapes_of(PLAIN))
    return {**params, "final_norm": {**params["final_norm"], "lora": {"lora_a": jnp.ones(1), "lora_b": jnp.ones(1)}}}


def without_head():
    return {name: part for name, part in shapes_of(PLAIN).items() if name != "head"}


# ---- federated


def make_lora(hyper):
    return ftx.algorithms.fed_avg(FROZEN, optax.sgd(hyper["client_lr"], momentum=0.9), optax.adam(0.03))


def lora_experiment(make_algorithm=make_lora, **changes):
    local = ftx.data.LocalWork(batch_size=2, epochs=2)
    settings = {"train": problems.text_clients(), "local": local, "hyper": {"client_lr": 0.5}, **changes}
    return problems.experiment(make_algorithm, **settings)


START = draw(shapes_of(ADAPTED), scale=0.3)


@functools.cache
def played(num_lanes: int, rounds: int = 3):
    """The states before and after some rounds from ``START``."""
    round_fn = ftx.make_round(lora_experiment(), ftx.Execution(num_lanes=num_lanes, rounds_per_call=1))
    state = start = round_fn.init(init_params=START)
    for _ in range(rounds):
        state, _ = round_fn(state)
    return start.device.server, state.device.server


@pytest.mark.slow
def test_training_changes_adapters_only_and_leaves_the_base_bit_for_bit():
    start, server = played(3)
    assert_equal(tree.join(start.params, start.frozen), START)
    assert_equal(server.frozen, start.frozen)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), server.params, start.params)
    assert all(jax.tree.leaves(moved))
    assert {path[-1] for path in tree.paths(moved)} == {"lora_a", "lora_b"}


@pytest.mark.slow
def test_adapters_do_not_depend_on_lanes():
    assert_close(played(1)[1], played(3)[1], 1e-4)


def test_the_server_optimiser_and_the_message_are_of_the_adapters_only():
    _, server = played(1)
    adam = server.optimizer[0]
    shapes = [jax.tree.map(jnp.shape, part) for part in (adam.mu, adam.nu, server.params)]
    assert shapes[0] == shapes[1] == shapes[2]
    round_fn = ftx.make_round(lora_experiment(), ONE_LANE)
    _, up = ftx.training.ledger.bytes_a_client(round_fn, round_fn.init(init_params=START))
    assert up == 4 * 2 * 3 * ((8 + 24) + (8 + 8) + (8 + 32) + (32 + 8))


@pytest.mark.slow
def test_adapters_learn_what_training_the_whole_model_by_the_gradient_of_a_and_b_alone_would():
    # One client, one step, plain SGD on both sides: by hand from the gradient of the whole model, its other parts dropped.
    task, train = next_token(ADAPTED), problems.text_clients((3,))
    algorithm = ftx.algorithms.fed_avg(FROZEN, optax.sgd(0.5))
    local = ftx.data.LocalWork(batch_size=3, steps=1)
    params = draw(shapes_of(ADAPTED))
    round_fn = ftx.make_round(lora_experiment(algorithm, train=train, local=local, hyper={}), ONE_LANE)
    state, _ = round_fn(round_fn.init(init_params=params))
    batch = {"tokens": jnp.asarray(train.columns["tokens"])}

    @jax.jit
    @jax.grad
    def gradient(params):
        return task.loss(task.apply(params, (), batch, None), batch)[0].mean()

    stepped = jax.tree.map(lambda leaf, slope: leaf - 0.5 * slope, params, gradient(params))
    assert_close(state.device.server.params, tree.partition(stepped, is_adapter)[0])
    assert_equal(state.device.server.frozen, tree.partition(params, is_adapter)[1])


def test_a_run_gives_one_tree_and_starts_from_a_tree_a_pair_or_pretrained_weights(tmp_path):
    base = draw(shapes_of(PLAIN), scale=0.1)
    given = add_extras(base, ADAPTED, jax.random.key(2))
    options = {"execution": ftx.Execution(num_lanes=3, rounds_per_call=1), "progress": False}
    first = ftx.run(lora_experiment(), 2, init_params=given, run_dir=tmp_path / "run", **options)
    assert jax.tree.structure(first.params) == jax.tree.structure(given)
    assert_equal(tree.partition(first.params, is_adapter)[1], base)
    pair = tree.partition(given, is_adapter)
    assert_equal(first.params, ftx.run(lora_experiment(), 2, init_params=pair, **options).params)
    # Stopped after two rounds and taken up again it is the run of three; another base is another run.
    whole = ftx.run(lora_experiment(), 3, init_params=given, **options)
    resumed = ftx.run(lora_experiment(), 3, init_params=given, run_dir=tmp_path / "run", **options)
    assert_equal(resumed.params, whole.params)
    other = {**given, "head": {"kernel": given["head"]["kernel"] + 1}}
    with pytest.raises(ValueError, match="first_params"):
        ftx.run(lora_experiment(), 3, init_params=other, run_dir=tmp_path / "run", **options)


def test_init_params_without_the_adapters_are_refused_naming_one():
    round_fn = ftx.make_round(lora_experiment(), ONE_LANE)
    with pytest.raises(ValueError, match=r"expected init_params to have a leaf .*\['lora'\]\['lora_a'\], which is missing"):
        round_fn.init(init_params=draw(shapes_of(PLAIN)))


def test_a_task_whose_frozen_part_is_no_part_of_one_tree_keeps_the_pair():
    task = problems.LOGISTIC._replace(
        init=lambda key: ({"w": jnp.zeros((2, 3))}, {"w": jnp.ones(3)}),
        apply=lambda trainable, frozen, batch, key: {"logits": batch["x"] @ trainable["w"] + frozen["w"]},
    )
    experiment = problems.experiment(ftx.algorithms.fed_avg(task, optax.sgd(0.1)), hyper={})
    result = ftx.run(experiment, 1, execution=ONE_LANE, progress=False)
    trainable, frozen = result.params
    assert trainable["w"].any() and frozen["w"].tolist() == [1, 1, 1]
    again = ftx.run(experiment, 1, init_params=result.params, execution=ONE_LANE, progress=False)
    assert np.any(again.params[0]["w"] != trainable["w"])


# ---- memory: the base once, adapters for each lane


MEDIUM = {"vocab_size": 64, "num_layers": 1, "num_heads": 4, "width": 512, "max_length": 4}


@functools.cache
def compiled(adapted: bool, num_lanes: int):
    task = next_token(decoder(**MEDIUM, lora_rank=2 if adapted else 0))
    task = freeze(task, "*lora*") if adapted else task
    experiment = problems.experiment(
        ftx.algorithms.fed_avg(task, optax.sgd(0.1)),
        hyper={},
        train=problems.text_clients((1,) * 16),
        local=ftx.data.LocalWork(batch_size=1, steps=1),
    )
    round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=num_lanes, rounds_per_call=1))
    device = jax.eval_shape(lambda: round_fn.init().device)
    state = RoundState(device, experiment.cohorts.init(16), 0, 0)
    traced = run_rounds.jitted.trace(*round_fn.arguments(state, round_fn.plan(state, 1)))
    return device, traced.jaxpr, traced.lower().compile().memory_analysis()


def base_bytes() -> int:
    return tree.num_bytes(jax.eval_shape(decoder(**MEDIUM).init, jax.random.key(0)))


@pytest.mark.slow
def test_lanes_hold_adapters_only():
    assert base_bytes() > 4 * 3_000_000
    growth = {}
    for adapted in (True, False):
        (_, _, one), (_, _, many) = compiled(adapted, 1), compiled(adapted, 16)
        growth[adapted] = many.temp_size_in_bytes - one.temp_size_in_bytes
    # 15 more lanes: adapters, their gradients and activations are a small share of one base; a whole model is 15 bases at least.
    assert growth[True] < 0.5 * base_bytes()
    assert growth[False] >= 15 * base_bytes()


def test_the_base_is_an_argument_of_the_compiled_round_and_no_constant():
    device, traced, memory = compiled(True, 16)
    assert tree.num_bytes(device.server.frozen) >= base_bytes() > 20 * tree.num_bytes(device.server.params)
    assert memory.argument_size_in_bytes >= base_bytes()
    assert sum(np.asarray(constant).nbytes for constant in traced.consts) < 10_000
    # In and out and once in between at most: never a stack of bases.
    assert memory.temp_size_in_bytes < 2.5 * base_bytes()
    assert memory.generated_code_size_in_bytes < base_bytes()
