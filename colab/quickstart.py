# %% [markdown]
# # Federated learning of a Transformer
#
# Each speaking role of Shakespeare's plays is a client that keeps its lines. A small decoder learns to write like them by
# federated averaging: clients train it on their own text, and the server sees only their updates. All cells together took
# 5 minutes on 2 busy CPU cores.

# %% [markdown]
# ## Install
# In a checkout of fedjax_tx, `git archive -o fedjax_tx.zip HEAD` makes the file to upload here (the folder on the left). Colab
# has JAX already; if it is older than 0.8 pip replaces it: then add `'jax[cuda13]'` on a GPU or `'jax[tpu]'` on a TPU to the line
# below, and restart the session. Where fedjax_tx is installed, skip this cell.

# %%
# %pip install --quiet fedjax_tx.zip

# %% [markdown]
# ## Devices
# Before anything else: each core of a CPU becomes a JAX device with clients of its own (on a GPU or TPU nothing changes), and
# compiled programs are kept on disk, so that the next start is sooner.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import fedjax_tx as ftx
from fedjax_tx.data.sources import shakespeare

num_devices = ftx.devices.use_all_cores()
ftx.devices.use_compilation_cache()
print(f"{num_devices} device(s): {jax.devices()}")

# %% [markdown]
# ## Settings
# A run started again on its `RUN_DIR` goes on where it was. Colab takes its disk away with the session, so put it on Drive:
# `from google.colab import drive; drive.mount("/content/drive")` and `RUN_DIR = "/content/drive/MyDrive/quickstart"`.

# %%
ROUNDS = 500
EVALUATE_EVERY = 100
WIDTH = 128  # of the decoder
LENGTH = 64  # characters that it sees
RUN_DIR = "runs/quickstart"

# %% [markdown]
# ## Clients
# `train` and `test` are the beginning and the end of the same roles' text; the roles of four more plays are `unseen`, and no
# client. Clients hold from 1 to 767 rows of text, which is what makes them awkward to train side by side.

# %%
data = ftx.data.load("shakespeare", sequence_length=LENGTH)
for name in ("train", "test", "unseen"):
    print(f"{name:8}{ftx.data.describe(getattr(data, name), labels=None)}\n")

sizes = data.train.client_sizes
longest = int(np.argmax(sizes))
print(data.train.client_ids[longest], "begins:", shakespeare.decode(data.train.client(longest)["tokens"][0]))
plt.figure()
plt.hist(sizes, bins=[2**power for power in range(11)])
plt.xscale("log", base=2)
plt.xlabel(f"examples of a client ({LENGTH} characters each)")
plt.ylabel("clients")
plt.show()

# %% [markdown]
# ## Experiment
# In each round 16 roles, drawn in proportion to their text, make a local step on 4 rows of it (`epochs=1` would go through all);
# the server takes the mean of their updates for a gradient and gives it to Adam. What a study varies goes through `hyper`.

# %%
model = ftx.models.decoder(vocab_size=shakespeare.VOCABULARY_SIZE, num_layers=2, num_heads=4, width=WIDTH, max_length=LENGTH)
task = ftx.tasks.next_token(model, pad_id=0)


def make_algorithm(hyper):
    return ftx.algorithms.fed_avg(
        task,
        client_optimizer=optax.sgd(hyper["client_lr"]),
        server_optimizer=optax.adam(hyper["server_lr"], b2=0.95),
        aggregator=ftx.aggregation.mean(weighted=False),
    )


experiment = ftx.Experiment(
    make_algorithm,
    hyper={"client_lr": 0.1, "server_lr": 0.001},
    train=data.train,
    cohorts=ftx.data.weighted_cohorts(16, sizes),
    local=ftx.data.LocalWork(batch_size=4, steps=1),
)

# %% [markdown]
# ## Run
# The first call compiles; then a line tells of each evaluation, made on every tenth client, and at the end the ledger of what it
# cost. Interrupt it if you like, or end the session: this cell goes on from the last checkpoint, and so it does after you raise
# `ROUNDS`. Another experiment needs a `RUN_DIR` of its own.

# %%
everyone = {"test": data.test, "unseen": data.unseen}
some = {name: clients.select(np.arange(0, clients.num_clients, 10)) for name, clients in everyone.items()}
result = ftx.run(experiment, ROUNDS, evaluate=some, evaluate_every=EVALUATE_EVERY, run_dir=RUN_DIR)
print(result.ledger)

# %% [markdown]
# ## Loss
# In nats a character. Guessing among all symbols alike would give log 72 = 4.28.

# %%
plt.figure()
plt.plot([line["round"] for line in result.history], [line["train/loss"] for line in result.history], alpha=0.4, label="train")
for name in some:
    lines = [line for line in result.history if f"{name}/loss" in line]
    plt.plot([line["round"] for line in lines], [line[f"{name}/loss"] for line in lines], marker="o", label=name)
plt.xlabel("round")
plt.ylabel("loss")
plt.legend()
plt.savefig(f"{RUN_DIR}/loss.png")
plt.show()

# %% [markdown]
# ## For whom does it work?
# Now all clients: the mean over all their text, the median client, and the mean of the worst tenth of the clients, of roles that
# were trained on and of roles that nobody has seen.

# %%
for name, clients in everyone.items():
    scores = ftx.summarise(name, ftx.make_evaluation(experiment, clients)(result.state))
    mean, median, worst = (scores[f"{name}/loss{of}"] for of in ("", "/client_p50", "/client_worst_decile"))
    print(f"{name:8}{clients.num_clients:5} clients   loss {mean:.3f}   median client {median:.3f}   worst tenth {worst:.3f}")

# %% [markdown]
# ## What it writes
# Lines, speeches and many words are there, sense is not. `experiments/shakespeare.py` trains the decoder three times as long.

# %%
prompt = jnp.asarray(shakespeare.encode("My lord, "))
tokens = ftx.models.generate(model, result.params, prompt, 500, jax.random.key(0), max_length=LENGTH, temperature=0.8)
print(shakespeare.decode(np.asarray(tokens)))

# %% [markdown]
# ## Change something
# Two rates of the server, as one compiled program. Another method is another line in `make_algorithm`, such as
# `ftx.algorithms.fed_prox` with the same arguments and `mu=0.1`; README.md lists them all.

# %%
sweep = ftx.sweep(experiment, EVALUATE_EVERY, {"server_lr": [0.001, 0.004]}, evaluate=some, evaluate_every=EVALUATE_EVERY)
print(sweep.table[["server_lr", "test/loss", "unseen/loss", "test/loss/client_worst_decile"]])

# %% [markdown]
# ## On a GPU or TPU
# Choose one under Runtime → Change runtime type: no line above changes. `ftx.run` measures how many clients to train side by side
# (`ftx.Execution(num_lanes="auto")`, the default), which changes the speed and never what is computed. What else can be set is in
# README.md under "On a GPU or TPU". This notebook was tried on CPU cores only.
