"""The mirrors of the decoders."""

from pathlib import Path

import pytest
import torch
from torch import nn

from glann.errors import GlannError
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import SIZES_MADE, Decoder
from glann.networks.layers import initialize
from glann.peers.judges import MIRRORS, JudgeArchitecture, JudgeNetwork
from glann.runtime.randomness import stream

ALL = [(kind, size) for kind in SIZES_MADE for size in SIZES_MADE[kind] if size <= 256]


def judge_of(
    kind: str, size: int, channels: int = 3, width: int = 4, outputs: int = 1, reads: int = 0
) -> JudgeNetwork:
    config = Decoder(kind=kind, width=width)
    judge = JudgeNetwork(
        JudgeArchitecture(config=config, resolution=size, channels=channels, outputs=outputs, reads=reads)
    )
    initialize(judge, stream(0, "judge"))
    return judge


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_every_decoder_has_a_mirror():
    assert MIRRORS.keys() == SIZES_MADE.keys()


@pytest.mark.parametrize(("kind", "size"), ALL)
@pytest.mark.parametrize(("channels", "outputs", "reads"), [(3, 1, 0), (1, 16, 0), (3, 1, 8)])
def test_a_judge_turns_images_of_every_size_into_numbers(
    kind: str, size: int, channels: int, outputs: int, reads: int
):
    judge = judge_of(kind, size, channels, outputs=outputs, reads=reads)
    images = torch.rand(3, channels, size, size)
    read = torch.randn(3, reads) if reads else None
    found = judge(images, read)
    assert found.shape == (3, outputs) and found.dtype == torch.float32
    # Neither vanishing nor exploding: a gradient penalty and a softplus need scores of about one.
    assert 1e-3 < found.std() < 30 and found.abs().max() < 100
    if read is not None:
        assert not torch.allclose(judge(images, read.flip(0)), found, rtol=1e-3)


@pytest.mark.parametrize("size", [512, 1024])
@pytest.mark.parametrize("kind", ["dcgan", "residual", "smooth"])
def test_a_judge_of_large_images_has_the_shapes(kind: str, size: int):
    with torch.device("meta"):
        judge = JudgeNetwork(
            JudgeArchitecture(config=Decoder(kind=kind, width=8), resolution=size, channels=3, outputs=2)
        )
        assert judge(torch.rand(2, 3, size, size)).shape == (2, 2)


@pytest.mark.parametrize("width", [8, 32, 64])
@pytest.mark.parametrize(
    ("kind", "size"), [(kind, size) for kind in SIZES_MADE for size in SIZES_MADE[kind]], ids=str
)
def test_a_judge_has_about_as_many_parameters_as_its_decoder(kind: str, size: int, width: int):
    """A comparison of rivals is fair if none has a much larger network."""
    config = Decoder(kind=kind, width=width)
    with torch.device("meta"):
        decoder = DecoderNetwork(DecoderArchitecture(config=config, latent_dim=64, size=size, channels=3))
        judge = JudgeNetwork(JudgeArchitecture(config=config, resolution=size, channels=3, outputs=1))
    maps = sum(p.numel() for name, p in decoder.named_parameters() if name.endswith(".map"))
    assert 1 / 3 < parameters(judge) / (parameters(decoder) - maps) < 3  # a mirror learns no map of details


@pytest.mark.parametrize(("kind", "size"), ALL)
def test_the_score_of_an_image_does_not_depend_on_others_of_its_batch(kind: str, size: int):
    judge = judge_of(kind, size).train()
    images = torch.rand(4, 3, size, size)
    found = judge(images)
    assert torch.allclose(judge(torch.cat([images[:1], 1 - images[1:]]))[0], found[0], rtol=1e-4, atol=1e-5)
    images.requires_grad_()
    (slope,) = torch.autograd.grad(judge(images)[0].sum(), images)
    assert slope[0].abs().max() > 0 and not slope[1:].any()


@pytest.mark.parametrize(("kind", "size"), [("infogan", 28), ("dcgan", 64), ("residual", 16), ("smooth", 28)])
def test_every_pixel_counts(kind: str, size: int):
    judge = judge_of(kind, size)
    images = torch.rand(2, 3, size, size, requires_grad=True)
    (slope,) = torch.autograd.grad(judge(images).sum(), images)
    assert (slope.abs().amax(dim=(0, 1)) > 0).all()


@pytest.mark.parametrize(("kind", "size"), [("infogan", 28), ("dcgan", 64), ("residual", 16), ("smooth", 28)])
@pytest.mark.parametrize("reads", [0, 8])
def test_a_judge_comes_back_from_its_file(kind: str, size: int, reads: int, tmp_path: Path):
    judge = judge_of(kind, size, outputs=3, reads=reads)
    judge.save(tmp_path / "judge.safetensors")
    again = JudgeNetwork.load(tmp_path / "judge.safetensors")
    images, read = torch.rand(2, 3, size, size), torch.randn(2, reads) if reads else None
    assert again.architecture == judge.architecture and not again.training
    assert torch.equal(again(images, read), judge(images, read))
    with pytest.raises(GlannError, match="holds another kind of network"):
        DecoderNetwork.load(tmp_path / "judge.safetensors")
