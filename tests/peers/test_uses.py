"""Reconstructing, scoring and refining, with networks whose answers are known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glann.networks.decoders.network import DecoderArchitecture
from glann.networks.decoders.settings import Decoder
from glann.peers.settings import Refine
from glann.peers.train import identity
from glann.peers.uses import pixel_error, reconstruct, refine, strangeness
from glann.runtime.compute import Execution
from glann.runtime.randomness import noise_rows
from glann.sample.generator import Generator


class Colours(nn.Module):
    """A decoder of latents [b, 3] on the sphere to images of one colour."""

    architecture = DecoderArchitecture(config=Decoder(), latent_dim=3, size=16, channels=3)

    def forward(self, latents: Tensor) -> Tensor:
        return (1 + latents[:, :, None, None].expand(-1, -1, 16, 16)) / 2


class Reads(nn.Module):
    """A judge that computes what it says from the latent of a colour, [b, 3]."""

    def __init__(self, says):
        super().__init__()
        self.says = says

    def forward(self, images: Tensor) -> Tensor:
        return self.says(2 * images.mean((2, 3)) - 1)


@pytest.fixture
def colours(cpu: Execution) -> Generator:
    return Generator(identity(3), Colours(), cpu)


def pictures(generator: Generator, rows: Tensor) -> np.ndarray:
    return generator.decode(rows, title=None)


def test_a_vae_decodes_the_mean_of_what_it_encodes(colours: Generator):
    images = pictures(colours, noise_rows(0, 70, 3, 0, "test"))
    judge = Reads(lambda code: torch.cat([code, torch.full_like(code, 9.0)], dim=1))
    assert pixel_error(images, reconstruct("vae", images, judge, colours)).max() <= 1  # rounding


def test_an_o_gan_decodes_what_is_left_without_the_score(colours: Generator):
    codes = noise_rows(0, 70, 3, 0, "test")
    images = pictures(colours, codes - codes.mean(1, keepdim=True))
    judge = Reads(lambda code: 4 * code + 7)
    assert pixel_error(images, reconstruct("ogan", images, judge, colours)).max() <= 1


@pytest.mark.parametrize(
    ("name", "foreign_is_bright"), [("gan", False), ("wgan_gp", False), ("energy", True), ("ogan", True)]
)
def test_high_scores_are_real_for_gans_and_foreign_for_energies(
    colours: Generator, name: str, foreign_is_bright: bool
):
    greys = np.arange(0, 250, 10, np.uint8)[:, None, None, None] + np.zeros((1, 16, 16, 3), np.uint8)
    outputs = 3 if name == "ogan" else 1
    brightness = Reads(lambda code: code.mean(1, keepdim=True).expand(-1, outputs))
    rising = np.diff(strangeness(name, greys, brightness, colours))
    assert (rising > 0).all() if foreign_is_bright else (rising < 0).all()


def test_a_vae_finds_foreign_what_it_cannot_reconstruct(colours: Generator):
    own = pictures(colours, noise_rows(0, 5, 3, 0, "test"))
    noisy = own.copy()
    noisy[:, ::2] = 255 - noisy[:, ::2]
    judge = Reads(lambda code: torch.cat([code, code], dim=1))
    found = [strangeness("vae", images, judge, colours) for images in (own, noisy)]
    assert found[0].max() <= 1 < found[1].min()


def test_the_score_of_an_image_does_not_depend_on_others(colours: Generator):
    images = pictures(colours, noise_rows(0, 70, 3, 0, "test"))
    judge = Reads(lambda code: (code @ torch.tensor([[0.3], [0.7], [-0.2]])).exp())
    scores = strangeness("gan", images, judge, colours)
    assert scores.shape == (70,) and scores.dtype == np.float32
    assert np.array_equal(strangeness("gan", images[66:], judge, colours), scores[66:])


def test_refined_noise_has_the_density_of_its_energy(colours: Generator):
    k = 3.0
    # w U = k u, u the first coordinate of the unit vector: u then has the density exp(-k u) on [-1, 1], and
    # the length of the noise keeps that of a standard normal.
    judge = Reads(lambda code: 4 * k * code[:, :1])
    config = Refine(steps=150, rate=0.3, weight=0.25)
    noise, accepted = refine(noise_rows(0, 640, 3, 0, "test"), judge, colours, config, 0)
    u = F.normalize(noise, dim=1)[:, 0]
    assert 0.5 < accepted < 0.99  # a step as large as this must be corrected
    # Of 640 draws the means are known to 0.011 and 0.1.
    assert abs(u.mean().item() + 1 / math.tanh(k) - 1 / k) < 0.035
    assert abs(noise.square().sum(1).mean().item() - 3) < 0.3


def test_refinement_of_a_row_does_not_depend_on_others(colours: Generator):
    judge = Reads(lambda code: code[:, :1].exp())
    noise, config = noise_rows(0, 100, 3, 0, "test"), Refine(steps=4, rate=0.1)
    whole, _ = refine(noise, judge, colours, config, 0)
    part, _ = refine(noise[:70], judge, colours, config, 0)
    assert torch.equal(part, whole[:70]) and not torch.equal(part, noise[:70])
    assert not torch.equal(refine(noise, judge, colours, config, 1)[0], whole)
