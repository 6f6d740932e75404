"""Arrays in .npy files."""

from pathlib import Path

import numpy as np
import pytest

from glann.errors import GlannError
from glann.runtime.npy import load_latents


@pytest.mark.parametrize("array", [np.ones(3), np.ones((2, 2), int), np.ones((0, 4)), np.ones((2, 2, 2))])
def test_latents_that_are_no_float_table_are_one_line(array: np.ndarray, tmp_path: Path):
    np.save(tmp_path / "latents.npy", array)
    with pytest.raises(GlannError, match=r"latents\.npy: expected floats \[n, d\], found"):
        load_latents(tmp_path / "latents.npy")
