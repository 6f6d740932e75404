"""GLO: every image owns a latent; latents and decoder are optimised together (arXiv:1707.05776)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from glann.compute import Execution
from glann.config import SIZES_MADE, Glo
from glann.decoders import DecoderArchitecture, DecoderNetwork, initialize
from glann.errors import GlannError
from glann.losses import reconstruction_loss
from glann.pixels import thumbnails, to_float
from glann.progress import progress
from glann.streams import stream, stream_seed
from glann.training import (
    Checkpoints,
    adam,
    batches,
    check_finite,
    check_state,
    flatten_state,
    learning_rate_factor,
    moving_average,
    restore_state,
    step,
)

PCA_IMAGES = 10_000  # principal components are fitted to so many images
PCA_SIZE = 32  # px to which images are reduced for it


@dataclass
class GloResult:
    """A trained decoder and its latents.

    Attributes
    ----------
    latents
        float32 [n, d], unit rows; row i belongs to image i.
    decoder
        The moving average of the trained decoder, in evaluation mode.
    history
        Per epoch: its number from 1 on and the mean loss.
    """

    latents: Tensor
    decoder: DecoderNetwork
    history: list[dict[str, float]]


def train_glo(
    images: NDArray[np.uint8],
    config: Glo,
    seed: int,
    execution: Execution,
    checkpoints: Checkpoints | None = None,
) -> GloResult:
    """Minimise the reconstruction loss over all latents and the decoder (GLO, eq. 1).

    Parameters
    ----------
    images
        uint8 [n, h, h, c], may be memory-mapped.
    config
        The `glo` section of params.yaml.
    seed
        Of every random draw.
    execution
        Device and precision.
    checkpoints
        Where to resume from and to save to; None: neither.

    Raises
    ------
    GlannError
        If images are not as described, the decoder cannot make their size, or the loss stops being
        finite (naming epoch, step and the last good checkpoint).
    """
    _check(images, config)
    n, size, _, channels = images.shape
    table = LatentTable(initial_latents(images, config, seed).to(execution.device))
    architecture = DecoderArchitecture(
        config=config.decoder, latent_dim=config.latent_dim, size=size, channels=channels
    )
    decoder = DecoderNetwork(architecture)
    initialize(decoder, stream(seed, "glo", "decoder"))
    decoder.to(execution.device).to(memory_format=torch.channels_last)
    average = moving_average(decoder, config.ema)
    optimizer = adam(decoder.network, config.decoder_lr, config.parameter_groups)
    loss_of = reconstruction_loss(config.loss, execution)
    history: list[dict[str, float]] = []

    saved = checkpoints.load() if checkpoints else None
    if saved:
        tensors, history = saved
        restore_state(tensors, decoder=decoder, average=average, optimizer=optimizer)
        table.restore(tensors)

    steps = len(batches(torch.arange(n), config.batch_size))
    with progress("glo", config.epochs * n, "images", done=len(history) * n) as advance:
        for epoch in range(len(history), config.epochs):
            order = torch.randperm(n, generator=stream(seed, "glo", epoch, "order"))
            draws = stream(seed, "glo", epoch, "loss")
            total = 0.0
            for i, rows in enumerate(batches(order, config.batch_size)):
                factor = learning_rate_factor(config.schedule, epoch * steps + i, config.epochs * steps)
                targets = to_float(images[rows.numpy()], execution)
                latents = table.rows(rows)
                with execution.autocast():
                    loss = loss_of(decoder(latents), targets, draws)
                loss.backward()
                value = loss.item()
                check_finite(value, f"glo: epoch {epoch + 1}, step {i + 1}", checkpoints)
                step(optimizer, config.decoder_lr * factor)
                table.step(rows, latents, config.latent_lr * factor)
                average.update_parameters(decoder)
                total += value * len(rows)
                advance(len(rows), f"loss {value:.4f}")
            history.append({"epoch": epoch + 1, "loss": float(f"{total / n:.6g}")})
            state = table.state() | flatten_state(decoder=decoder, average=average, optimizer=optimizer)
            check_state(state, f"glo: epoch {epoch + 1}", checkpoints)
            if checkpoints and checkpoints.due():
                checkpoints.save(state, history)

    trained = average.module
    assert isinstance(trained, DecoderNetwork)
    _recompute_batch_norm(trained, table.latents, config.batch_size, execution)
    return GloResult(table.latents.cpu(), trained.eval(), history)


def _check(images: NDArray[np.uint8], config: Glo) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2:
        raise GlannError(
            f"glo: needs two or more images as uint8 [n, h, w, c], found {images.dtype} {list(images.shape)}"
        )
    sizes = SIZES_MADE[config.decoder.kind]
    if images.shape[1] != images.shape[2] or images.shape[1] not in sizes:
        raise GlannError(
            f"glo.decoder.kind: {config.decoder.kind} makes squares of {', '.join(map(str, sizes))} px, "
            f"the images are {images.shape[2]} x {images.shape[1]}"
        )


class LatentTable:
    """One unit-norm latent per image, each with its own Adam moments and step count.

    A step reads and writes the rows of its batch alone, so its cost does not grow with the table. Adam
    (arXiv:1412.6980, algorithm 1) corrects the bias of young moments by the step count: it is kept per row,
    since a row is stepped once an epoch.

    Attributes
    ----------
    latents, moment, square
        float32 [n, d].
    steps
        float32 [n].
    """

    def __init__(self, latents: Tensor):
        self.latents = latents
        self.moment = torch.zeros_like(latents)
        self.square = torch.zeros_like(latents)
        self.steps = latents.new_zeros(len(latents))

    def rows(self, rows: Tensor) -> Tensor:
        """Return the latents of a batch, float32 [b, d], as a leaf that collects a gradient."""
        return self.latents[rows].requires_grad_()

    def step(
        self, rows: Tensor, latents: Tensor, lr: float, betas: tuple[float, float] = (0.5, 0.999)
    ) -> None:
        """Step the batch's latents by their gradient and project them to the unit sphere."""
        assert latents.grad is not None
        # The loss is a mean over the batch; times b it is each image's own, whatever the batch size.
        gradient = latents.grad * len(rows)
        steps = self.steps[rows] + 1
        moment = torch.lerp(gradient, self.moment[rows], betas[0])
        square = torch.lerp(gradient.square(), self.square[rows], betas[1])
        self.steps[rows], self.moment[rows], self.square[rows] = steps, moment, square
        moment = moment / (1 - betas[0] ** steps)[:, None]
        square = square / (1 - betas[1] ** steps)[:, None]
        moved = latents.detach() - lr * moment / (square.sqrt() + 1e-8)
        self.latents[rows] = F.normalize(moved, dim=1)

    def state(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {f"table.{name}": value for name, value in vars(self).items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        for name, value in vars(self).items():
            value.copy_(tensors[f"table.{name}"])


def initial_latents(images: NDArray[np.uint8], config: Glo, seed: int) -> Tensor:
    """Return the first latents, float32 [n, d] with unit rows.

    "pca": the images' whitened principal components, so that like images start near each other, filled up
    with noise where there are fewer components than d. "random": standard normal, projected to the sphere.
    """
    n, d = len(images), config.latent_dim
    latents = torch.randn(n, d, generator=stream(seed, "glo", "latents"))
    if config.latent_init == "pca" and n > 2:
        sample = torch.randperm(n, generator=stream(seed, "glo", "pca"))[:PCA_IMAGES].sort().values
        vectors = thumbnails(images, PCA_SIZE, sample.numpy()).numpy()
        components = min(d, len(vectors) - 1, vectors.shape[1])
        random_state = stream_seed(seed, "glo", "pca") % 2**32
        pca = PCA(components, whiten=True, svd_solver="randomized", random_state=random_state)
        # Sums in parallel depend on the number of cores; images may be constant.
        with threadpool_limits(1), np.errstate(invalid="ignore", divide="ignore"):
            pca.fit(vectors)
            for rows in np.array_split(np.arange(n), -(-n // PCA_IMAGES)):
                found = pca.transform(thumbnails(images, PCA_SIZE, rows).numpy())
                latents[rows, :components] = torch.from_numpy(found)
    return F.normalize(latents.nan_to_num(), dim=1)


@torch.no_grad()
def _recompute_batch_norm(decoder: nn.Module, latents: Tensor, batch_size: int, execution: Execution) -> None:
    """Measure batch-norm statistics anew: those kept in training belong to other weights than the average."""
    if len(latents) > 1:
        with execution.autocast():
            update_bn((z for z in batches(latents, batch_size)), decoder)
