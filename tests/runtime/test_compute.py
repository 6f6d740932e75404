"""Device, precision, threads."""

import pytest
import torch

from glann.errors import GlannError
from glann.runtime.compute import execution
from glann.runtime.settings import Compute


def test_a_gpu_that_is_not_there_is_said_in_one_line():
    with pytest.raises(GlannError, match=r"compute\.device: cuda:99, but torch sees (no GPU|cuda:0)"):
        execution(Compute(device="cuda:99"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_have_the_precision_that_is_asked_for_and_parameters_stay_float32(precision: str):
    on_cpu = execution(Compute(device="cpu", precision=precision, threads=1))
    layer = torch.nn.Linear(2, 2)
    with on_cpu.autocast():
        assert layer(torch.ones(1, 2)).dtype == on_cpu.precision == getattr(torch, precision)
    assert layer.weight.dtype == torch.float32
