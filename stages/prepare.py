"""prepare: images from anywhere become one array, and a hold-out."""

from pathlib import Path

from glann.config import load_params
from glann.errors import one_line_errors
from glann.prepare import prepare

with one_line_errors():
    params = load_params()
    prepare(params.prepare, params.seed, Path("data/prepare"))
