"""What speed is measured against must itself work."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from simulated_gpu import SimulatedGpu
from small import SMALL, clusters

from benchmarks import classifier
from benchmarks.bench import Clock
from benchmarks.gpu import Sizes, machine, table, timings
from glann.glo.settings import Glo
from glann.glo.train import train_glo
from glann.imle.fit import fit_imle
from glann.networks.decoders.settings import Decoder
from glann.runtime.compute import Execution, execution
from glann.runtime.settings import Compute


@pytest.mark.parametrize(
    ("arguments", "ignorance"),
    # The mean distance of a digit's pixels from the median digit, and the squared one between two latents.
    [(["glo", "--epochs=3"], 0.17), (["imle", "--n=2000", "--epochs=12"], 2.0)],
)
def test_the_reference_learns(arguments: list[str], ignorance: float):
    command = [sys.executable, "-m", "benchmarks.reference", *arguments, "--threads=1"]
    said = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    assert said["seconds"] > 0 and said["loss"] < 0.6 * ignorance


def test_the_classifier_tells_classes_of_images_that_it_has_not_seen():
    draws = np.random.default_rng(0)
    images = draws.integers(0, 80, (700, 12, 12, 1), np.uint8)
    labels = draws.integers(0, 3, 700)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 60  # a band at the top, in the middle or at the bottom
    model = classifier.train(images[:600], labels[:600], 3)
    features, sure = model.look(images[600:])
    assert features.shape == (100, classifier.FEATURES) and torch.allclose(sure.sum(dim=1), torch.ones(100))
    assert (sure.argmax(dim=1).numpy() == labels[600:]).mean() > 0.9


def test_the_clock_takes_the_place_of_checkpoints_in_both_trainings(shapes: np.ndarray, cpu: Execution):
    glo, imle = Clock(), Clock()
    config = Glo(latent_dim=8, decoder=Decoder(width=4), epochs=3, batch_size=16)
    train_glo(shapes, config, 0, cpu, glo)
    fit_imle(clusters(), SMALL.model_copy(update={"epochs": 3}), 0, cpu, imle)
    assert (glo.steps, imle.steps) == (3, 5)
    assert (len(glo.times), len(imle.times)) == (9, 15) and glo.epoch() > 0 and imle.epoch() > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")
def test_timings_of_a_gpu_stand_beside_those_of_the_cpu(cpu: Execution):
    sizes = Sizes(images=32, batch=8, epochs=2, latents=300, samples=64)
    with SimulatedGpu() as gpu:
        on = execution(Compute(device="cuda", precision="float32", threads=1))
        columns = {"GPU": timings(on, sizes), "CPU": timings(cpu, sizes)}
        assert gpu.replays and "torch" in machine()
    lines = table(columns).splitlines()
    assert len(lines) == 7 and all(float(line.split()[-1]) > 0 for line in lines[1:])
