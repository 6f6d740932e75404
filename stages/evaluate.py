"""evaluate: reconstructions and samples are measured against images never trained on."""

from pathlib import Path

from glann.checkpoints import remove_finished
from glann.config import load_params
from glann.errors import one_line_errors
from glann.evaluate import evaluate
from glann.generator import Generator
from glann.imle import load_latents
from glann.storage import load_npy

with one_line_errors():
    params = load_params()
    remove_finished(".checkpoints", "imle")
    evaluate(
        params,
        images=load_npy("data/prepare/images.npy", mmap=True),
        holdout=load_npy("data/prepare/holdout.npy", mmap=True),
        latents=load_latents("data/glo/latents.npy"),
        generator=Generator.load("data/imle/generator.safetensors", params.compute),
        folder=Path("data/evaluate"),
    )
