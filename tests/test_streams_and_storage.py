from pathlib import Path

import numpy as np
import pytest
import torch

from glann.errors import GlannError
from glann.storage import load_json, load_npy, load_tensors, replacing, save_json, save_npy, save_tensors
from glann.streams import noise_rows, stream, stream_seed


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
