"""GLANN: image generation without an adversary (Hoshen, Li, Malik, CVPR 2019, arXiv:1812.08985).

What a library user needs is here; docs/library.md shows how it is used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# OpenMP threads wait for each other by spinning, for milliseconds by default. Next to another busy process, a
# step took ten times as long. This must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from glann.errors import GlannError
    from glann.evaluate.settings import Evaluate
    from glann.glo.settings import Glo, Loss
    from glann.glo.train import train_glo
    from glann.imle.fit import fit_imle
    from glann.imle.settings import Imle
    from glann.networks.decoders.network import DecoderNetwork
    from glann.networks.decoders.settings import Decoder
    from glann.networks.mappings.network import MappingNetwork
    from glann.networks.mappings.settings import Mapping
    from glann.params import Params, load_params
    from glann.prepare.settings import Prepare
    from glann.presets import preset
    from glann.projection.projector import Known, Projection, Projector
    from glann.runtime.compute import execution
    from glann.runtime.npy import load_latents
    from glann.runtime.settings import Compute
    from glann.sample.generator import Generator
    from glann.sample.saving import save_images
    from glann.sample.settings import Sample
    from glann.training.checkpoints import Checkpoints
    from glann.training.settings import ParameterGroup

__all__ = [
    "Checkpoints",
    "Compute",
    "Decoder",
    "DecoderNetwork",
    "Evaluate",
    "Generator",
    "GlannError",
    "Glo",
    "Imle",
    "Known",
    "Loss",
    "Mapping",
    "MappingNetwork",
    "ParameterGroup",
    "Params",
    "Prepare",
    "Projection",
    "Projector",
    "Sample",
    "execution",
    "fit_imle",
    "load_latents",
    "load_params",
    "preset",
    "save_images",
    "train_glo",
]

_MODULES = {
    "errors": ("GlannError",),
    "evaluate.settings": ("Evaluate",),
    "glo.settings": ("Glo", "Loss"),
    "glo.train": ("train_glo",),
    "imle.fit": ("fit_imle",),
    "imle.settings": ("Imle",),
    "networks.decoders.network": ("DecoderNetwork",),
    "networks.decoders.settings": ("Decoder",),
    "networks.mappings.network": ("MappingNetwork",),
    "networks.mappings.settings": ("Mapping",),
    "params": ("Params", "load_params"),
    "prepare.settings": ("Prepare",),
    "presets": ("preset",),
    "projection.projector": ("Known", "Projection", "Projector"),
    "runtime.compute": ("execution",),
    "runtime.npy": ("load_latents",),
    "runtime.settings": ("Compute",),
    "sample.generator": ("Generator",),
    "sample.saving": ("save_images",),
    "sample.settings": ("Sample",),
    "training.checkpoints": ("Checkpoints",),
    "training.settings": ("ParameterGroup",),
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, so modules are imported only when one of their names is used.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"glann.{module}"), name)
    raise AttributeError(f"module 'glann' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
