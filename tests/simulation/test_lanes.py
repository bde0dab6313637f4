"""The executor: lanes never change what is computed, clients never touch each other, state goes where it belongs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import fedjax_tx as ftx
from fedjax_tx import tree
from fedjax_tx.types import Totals


def assert_close(left, right, rtol=1e-4, atol=1e-6):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)


def assert_equal(left, right):
    def plain(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(plain(a), plain(b)), left, right)


# ---- invariant 1: against a plain loop, and among all ways to run


def plain_fed_avg(params, data, rounds, client_lr, batch_size, epochs, cohorts):
    """FedAvg as the paper writes it: one client after another, one batch after another, no lanes, no library."""

    @jax.jit
    def loss_gradient(params, x, y):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(x @ params["w"] + params["b"], y).mean()

        return jax.grad(loss)(params)

    optimizer = optax.sgd(client_lr, momentum=0.9)
    for number in range(rounds):
        total, summed = 0, jax.tree.map(np.zeros_like, params)
        for client in cohorts[number % len(cohorts)]:
            own, local, state = data.client(client), params, optimizer.init(params)
            size = len(own["y"])
            for _ in range(epochs):
                for first in range(0, size, batch_size):
                    batch = slice(first, first + batch_size)
                    gradient = loss_gradient(local, own["x"][batch], own["y"][batch])
                    updates, state = optimizer.update(gradient, state, local)
                    local = optax.apply_updates(local, updates)
            total += size
            summed = jax.tree.map(lambda s, leaf, size=size: s + size * np.asarray(leaf, np.float64), summed, local)
        params = jax.tree.map(lambda s, total=total: (s / total).astype(np.float32), summed)
    return params


COHORTS = [[0, 1, 2, 3, 4, 5], [3, 5, 2], [4, 0, 1]]


@pytest.fixture(scope="module")
def plain():
    experiment = problems.experiment(local=ftx.data.LocalWork(batch_size=2, epochs=2, shuffle=False))
    start = ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init().device.server.params
    return plain_fed_avg(jax.device_get(start), experiment.train, 5, 0.1, 2, 2, COHORTS)


@pytest.mark.parametrize(
    ("num_lanes", "rounds_per_call", "reverse"), [(1, 1, False), (3, 1, True), (6, 2, False), (3, 5, False), (2, 2, True)]
)
def test_rounds_over_lanes_are_the_plain_loop(plain, num_lanes, rounds_per_call, reverse):
    cohorts = [list(reversed(row)) for row in COHORTS] if reverse else COHORTS
    local = ftx.data.LocalWork(batch_size=2, epochs=2, shuffle=False)
    experiment = problems.experiment(local=local, cohorts=ftx.data.fixed_cohorts(cohorts))
    state, infos = problems.play(experiment, 5, num_lanes, rounds_per_call)
    assert_close(state.device.server.params, plain)
    assert [info.round for info in infos] == list(range(5))


def test_shuffled_training_does_not_depend_on_lanes_calls_or_cohort_order():
    results = []
    for num_lanes, rounds_per_call, reverse in ((1, 1, False), (3, 2, True), (6, 5, False)):
        cohorts = [list(reversed(row)) for row in COHORTS] if reverse else COHORTS
        experiment = problems.experiment(cohorts=ftx.data.fixed_cohorts(cohorts))
        state, infos = problems.play(experiment, 5, num_lanes, rounds_per_call)
        losses = [dict(zip(i.client_ids.tolist(), i.client_metrics["loss"][0].tolist(), strict=True)) for i in infos]
        results.append((state.device.server.params, losses))
    for other in results[1:]:
        assert_close(results[0], other)


@pytest.mark.slow
def test_a_transformer_with_dropout_does_not_depend_on_lanes():
    task = problems.text_task(dropout=0.3)

    def make_algorithm(hyper):
        return ftx.algorithms.fed_avg(task, client_optimizer=optax.sgd(0.3, momentum=0.9))

    results = []
    for num_lanes, cohort in ((1, [0, 1, 2]), (3, [2, 0, 1])):
        experiment = problems.experiment(
            make_algorithm,
            hyper={},
            train=problems.text_clients(),
            cohorts=ftx.data.fixed_cohorts([cohort]),
            local=ftx.data.LocalWork(batch_size=2, epochs=6),  # 24 ticks: one lane steps short batches at half size
        )
        state, _ = problems.play(experiment, 1, num_lanes)
        results.append(state.device.server.params)
    assert_close(*results)


def test_rounds_in_one_call_are_rounds_one_by_one_bit_for_bit():
    one, _ = problems.play(problems.experiment(), 4, 3, 1)
    four, _ = problems.play(problems.experiment(), 4, 3, 4)
    assert_equal(one.device, four.device)


def test_a_capacity_that_is_not_filled_changes_nothing():
    cohort = [3, 2]
    alone, _ = problems.play(problems.experiment(cohorts=ftx.data.fixed_cohorts([cohort])), 1)
    roomy, _ = problems.play(problems.experiment(cohorts=ftx.data.fixed_cohorts([cohort, [0, 1, 2, 3, 4, 5]])), 1)
    assert_close(alone.device.server.params, roomy.device.server.params)


# ---- clients never touch each other


def poisoned(client: int) -> ftx.data.FederatedDataset:
    data = problems.ragged_clients()
    columns = dict(data.columns)
    columns["x"] = columns["x"].copy()
    columns["x"][data.offsets[client] : data.offsets[client + 1]] = np.nan
    return ftx.data.FederatedDataset(columns, data.offsets, data.client_ids)


@pytest.mark.parametrize("bad", [0, 5])
def test_the_data_of_a_client_that_is_not_in_the_cohort_is_never_seen(bad):
    cohorts = ftx.data.fixed_cohorts([[client for client in range(6) if client != bad]])
    clean, _ = problems.play(problems.experiment(cohorts=cohorts), 2, 3)
    beside, _ = problems.play(problems.experiment(cohorts=cohorts, train=poisoned(bad)), 2, 3)
    assert_equal(clean.device.server.params, beside.device.server.params)


def test_a_client_whose_data_is_not_a_number_spoils_its_own_metrics_only():
    experiment = problems.experiment(train=poisoned(0))
    _, (info,) = problems.play(experiment, 1, 2)
    losses = info.client_metrics["loss"][0]
    assert np.isnan(losses[0])
    assert np.isfinite(losses[1:]).all()


def test_a_client_whose_data_is_not_a_number_but_whose_weight_is_zero_spoils_nothing():
    def make_algorithm(hyper):
        trainer = ftx.clients.local_sgd(problems.LOGISTIC, optax.sgd(0.1))

        def finish(broadcast, info, local):
            result = trainer.finish(broadcast, info, local)
            return result._replace(weight=jnp.where(info.id == 0, 0.0, result.weight))

        algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1))
        return algorithm._replace(passes=(algorithm.passes[0]._replace(trainer=trainer._replace(finish=finish)),))

    with_nan, (info,) = problems.play(problems.experiment(make_algorithm, train=poisoned(0)), 1, 1)
    cohorts = ftx.data.fixed_cohorts([[1, 2, 3, 4, 5]])
    without, _ = problems.play(problems.experiment(make_algorithm, cohorts=cohorts), 1, 1)
    assert_close(with_nan.device.server.params, without.device.server.params)
    assert info.num_clients == 4  # neither client 0 nor client 1, which has no example


# ---- keys come from names


def drawn(infos) -> dict[tuple[int, int], dict[str, float]]:
    """(round, client) -> everything that the recording client wrote down."""
    return {
        (info.round, client): {name: float(value[slot]) for name, (value, _) in info.client_metrics.items()}
        for info in infos
        for slot, client in enumerate(info.client_ids.tolist())
    }


RECORDING = problems.one_pass(problems.recorder(10))


def test_keys_and_batches_do_not_depend_on_lanes_slots_calls_or_the_rest_of_the_cohort():
    _, infos = problems.play(problems.experiment(RECORDING), 3, 1, 1)
    want = drawn(infos)
    for cohorts, num_lanes, rounds_per_call in (([[5, 3, 4, 0, 1, 2]], 3, 3), ([[3], [5, 3], [1, 3, 2]], 2, 1)):
        experiment = problems.experiment(RECORDING, cohorts=ftx.data.fixed_cohorts(cohorts))
        _, infos = problems.play(experiment, 3, num_lanes, rounds_per_call)
        got = drawn(infos)
        assert got == {name: want[name] for name in got}


def test_short_batches_are_stepped_at_half_size_and_nothing_else_changes():
    seen = []

    def make_algorithm(hyper):
        recorder = problems.recorder(10)

        def step(broadcast, info, local, batch, mask, key):
            seen.append(mask.size)
            return recorder.step(broadcast, info, local, batch, mask, key)

        return problems.one_pass(recorder._replace(step=step))

    told = []
    for taper in ("auto", 0):
        seen.clear()
        experiment = problems.experiment(make_algorithm, local=ftx.data.LocalWork(batch_size=4, epochs=4))
        round_fn = ftx.make_round(experiment, ftx.Execution(num_lanes=1, taper=taper))
        _, info = round_fn(round_fn.init())
        told.append(drawn([info]))
        # 25 rows in batches of 4, 1; 1; 4, 4, 1; 3; 4, 3, four times over; and one empty tick of a client without a row.
        assert (set(seen), info.useful) == (({2, 4}, 100 / (24 * 4 + 13 * 2)) if taper else ({4}, 100 / (37 * 4)))
    assert told[0] == told[1]


def test_keys_differ_between_clients_rounds_steps_and_seeds():
    _, infos = problems.play(problems.experiment(RECORDING), 2, 2)
    _, others = problems.play(problems.experiment(RECORDING, seed=4), 2, 2)
    numbers = [
        told[name]
        for infos in (infos, others)
        for told in drawn(infos).values()
        for name in told
        if name.startswith(("drawn", "started")) and told[name] != 0
    ]
    # Of 6 clients 2 x (3 + 0 + 1 + 5 + 2 + 4) steps and 6 starts, in 2 rounds of 2 seeds.
    assert len(numbers) == 4 * (30 + 6)
    assert len(set(numbers)) == len(numbers)


def test_each_batch_holds_the_clients_own_rows():
    experiment = problems.experiment(RECORDING)
    _, infos = problems.play(experiment, 1, 3)
    for (_, client), told in drawn(infos).items():
        begin, end = experiment.train.offsets[client : client + 2]
        # Every row's number plus one, in two epochs.
        assert sum(told[f"rows{step}"] for step in range(10)) == 2 * sum(range(begin + 1, end + 1))


def test_two_passes_draw_different_keys_over_the_same_batches():
    def renamed(trainer):
        def finish(broadcast, info, local):
            result = trainer.finish(broadcast, info, local)
            return result._replace(metrics={f"second_{name}": pair for name, pair in result.metrics.items()})

        return trainer._replace(finish=finish)

    one = RECORDING.passes[0]
    both = RECORDING._replace(passes=(one, one._replace(trainer=renamed(one.trainer))))
    _, (info,) = problems.play(problems.experiment(both), 1)
    for told in drawn([info]).values():
        assert told["started"] != told["second_started"]
        assert all(told[f"rows{step}"] == told[f"second_rows{step}"] for step in range(10))
        assert told["drawn0"] != told["second_drawn0"] or told["drawn0"] == 0


# ---- client state


def counting():
    """A client that counts its rounds, keeps its own id and a key, and reports what it had when it started."""

    def init_state(broadcast, key):
        return {"rounds": jnp.int32(0), "seen": jnp.zeros((), jnp.bfloat16), "key": key}

    def start(broadcast, info, state):
        return state

    def step(broadcast, info, local, batch, mask, key):
        return {**local, "seen": local["seen"] + mask.sum().astype(jnp.bfloat16)}

    def finish(broadcast, info, local):
        state = {**local, "rounds": local["rounds"] + 1}
        metrics = {"before": (local["rounds"].astype(jnp.float32), jnp.ones(()))}
        return ftx.ClientResult({}, ftx.clients.client_weight(info), state, metrics)

    return ftx.ClientTrainer(init_state, start, step, finish)


@pytest.mark.parametrize(("num_lanes", "rounds_per_call"), [(1, 1), (3, 4)])
def test_client_state_is_gathered_and_scattered_by_client(num_lanes, rounds_per_call):
    # Cohorts smaller than the capacity of 4: slots that nobody fills name client 0 and must not write over it.
    cohorts = [[3, 5], [0, 3, 1, 4], [], [2], [5, 0, 3]]
    local = ftx.data.LocalWork(batch_size=2)
    experiment = problems.experiment(problems.one_pass(counting()), cohorts=ftx.data.fixed_cohorts(cohorts), local=local)
    state, infos = problems.play(experiment, 5, num_lanes, rounds_per_call)
    clients = state.device.clients
    rounds = [2, 1, 1, 3, 1, 2]
    assert clients["rounds"].tolist() == rounds
    assert clients["seen"].tolist() == [n * size for n, size in zip(rounds, problems.SIZES, strict=True)]
    keys = jax.random.key_data(clients["key"]).tolist()
    assert len({tuple(key) for key in keys}) == 6
    start = ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init()
    assert keys == jax.random.key_data(start.device.clients["key"]).tolist()
    assert [info.client_metrics["before"][0].tolist() for info in infos] == [[0, 0], [0, 1, 0, 0], [], [0], [1, 1, 2]]


def test_the_dtype_of_client_state_is_kept_though_the_client_returns_another():
    trainer = counting()

    def finish(broadcast, info, local):
        result = trainer.finish(broadcast, info, local)
        return result._replace(state={**result.state, "seen": result.state["seen"].astype(jnp.float32)})

    state, _ = problems.play(problems.experiment(problems.one_pass(trainer._replace(finish=finish))), 2)
    assert state.device.clients["seen"].dtype == jnp.bfloat16


def test_a_later_pass_sees_the_state_that_an_earlier_one_left():
    trainer = counting()

    def finish(broadcast, info, local):
        result = trainer.finish(broadcast, info, local)
        return result._replace(metrics={"later": result.metrics["before"]})

    algorithm = problems.one_pass(trainer)
    later = algorithm.passes[0]._replace(trainer=trainer._replace(finish=finish))
    state, infos = problems.play(problems.experiment(algorithm._replace(passes=(*algorithm.passes, later))), 2)
    assert state.device.clients["rounds"].tolist() == [4] * 6
    assert infos[1].client_metrics["before"][0].tolist() == [2] * 6
    assert infos[1].client_metrics["later"][0].tolist() == [3] * 6


def test_encoder_state_accumulates_at_each_client():
    def encode(update, weight, shared, client_state, client_key, round_key):
        return {"sent": update["x"] + client_state}, weight, client_state + update["x"]

    def decode(reduced, totals, state, key):
        return {"x": reduced["sent"]}, state + totals.clients, {"sent": reduced["sent"]}

    aggregator = ftx.aggregation.nothing()._replace(
        init=lambda update: jnp.int32(0), init_client=lambda update: jnp.zeros_like(update["x"]), encode=encode, decode=decode
    )
    trainer = ftx.ClientTrainer(
        lambda broadcast, key: (),
        lambda broadcast, info, state: jnp.float32(0.0),
        lambda broadcast, info, local, batch, mask, key: local + mask.sum(),
        lambda broadcast, info, local: ftx.ClientResult({"x": local}, ftx.clients.client_weight(info), (), {}),
    )
    experiment = problems.experiment(
        problems.one_pass(trainer, aggregator),
        cohorts=ftx.data.fixed_cohorts([[3], [3, 0], [5, 3, 1]]),
        local=ftx.data.LocalWork(batch_size=4),
    )
    state, infos = problems.play(experiment, 3)
    (encoders,) = state.device.encoders
    assert encoders.tolist() == [5, 0, 0, 27, 0, 7]
    # Round 0: 9; round 1: 9 + 9 and 5; round 2: 7, 18 + 9 and 0.
    assert [float(info.aggregation["sent"]) for info in infos] == [9, 23, 34]
    assert int(state.device.aggregators[0]) == 1 + 2 + 2


# ---- passes


def mean_of_x():
    """Pass 1 tells the server the mean of x over all examples; pass 2 moves by how far a client's own mean is from it."""

    def add_rows(broadcast, info, local, batch, mask, key):
        return local + jnp.where(mask[:, None], batch["x"], 0).sum(0)

    def start(broadcast, info, state):
        return jnp.zeros(2)

    def first(broadcast, info, local):
        own = local / jnp.maximum(info.num_examples, 1)
        return ftx.ClientResult({"x": own}, ftx.clients.client_weight(info), (), {})

    def second(broadcast, info, local):
        distance = jnp.abs(local - broadcast["centre"])
        steps = (info.num_steps.astype(jnp.float32), jnp.ones(()))
        return ftx.ClientResult({"x": distance}, jnp.float32(1.0), (), {"steps": steps})

    def keep_centre(state, aggregate, key):
        return state._replace(extra={"centre": aggregate["x"]}), {"first": aggregate["x"][0]}

    def keep_distance(state, aggregate, key):
        return state._replace(params={"w": aggregate["x"]}), {"second": aggregate["x"][0]}

    def trainer(finish):
        return ftx.ClientTrainer(lambda broadcast, key: (), start, add_rows, finish)

    whole = ftx.data.LocalWork(batch_size=4, epochs=1)
    one = ftx.Pass(trainer(first), ftx.aggregation.mean(), lambda state: state.extra, keep_centre, whole)
    two = ftx.Pass(trainer(second), ftx.aggregation.mean(), lambda state: state.extra, keep_distance)
    algorithm = problems.one_pass(problems.recorder(1), extra={"centre": jnp.full(2, jnp.nan)})
    return algorithm._replace(passes=(one, two))


@pytest.mark.parametrize("num_lanes", [1, 4])
def test_a_second_pass_uses_what_the_first_one_found_with_work_of_its_own(num_lanes):
    local = ftx.data.LocalWork(batch_size=3, steps=1, shuffle=False)
    experiment = problems.experiment(mean_of_x(), local=local)
    state, (info,) = problems.play(experiment, 1, num_lanes)
    x = experiment.train.columns["x"]
    np.testing.assert_allclose(state.device.server.extra["centre"], x.mean(0), rtol=1e-5)
    heads = [experiment.train.client(client)["x"][:3].sum(0) for client in range(6)]
    want = np.mean([np.abs(head - x.mean(0)) for head in heads], axis=0)
    np.testing.assert_allclose(state.device.server.params["w"], want, rtol=1e-4)
    assert info.client_metrics["steps"][0].tolist() == [1, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(info.server["first"], x.mean(0)[0], rtol=1e-5)
    np.testing.assert_allclose(info.server["second"], want[0], rtol=1e-4)
    # Both passes' work: all 25 examples in batches of 4, then 3 + 0 + 1 + 3 + 3 + 3 of them.
    assert info.num_examples == 25 + 13
    assert info.num_steps == (2 + 0 + 1 + 3 + 1 + 2) + 5


def test_passes_that_report_the_same_name_are_refused_by_name():
    algorithm = problems.one_pass(counting())
    experiment = problems.experiment(algorithm._replace(passes=algorithm.passes * 2))
    with pytest.raises(ValueError, match="expected each pass to report its own names, got 'before' again from pass 1"):
        problems.play(experiment, 1)


# ---- reductions


def fed_avg_with(aggregator):
    """FedAvg with another aggregator."""
    return ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), aggregator=aggregator)


WITH_MEAN = fed_avg_with(ftx.aggregation.mean())


def own_updates(cohort):
    """What each client alone moves the parameters by."""
    updates = {}
    for client in cohort:
        cohorts = ftx.data.fixed_cohorts([[client], range(6)])
        round_fn = ftx.make_round(problems.experiment(WITH_MEAN, cohorts=cohorts), ftx.Execution(num_lanes=1))
        start = round_fn.init()
        state, _ = round_fn(start)
        updates[client] = jax.device_get(tree.subtract(start.device.server.params, state.device.server.params))
    return updates


@pytest.mark.parametrize(("num_lanes", "cohort"), [(1, [0, 2, 3, 4, 5]), (3, [5, 1, 3, 0, 2, 4])])
def test_the_coordinate_median_over_stacked_rows_is_numpys(num_lanes, cohort):
    def median(reduced, totals, state, key):
        def leaf(rows):
            real = reduced.valid.reshape(-1, *[1] * (rows.ndim - 1))
            return jnp.nanmedian(jnp.where(real, rows, jnp.nan), axis=0)

        told = {"rows": reduced.summands["delta"]["b"][:, 0], "weights": reduced.weights}
        return jax.tree.map(leaf, reduced.summands), state, told

    aggregator = ftx.aggregation.nothing()._replace(reduce=ftx.Stacked(), decode=median)
    # A longer cohort later leaves a slot empty in the first.
    experiment = problems.experiment(fed_avg_with(aggregator), cohorts=ftx.data.fixed_cohorts([cohort, range(6)]))
    state, (info,) = problems.play(experiment, 1, num_lanes)
    start = ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init().device.server.params
    updates = own_updates((0, 2, 3, 4, 5))  # client 1 has no example
    want = jax.tree.map(lambda *leaves: np.median(np.stack(leaves), axis=0), *updates.values())
    assert_close(tree.subtract(start, state.device.server.params), want, rtol=1e-3, atol=1e-5)
    # Rows stand in the order of the cohort.
    rows = [updates[client]["b"][0] if client in updates else 0.0 for client in cohort] + [0.0] * (6 - len(cohort))
    np.testing.assert_allclose(info.aggregation["rows"], rows, rtol=1e-3, atol=1e-6)
    weights = [problems.SIZES[client] for client in cohort] + [0] * (6 - len(cohort))
    assert info.aggregation["weights"].tolist() == weights


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_integer_sums_are_bit_equal_across_lanes_calls_and_orders(dtype):
    def encode(update, weight, shared, client_state, client_key, round_key):
        bits = jax.random.bits(client_key, (5,), jnp.uint32)
        return {"m": bits.astype(dtype)}, weight, client_state

    def decode(reduced, totals, state, key):
        return {"m": reduced["m"]}, state, {"sum": reduced["m"]}

    aggregator = ftx.aggregation.nothing()._replace(encode=encode, decode=decode)
    trainer = problems.recorder(1)
    algorithm = problems.one_pass(trainer, aggregator)
    sums = []
    for num_lanes, rounds_per_call, cohort in ((1, 1, range(6)), (3, 2, [4, 2, 0, 1, 5, 3])):
        experiment = problems.experiment(algorithm, cohorts=ftx.data.fixed_cohorts([cohort]))
        _, infos = problems.play(experiment, 2, num_lanes, rounds_per_call)
        sums.append(np.stack([info.aggregation["sum"] for info in infos]))
    assert sums[0].dtype == dtype
    np.testing.assert_array_equal(*sums)
    assert sums[0].any()


def test_a_round_aggregates_as_aggregate_does():
    """The same updates, collected by a Stacked reduction, through ``ftx.aggregation.aggregate``."""

    def collect(reduced, totals, state, key):
        zero = jax.tree.map(lambda leaf: leaf.sum(0), reduced.summands)
        return zero, state, {**reduced.summands["delta"], "weights": reduced.weights}

    stacked = ftx.aggregation.nothing()._replace(reduce=ftx.Stacked(), decode=collect)
    _, (info,) = problems.play(problems.experiment(fed_avg_with(stacked)), 1)
    said = dict(info.aggregation)
    weights = said.pop("weights")
    update, _, _ = ftx.aggregation.aggregate(ftx.aggregation.mean(), said, weights)
    experiment = problems.experiment(WITH_MEAN)
    start = ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init().device.server.params
    state, _ = problems.play(experiment, 1)
    assert_close(tree.subtract(start, state.device.server.params), update, atol=1e-6)


# ---- nobody, nothing


def test_a_client_without_an_example_has_weight_zero():
    with_it, (info,) = problems.play(problems.experiment(), 1)
    cohorts = ftx.data.fixed_cohorts([[0, 2, 3, 4, 5]])
    without, _ = problems.play(problems.experiment(cohorts=cohorts), 1)
    assert_close(with_it.device.server.params, without.device.server.params)
    assert info.num_clients == 5
    assert info.client_metrics["loss"][1].tolist() == [10, 0, 2, 18, 6, 14]


@pytest.mark.parametrize("cohort", [[], [1]])
def test_a_round_without_weight_keeps_the_server_and_says_so(cohort):
    noisy = optax.chain(optax.add_noise(1.0, 0.0, 0), optax.sgd(1.0))
    algorithm = ftx.algorithms.fed_avg(problems.LOGISTIC, optax.sgd(0.1), server_optimizer=noisy)
    experiment = problems.experiment(algorithm, cohorts=ftx.data.fixed_cohorts([[0, 3, 4], cohort]))
    before, _ = problems.play(experiment, 1)
    after, infos = problems.play(experiment, 2)
    assert_equal(before.device.server, after.device.server)
    assert [info.empty for info in infos] == [False, True]
    assert infos[1].num_clients == 0
    assert infos[1].num_examples == 0
    assert infos[1].useful == 0.0
    assert np.isnan(infos[1].metrics["loss"])


def test_an_aggregator_that_releases_empty_rounds_does():
    def decode(reduced, totals, state, key):
        noise = jax.tree.map(lambda leaf: leaf + 1.0, reduced)
        return noise, state + 1, {"invited": totals.invited, "population": totals.population}

    released = ftx.aggregation.mean()._replace(decode=decode, init=lambda update: jnp.int32(0), releases_empty=True)
    states = {}
    for aggregator in (released, released._replace(releases_empty=False)):
        experiment = problems.experiment(fed_avg_with(aggregator), cohorts=ftx.data.fixed_cohorts([[1], [0, 1]]))
        start = ftx.make_round(experiment, ftx.Execution(num_lanes=1)).init().device.server.params
        state, (info,) = problems.play(experiment, 1)
        assert info.empty
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start, state.device.server.params)
        states[aggregator.releases_empty] = moved, int(state.device.aggregators[0])
        assert (info.aggregation["invited"], info.aggregation["population"]) == (1, 6)
    np.testing.assert_allclose(list(states[True][0].values()), 1.0, rtol=1e-6)
    assert states[True][1] == 1
    assert states[False] == ({"w": 0.0, "b": 0.0}, 0)


def test_totals_count_what_they_say():
    def decode(reduced, totals, state, key):
        return reduced, state, dict(zip(Totals._fields, totals, strict=True))

    aggregator = ftx.aggregation.nothing()._replace(decode=decode)
    experiment = problems.experiment(
        problems.one_pass(problems.recorder(1), aggregator), cohorts=ftx.data.fixed_cohorts([[1, 3, 0], [2, 3, 4, 5]])
    )
    _, (info,) = problems.play(experiment, 1)
    seen = info.aggregation
    assert (seen["weight"], seen["clients"], seen["invited"], seen["population"]) == (14, 2, 3, 6)


def test_covariates_and_versions_reach_the_client():
    trainer = ftx.ClientTrainer(
        lambda broadcast, key: (),
        lambda broadcast, info, state: info.covariates.get("delay", jnp.float32(0)) + 10.0 * info.version + 100.0 * info.slot,
        lambda broadcast, info, local, batch, mask, key: local,
        lambda broadcast, info, local: ftx.ClientResult({}, jnp.float32(1.0), (), {"told": (local, jnp.ones(()))}),
    )
    source = ftx.data.all_clients()

    def select(state, generator, last):
        return ftx.Cohort(np.array([2, 0]), np.array([1, 3]), {"delay": np.array([0.5, 1.5], np.float32)}), state

    source = source._replace(select=select)
    algorithm = problems.one_pass(trainer)._replace(max_version=3)
    _, (info,) = problems.play(problems.experiment(algorithm, cohorts=source), 1)
    assert info.client_metrics["told"][0].tolist() == [10.5, 131.5]


def test_bfloat16_parameters_train_with_stateful_optimisers_and_stay_bfloat16():
    def init(key):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problems.init_logistic(key))

    task = ftx.tasks.classification(ftx.Model(init, lambda p, x, *, key=None: x.astype(jnp.bfloat16) @ p["w"] + p["b"]))

    def make_algorithm(hyper):
        return ftx.algorithms.fed_avg(
            task, client_optimizer=optax.sgd(0.1, momentum=0.9), server_optimizer=optax.sgd(1.0, momentum=0.5)
        )

    state, infos = problems.play(problems.experiment(make_algorithm), 3, 2, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.device.server)} == {jnp.dtype(jnp.bfloat16)}
    assert infos[-1].metrics["loss"] < infos[0].metrics["loss"]


def test_updates_of_integers_are_averaged_as_numbers():
    def finish(broadcast, info, local):
        return ftx.ClientResult({"w": (100 + info.id).astype(jnp.int8)}, ftx.clients.client_weight(info), (), {})

    algorithm = problems.one_pass(problems.recorder(8, finish=finish), ftx.aggregation.mean(), extra={"w": jnp.float32(0)})
    keep = algorithm.passes[0]._replace(combine=lambda state, aggregate, key: (state._replace(extra=aggregate), {}))
    state, _ = problems.play(problems.experiment(algorithm._replace(passes=(keep,))), 1)
    np.testing.assert_allclose(state.device.server.extra["w"], np.average(100 + np.arange(6), weights=problems.SIZES), rtol=1e-6)
