"""sample: the generator draws pictures."""

from pathlib import Path

from glann.checkpoints import remove_finished
from glann.config import load_params
from glann.errors import one_line_errors
from glann.generator import Generator
from glann.sample import draw_samples

with one_line_errors():
    params = load_params()
    remove_finished(".checkpoints", "imle")
    generator = Generator.load("data/imle/generator.safetensors", params.compute)
    draw_samples(generator, params.sample, Path("data/sample"))
