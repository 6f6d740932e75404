"""ONNX: the whole generator as one graph, for programs without torch."""

import contextlib
import copy
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

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
    """Noise float32 [b, e], a truncation float32 [], and labels int64 [b] to images uint8 [b, h, w, c].

    Only conditional models have labels.
    """

    def __init__(self, generator: Generator):
        super().__init__()
        self.mapping, self.decoder = generator.mapping, generator.decoder

    def forward(self, noise: Tensor, truncation: Tensor, labels: Tensor | None = None) -> Tensor:
        """Draw images as `Generator.sample` does."""
        unit = self.mapping.unit(noise * truncation, labels)
        residual = torch.zeros_like(unit)
        if self.mapping.architecture.anchors:
            anchors = self.mapping.anchors
            # |u - a|² without |u|², which is the same for all anchors
            apart = anchors.square().sum(dim=1) - 2 * unit @ anchors.T
            kept = truncation.clamp(max=1.0)
            if labels is not None:
                other = labels[:, None] != self.mapping.anchor_labels
                apart = apart.masked_fill(other, torch.inf)
                kept = torch.where(other.all(dim=1, keepdim=True), 0.0, kept)
            residual = kept * self.mapping.residuals[apart.argmin(dim=1)]
        pixels = self.decoder(F.normalize(self.mapping.from_unit(unit, residual), dim=1))
        return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def export_onnx(generator: Generator, path: Path) -> None:
    """Write the generator as an ONNX file with the inputs "noise" and "truncation" and the output "images".

    A conditional model also has the input "labels".

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
    inputs = [torch.zeros(TRACED, mapping.noise_dim), torch.ones(())]
    names, count = ["noise", "truncation"], torch.export.Dim("count")
    shapes: dict[str, Any] = {"noise": {0: count}, "truncation": {}}
    if generator.classes:
        inputs.append(torch.zeros(TRACED, dtype=torch.int64))
        names.append("labels")
        shapes["labels"] = {0: count}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it reports each of its steps
        program = torch.onnx.export(
            drawing,
            tuple(inputs),
            dynamo=True,
            input_names=names,
            output_names=["images"],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    about: dict[str, Any] = {
        "noise_dim": mapping.noise_dim,
        "size": decoder.size,
        "channels": decoder.channels,
    }
    about |= {"classes": generator.classes} if generator.classes else {}
    onnx.helper.set_model_props(graph, {"glann": json.dumps(about)})
    if graph.ByteSize() >= LARGEST:
        raise GlannError(f"{path}: the generator takes 2 GB or more, which no ONNX file can hold")
    with replacing(path) as temporary:
        onnx.save(graph, str(temporary))
