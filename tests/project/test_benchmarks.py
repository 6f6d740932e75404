"""What speed is measured against must itself work."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from small import SMALL, clusters

from benchmarks.bench import Clock
from glann.glo.settings import Glo
from glann.glo.train import train_glo
from glann.imle.fit import fit_imle
from glann.networks.decoders.settings import Decoder
from glann.runtime.compute import Execution


@pytest.mark.parametrize(
    ("arguments", "ignorance"),
    # The mean distance of a digit's pixels from the median digit, and the squared one between two latents.
    [(["glo", "--epochs=3"], 0.17), (["imle", "--n=2000", "--epochs=12"], 2.0)],
)
def test_the_reference_learns(arguments: list[str], ignorance: float):
    command = [sys.executable, "-m", "benchmarks.reference", *arguments, "--threads=1"]
    said = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    assert said["seconds"] > 0 and said["loss"] < 0.6 * ignorance


def test_the_clock_takes_the_place_of_checkpoints_in_both_trainings(shapes: np.ndarray, cpu: Execution):
    glo, imle = Clock(), Clock()
    config = Glo(latent_dim=8, decoder=Decoder(width=4), epochs=3, batch_size=16)
    train_glo(shapes, config, 0, cpu, glo)
    fit_imle(clusters(), SMALL.model_copy(update={"epochs": 3}), 0, cpu, imle)
    assert (glo.steps, imle.steps) == (3, 5)
    assert (len(glo.times), len(imle.times)) == (9, 15) and glo.epoch() > 0 and imle.epoch() > 0
