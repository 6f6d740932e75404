"""imle: latents become a mapping from noise; joined with the decoder it is the generator."""

import hashlib
from pathlib import Path

from glann.checkpoints import Checkpoints, remove_finished
from glann.compute import execution
from glann.config import load_params
from glann.decoders import DecoderNetwork
from glann.errors import one_line_errors
from glann.generator import Generator
from glann.imle import fit_imle, load_latents
from glann.processes import launch, rank
from glann.stopping import stop_signals
from glann.storage import all_or_none, save_json


def run() -> None:
    """Fit the mapping to the latents, and write the generator."""
    how = execution(params.compute)
    decoder = DecoderNetwork.load("data/glo/decoder.safetensors")
    digest = hashlib.sha256(Path("data/glo/latents.npy").read_bytes()).hexdigest()
    inputs = [params.imle.model_dump(), params.seed, how.numerics, digest]
    checkpoints = Checkpoints(".checkpoints", "imle", inputs, params.compute.checkpoint_minutes)

    result = fit_imle(load_latents("data/glo/latents.npy"), params.imle, params.seed, how, checkpoints)

    if rank() == 0:
        with all_or_none(Path("data/imle")) as folder:
            Generator(result.mapping, decoder, how).save(folder / "generator.safetensors")
            save_json(folder / "losses.json", result.history)


with one_line_errors(), stop_signals():
    params = load_params()
    remove_finished(".checkpoints", "glo")
    launch(run, params.compute.processes)
