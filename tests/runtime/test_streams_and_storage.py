import errno
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from glann.errors import DamagedFileError, GlannError
from glann.runtime.files import STAGES, all_or_none, check_writable, load_json, replacing, save_json
from glann.runtime.npy import load_npy, save_npy
from glann.runtime.randomness import noise_rows, stream, stream_seed
from glann.runtime.reporting import in_one_line
from glann.runtime.tensors import load_tensors, save_tensors


def test_a_stream_depends_on_its_name_alone():
    first = torch.randn(5, generator=stream(0, "glo", 3, "order"))
    torch.randn(100, generator=stream(0, "glo", 2, "order"))
    assert torch.equal(first, torch.randn(5, generator=stream(0, "glo", 3, "order")))
    names = [(0, "glo", 3), (1, "glo", 3), (0, "glo", 4), (0, "imle", 3), (0, "glo3")]
    assert len({stream_seed(*name) for name in names}) == len(names)


def test_no_stream_touches_the_global_generators():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    noise_rows(0, 100, 8, 0, "sample")
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 64), (63, 65), (64, 64), (100, 199)])
def test_a_slice_of_the_noise_table_is_the_same_whatever_else_is_drawn(start: int, stop: int):
    table = noise_rows(0, 200, 3, 7, "sample")
    assert torch.equal(noise_rows(start, stop, 3, 7, "sample"), table[start:stop])


def test_noise_is_standard_normal():
    noise = noise_rows(0, 20_000, 4, 0, "test")
    # The mean of 20000 draws has a standard deviation of 0.007, their spread one of 0.005.
    assert noise.mean(dim=0).abs().max() < 0.03 and (noise.std(dim=0) - 1).abs().max() < 0.03


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


def test_where_memory_runs_out_the_advice_is_the_stages_own():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("Error in faiss: cudaMalloc error out of memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ):
        for stage in STAGES:
            line = in_one_line(error, import_module(f"glann.{stage}.settings").LESS_MEMORY)
            assert line.startswith("memory ran out; ") and f"{stage}." in line
            assert not any(f"{other}." in line for other in STAGES if other not in (stage, "prepare"))
        assert in_one_line(error).startswith("memory ran out; draw fewer images")
    assert in_one_line(RuntimeError("shapes differ")) is None


def test_files_have_the_mode_that_the_user_asks_for_and_names_of_any_length(tmp_path: Path):
    path = tmp_path / ("\U0001f600" * 57 + ".safetensors")  # 240 bytes
    save_tensors(path, {"x": torch.ones(1)})
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_message_is_one_line_of_bounded_length_that_leaves_the_terminal_alone():
    line = in_one_line(GlannError(f"a\nb\x1b[31m\x00 {'x' * 10_000} what to do"))
    assert line.startswith("a b\\x1b[31m\\x00 xxx") and line.endswith("x what to do")
    assert len(line) < 1100 and line.isprintable()
