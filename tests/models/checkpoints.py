"""Small checkpoints in Hugging Face's format, of weights drawn from a seed: the same in every environment.

Needs NumPy and safetensors only, so that ``make_references.py`` can use it beside PyTorch and without this library.
"""

import json

import numpy as np
from safetensors.numpy import save_file

WIDTH, MLP, LAYERS, VOCABULARY, POSITIONS, CLASSES = 8, 12, 2, 13, 10, 3

BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": MLP,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 2,
    "n_inner": MLP,
    "n_positions": POSITIONS,
    "activation_function": "gelu_new",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VIT = {
    "model_type": "vit",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": MLP,
    "image_size": 6,
    "patch_size": 3,
    "num_channels": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
LABELS = {"id2label": {str(index): f"LABEL_{index}" for index in range(CLASSES)}}


def _dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def bert_shapes(*, pooler: bool = False, classifier: bool = False, masked: bool = False) -> dict[str, tuple[int, ...]]:
    names = {"embeddings.word_embeddings.weight": (VOCABULARY, WIDTH), "embeddings.token_type_embeddings.weight": (2, WIDTH)}
    names |= {"embeddings.position_embeddings.weight": (POSITIONS, WIDTH), **_norm("embeddings.LayerNorm")}
    for layer in range(LAYERS):
        start = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            names |= _dense(f"{start}.attention.{part}", WIDTH, WIDTH)
        names |= _norm(f"{start}.attention.output.LayerNorm") | _norm(f"{start}.output.LayerNorm")
        names |= _dense(f"{start}.intermediate.dense", WIDTH, MLP) | _dense(f"{start}.output.dense", MLP, WIDTH)
    names |= _dense("pooler.dense", WIDTH, WIDTH) if pooler else {}
    if classifier or masked:
        names = {f"bert.{name}": shape for name, shape in names.items()}
    names |= _dense("classifier", WIDTH, CLASSES) if classifier else {}
    if masked:
        names |= _dense("cls.predictions.transform.dense", WIDTH, WIDTH) | _norm("cls.predictions.transform.LayerNorm")
        names |= {"cls.predictions.bias": (VOCABULARY,)}
    return names


def gpt2_shapes(*, tied: bool = True) -> dict[str, tuple[int, ...]]:
    names = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (POSITIONS, WIDTH), **_norm("ln_f")}
    for layer in range(LAYERS):
        names |= _norm(f"h.{layer}.ln_1") | _norm(f"h.{layer}.ln_2")
        # Stored [inputs, outputs], unlike all others.
        for part, inputs, outputs in (("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH)):
            names |= {f"h.{layer}.{part}.weight": (inputs, outputs), f"h.{layer}.{part}.bias": (outputs,)}
        for part, inputs, outputs in (("mlp.c_fc", WIDTH, MLP), ("mlp.c_proj", MLP, WIDTH)):
            names |= {f"h.{layer}.{part}.weight": (inputs, outputs), f"h.{layer}.{part}.bias": (outputs,)}
    names = {f"transformer.{name}": shape for name, shape in names.items()}
    return names if tied else {**names, "lm_head.weight": (VOCABULARY, WIDTH)}


def vit_shapes() -> dict[str, tuple[int, ...]]:
    start = "vit.embeddings"
    names = {f"{start}.cls_token": (1, 1, WIDTH), f"{start}.position_embeddings": (1, 5, WIDTH)}
    names |= {f"{start}.patch_embeddings.projection.weight": (WIDTH, 2, 3, 3)}
    names |= {f"{start}.patch_embeddings.projection.bias": (WIDTH,), **_norm("vit.layernorm")}
    for layer in range(LAYERS):
        start = f"vit.encoder.layer.{layer}"
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            names |= _dense(f"{start}.attention.{part}", WIDTH, WIDTH)
        names |= _norm(f"{start}.layernorm_before") | _norm(f"{start}.layernorm_after")
        names |= _dense(f"{start}.intermediate.dense", WIDTH, MLP) | _dense(f"{start}.output.dense", MLP, WIDTH)
    return {**names, **_dense("classifier", WIDTH, CLASSES)}


def draw(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights far from their initial values, biases and gains too; by PCG64 in the order of the names."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name in sorted(shapes):
        gain = 1.0 if "norm" in name.lower() and name.endswith("weight") or ".ln_" in name and name.endswith("weight") else 0.0
        tensors[name] = (gain + 0.5 * rng.standard_normal(shapes[name])).astype(np.float32)
    return tensors


def write(folder, config, tensors):
    """Writes a checkpoint, and returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def text_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Tokens [3, 6] of texts of 6, 4 and 1 tokens, and where they are valid."""
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (3, 6)).astype(np.int32)
    return tokens, np.arange(6) < np.array([[6], [4], [1]])


def segments() -> np.ndarray:
    """The segment of each token of ``text_inputs``."""
    return (np.arange(6) >= np.array([[3], [2], [1]])).astype(np.int32)


def images() -> np.ndarray:
    """Two images [height, width, channel] of 6 x 6 pixels and 2 channels."""
    return np.random.default_rng(2).standard_normal((2, 6, 6, 2)).astype(np.float32)


CASES = {
    "bert embeddings": ("BertModel", BERT, bert_shapes(pooler=True)),
    "bert classes": ("BertForSequenceClassification", {**BERT, **LABELS}, bert_shapes(pooler=True, classifier=True)),
    "bert tokens": ("BertForMaskedLM", {**BERT, "hidden_act": "gelu_new"}, bert_shapes(masked=True)),
    "gpt2": ("GPT2LMHeadModel", GPT2, gpt2_shapes()),
    "gpt2 untied": ("GPT2LMHeadModel", {**GPT2, "tie_word_embeddings": False, "n_inner": MLP}, gpt2_shapes(tied=False)),
    "vit": ("ViTForImageClassification", {**VIT, **LABELS}, vit_shapes()),
}
"""By name: the class in ``transformers``, the config, the shapes of the tensors."""

SENTENCES = (
    "Federated learning trains one model on the data of many.",
    "Hello!",
    "The quick brown fox jumps over the lazy dog, and the dog, being lazy, does not mind: it sleeps in the sun until noon.",
    "My fellow Americans, ask not what your country can do for you.",
)
