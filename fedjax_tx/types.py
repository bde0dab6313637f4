"""The contracts: what a model, a task, a client, an aggregator, a pass and an algorithm are.

Each is a NamedTuple of functions with explicit state in and explicit state out, as in optax. What a client does is written
for **one** client; the executor (``fedjax_tx.simulation``) adds the lane axis by ``vmap`` and streams the cohort through it.

How a round runs, pass by pass::

    broadcast(server_state) ──► start ─ step ─ step … finish ──► encode ──► receive ──► reduce ──► decode ──► combine
                                └── ClientTrainer, one client ──┘ └───────────── Aggregator ─────────────┘   Pass

Two conventions hold everywhere:

* **(value, weight)**. A loss or a metric is a pair: a mean and the weight it stands for. ``mask`` is True where an example is
  real. The library masks and averages in one place: sum(mask * weight * value) / sum(mask * weight). A metric may be such a
  mean for each of some groups of examples, say the recall of each class: then both have one more axis, [batch, group], in a
  NamedTuple (value, weight) whose ``overall()`` makes one number of the groups, in NumPy and once all examples are in (NaN where
  there is none), and whose ``parts()`` names those that are worth telling (``tasks/scores.py``).
* **Keys come from names**: the seed, the round, the client's id, the pass, the client's own step; never from where the
  executor happened to put the client.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from fedjax_tx import check

PyTree: TypeAlias = Any
Batch: TypeAlias = Mapping[str, Array]
Hyper: TypeAlias = Mapping[str, Any]
Metrics: TypeAlias = Mapping[str, tuple[Array, Array]]


class Model(NamedTuple):
    """A network as two pure functions.

    ``init(key) -> params`` draws the parameters, a plain dict of arrays.
    ``apply(params, inputs, *, key=None) -> outputs`` runs it on a batch; ``key`` drives dropout, and ``key=None`` means
    evaluation, without dropout.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    apply: Callable[..., PyTree]


class Task(NamedTuple):
    """What is learned: a model, a loss and the metrics that people read.

    ``init(key) -> (trainable, frozen)``: what clients train and send, and what they only read.
    ``apply(trainable, frozen, batch, key) -> outputs``: a dict of arrays such as ``logits``; ``key=None`` means evaluation.
    ``loss(outputs, batch) -> (value[batch], weight[batch])``.
    ``metrics(outputs, batch) -> {name: (value[batch], weight[batch])}``; the loss is always reported and need not be in it.
    ``labels``: columns of integers that name classes (or tokens) of ``logits``, 0 to their number - 1; data in which one holds
    anything else is refused before anything compiles. A task of your own that allows more, such as a mark to skip, names none.
    """

    init: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, PyTree, Batch, Key[Array, ""] | None], Mapping[str, Array]]
    loss: Callable[[Mapping[str, Array], Batch], tuple[Float[Array, " batch"], Float[Array, " batch"]]]
    metrics: Callable[[Mapping[str, Array], Batch], Metrics]
    labels: tuple[str, ...] = ()


@jax.tree_util.register_static
@dataclass(frozen=True)
class BatchShapes:
    """Shapes and dtypes of a batch's columns, known when a program is traced; not an array, so ``vmap`` leaves it alone.

    ``columns`` is a tuple of (name, shape with the batch axis, dtype name).
    """

    columns: tuple[tuple[str, tuple[int, ...], str], ...]

    def zeros(self) -> dict[str, Array]:
        """Returns a batch of zeros: what ``start`` evaluates by ``jax.eval_shape`` to learn the shapes of a task's outputs."""
        return {name: jnp.zeros(shape, dtype) for name, shape, dtype in self.columns}


class ClientInfo(NamedTuple):
    """Facts of the schedule about one client of a cohort; the executor stacks them along the cohort.

    id: index of the client in the training data, also where another data set is evaluated; -1 there if it is not among the
    training clients. slot: its position in the cohort. num_examples: how many examples it holds.
    num_steps: how many local steps it makes in this pass; where it has examples, 0 says that it dropped out. version: age in
    server updates of the model that it starts from (0 is the current one). covariates: what the cohort source says of it beside
    that (a dict of arrays, often empty); in its batches they are columns, alike in every row.
    key: its randomness in this round and pass. batch: the shapes of its batches.
    """

    id: Int[Array, ""]
    slot: Int[Array, ""]
    num_examples: Int[Array, ""]
    num_steps: Int[Array, ""]
    version: Int[Array, ""]
    covariates: Mapping[str, Array]
    key: Key[Array, ""]
    batch: BatchShapes


class ClientResult(NamedTuple):
    """What one client hands over when its local work is done.

    update: a dict of parts; the part ``delta`` is server - client, so that an optax optimiser at the server descends.
    weight: the client's weight in averages, a scalar >= 0; 0 takes no part. state: its new state, of the old one's shape.
    metrics: ``{name: (value, weight)}`` of scalars. A client whose update, weight or state is not finite is left out.
    """

    update: Mapping[str, PyTree]
    weight: Float[Array, ""]
    state: PyTree
    metrics: Metrics


class ClientTrainer(NamedTuple):
    """The local work of one client; ``local`` is any pytree that it carries from step to step.

    ``init_state(broadcast, key) -> state``: a client's state before its first round; ``()`` where it keeps none.
    ``start(broadcast, info, state) -> local``: receives the broadcast.
    ``step(broadcast, info, local, batch, mask, key) -> local``: one batch; rows where ``mask`` is False are padding. A drawn
    batch (``LocalWork.expected_batch``) may have no real row; it is a step all the same.
    ``finish(broadcast, info, local) -> ClientResult``.

    ``task``: the one that an evaluation scores, where there is one: by its ``labels`` data is checked before anything compiles.

    All passes of an algorithm share one client state: it is made by the first pass's trainer, and each pass reads and
    returns it (a pass that has nothing to keep hands back what it got at ``start``).
    """

    init_state: Callable[[PyTree, Key[Array, ""]], PyTree]
    start: Callable[[PyTree, ClientInfo, PyTree], PyTree]
    step: Callable[[PyTree, ClientInfo, PyTree, Batch, Bool[Array, " batch"], Key[Array, ""]], PyTree]
    finish: Callable[[PyTree, ClientInfo, PyTree], ClientResult]
    task: Task | None = None


class Linear(NamedTuple):
    """Reduction by addition: summands stream into one accumulator, in float32.

    weighted: whether the server multiplies each summand by its client's weight; if not, integers keep their type and wrap around.
    A client of weight 0 is never added.
    """

    weighted: bool = False


class Stacked(NamedTuple):
    """Reduction that must see every client's summand: rows are kept side by side, in the order of the cohort."""


class Rows(NamedTuple):
    """What a ``Stacked`` reduction hands to ``decode``: summands with a leading cohort axis, weights, and which rows are real."""

    summands: PyTree
    weights: Float[Array, " client"]
    valid: Bool[Array, " client"]


class Totals(NamedTuple):
    """Sums over the clients of a pass.

    weight: of the weights that ``encode`` returned. clients: how many had a positive weight. invited: how many were in
    the cohort. population: how many clients the training data has.
    """

    weight: Float[Array, ""]
    clients: Int[Array, ""]
    invited: Int[Array, ""]
    population: Int[Array, ""]


class Participation(NamedTuple):
    """How often a client takes part, at most.

    min_separation: rounds from one time to the next, 1 where it may come in each. max_participations: times in all; None: any.
    """

    min_separation: int = 1
    max_participations: int | None = None


class Factorization(NamedTuple):
    """How noise is correlated over the rounds of a run: what is released are rows of x + C^-1 Z, x the rounds' aggregates.

    All of it follows from C x + Z by arithmetic, so one client is hidden by what it can change of C x as a whole. C is lower
    triangular, so that a round needs the noise of those before it only.

    name: for messages. rounds, participation: what C is made for. ``init(update) -> state``.
    ``correlate(noise, state) -> (row, state)``: the next row of C^-1 Z, given that of Z: standard normal, shaped as an update.
    ``sensitivity(rounds, participation)``: the L2 norm by which one client can change C x in so many rounds, if it takes part no
    more often than that, each time with an update of norm 1.
    """

    name: str
    rounds: int
    participation: Participation
    init: Callable[[PyTree], PyTree]
    correlate: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    sensitivity: Callable[[int, Participation], float]


class Aggregator(NamedTuple):
    """How updates become one.

    ``init(update) -> state`` and ``init_client(update) -> client_state`` see the shapes and dtypes of one update.
    ``encode(update, weight, shared, client_state, client_key, round_key) -> (message, weight, client_state)`` runs at the
    client; ``shared`` is the aggregator's state at the start of the round.
    ``receive(message, shared) -> summand`` runs at the server once per message; the identity behind a secure sum.
    ``reduce`` is ``Linear()`` or ``Stacked()``.
    ``decode(reduced, totals, state, key) -> (aggregate, state, info)``: ``reduced`` is the sum, or ``Rows``; the aggregate
    has the structure of an update.
    ``releases_empty``: whether a round of total weight 0 still yields an aggregate (noise over a fixed denominator does);
    elsewhere the server keeps its state in such a round.

    What ``chain`` goes by, beside ``reduce`` (None: another stage of the chain reduces):
    ``name`` for messages. ``sensitivity(bound) -> bound``: the L2 norm by which one client can change what leaves this stage,
    given that of what enters it; None stands for no bound. ``reads_update``: whether encode looks into the update, so that it
    can't stand behind a stage that packs it into a message of another form (one with a ``receive``).
    ``calibrate(bound) -> Aggregator``, where given, makes the stage from the bound at its place, as noise needs it.
    ``change_rows(rows, key) -> (rows, info)``, where given, changes the rows of all clients before what stands behind the stage,
    which then happens at the server; the rows' number and order stay. Noise can't stand there.
    ``noise_multiplier``: of Gaussian noise that what leaves this stage has, its standard deviation over the bound at its place;
    None: it has none. ``factorization``: by which that noise is correlated over rounds; the bound is then that of all rounds
    together. None: it is new in each.
    ``sums_only``: behind this stage the server sees only sums of messages.
    ``max_clients``: the most clients whose messages the reduction can take; None: any number.
    """

    init: Callable[[PyTree], PyTree]
    init_client: Callable[[PyTree], PyTree]
    encode: Callable[
        [PyTree, Float[Array, ""], PyTree, PyTree, Key[Array, ""], Key[Array, ""]],
        tuple[PyTree, Float[Array, ""], PyTree],
    ]
    receive: Callable[[PyTree, PyTree], PyTree]
    reduce: Linear | Stacked | None
    decode: Callable[[PyTree, Totals, PyTree, Key[Array, ""]], tuple[PyTree, PyTree, Mapping[str, Array]]]
    releases_empty: bool = False
    name: str = "aggregator"
    sensitivity: Callable[[float | Array | None], float | Array | None] = lambda bound: None
    calibrate: Callable[[float | Array], "Aggregator"] | None = None
    change_rows: Callable[[Rows, Key[Array, ""]], tuple[Rows, Mapping[str, Array]]] | None = None
    noise_multiplier: float | Array | None = None
    factorization: Factorization | None = None
    sums_only: bool = False
    reads_update: bool = True
    max_clients: int | None = None


@dataclass(frozen=True, eq=False)
class LocalWork:
    """How much a client trains in a pass.

    Args:
      batch_size: examples a step; the last batch of an epoch may be short.
      epochs: passes over the client's data, or
      steps: batches (the data is gone through as often as that takes). Exactly one of the two is given: an int for all
        clients, or an integer array with one entry for each client of the data set. By default one epoch.
      shuffle: a new order each epoch, derived from the seed, the round and the client; or the stored order.
      expected_batch: > 0; batches are drawn, as the accountants of DP-SGD assume (Poisson sampling): in each of ``steps`` a
        client's every example comes with the chance expected_batch / its number of examples, at most 1, on its own. Nobody may
        come. ``batch_size`` is then the room: of more, a uniformly chosen part comes. None: epochs are cut into batches.

    Example:
      >>> LocalWork(batch_size=8, steps=10, shuffle=False).epochs is None
      True
    """

    batch_size: int
    epochs: int | np.ndarray | None = None
    steps: int | np.ndarray | None = None
    shuffle: bool = True
    expected_batch: float | None = None

    def __post_init__(self):
        check.integer("batch_size", self.batch_size, low=1)
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"expected epochs or steps, not both, got epochs={self.epochs!r} and steps={self.steps!r}")
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)
        for name in ("epochs", "steps"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check.counts(name, value))
        check.boolean("shuffle", self.shuffle)
        if self.expected_batch is not None:
            check.number("expected_batch", self.expected_batch, above=0, high=self.batch_size)
            if self.steps is None or not self.shuffle:
                expected = "to be None without steps, or in stored order: batches that are drawn make no epochs"
                check.fail_value("expected_batch", expected, self.expected_batch)


class Pass(NamedTuple):
    """One sweep over the cohort: what clients do, how it is aggregated, what they are sent, and what the server makes of it.

    ``broadcast(server_state) -> broadcast``. ``combine(server_state, aggregate, key) -> (server_state, info)``.
    ``work`` overrides the experiment's local work in this pass: another one, or ``work(local) -> LocalWork``.
    ``travels(broadcast, message) -> (down, up)``: what of the two would go to and from a client, for the ledger; by default all.
    """

    trainer: ClientTrainer
    aggregator: Aggregator
    broadcast: Callable[["ServerState"], PyTree]
    combine: Callable[["ServerState", PyTree, Key[Array, ""]], tuple["ServerState", Mapping[str, Array]]]
    work: LocalWork | Callable[[LocalWork], LocalWork] | None = None
    travels: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]] = lambda broadcast, message: (broadcast, message)


class ServerState(NamedTuple):
    """What the server keeps between rounds.

    params: the trainable parameters. frozen: what clients only read. optimizer: the server optimiser's state. extra: what
    else a method keeps (a control variate, a ring of past parameters).
    """

    params: PyTree
    frozen: PyTree = ()
    optimizer: PyTree = ()
    extra: PyTree = ()


class FederatedAlgorithm(NamedTuple):
    """A federated method: ``init(key, init_params) -> ServerState``, the passes of a round in order, and how it is evaluated.

    ``init_params`` is None, or what ``result.params`` gave. ``evaluation`` is the pass that scores a client's own data with
    what the method would use there; its ``combine`` is never called. ``max_version``: how old a model, in server updates, the
    method lets a client start from; a cohort with an older one is refused. ``num_clients``: how many clients the training data
    must have, where the method keeps something for each at the server; None: any number.
    """

    init: Callable[[Key[Array, ""], PyTree | None], ServerState]
    passes: tuple[Pass, ...]
    evaluation: Pass
    max_version: int = 0
    num_clients: int | None = None


class Cohort(NamedTuple):
    """The clients of one round: their indices and, where it matters, more.

    version [client]: the age of the model that each starts from. covariates: what else is told of each, [client, ...].
    work_done [client]: the share of its local steps that each makes, 0 to 1, by default all. Steps are rounded up, so that who
    does anything makes a step in every pass. Who does nothing has dropped out: it contributes nothing, and its state is kept.
    """

    ids: np.ndarray
    version: np.ndarray | None = None
    covariates: Mapping[str, np.ndarray] = {}
    work_done: np.ndarray | None = None


class Sampling(NamedTuple):
    """How a cohort is drawn, as far as privacy is accounted for; one of the two is given.

    rate: each client comes with this chance, on its own, and where more come than there is room for, a uniformly chosen part of
    them. size: a set of so many clients, each as likely.
    """

    rate: float | None = None
    size: int | None = None


class CohortSource(NamedTuple):
    """Who takes part in a round; runs on the host.

    ``init(num_clients) -> state``, a pytree of NumPy arrays (it is saved with the run).
    ``select(state, generator, last_client_metrics) -> (cohort, state)``: a ``Cohort``, or just the indices; ``generator`` is
    a NumPy generator named by seed and round; ``last_client_metrics`` is None unless ``reads_metrics``. It is asked for
    the rounds of the next call while those under way still run, unless it ``reads_metrics``: it depends on its arguments only.
    ``max_clients(num_clients)``: the most clients a round can have; the compiled program's capacity.
    ``description``: the source in words; a run is only resumed with the same.
    ``repeats``: whether a cohort may hold a client more than once; room is then made for the largest client each time.
    ``max_version``: the greatest version that its cohorts hold; an algorithm that can't serve it is refused beforehand.
    ``sampling``: how clients are drawn where that is known to amplify privacy; None elsewhere.
    ``participation``: how often a client comes at most, where the source sees to that; None elsewhere.
    """

    init: Callable[[int], PyTree]
    select: Callable[[PyTree, np.random.Generator, Any], tuple[Any, PyTree]]
    max_clients: Callable[[int], int]
    description: str
    reads_metrics: bool = False
    repeats: bool = False
    max_version: int = 0
    sampling: Sampling | None = None
    participation: Participation | None = None


@dataclass(frozen=True)
class Execution:
    """How an experiment runs; never what it computes.

    Args:
      num_lanes: clients trained side by side on each device (at most what the cohort fills), or ``"auto"``: memory analysis
        caps it and a short timed probe chooses.
      rounds_per_call: rounds in one call of the compiled program, or ``"auto"``.
      mesh: the devices over which the lanes are spread: a mesh of one axis, None for one device, or ``"auto"`` for all devices
        of all processes. State is on each of them, and the data of its own process.
      placement: where the data lies: on the ``"device"``, or in ``"host"`` memory, from which each call is sent the rows that it
        uses, while the one before runs. The data may then be larger than a device; results are the same.
      taper: how many times the lane count may halve as lanes run dry at the end of a pass, 0 for never, or ``"auto"``: as often
        as each time saves 5 % of the lanes' slots on clients of typical sizes, and never in a pass of fewer than 24 ticks. Each
        width of the lanes is compiled on its own. With ``"auto"`` a single lane also steps batches of at most half the rows at
        half size, where that saves 2 % of all rows.
      debug: one lane and no compilation; the first NaN raises ``FloatingPointError`` with its client, round, pass and step.
        The other settings do not matter then.

    Example:
      >>> Execution(num_lanes=4).rounds_per_call
      'auto'
    """

    num_lanes: int | Literal["auto"] = "auto"
    rounds_per_call: int | Literal["auto"] = "auto"
    mesh: Mesh | Literal["auto"] | None = "auto"
    placement: Literal["device", "host"] = "device"
    debug: bool = False
    taper: int | Literal["auto"] = "auto"

    def __post_init__(self):
        for name, low in {"num_lanes": 1, "rounds_per_call": 1, "taper": 0}.items():
            value = getattr(self, name)
            if isinstance(value, str):
                if value != "auto":
                    check.fail_value(name, f"to be an integer >= {low} or 'auto'", value)
            else:
                check.integer(name, value, low=low)
        if isinstance(self.mesh, str) and self.mesh != "auto":
            check.fail_value("mesh", "to be a jax.sharding.Mesh, None or 'auto'", self.mesh)
        if not isinstance(self.mesh, (Mesh, str, type(None))):
            check.fail_type("mesh", "a jax.sharding.Mesh, None or 'auto'", self.mesh)
        if isinstance(self.mesh, Mesh) and len(self.mesh.axis_names) != 1:
            check.fail_value("mesh", "to have one axis", dict(self.mesh.shape))
        check.one_of("placement", self.placement, ("device", "host"))
        check.boolean("debug", self.debug)


MakeAlgorithm: TypeAlias = Callable[[Hyper], FederatedAlgorithm] | FederatedAlgorithm
