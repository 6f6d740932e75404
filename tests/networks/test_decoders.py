import pytest
import torch
import torch.nn.functional as F

from glann.errors import GlannError
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import SIZES_MADE, Decoder
from glann.networks.layers import DetailMap, initialize
from glann.networks.mappings.network import MappingNetwork
from glann.runtime.randomness import stream


def decoder_of(kind: str, size: int, channels: int = 3, width: int = 4) -> DecoderNetwork:
    architecture = DecoderArchitecture(
        config=Decoder(kind=kind, width=width), latent_dim=8, size=size, channels=channels
    )
    decoder = DecoderNetwork(architecture)
    initialize(decoder, stream(0, "test"))
    return decoder


@pytest.mark.parametrize(("kind", "size"), [(kind, size) for kind in SIZES_MADE for size in SIZES_MADE[kind]])
def test_every_decoder_makes_every_size_the_schema_allows(kind: str, size: int):
    latents = F.normalize(torch.randn(2, 8), dim=1)
    images = decoder_of(kind, size)(latents)
    assert images.shape == (2, 3, size, size)
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.001


@pytest.mark.parametrize("kind", SIZES_MADE)
def test_an_untrained_decoder_neither_explodes_nor_ignores_its_latent(kind: str):
    size = SIZES_MADE[kind][-1] if kind == "infogan" else 64
    images = decoder_of(kind, size, width=32)(F.normalize(torch.randn(64, 8), dim=1))
    saturated = ((images < 0.001) | (images > 0.999)).float().mean()
    assert saturated == 0 and images.std(dim=0).mean() > 0.005


def test_the_maps_of_the_smooth_decoder_add_the_same_detail_to_all_images_and_stop_at_128_px():
    decoder = decoder_of("smooth", 256)
    sizes = [part.map.shape[-1] for part in decoder.network.maps if part.map is not None]
    assert sizes == [8, 16, 32, 64, 128]
    features = torch.randn(2, 4, 8, 8)
    detail = DetailMap(4, 8)
    initialize(detail, stream(0, "test"))
    added = detail(features) - features
    assert torch.allclose(added[0], added[1], atol=1e-6) and 0.3 < added.std() < 0.7
    assert detail(features.bfloat16()).dtype == torch.bfloat16


def test_grey_decoders_have_one_channel():
    assert decoder_of("infogan", 28, channels=1)(torch.randn(2, 8)).shape == (2, 1, 28, 28)


def test_networks_come_back_from_their_files(tmp_path):
    decoder = decoder_of("dcgan", 64).eval()
    decoder.save(tmp_path / "decoder.safetensors")
    again = DecoderNetwork.load(tmp_path / "decoder.safetensors")
    latents = torch.randn(2, 8)
    assert again.architecture == decoder.architecture and torch.equal(again(latents), decoder(latents))
    with pytest.raises(GlannError, match="holds another kind of network"):
        MappingNetwork.load(tmp_path / "decoder.safetensors")
