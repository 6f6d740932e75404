import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glann.errors import GlannError
from glann.glo.losses import l1, laplacian, reconstruction_loss
from glann.glo.settings import Loss
from glann.imle.calibration import fit_range
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import SIZES_MADE, Decoder
from glann.networks.layers import initialize
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.networks.mappings.settings import Mapping
from glann.networks.vgg import LEVEL_ENDS, normalize_for_vgg, vgg16
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream


def decoder_of(kind: str, size: int, channels: int = 3, width: int = 4) -> DecoderNetwork:
    architecture = DecoderArchitecture(
        config=Decoder(kind=kind, width=width), latent_dim=8, size=size, channels=channels
    )
    decoder = DecoderNetwork(architecture)
    initialize(decoder, stream(0, "test"))
    return decoder


@pytest.mark.parametrize(("kind", "size"), [(kind, size) for kind in SIZES_MADE for size in SIZES_MADE[kind]])
def test_every_decoder_makes_every_size_the_schema_allows(kind: str, size: int):
    latents = F.normalize(torch.randn(2, 8), dim=1)
    images = decoder_of(kind, size)(latents)
    assert images.shape == (2, 3, size, size)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.001


@pytest.mark.parametrize("kind", ["infogan", "dcgan", "residual"])
def test_an_untrained_decoder_neither_explodes_nor_ignores_its_latent(kind: str):
    size = SIZES_MADE[kind][-1] if kind == "infogan" else 64
    images = decoder_of(kind, size, width=32)(F.normalize(torch.randn(64, 8), dim=1))
    saturated = ((images < 0.001) | (images > 0.999)).float().mean()
    assert saturated == 0 and images.std(dim=0).mean() > 0.005


def test_grey_decoders_have_one_channel():
    assert decoder_of("infogan", 28, channels=1)(torch.randn(2, 8)).shape == (2, 1, 28, 28)


def pixels(images: torch.Tensor) -> np.ndarray:
    """Float [b, c, h, w] in [0, 1] as the images that lie on disk, uint8 [b, h, w, c]."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()


def test_losses_are_zero_for_equal_images_and_positive_otherwise(random_vgg: str, run: Execution):
    images, others = torch.rand(2, 2, 3, 32, 32).mul(255).round() / 255
    for config in (Loss(kind="l1"), Loss(kind="laplacian"), Loss(kind="perceptual", weights=random_vgg)):
        loss = reconstruction_loss(config, run, pixels(images))
        assert loss(images, images, torch.arange(2), stream(0, "x")).item() == pytest.approx(0, abs=1e-5)
        assert loss(images, others, torch.arange(2), stream(0, "x")) > 0.01


def test_the_laplacian_loss_is_the_distance_of_the_pyramids():
    def pyramid(image: torch.Tensor) -> list[torch.Tensor]:
        from glann.glo.losses import _blur

        levels = []
        while min(image.shape[-2:]) >= 8:
            low = _blur(image)[..., ::2, ::2]
            levels.append(image - F.interpolate(low, size=image.shape[-2:], mode="bilinear"))
            image = low
        return [*levels, image]

    a, b = torch.rand(2, 4, 3, 32, 32)
    expected = sum((x - y).abs().mean() for x, y in zip(pyramid(a), pyramid(b), strict=True))
    assert laplacian(a, b).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_laplacian_loss_charges_blur_more_than_l1_does():
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    noise = torch.randint(0, 2, (1, 1, 32, 32), generator=stream(0, "x")) * 0.1 - 0.05
    shift = 0.05  # both differ from the ramp by 0.05 at every pixel
    assert l1(ramp, ramp + noise).item() == pytest.approx(l1(ramp, ramp + shift).item(), rel=1e-4)
    assert laplacian(ramp, ramp + noise) > 1.2 * laplacian(ramp, ramp + shift)


def test_the_perceptual_loss_is_the_papers_sum(random_vgg: str, run: Execution):
    images, targets = torch.rand(2, 2, 1, 32, 32).mul(255).round() / 255
    network = vgg16(random_vgg, 3)
    expected = (images - targets).abs().mean()
    a, b = normalize_for_vgg(images), normalize_for_vgg(targets)
    for i, layer in enumerate(network):
        a, b = layer(a), layer(b)
        if i in LEVEL_ENDS:
            expected = expected + (a - b).abs().mean()
    for gib in (0, 1):  # features of the targets computed at each step, and once
        config = Loss(kind="perceptual", levels=3, weights=random_vgg, cache_gib=gib)
        loss = reconstruction_loss(config, run, pixels(targets.flip(0)))
        found = loss(images, targets, torch.tensor([1, 0]), stream(0, "x"))
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_cropped_perceptual_loss_sees_every_part_in_time(random_vgg: str, run: Execution):
    config = Loss(kind="perceptual", weights=random_vgg, levels=1, crop=16, pixel_weight=0.0)
    images = torch.rand(1, 1, 32, 32).requires_grad_()
    loss = reconstruction_loss(config, run, pixels(images.detach()))
    draws = stream(0, "x")
    for _ in range(40):
        loss(images, torch.rand(1, 1, 32, 32), torch.arange(1), draws).backward()
    assert images.grad is not None and (images.grad != 0).all()


def test_large_images_are_compared_at_two_scales(random_vgg: str, run: Execution):
    config = Loss(kind="perceptual", weights=random_vgg, levels=1, pixel_weight=0.0)
    a, b = torch.rand(2, 1, 3, 128, 128)
    loss = reconstruction_loss(config, run, pixels(b))
    first_level = vgg16(random_vgg, 1)
    expected = sum(
        (first_level(normalize_for_vgg(x)) - first_level(normalize_for_vgg(y))).abs().mean()
        for x, y in ((a, b), (F.avg_pool2d(a, 4), F.avg_pool2d(b, 4)))
    )
    found = loss(a, b, torch.arange(1), stream(0, "x"))
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


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


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_mappings_reach_the_sphere_or_the_cloud_the_latents_lie_on(kind: str):
    architecture = MappingArchitecture(
        config=Mapping(kind=kind, width=16, depth=2), noise_dim=4, latent_dim=6
    )
    mapping = MappingNetwork(architecture)
    initialize(mapping, stream(0, "test"))
    sphere = 3 * F.normalize(torch.randn(500, 6), dim=1)
    fit_range(mapping, sphere)
    assert torch.allclose(mapping(torch.randn(20, 4)).norm(dim=1), torch.tensor(3.0), atol=1e-4)
    cloud = 100 + 7 * torch.randn(5000, 6)
    fit_range(mapping, cloud)
    unit = mapping.to_unit(cloud)
    assert unit.mean().abs() < 0.01 and (unit.std() - 1).abs() < 0.01
    noise = torch.randn(20, 4)
    mapping.eval()
    assert torch.allclose(mapping.to_unit(mapping(noise)), mapping.unit(noise), atol=1e-3)


def test_networks_come_back_from_their_files(tmp_path):
    decoder = decoder_of("dcgan", 64).eval()
    decoder.save(tmp_path / "decoder.safetensors")
    again = DecoderNetwork.load(tmp_path / "decoder.safetensors")
    latents = torch.randn(2, 8)
    assert again.architecture == decoder.architecture and torch.equal(again(latents), decoder(latents))
    with pytest.raises(GlannError, match="holds another kind of network"):
        MappingNetwork.load(tmp_path / "decoder.safetensors")
