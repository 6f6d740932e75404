"""The reference for speed: GLO and IMLE as a competent reader of the papers would write them in PyTorch.

float32, contiguous NCHW, a frozen VGG run once for the images and once for the targets, dense Adam over the
whole latent table, candidates in numpy, faiss.IndexFlatL2. Networks, batches and first latents are glann's,
so that the same steps are compared. As a script it prints seconds per epoch and the last epoch's loss.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn  # before glann, whose settings for threads are then not taken over

from benchmarks.data import digits, latent_cloud
from glann.glo.latents import initial_latents
from glann.glo.settings import Glo as GloConfig
from glann.imle.calibration import fit_range
from glann.imle.settings import Imle as ImleConfig
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import Decoder
from glann.networks.layers import initialize
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.networks.vgg import vgg16
from glann.runtime.randomness import stream
from glann.training.shards import Shard

VGG_TAPS = (3, 8, 13, 22, 29)
VGG_MEAN, VGG_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Glo:
    """Latents and decoder optimised together (arXiv:1707.05776), paper's settings.

    Parameters
    ----------
    images
        uint8 [n, h, h, c].
    latents
        float32 [n, d], unit rows, to start from.
    decoder
        float32 [b, d] to float32 [b, c, h, h] in [0, 1].
    vgg
        Layers of VGG-16 up to the last level compared; None: L1 of the pixels alone.
    """

    def __init__(
        self, images: NDArray[np.uint8], latents: Tensor, decoder: nn.Module, vgg: nn.Sequential | None
    ):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
        self.latents = nn.Parameter(latents.clone())
        self.decoder, self.vgg = decoder, vgg
        parameters = [
            {"params": [self.latents], "lr": 0.01},
            {"params": [*decoder.parameters()], "lr": 0.001},
        ]
        self.optimizer = torch.optim.Adam(parameters, betas=(0.5, 0.999))

    def step(self, rows: Tensor) -> float:
        """Step on one batch of images, int64 [b], and return its loss."""
        targets = self.images[rows]
        decoded = self.decoder(self.latents[rows])
        loss = (decoded - targets).abs().mean()
        if self.vgg is not None:
            for found, wanted in zip(self.features(decoded), self.features(targets), strict=True):
                loss = loss + (found - wanted.detach()).abs().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.latents.copy_(F.normalize(self.latents, dim=1))
        return loss.item()

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the activations at the ends of VGG's levels."""
        assert self.vgg is not None
        x = (images.expand(-1, 3, -1, -1) - torch.tensor(VGG_MEAN)[:, None, None]) / torch.tensor(VGG_STD)[
            :, None, None
        ]
        taps = []
        for i, layer in enumerate(self.vgg):
            x = layer(x)
            if i in VGG_TAPS:
                taps.append(x)
        return taps


class Imle:
    """Noise mapped onto latents by nearest-neighbour matching (arXiv:1809.09087), paper's settings.

    Parameters
    ----------
    latents
        float32 [n, d], unit rows.
    mapping
        float32 [b, e] to float32 [b, d], unit rows.
    noise_dim
        e.
    """

    def __init__(self, latents: Tensor, mapping: nn.Module, noise_dim: int):
        self.latents, self.mapping, self.noise_dim = latents, mapping, noise_dim
        self.optimizer = torch.optim.Adam(mapping.parameters(), lr=0.001, betas=(0.5, 0.999))
        self.random = np.random.default_rng(0)

    def match(self) -> NDArray[np.float32]:
        """Return for every latent the noise whose candidate is nearest, float32 [n, e]."""
        noise = self.random.standard_normal((2 * len(self.latents), self.noise_dim), np.float32)
        self.mapping.eval()
        with torch.no_grad():
            blocks = np.split(noise, range(1024, len(noise), 1024))
            candidates = np.concatenate([self.mapping(torch.from_numpy(block)).numpy() for block in blocks])
        index = faiss.IndexFlatL2(candidates.shape[1])
        index.add(candidates)
        _, nearest = index.search(self.latents.numpy(), 1)
        return noise[nearest[:, 0]]

    def regress(self, noise: NDArray[np.float32], batches: Iterable[Tensor]) -> float:
        """Regress the mapped noise on the latents for one epoch, and return the mean loss of its batches."""
        self.mapping.train()
        losses = []
        for rows in batches:
            loss = (
                (self.mapping(torch.from_numpy(noise)[rows]) - self.latents[rows]).square().sum(dim=1).mean()
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))


def time_glo(epochs: int, vgg: str | None) -> tuple[float, float]:
    """Train on the digits; return the median seconds of an epoch and the last epoch's mean loss."""
    images = digits()
    config = GloConfig(decoder=Decoder(kind="infogan", width=64), batch_size=128)
    architecture = DecoderArchitecture(config=config.decoder, latent_dim=64, size=28, channels=1)
    decoder = DecoderNetwork(architecture)
    initialize(decoder, stream(0, "glo", "decoder"))
    latents = initial_latents(images, config, 0, 0, len(images))
    model = Glo(images, latents, decoder, vgg16(vgg, 4) if vgg else None)
    shard = Shard(len(images), config.batch_size)

    def epoch(number: int) -> float:
        losses = [model.step(rows) * len(rows) for rows, _ in shard.batches(0, "glo", number, "order")]
        return sum(losses) / len(images)

    return time_epochs(epoch, epochs)


def time_imle(epochs: int, n: int) -> tuple[float, float]:
    """Fit latents; return the median seconds of an epoch and the last epoch's mean loss."""
    config, latents = ImleConfig(), latent_cloud(n)
    architecture = MappingArchitecture(config=config.mapping, noise_dim=config.noise_dim, latent_dim=64)
    mapping = MappingNetwork(architecture)
    initialize(mapping, stream(0, "imle", "mapping"))
    fit_range(mapping, latents)
    model, shard = Imle(latents, mapping, config.noise_dim), Shard(n, config.batch_size)

    def epoch(number: int) -> float:
        return model.regress(model.match(), (rows for rows, _ in shard.batches(0, "imle", number, "order")))

    return time_epochs(epoch, epochs)


def time_epochs(epoch: Callable[[int], float], epochs: int) -> tuple[float, float]:
    """Run epochs; return the median seconds of all but the first, and what the last returned."""
    ends, loss = [], 0.0
    for number in range(epochs):
        loss = epoch(number)
        ends.append(time.perf_counter())
    return float(np.median(np.diff(ends))), loss


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["glo", "imle"])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vgg", help="VGG-16 weights: perceptual loss instead of L1")
    parser.add_argument("--n", type=int, default=10_000, help="latents of imle")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    seconds, loss = (
        time_glo(given.epochs, given.vgg) if given.stage == "glo" else time_imle(given.epochs, given.n)
    )
    print(json.dumps({"seconds": seconds, "loss": loss}))


if __name__ == "__main__":
    main()
