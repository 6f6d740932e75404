"""The generator file: mapping and decoder together, all that sampling needs."""

from pathlib import Path
from typing import Any

from torch import nn

from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.runtime.tensors import load_config, load_network, save_tensors


def save_generator(path: str | Path, mapping: MappingNetwork, decoder: DecoderNetwork) -> None:
    """Write both networks as one safetensors file, with their architectures in the header."""
    header = {"mapping": mapping.architecture.model_dump(), "decoder": decoder.architecture.model_dump()}
    save_tensors(path, _Networks(mapping, decoder).state_dict(), header)


def load_generator(path: str | Path) -> tuple[MappingNetwork, DecoderNetwork]:
    """Read both networks, in evaluation mode.

    Raises
    ------
    GlannError
        If the file is missing, damaged or not a generator.
    """
    networks = load_network(path, _build).eval()
    return networks.mapping, networks.decoder


def load_mapping(path: str | Path) -> MappingNetwork:
    """Read a mapping, in evaluation mode, from its own file or from that of a generator.

    Raises
    ------
    GlannError
        If the file is missing, damaged or something else.
    """
    config = load_config(path)
    if isinstance(config, dict) and "mapping" in config:
        return load_generator(path)[0]
    return MappingNetwork.load(path)


class _Networks(nn.Module):
    def __init__(self, mapping: MappingNetwork, decoder: DecoderNetwork):
        super().__init__()
        self.mapping = mapping
        self.decoder = decoder


def _build(header: Any) -> _Networks:
    if not isinstance(header, dict) or not {"mapping", "decoder"} <= header.keys():
        raise ValueError("not a generator; name a generator.safetensors of the imle stage")
    return _Networks(
        MappingNetwork(MappingArchitecture.model_validate(header["mapping"])),
        DecoderNetwork(DecoderArchitecture.model_validate(header["decoder"])),
    )
