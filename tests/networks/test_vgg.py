"""VGG-16's weights."""

import numpy as np
import pytest
import torch

from glann.errors import GlannError
from glann.networks.vgg import vgg16


def test_vgg_weights_load_from_safetensors_and_from_torchvisions_pth(random_vgg: str, tmp_path):
    features = vgg16(random_vgg, 5)
    whole = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(whole, tmp_path / "vgg.pth")
    again = vgg16(str(tmp_path / "vgg.pth"), 5)
    assert all(torch.equal(a, b) for a, b in zip(features.parameters(), again.parameters(), strict=True))
    assert not any(p.requires_grad for p in again.parameters())


def test_wrong_vgg_weights_are_one_line(tmp_path, random_vgg: str):
    from glann.runtime.tensors import save_tensors

    with pytest.raises(GlannError, match=r"none\.pth: no such file; set the weights key"):
        vgg16(str(tmp_path / "none.pth"), 3)
    save_tensors(tmp_path / "other.safetensors", {"x": torch.ones(2)})
    with pytest.raises(GlannError, match=r"other\.safetensors: not VGG-16's features \(0\.weight"):
        vgg16(str(tmp_path / "other.safetensors"), 3)
    torch.save({"x": np.float64}, tmp_path / "code.pth")  # a pickle that is more than data
    with pytest.raises(GlannError, match=r"code\.pth: not a weights file; name torchvision's vgg16"):
        vgg16(str(tmp_path / "code.pth"), 3)
    for content in (b"hello", b"\x80\x02.", "\u1234".encode() * 100, b"N" * 30):
        (tmp_path / "other.pth").write_bytes(content)
        with pytest.raises(GlannError, match=r"other\.pth: not a weights file"):
            vgg16(str(tmp_path / "other.pth"), 3)
    for value in ({1: 2}, {"features.0.weight": 3}, {"state_dict": {}}):
        torch.save(value, tmp_path / "other.pth")
        with pytest.raises(GlannError, match=r"other\.pth: not VGG-16's features"):
            vgg16(str(tmp_path / "other.pth"), 3)
    with pytest.raises(GlannError, match=": a folder; set the weights key"):
        vgg16(str(tmp_path), 3)


def test_downloaded_weights_that_are_damaged_are_to_be_deleted(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut short")
    with pytest.raises(GlannError, match=r"vgg16-397923af\.pth: damaged; delete it"):
        vgg16(None, 3)
