"""Device, precision, threads."""

import pytest

from glann.errors import GlannError
from glann.runtime.compute import execution
from glann.runtime.settings import Compute


def test_a_gpu_that_is_not_there_is_said_in_one_line():
    with pytest.raises(GlannError, match=r"compute\.device: cuda:99, but torch sees (no GPU|cuda:0)"):
        execution(Compute(device="cuda:99"))
