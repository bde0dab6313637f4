"""A folder a client."""

import numpy as np
import pytest

from fedjax_tx.data import from_folders


def test_npz_and_csv_files_in_the_order_of_their_numbers(tmp_path):
    for client, takes in {"user_10": [1], "user_2": [10, 9]}.items():
        (tmp_path / client).mkdir()
        for take in takes:
            np.savez(tmp_path / client / f"take_{take}.npz", x=np.full((2, 3), take), y=[take, take])
    (tmp_path / "README.txt").write_text("left alone")
    (tmp_path / ".hidden").mkdir()
    data = from_folders(tmp_path)
    assert data.client_ids.tolist() == ["user_2", "user_10"]
    assert data.columns["y"].tolist() == [9, 9, 10, 10, 1, 1] and data.columns["x"].shape == (6, 3)
    (tmp_path / "user_2" / "rows.csv").write_text("x,y\n0.5,1\n1.5,2\n")
    (tmp_path / "user_10" / "rows.csv").write_text("x,y\n2.5,3\n")
    table = from_folders(tmp_path, pattern="*.csv", directory=tmp_path.parent / f"{tmp_path.name}_data", progress=False)
    assert table.columns["x"].tolist() == [0.5, 1.5, 2.5] and table.client_sizes.tolist() == [2, 1]


def test_read_file_and_a_pattern_into_folders(tmp_path):
    for name in ("ann/yes/1.txt", "ann/no/1.txt", "bob/yes/1.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name[:3])

    def read_file(path):
        return {"text": [path.read_text()], "yes": [path.parent.name == "yes"]}

    def encode(columns):
        return {"yes": columns["yes"], "length": [len(text) for text in columns["text"]]}

    data = from_folders(tmp_path, read_file, pattern="*/*.txt", encode=encode)
    assert data.columns["yes"].tolist() == [False, True, True] and data.client_sizes.tolist() == [2, 1]
    with pytest.raises(TypeError, match="column 'text' of client 'ann' in '.*ann' to be of numbers .*, got 'ann'"):
        from_folders(tmp_path, read_file, pattern="*/*.txt")


def test_what_is_refused_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder to hold a folder for each client, got"):
        from_folders(tmp_path)
    (tmp_path / "ann").mkdir()
    with pytest.raises(FileNotFoundError, match="expected files '.' in the client's folder '.*ann', got none"):
        from_folders(tmp_path)
    np.savez(tmp_path / "ann" / "1.npz", x=np.zeros((1, 3)))
    np.savez(tmp_path / "ann" / "2.npz", x=np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"columns of '.*2.npz' to have the shapes {'x': \(3,\)} of '1.npz', got {'x': \(4,\)}"):
        from_folders(tmp_path)
    (tmp_path / "ann" / "2.npz").write_text("no")
    with pytest.raises(ValueError, match="2.npz' to be an .npz file of arrays, got"):
        from_folders(tmp_path)
    (tmp_path / "ann" / "0.dat").write_text("no")
    with pytest.raises(ValueError, match="to end in .npz or .csv, got '.*0.dat'"):
        from_folders(tmp_path)
    with pytest.raises(TypeError, match="what read_file gives for '.*0.dat' to be a dict"):
        from_folders(tmp_path, read_file=lambda path: path.read_bytes())
