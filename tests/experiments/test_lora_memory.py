"""The benchmark of adapters' memory at smoke size."""

import lora_memory
import pytest

pytestmark = pytest.mark.slow  # four processes that compile


def test_adapters_share_the_base_and_full_fine_tuning_does_not(tmp_path, capsys):
    rows = lora_memory.main(lora_memory.Settings(smoke=True, out=tmp_path / "figures.json"))
    assert (tmp_path / "figures.json").exists() and "| lora | 4 |" in capsys.readouterr().out
    assert [(row["method"], row["lanes"]) for row in rows] == [("lora", 1), ("lora", 4), ("full", 1), ("full", 4)]
    assert all(row["peak"] >= row["before"] > 50e6 for row in rows)
    lora, full = ([row for row in rows if row["method"] == method] for method in ("lora", "full"))
    assert full[0]["shared"] == 0 and lora[0]["shared"] > 30_522 * 16 * 4
    grown = [pair[1]["temporaries"] - pair[0]["temporaries"] for pair in (lora, full)]
    assert grown[0] < lora[0]["shared"] / 4 and grown[1] > 3 * full[0]["trained"]
