"""What speed is measured against must itself work."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    ("arguments", "ignorance"),
    # The mean distance of a digit's pixels from the median digit, and the squared one between two latents.
    [(["glo", "--epochs=3"], 0.17), (["imle", "--n=2000", "--epochs=12"], 2.0)],
)
def test_the_reference_learns(arguments: list[str], ignorance: float):
    command = [sys.executable, "-m", "benchmarks.reference", *arguments, "--threads=1"]
    said = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    assert said["seconds"] > 0 and said["loss"] < 0.6 * ignorance
