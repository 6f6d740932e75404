"""The latents of GLO: where they start, how they are optimised, and the noise that is added to them."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor

from glann.glo.settings import Glo
from glann.images.tensors import thumbnails
from glann.runtime.processes import rows_at_first, total
from glann.runtime.randomness import noise_rows, stream, stream_seed
from glann.training.batches import Inputs
from glann.training.settings import BETAS
from glann.training.shards import Shard

PCA_IMAGES = 10_000  # images that principal components are fitted to, at most
PCA_SIZE = 32  # px; images are reduced to this size first


class LatentTable:
    """One unit-norm latent per image, each with its own Adam moments and step count.

    A step reads and writes only the rows of its batch, so its cost does not grow with the table. Adam
    (arXiv:1412.6980, algorithm 1) corrects its moments by the step count. The count is kept per row, since a
    row is visited only once per epoch.

    Parameters
    ----------
    latents
        This rank's rows, float32 [n, d] of unit length.
    shard
        Which rows these are.

    Attributes
    ----------
    latents, moment, square
        float32 [n, d].
    steps
        float32 [n].
    """

    def __init__(self, latents: Tensor, shard: Shard):
        self.shard = shard
        self.latents = latents
        self.moment = torch.zeros_like(latents)
        self.square = torch.zeros_like(latents)
        self.steps = latents.new_zeros(len(latents))

    def rows(self, rows: Tensor) -> Tensor:
        """Return the latents of a batch, float32 [b, d], as a leaf tensor that requires a gradient."""
        return self.latents[rows].requires_grad_()

    def step(self, rows: Tensor, latents: Tensor, lr: float | Tensor, scale: float | Tensor) -> None:
        """Step the batch's latents by their gradient times `scale`, and project them to the unit sphere.

        The loss is a mean over the batch. With the batch size as `scale`, each latent gets the gradient of
        its own image's loss.
        """
        assert latents.grad is not None
        gradient = latents.grad * scale
        steps = self.steps[rows] + 1
        moment = torch.lerp(gradient, self.moment[rows], BETAS[0])
        square = torch.lerp(gradient.square(), self.square[rows], BETAS[1])
        self.steps[rows], self.moment[rows], self.square[rows] = steps, moment, square
        moment = moment / (1 - BETAS[0] ** steps)[:, None]
        square = square / (1 - BETAS[1] ** steps)[:, None]
        moved = latents.detach() - lr * moment / (square.sqrt() + 1e-8)
        self.latents[rows] = F.normalize(moved, dim=1)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "latents": self.latents,
            "moment": self.moment,
            "square": self.square,
            "steps": self.steps,
        }

    def expected(self) -> dict[str, Tensor]:
        """Return what `state` does, without memory (see `glann.training.state.Rows`)."""
        return {
            name: value.new_empty(self.shard.n, *value.shape[1:], device="meta")
            for name, value in self._tensors().items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return all tensors by name; on rank 0, with the rows of all ranks."""
        return {name: rows_at_first(value) for name, value in self._tensors().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take this rank's rows from what `state` returned."""
        for name, value in self._tensors().items():
            value.copy_(tensors[name][self.shard.start : self.shard.stop])


def initial_latents(images: NDArray[np.uint8], config: Glo, seed: int, start: int, stop: int) -> Tensor:
    """Return the initial latents of images `start` to `stop`, float32 [stop - start, d] with unit rows.

    "pca": the images' principal components, so that similar images start close together and each direction
    has the weight that it has in the images; if there are fewer than d components, the rest is noise.
    "pca_whitened": each component divided by its spread, as in the GLO paper. "random": standard normal.
    """
    n, d = len(images), config.latent_dim
    noise = noise_rows(start, stop, d, seed, "glo", "latents")
    if config.latent_init == "random" or n < 3:
        return F.normalize(noise, dim=1)
    sample = torch.randperm(n, generator=stream(seed, "glo", "pca"))[:PCA_IMAGES].sort().values
    vectors = thumbnails(images, PCA_SIZE, sample.numpy()).numpy()
    whiten, latents = config.latent_init == "pca_whitened", noise.clone()
    components = min(d, len(vectors) - 1, vectors.shape[1])
    random_state = stream_seed(seed, "glo", "pca") % 2**32
    pca = PCA(components, whiten=whiten, svd_solver="randomized", random_state=random_state)
    # Parallel sums depend on the number of cores. Images may be constant, so divisions by zero are no error.
    with threadpool_limits(1), np.errstate(invalid="ignore", divide="ignore"):
        pca.fit(vectors)
        latents *= 1.0 if whiten else float(pca.explained_variance_[-1]) ** 0.5
        for first in range(start, stop, PCA_IMAGES):
            rows = np.arange(first, min(first + PCA_IMAGES, stop))
            found = pca.transform(thumbnails(images, PCA_SIZE, rows).numpy())
            latents[rows - start, :components] = torch.from_numpy(found)
    latents = latents.nan_to_num()
    alike = latents.norm(dim=1, keepdim=True) < 1e-6  # images equal to the mean
    return F.normalize(torch.where(alike, noise, latents), dim=1)


class LatentNoise:
    """Noise on the latents of each batch, so that the decoder learns the space between them.

    Samples never hit a training latent: they are about as far from the nearest one as training latents are
    from each other. A decoder trained on exact latents only draws worse there. Directions in which latents
    vary more get more noise. In each step, each latent gets a length of its own, uniform between 0 and the
    largest: so the decoder also sees latents nearly as they are, and its reconstructions stay sharp.

    Parameters
    ----------
    length
        Largest length of the noise (root of the mean square); latents have length 1. 0: no noise.
    latents
        This rank's initial latents, float32 [n, d].
    shard
        Which rows this rank has, so that the noise does not depend on the number of ranks.
    seed
        Of the draws.
    """

    def __init__(self, length: float, latents: Tensor, shard: Shard, seed: int):
        self.shard, self.seed = shard, seed
        self.spread = length * (total(latents.square().sum(dim=0)) / shard.n).sqrt()  # [d]
        self.silent = length == 0

    def draw(self, rows: Tensor, step: int) -> Inputs:
        """Draw the noise of a step for the latents of `rows`, int64 [b], on the CPU."""
        if self.silent:
            return {}
        noise = self._normal(len(self.spread), step, "noise")
        noise *= torch.special.ndtr(self._normal(1, step, "length"))  # uniform in [0, 1]
        return {"noise": noise[self.shard.place(rows)]}

    def __call__(self, latents: Tensor, drawn: Inputs) -> Tensor:
        """Return latents [b, d] with the noise that `draw` drew for them, as unit vectors."""
        if self.silent:
            return latents
        return F.normalize(latents + drawn["noise"] * self.spread, dim=1)

    def _normal(self, dim: int, step: int, what: str) -> Tensor:
        """Return standard normal numbers for this rank's places in the batch, float32 [places, dim]."""
        places = self.shard.places
        return noise_rows(places.start, places.stop, dim, self.seed, "glo", step, what)
