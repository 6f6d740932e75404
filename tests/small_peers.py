"""Small rivals of GLANN, and what they are trained on: 16 px, width 4."""

import numpy as np

from glann.glo.settings import Loss
from glann.networks.decoders.network import DecoderArchitecture
from glann.networks.decoders.settings import Decoder
from glann.peers.settings import Energy, Gan, Ogan, Peer, Vae, WganGp
from glann.peers.step import PeerStep
from glann.peers.train import STEPS, PeerResult, train_peer
from glann.runtime.compute import Execution
from glann.training.batches import Inputs
from glann.training.checkpoints import Checkpoints
from glann.training.course import Batch
from glann.training.shards import Shard

SECTIONS: dict[str, type[Peer]] = {
    "vae": Vae,
    "gan": Gan,
    "wgan_gp": WganGp,
    "ogan": Ogan,
    "energy": Energy,
}
# All that matters for a test is set here: other defaults should not change what is tested.
COMMON = {
    "batch_size": 8,
    "lr": 0.0002,
    "betas": [0.5, 0.999],
    "schedule": "constant",
    "ema": 0.999,
    "parameter_groups": [],
}
SMALL: dict[str, dict[str, object]] = {
    "vae": COMMON | {"lr": 0.001, "beta": 0.01},
    "gan": COMMON | {"penalty": 1.0, "penalty_every": 4},
    "wgan_gp": COMMON | {"penalty": 10.0, "critic_steps": 2},
    "ogan": COMMON | {"correlation": 0.5},
    "energy": COMMON | {"penalty": 0.1, "entropy": 1.0},
}


def section(name: str, **keys: object) -> Peer:
    return SECTIONS[name].model_validate(SMALL[name] | keys)


def architecture(images: np.ndarray, **decoder: object) -> DecoderArchitecture:
    config = Decoder.model_validate({"width": 4} | decoder)
    return DecoderArchitecture(config=config, latent_dim=8, size=images.shape[1], channels=images.shape[3])


def train(
    name: str,
    images: np.ndarray,
    on: Execution,
    checkpoints: Checkpoints | None = None,
    seed: int = 0,
    decoder: dict | None = None,
    passes: int = 2,
    **keys: object,
) -> PeerResult:
    """Train a rival, with the L1 loss if it has one."""
    config = section(name, images=passes * len(images), **keys)
    loss = Loss(kind="l1")
    return train_peer(
        name, images, config, architecture(images, **decoder or {}), loss, seed, on, checkpoints
    )


def step_of(
    name: str,
    images: np.ndarray,
    on: Execution,
    shard: Shard | None = None,
    decoder: dict | None = None,
    **keys: object,
) -> PeerStep:
    """The step of a rival, with its first weights, on all images at once or on those of a shard."""
    shard = shard or Shard(len(images), len(images))
    config = section(name, **keys)
    own = images[shard.start : shard.stop]
    made = architecture(images, **decoder or {})
    return STEPS[name](name, own, made, config, Loss(kind="l1"), shard, 0, on)


def inputs(step: PeerStep, number: int = 0) -> Inputs:
    """What a step reads for the first batch of an epoch, as if it were the step of this number."""
    rows, weight = next(step.shard.batches(0, "order"))
    return step.read(Batch(rows, weight, number, 0.0, 1.0))
