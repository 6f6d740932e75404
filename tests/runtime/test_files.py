from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from glann.errors import DamagedFileError, GlannError
from glann.runtime.files import all_or_none, check_writable, load_json, replacing, save_json
from glann.runtime.npy import load_npy, save_npy
from glann.runtime.tensors import load_tensors, save_tensors


def test_files_come_back_as_written(tmp_path: Path):
    array, tensor = np.arange(6.0).reshape(2, 3), torch.randn(3, 2).to(torch.bfloat16)
    save_npy(tmp_path / "new" / "a.npy", array)
    save_json(tmp_path / "a.json", {"é": [1, None]})
    save_tensors(tmp_path / "a.safetensors", {"x": tensor.t()}, {"kind": "mlp"})
    assert np.array_equal(load_npy(tmp_path / "new" / "a.npy", mmap=True), array)
    assert load_json(tmp_path / "a.json") == {"é": [1, None]}
    tensors, config = load_tensors(tmp_path / "a.safetensors")
    assert torch.equal(tensors["x"], tensor.t()) and config == {"kind": "mlp"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    save_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError), replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise ValueError
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and load_json(tmp_path / "a.json") == 1


def test_no_pickle_is_read_or_written(tmp_path: Path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(GlannError, match=r"a\.npy: not an \.npy array of numbers"):
        load_npy(path)
    with pytest.raises(ValueError, match="allow_pickle"):
        save_npy(path, np.array([{}], dtype=object))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"hello", b"\x93NUMPY\x01\x00\x10\x00{'descr': 'O'}"])
def test_damaged_files_are_named_in_one_line(content: bytes, tmp_path: Path):
    for name, load in (("a.npy", load_npy), ("a.safetensors", load_tensors), ("a.json", load_json)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GlannError) as error:
            load(tmp_path / name)
        assert name in str(error.value)


@pytest.mark.parametrize("load", [load_npy, load_tensors, load_json])
def test_a_file_that_a_stage_should_have_made_is_made_by_dvc_repro(
    load: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("data/glo/folder").mkdir(parents=True)
    Path("data/glo/damaged").write_text("hello")
    Path("damaged").write_text("hello")
    for path in ("data/glo/missing", "data/glo/folder"):
        with pytest.raises(GlannError, match=f"^{path}: .*; run: dvc repro$"):
            load(path)
    with pytest.raises(DamagedFileError):  # what heals it is for the stage to say, which knows DVC's cache
        load("data/glo/damaged")
    for path in ("missing", "data/raw/missing", "damaged", "data"):  # what users brought they bring again
        with pytest.raises(GlannError) as error:
            load(path)
        assert "dvc repro" not in str(error.value)


def test_errors_of_writing_name_the_file_and_not_its_temporary_name(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (Path("/proc/x"), tmp_path / "file" / "x"):
        for save, value in (
            (save_json, 1),
            (save_npy, np.ones(2)),
            (save_tensors, {"x": torch.ones(2)}),
        ):
            with pytest.raises(GlannError) as error:
                save(path.with_suffix(".safetensors"), value)
            message = str(error.value)
            assert message.startswith(f"{path}.safetensors: could not be written (")
            assert "/." not in message and "\n" not in message
        with pytest.raises(GlannError, match=rf"^{path}: could not be written"):
            check_writable(path)
    with pytest.raises(GlannError, match="a folder; name a file"):
        check_writable(tmp_path)
    check_writable(tmp_path / "new" / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_errors_inside_a_folder_that_appears_as_a_whole_name_where_it_will_be(tmp_path: Path):
    with pytest.raises(GlannError) as error, all_or_none(tmp_path / "glo") as inside:
        (inside / "none" / "a.txt").open("w")
    assert str(error.value) == f"{tmp_path}/glo/none/a.txt: could not be written (No such file or directory)"
    with pytest.raises(FileNotFoundError) as other, all_or_none(tmp_path / "glo"):
        (tmp_path / "elsewhere").read_text()
    assert other.value.filename == str(tmp_path / "elsewhere")
    assert not list((tmp_path / "glo").iterdir())


def test_files_have_the_mode_that_the_user_asks_for_and_names_of_any_length(tmp_path: Path):
    path = tmp_path / ("\U0001f600" * 57 + ".safetensors")  # 240 bytes
    save_tensors(path, {"x": torch.ones(1)})
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
