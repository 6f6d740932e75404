"""ONNX: the whole generator as one graph, for programs without torch."""

import contextlib
import copy
import io
import json
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glann.errors import GlannError
from glann.runtime.files import replacing
from glann.sample.generator import Generator

OPSET = 20
LARGEST = 2**31  # bytes
TRACED = 2  # images while the graph is recorded; any number can be drawn with it


class Drawing(nn.Module):
    """Noise float32 [b, e] and a truncation float32 [] to images uint8 [b, h, w, c]."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.mapping, self.decoder = generator.mapping, generator.decoder

    def forward(self, noise: Tensor, truncation: Tensor) -> Tensor:
        """Draw images as `Generator.sample` does."""
        unit = self.mapping.unit(noise * truncation)
        residual = torch.zeros_like(unit)
        if self.mapping.architecture.anchors:
            anchors = self.mapping.anchors
            # |u - a|² without |u|², which is the same for all anchors
            apart = anchors.square().sum(dim=1) - 2 * unit @ anchors.T
            residual = truncation.clamp(max=1.0) * self.mapping.residuals[apart.argmin(dim=1)]
        pixels = self.decoder(F.normalize(self.mapping.from_unit(unit, residual), dim=1))
        return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def export_onnx(generator: Generator, path: Path) -> None:
    """Write the generator as an ONNX file with the inputs "noise" and "truncation" and the output "images".

    Parameters
    ----------
    generator
        The trained generator.
    path
        The file.

    Raises
    ------
    GlannError
        If the packages onnx and onnxscript are missing, or if the generator is too large.
    """
    try:
        import onnx  # noqa: PLC0415 (an extra)
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise GlannError(
            f"export: needs the package {error.name}; run: pip install 'glann[export]'"
        ) from None
    drawing = copy.deepcopy(Drawing(generator)).float().cpu().eval()  # the caller may use the generator again
    mapping, decoder = generator.mapping.architecture, generator.decoder.architecture
    inputs = (torch.zeros(TRACED, mapping.noise_dim), torch.ones(()))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():  # it reports each of its steps
        program = torch.onnx.export(
            drawing,
            inputs,
            dynamo=True,
            input_names=["noise", "truncation"],
            output_names=["images"],
            dynamic_shapes={"noise": {0: torch.export.Dim("count")}, "truncation": {}},
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    about = {"noise_dim": mapping.noise_dim, "size": decoder.size, "channels": decoder.channels}
    onnx.helper.set_model_props(graph, {"glann": json.dumps(about)})
    if graph.ByteSize() >= LARGEST:
        raise GlannError(f"{path}: the generator takes 2 GB or more, which no ONNX file can hold")
    with replacing(path) as temporary:
        onnx.save(graph, str(temporary))
