"""The README's answers to "How do I ...?" run as they stand there, and links between the project's pages lead somewhere."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = ("README.md", "CONTRIBUTING.md", "experiments/README.md", "experiments/benchmarks/README.md")


def snippets():
    """Returns the code blocks of the section, in order."""
    (section,) = re.findall(r"(?ms)^## How do I …\?$(.*?)^## ", README.read_text(encoding="utf-8"))
    return re.findall(r"(?ms)^```python\n(.*?)^```$", section)


def run(blocks):
    """Runs blocks as one script; returns its names."""
    names = {}
    for block in blocks:
        exec(compile(block, README.name, "exec"), names)
    return names


def test_data_and_models_of_ones_own(tmp_path, monkeypatch, unchecked):
    monkeypatch.chdir(tmp_path)
    names = run(snippets()[:3])
    data = names["data"]
    assert data.train.num_examples + data.test.num_examples == 600
    assert data.train.client_ids.tolist() == data.test.client_ids.tolist()
    assert names["experiment"].train is names["flax_experiment"].train is data.train
    for model in (names["model"], names["flax_model"]):
        assert model.apply(model.init(jax.random.key(0)), names["x"]).shape == (600, 2)


@pytest.mark.slow
def test_all_pieces_run_one_after_another(tmp_path, monkeypatch, capsys, unchecked):
    monkeypatch.chdir(tmp_path)
    names = run(snippets())
    assert [line["round"] for line in names["result"].history] == list(range(1, 11))
    assert "resuming after round 5" in capsys.readouterr().out
    assert names["best"] == {"client_lr": 0.3}
    assert names["watched"].best.round % 5 == 0
    assert names["private_result"].ledger["epsilon"] <= 8 and names["private_result"].ledger["rounds"] < 100
    assert set(names["last"]) >= {"test/loss", "test/global_loss"}


def anchors(page):
    """Returns what a link may name of a page, made of its headings as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    links = re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
    assert links or name == "CONTRIBUTING.md"
    for path, anchor in links:
        target = page.parent / path if path else page
        assert target.is_file(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"
