"""glo: images become a decoder and one latent each."""

from pathlib import Path

from glann.checkpoints import Checkpoints
from glann.compute import execution
from glann.config import load_params
from glann.errors import one_line_errors
from glann.glo import train_glo
from glann.processes import launch, rank
from glann.stopping import stop_signals
from glann.storage import all_or_none, load_json, load_npy, save_json, save_npy


def run() -> None:
    """Train on the prepared images, and write the result."""
    images = load_npy("data/prepare/images.npy", mmap=True)
    how = execution(params.compute)
    inputs = [params.glo.model_dump(), params.seed, how.numerics, load_json("data/prepare/dataset.json")]
    checkpoints = Checkpoints(".checkpoints", "glo", inputs, params.compute.checkpoint_minutes)

    result = train_glo(images, params.glo, params.seed, how, checkpoints)

    if rank() == 0:
        with all_or_none(Path("data/glo")) as folder:
            save_npy(folder / "latents.npy", result.latents.numpy())
            result.decoder.save(folder / "decoder.safetensors")
            save_json(folder / "losses.json", result.history)


with one_line_errors(), stop_signals():
    params = load_params()
    launch(run, params.compute.processes)
