"""VGG-16's convolutional features (Simonyan & Zisserman, arXiv:1409.1556), frozen."""

import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from glann.errors import GlannError
from glann.images.tensors import constant
from glann.runtime.tensors import load_tensors

# The last layer of each level: the ReLU after conv1_2, conv2_2, conv3_2, conv4_3 and conv5_3. The GLANN paper
# compares these layers.
LEVEL_ENDS = (3, 8, 13, 22, 29)
CHANNELS = (64, 128, 256, 512, 512)  # at the end of each level
WANTED = "name torchvision's vgg16 .pth, or a .safetensors of vgg16().features.state_dict()"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def vgg16(weights: str | None, levels: int) -> nn.Sequential:
    """Return the feature layers up to the end of level `levels`, in evaluation mode and without gradients.

    Parameters
    ----------
    weights
        A .safetensors file with the keys of ``vgg16().features.state_dict()``, or torchvision's .pth of the
        whole network. None: torchvision downloads the weights.
    levels
        1 to 5; level k ends at layer ``LEVEL_ENDS[k - 1]``.

    Returns
    -------
    nn.Sequential
        float32; input [b, 3, h, w] from `normalize_for_vgg`.

    Raises
    ------
    GlannError
        If the file is missing, does not hold VGG-16's weights, or cannot be downloaded.
    """
    features = vgg16_structure()
    expected = features.state_dict()
    tensors = _read(weights)
    tensors = {name.removeprefix("features."): value for name, value in tensors.items()}
    for name, value in expected.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise GlannError(
                f"{weights}: not VGG-16's features ({name} of shape {tuple(value.shape)} is missing); "
                f"{WANTED}"
            )
    features.load_state_dict({name: tensors[name].float() for name in expected}, assign=True)
    return features[: LEVEL_ENDS[levels - 1] + 1].eval().requires_grad_(False)


def vgg16_structure(levels: int = 5) -> nn.Sequential:
    """Return the feature layers up to the end of level `levels`, without weights (on the "meta" device)."""
    from torchvision import models  # noqa: PLC0415 (takes a second, needed only here)

    with torch.device("meta"):
        features = models.vgg16(weights=None).features
    return features[: LEVEL_ENDS[levels - 1] + 1]


def features_at(network: nn.Sequential, images: Tensor, levels: int, precision: torch.dtype) -> list[Tensor]:
    """Return the activations at the end of each level of images, float [b, c, h, w] in [0, 1].

    Returns
    -------
    list
        `levels` tensors [b, c', h', w'], in channels-last order.
    """
    taps = []
    images = normalize_for_vgg(images).to(precision)
    for i, layer in enumerate(network[: LEVEL_ENDS[levels - 1] + 1]):
        images = layer(images)
        if i in LEVEL_ENDS:
            taps.append(images)
    return taps


def shapes_at(size: int, levels: int) -> list[tuple[int, int]]:
    """Return channels and positions of the activations at each level, for images of `size` px."""
    return [(channels, (size >> level) ** 2) for level, channels in enumerate(CHANNELS[:levels])]


def normalize_for_vgg(images: Tensor) -> Tensor:
    """Normalise images, float [b, c, h, w] in [0, 1] with c = 1 or 3, as for ImageNet: [b, 3, h, w]."""
    mean, std = (constant(values, images.device)[:, None, None] for values in (MEAN, STD))
    return (images.float() - mean) / std  # one channel broadcasts to three


def _read(weights: str | None) -> dict[str, Tensor]:
    if weights is None:
        return _download()
    if not Path(weights).is_file():
        what = "a folder" if Path(weights).is_dir() else "no such file"
        raise GlannError(f"{weights}: {what}; set the weights key to a VGG-16 weights file, or to null")
    if weights.endswith(".safetensors"):
        return load_tensors(weights)[0]
    try:
        with warnings.catch_warnings():  # about formats that torch.load tries first
            warnings.simplefilter("ignore")
            found = torch.load(weights, map_location="cpu", weights_only=True)  # refuses anything but tensors
    except (OSError, MemoryError):
        raise
    except Exception:  # unpicklers raise all kinds of errors on other files
        raise GlannError(f"{weights}: not a weights file; {WANTED}") from None
    if not isinstance(found, dict):
        raise GlannError(f"{weights}: holds no named tensors; {WANTED}")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def _download() -> dict[str, Tensor]:
    from torchvision.models import VGG16_Weights  # noqa: PLC0415

    source = VGG16_Weights.IMAGENET1K_V1
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(source.url).name
    there = target.is_file()
    try:
        return dict(source.get_state_dict(progress=sys.stderr.isatty(), check_hash=True))
    except MemoryError:
        raise
    except Exception as error:  # network errors, a wrong digest, a truncated file
        if there:
            raise GlannError(f"{target}: damaged; delete it, and it is downloaded again") from None
        why = " ".join(str(error).split())[:150]
        raise GlannError(
            f"VGG-16 weights: could not download {source.url} ({why}); download it elsewhere and put it at "
            f"{target}, or name the file in glo.loss.weights (evaluate.weights for features: vgg)"
        ) from None
