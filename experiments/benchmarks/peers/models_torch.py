"""Both works' networks in PyTorch, and what the PyTorch systems share: parameters by the names of works.py, and a client's epoch.

``network(*columns)`` is the mean loss of a batch. Matrices are stored as PyTorch has them, [out, in], and convolutions as
[out, in, height, width]; the first dense layer of work B reads its inputs in the order (channel, height, width).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from works import LEARNING_RATE, Work

HEAD_WIDTH = 32


# For each name of works.py the parameter, and the order of its axes there.
Places = dict[str, tuple[nn.Parameter, tuple[int, ...]]]


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, time, width = x.shape
        heads = (batch, time, width // HEAD_WIDTH, HEAD_WIDTH)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(self.ln1(x)).split(width, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.outer(F.gelu(self.inner(self.ln2(x)), approximate="tanh"))


class Transformer(nn.Module):
    def __init__(self, vocab_size: int, length: int, width: int, layers: int):
        super().__init__()
        self.wte = nn.Parameter(torch.empty(vocab_size, width))
        self.wpe = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.lnf, self.head = nn.LayerNorm(width), nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens):
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        x = F.embedding(inputs, self.wte) + self.wpe[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.lnf(x)).flatten(0, 1), targets.flatten())

    def places(self) -> Places:
        places: Places = {"wte": (self.wte, (0, 1)), "wpe": (self.wpe, (0, 1)), "wout": (self.head.weight, (1, 0))}
        places |= norm_places("lnf", self.lnf)
        for number, block in enumerate(self.blocks):
            places |= norm_places(f"l{number}_ln1", block.ln1) | norm_places(f"l{number}_ln2", block.ln2)
            for name, layer in (("qkv", block.qkv), ("o", block.out), ("1", block.inner), ("2", block.outer)):
                places |= {f"l{number}_w{name}": (layer.weight, (1, 0)), f"l{number}_b{name}": (layer.bias, (0,))}
        return places


class ConvNet(nn.Module):
    def __init__(self, first: int, second: int, hidden: int, classes: int):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, first, 3), nn.Conv2d(first, second, 3)
        self.d1, self.d2 = nn.Linear(144 * second, hidden), nn.Linear(hidden, classes)

    def forward(self, x, y):
        x = F.relu(self.c2(F.relu(self.c1(x))))
        x = F.relu(self.d1(F.max_pool2d(x, 2).flatten(1)))
        return F.cross_entropy(self.d2(x), y)

    def places(self) -> Places:
        places: Places = {}
        for name, axes in (("c1", (2, 3, 1, 0)), ("c2", (2, 3, 1, 0)), ("d1", (1, 0)), ("d2", (1, 0))):
            layer = getattr(self, name)
            places |= {f"{name}_w": (layer.weight, axes), f"{name}_b": (layer.bias, (0,))}
        return places


def norm_places(name: str, norm: nn.LayerNorm) -> Places:
    return {f"{name}_g": (norm.weight, (0,)), f"{name}_b": (norm.bias, (0,))}


# ---- parameters in and out


def make_network(work: Work) -> nn.Module:
    """Returns a work's network with its initial parameters."""
    p = work.params
    network: nn.Module
    if work.name == "A":
        layers = sum(name.endswith("_wqkv") for name in p)
        network = Transformer(len(p["wte"]), len(p["wpe"]), p["wte"].shape[1], layers)
    else:
        network = ConvNet(p["c1_b"].size, p["c2_b"].size, *p["d2_w"].shape)
    with torch.no_grad():
        for name, (parameter, axes) in network.places().items():
            value = rows_by_channel(p[name], p["c2_b"].size) if name == "d1_w" else p[name]
            parameter.copy_(torch.from_numpy(np.transpose(value, np.argsort(axes)).copy()))
    return network


def read_network(network: nn.Module) -> dict[str, np.ndarray]:
    """Returns a network's parameters by the names of works.py."""
    params = {}
    for name, (parameter, axes) in network.places().items():
        value = np.transpose(parameter.detach().numpy(), axes)
        params[name] = rows_by_pixel(value, network.c2.out_channels) if name == "d1_w" else value.copy()
    return params


def rows_by_channel(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Reorders rows from (pixel, channel) to (channel, pixel)."""
    return kernel.reshape(-1, channels, kernel.shape[1]).transpose(1, 0, 2).reshape(kernel.shape)


def rows_by_pixel(kernel: np.ndarray, channels: int) -> np.ndarray:
    return kernel.reshape(channels, -1, kernel.shape[1]).transpose(1, 0, 2).reshape(kernel.shape)


# ---- a client


def make_columns(work: Work) -> tuple[torch.Tensor, ...]:
    """Returns the examples of all clients as tensors: integers as int64, images with their channel first."""
    if work.name == "A":
        return (torch.from_numpy(work.columns["tokens"]).long(),)
    return torch.from_numpy(work.columns["x"]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(work.columns["y"]).long()


def client_rows(work: Work, columns: tuple[torch.Tensor, ...], client: int) -> tuple[torch.Tensor, ...]:
    """Returns the examples of one client."""
    return tuple(column[work.offsets[client] : work.offsets[client + 1]] for column in columns)


def make_optimizer(parameters) -> torch.optim.Optimizer:
    """Returns the clients' optimiser; PyTorch's fused loop over the parameters is its fastest on a CPU."""
    return torch.optim.SGD(parameters, lr=LEARNING_RATE, fused=True)


def train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, rows: tuple[torch.Tensor, ...], batch_size: int) -> None:
    """Trains on a client's examples once, in their order; the last batch may be short."""
    for batch in zip(*(column.split(batch_size) for column in rows), strict=True):
        optimizer.zero_grad()
        network(*batch).backward()
        optimizer.step()
