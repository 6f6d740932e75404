"""The generator: mapping and decoder together, which is all that sampling needs."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glann.errors import GlannError
from glann.images.tensors import to_uint8
from glann.networks.decoders.network import DecoderNetwork
from glann.networks.generator import load_generator, save_generator
from glann.networks.mappings.network import MappingNetwork
from glann.runtime.compute import Execution, execution
from glann.runtime.memory import check_memory
from glann.runtime.progress import progress
from glann.runtime.randomness import BLOCK, noise_rows
from glann.runtime.settings import Compute
from glann.sample.blocks import collected, decoded_at_once, whole_blocks

MOST_LISTED = 20  # classes in a message


class Generator:
    """Draws images: noise e to latent T(e) to image G(T(e)).

    Parameters
    ----------
    mapping, decoder
        The trained networks T and G.
    execution
        Device and precision.

    Examples
    --------
    >>> import glann
    >>> generator = glann.Generator.load("data/imle/generator.safetensors")  # doctest: +SKIP
    >>> images = generator.sample(16, seed=7)  # doctest: +SKIP
    """

    def __init__(self, mapping: MappingNetwork, decoder: DecoderNetwork, execution: Execution):
        self.execution = execution
        self.mapping = mapping.eval().to(execution.device)
        self.decoder = decoder.eval().to(execution.device)
        self.decoder.to(memory_format=torch.channels_last)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        made = self.decoder.architecture
        return made.size, made.size, made.channels

    @property
    def classes(self) -> list[str]:
        """Names of the classes that can be asked for; empty if the mapping was fitted without them."""
        return self.mapping.architecture.classes

    @classmethod
    def load(cls, path: str | Path, compute: Compute | None = None) -> "Generator":
        """Read a generator file.

        Parameters
        ----------
        path
            A generator.safetensors written by the imle stage.
        compute
            Device, precision, threads. Default: a GPU if there is one.

        Raises
        ------
        GlannError
            If the file is missing, damaged or not a generator.
        """
        return cls(*load_generator(path), execution(compute or Compute()))

    def save(self, path: str | Path) -> None:
        """Write both networks as one safetensors file, with their architectures in the header."""
        save_generator(path, self.mapping, self.decoder)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        compute: Compute | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> "Generator":
        """Read a generator from the Hugging Face Hub, or from a folder written by `save_pretrained`.

        Parameters
        ----------
        source
            The folder, or else the name of a repository, such as "user/faces".
        compute
            Device, precision, threads. Default: a GPU if there is one.
        revision
            Branch, tag or commit of the repository. Default: its main branch.
        token
            For private repositories. Default: the one kept by `hf auth login`.

        Raises
        ------
        GlannError
            If there is no such folder or repository, if it holds no generator, or if the package
            huggingface_hub is missing.
        """
        from glann.sample.hub.sharing import pull  # noqa: PLC0415 (an extra)

        return pull(source, compute, revision, token)

    def save_pretrained(self, folder: str | Path, data: str | Path | None = None) -> None:
        """Write generator.safetensors, config.json and a model card, README.md, into a folder.

        Parameters
        ----------
        folder
            A new folder, or one written by this method, which is replaced.
        data
            The folder data of the training, with params.yaml beside it. Metrics, the grid of samples and
            settings go from there into the card and next to it; local paths do not. None: none of these.

        Raises
        ------
        GlannError
            If the folder has other files, `data` belongs to another generator, or the package
            huggingface_hub is missing.
        """
        from glann.sample.hub.sharing import save  # noqa: PLC0415 (an extra)

        save(self, Path(folder), None if data is None else Path(data))

    def push_to_hub(
        self,
        repo_id: str,
        data: str | Path | None = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Publish on the Hugging Face Hub what `save_pretrained` writes, and return the address of the page.

        Parameters
        ----------
        repo_id
            The name of the repository, such as "user/faces"; it is created if necessary.
        data
            As in `save_pretrained`.
        private
            True: only you and your organisation can see it. Default: what is set on the Hub, normally public.
        token
            One with write access. Default: the one kept by `hf auth login`.

        Raises
        ------
        GlannError
            If the Hub refuses or cannot be reached, if a repository that should be private exists and is
            public, or for the reasons of `save_pretrained`.
        """
        from glann.sample.hub.sharing import push  # noqa: PLC0415 (an extra)

        return push(self, repo_id, None if data is None else Path(data), private, token)

    def sample(
        self, count: int, seed: int = 0, truncation: float = 1.0, class_name: str | None = None
    ) -> NDArray[np.uint8]:
        """Draw images.

        Parameters
        ----------
        count
            Number of images.
        seed
            The same seed gives the same images. A larger count begins with the images of a smaller one.
        truncation
            Factor on the noise. Below 1, it shortens residuals too: images are more typical and less varied.
        class_name
            One of `classes`, if there are any. Default: a class is drawn for each image, as often as it is in
            the training images.

        Raises
        ------
        GlannError
            If there is no such class.

        Returns
        -------
        NDArray
            uint8 [count, h, w, c].
        """
        return collected(self.stream(count, seed, truncation, class_name), count)

    def stream(
        self, count: int, seed: int = 0, truncation: float = 1.0, class_name: str | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield the images of `sample` in blocks uint8 [b, h, w, c], so they need not fit into memory."""
        return self.decode_blocks(self.sample_latents(count, seed, truncation, class_name))

    def sample_latents(
        self, count: int, seed: int = 0, truncation: float = 1.0, class_name: str | None = None
    ) -> Tensor:
        """Draw the latents of the images of `sample`: float32 [count, d] on the device."""
        if count < 1:
            raise GlannError(f"count: {count}; draw at least one image")
        whole = -(-count // BLOCK) * BLOCK
        e, d = self.mapping.architecture.noise_dim, self.mapping.architecture.latent_dim
        check_memory("sample", 4 * whole * (e + 3 * d), self.execution, f"the number of images ({count})")
        noise = noise_rows(0, whole, e, seed, "sample")
        return self.map(noise, truncation, self.labels(whole, seed, class_name))[:count]

    def labels(self, count: int, seed: int = 0, class_name: str | None = None) -> Tensor | None:
        """Return the classes of the images of `sample`, int64 [count], or None if there are no classes."""
        known = self.mapping.architecture.classes
        if class_name is not None and not isinstance(class_name, str):
            raise GlannError(f"class: expected a name, found {class_name}; write it in quotes")
        if class_name is not None and class_name not in known:
            there = ", ".join(repr(name[:60]) for name in known[:MOST_LISTED])
            there += ", ..." * (len(known) > MOST_LISTED)
            raise GlannError(
                f"class: no class {class_name[:60]!r}; there are: {there}"
                if known
                else "class: this model has none; fit it with imle.conditional: true"
            )
        if not known:
            return None
        if class_name is not None:
            return torch.full((count,), known.index(class_name))
        draws = torch.special.ndtr(noise_rows(0, count, 1, seed, "sample", "class").double())[:, 0]
        counts = self.mapping.architecture.class_counts
        shares = torch.tensor(counts, dtype=torch.float64).cumsum(0)
        return torch.searchsorted(shares / shares[-1], draws).clamp(max=len(known) - 1)

    def interpolate(
        self,
        rows: int,
        steps: int,
        seed: int = 0,
        truncation: float = 1.0,
        class_name: str | None = None,
    ) -> NDArray[np.uint8]:
        """Draw images between pairs of samples, by slerp of their noise (arXiv:1609.04468).

        Parameters
        ----------
        rows
            Number of pairs. Row i goes from image 2i to image 2i + 1 of `sample` with the same seed.
        steps
            Images per row including both ends, 2 or more.
        seed, truncation, class_name
            As in `sample`.

        Returns
        -------
        NDArray
            uint8 [rows, steps, h, w, c].
        """
        if rows < 1:
            raise GlannError(f"rows: {rows}; draw at least one row")
        if steps < 2:
            raise GlannError(f"steps: {steps}; an interpolation needs at least its two ends")
        noise = noise_rows(0, 2 * rows, self.mapping.architecture.noise_dim, seed, "sample")
        labels = self.labels(2 * rows, seed, class_name)
        of_ends = None if labels is None else (labels[0::2], labels[1::2])
        return self.between(noise[0::2], noise[1::2], steps, truncation, of_ends)

    def between(
        self,
        starts: Tensor,
        ends: Tensor,
        steps: int,
        truncation: float = 1.0,
        labels: tuple[Tensor, Tensor] | None = None,
    ) -> NDArray[np.uint8]:
        """Draw images on the way from one noise to another.

        Parameters
        ----------
        starts, ends
            float32 [n, e].
        steps
            Images per way including both ends, 2 or more.
        truncation
            As in `sample`.
        labels
            Classes of starts and of ends, both int64 [n], if there are classes.

        Returns
        -------
        NDArray
            uint8 [n, steps, h, w, c].
        """
        for of in labels or (None,):
            self._check_labels(of, len(starts))
        rows, starts, ends = len(starts), starts * truncation, ends * truncation
        needed = rows * steps * (math.prod(self.shape) + 16 * self.decoder.architecture.latent_dim)
        check_memory("interpolation", needed, self.execution, f"the number of images ({rows * steps})")
        weights = torch.linspace(0, 1, steps)[None, :, None]
        path = slerp(starts[:, None], ends[:, None], weights)  # => [n, steps, e]
        path[:, 0], path[:, -1] = starts, ends
        unit = self._units(path, labels and labels[0])
        if labels:  # from one class to another, the outputs of both turn into each other
            unit = slerp(unit, self._units(path, labels[1]), weights.to(unit.device))
        # The nearest anchor changes abruptly along the way, so residuals turn smoothly from one end's to the
        # other's.
        at_ends = [
            self._in_blocks(self.mapping.nearest_residual, unit[:, i], labels and labels[i]) for i in (0, -1)
        ]
        first, last = (min(truncation, 1.0) * residual[:, None] for residual in at_ends)
        residual = slerp(first, last, weights.to(unit.device))
        images = self.decode(self.mapping.from_unit(unit, residual).flatten(0, 1))
        return images.reshape(rows, steps, *images.shape[1:])

    def _units(self, path: Tensor, labels: Tensor | None) -> Tensor:
        """Map noise [n, steps, e] of classes int64 [n] to unit coordinates [n, steps, d]."""
        of_all = None if labels is None else labels.repeat_interleave(path.shape[1])
        return self._in_blocks(self.mapping.unit, path.flatten(0, 1), of_all).unflatten(0, path.shape[:2])

    def map(self, noise: Tensor, truncation: float = 1.0, labels: Tensor | None = None) -> Tensor:
        """Map noise float32 [n, e] to latents float32 [n, d] on the device.

        For truncation see `sample`. A conditional model also needs the class of each row, int64 [n].
        """
        e = self.mapping.architecture.noise_dim
        if noise.ndim != 2 or noise.shape[1] != e or len(noise) == 0:
            raise GlannError(f"noise: expected [n, {e}], found {list(noise.shape)}")
        self._check_labels(labels, len(noise))
        return self._in_blocks(
            lambda block, of_block: self.mapping(block, of_block, truncation), noise, labels
        )

    def _check_labels(self, labels: Tensor | None, count: int) -> None:
        k = len(self.classes)
        fits = labels is None if not k else labels is not None and labels.shape == (count,)
        if labels is not None and fits:
            fits = labels.dtype == torch.int64 and bool(((labels >= 0) & (labels < k)).all())
        if not fits:
            wanted = f"int64 [{count}], each below {k}" if k else "none, as the model has no classes"
            raise GlannError(f"labels: expected {wanted}")

    @torch.no_grad()
    def _in_blocks(
        self, function: Callable[[Tensor, Tensor | None], Tensor], rows: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Apply a function of rows [b, ...] and their classes block by block, on the device."""
        blocks = whole_blocks(rows.to(self.execution.device))
        of_blocks: Sequence[Tensor | None] = [None] * len(blocks)
        if labels is not None:
            of_blocks = whole_blocks(labels.to(self.execution.device))
        found = [function(block, of_block) for block, of_block in zip(blocks, of_blocks, strict=True)]
        return torch.cat(found)[: len(rows)]

    def decode(self, latents: Tensor, title: str | None = "decode") -> NDArray[np.uint8]:
        """Project latents float32 [n, d] to the unit sphere and decode them to images uint8 [n, h, w, c].

        The progress bar is called `title`; None: no progress is shown.
        """
        return collected(self.decode_blocks(latents, title), len(latents))

    def decode_blocks(self, latents: Tensor, title: str | None = "decode") -> Iterator[NDArray[np.uint8]]:
        """Yield the images of `decode` in blocks uint8 [b, h, w, c], so they need not fit into memory."""
        d = self.decoder.architecture.latent_dim
        if latents.ndim != 2 or latents.shape[1] != d or len(latents) == 0:
            raise GlannError(f"latents: expected [n, {d}], found {list(latents.shape)}")
        latents = F.normalize(latents.to(self.execution.device), dim=1)
        left, at_once = len(latents), decoded_at_once(self.decoder.architecture.size)
        with nullcontext(lambda _: None) if title is None else progress(title, left, "images") as advance:
            for block in whole_blocks(latents, at_once):
                with torch.no_grad(), self.execution.autocast():
                    pixels = self.decoder(block).float()
                images = to_uint8(pixels[: min(at_once, left)])
                yield images
                advance(len(images))
                left -= len(images)


def slerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Interpolate along the great circle (Shoemake 1985): direction by angle, length linearly."""
    a, b = F.normalize(start, dim=-1), F.normalize(end, dim=-1)
    angle = (a * b).sum(dim=-1, keepdim=True).clamp(-1, 1).acos()
    direction = (((1 - weight) * angle).sin() * a + (weight * angle).sin() * b) / angle.sin()
    lengths = torch.lerp(start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True), weight)
    straight = torch.lerp(start, end, weight)  # equal or opposite ends define no great circle
    return torch.where(angle.sin().abs() < 1e-4, straight, direction * lengths)
