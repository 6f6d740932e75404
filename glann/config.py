"""The schema of params.yaml: a frozen model per section, every key with its meaning, unit and bounds."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from glann.complaints import one_line
from glann.errors import GlannError
from glann.indexes import parse_index
from glann.yaml_file import read_yaml

STAGES = ("prepare", "glo", "imle", "sample", "evaluate")
SIZES_MADE = {
    "infogan": (28, 32),
    "dcgan": (64, 128, 256, 512, 1024),
    "residual": (16, 32, 64, 128, 256, 512, 1024),
}

MOST_DIMENSIONS = 2**20  # of latents and noise that a file may name

LARGEST = 10**9  # of numbers that have no bound of their own: what they are multiplied by still fits 64 bits


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "should have no NUL character")
    return text


Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]


class Section(BaseModel):
    """A section of params.yaml: keys are checked strictly, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Compute(Section):
    """How a run is executed, never what it computes; DVC does not track it."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:(0|[1-9][0-9]?))?)$")
    """auto (a GPU where there is one), cpu, cuda or cuda:N"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the processor has it in hardware, float32 elsewhere"""
    threads: int = Field(2, ge=1, le=1024)
    """CPU threads of each process; written down because float sums depend on their number"""
    processes: int = Field(1, ge=1, le=1024)
    """processes of both training stages on this machine, one per GPU; under torchrun its number counts"""
    checkpoint_minutes: float = Field(10, ge=0, allow_inf_nan=False)
    """minutes between training checkpoints; 0: after every step"""

    @model_validator(mode="after")
    def _a_gpu_each(self) -> Self:
        if self.processes > 1 and self.device.startswith("cuda:"):
            raise ValueError(
                f"device: {self.device} is one GPU; for several processes set it to cuda or auto"
            )
        return self


class Prepare(Section):
    """Where images come from and how they become one array."""

    source: Literal[
        "avatars", "folder", "npy", "mnist", "fashion_mnist", "cifar10", "celeba", "olivetti", "lfw"
    ] = "avatars"
    """avatars (drawn here), folder, npy, mnist, fashion_mnist, cifar10, celeba, olivetti or lfw"""
    path: Text = "data/raw"
    """folder: searched with its subfolders; npy: an array file [n, h, w] or [n, h, w, c]; else unused"""
    count: int | None = Field(8000, ge=3, le=LARGEST)
    """images taken, hold-out included; null: all there are (avatars need a number)"""
    resolution: int = Field(64, ge=16, le=1024)
    """height and width of the prepared images, pixels"""
    channels: Literal[1, 3] = 3
    """1: grey, 3: RGB"""
    fit: Literal["crop", "pad"] = "crop"
    """how an oblong image becomes square: crop (its centre) or pad (with the background)"""
    background: list[Annotated[int, Field(ge=0, le=255)]] = Field([255, 255, 255], min_length=3, max_length=3)
    """RGB behind transparent pixels and padding, 0 to 255"""
    holdout: int = Field(1000, ge=2, le=LARGEST)
    """images set aside for evaluation, never trained on"""
    max_bad_fraction: float = Field(0.1, ge=0, le=1)
    """stop when more than this share of the files cannot be read"""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.source == "avatars" and self.count is None:
            raise ValueError("count: avatars are drawn on demand, so say how many, e.g. 8000")
        if self.count is not None and self.holdout >= self.count:
            raise ValueError(
                f"holdout: {self.holdout} of {self.count} images leave none to train on; "
                "lower prepare.holdout or raise prepare.count"
            )
        return self


class Decoder(Section):
    """The network from latents to images."""

    kind: Literal["infogan", "dcgan", "residual"] = "residual"
    """infogan (the paper's, 28 and 32 px), dcgan (64 px and up), residual (16 to 1024 px)"""
    width: int = Field(32, ge=4, le=1024)
    """channels at the highest resolution; lower resolutions have more (the papers: 64)"""
    batch_norm: bool = True
    """batch normalisation in infogan and dcgan (the paper: off for cifar10); residual has none"""


class Loss(Section):
    """What "looks like" means while latents and decoder are trained."""

    kind: Literal["l1", "laplacian", "perceptual"] = "laplacian"
    """l1, laplacian (the GLO paper's pyramid), perceptual (the GLANN paper's VGG-16 features plus L1)"""
    levels: int = Field(4, ge=1, le=5)
    """perceptual: VGG-16 blocks compared, from conv1_2 (1) to conv5_3 (5)"""
    pixel_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """perceptual: weight of the L1 distance of the pixels beside the features (the paper: 1)"""
    crop: int | None = Field(None, ge=16, le=1024)
    """perceptual: features are compared on a random square of so many pixels, drawn anew each step, to
    save time; null: on the whole image"""
    cache_gib: float = Field(4, ge=0, allow_inf_nan=False)
    """perceptual, crop null: memory for features of the training images, GiB per process; they are computed
    once if they fit, else at each step; 0: never kept"""
    weights: Text | None = None
    """perceptual: VGG-16 weights, .safetensors or torchvision's .pth; null: torchvision downloads them"""


class ParameterGroup(Section):
    """Settings for the parameters whose name matches; the first matching group counts."""

    match: Text
    """shell pattern on the parameter's name, e.g. "blocks.0.*" """
    lr_multiplier: float = Field(1.0, ge=0, allow_inf_nan=False)
    """factor on the learning rate; 0 freezes"""
    gradient: Literal["none", "clip_norm", "clip_value", "normalize"] = "none"
    """what happens to the group's gradient before each step; normalize sets its L2 norm to the limit"""
    limit: float = Field(1.0, gt=0, allow_inf_nan=False)
    """L2 norm for clip_norm and normalize, absolute value for clip_value"""


class Glo(Section):
    """Latents and decoder, optimised together (GLO)."""

    latent_dim: int = Field(64, ge=2, le=4096)
    """numbers per latent (the paper: 64)"""
    latent_init: Literal["pca", "pca_whitened", "random"] = "pca"
    """the images' principal components, as they are or whitened, or normal noise; all on the unit sphere"""
    latent_noise: float = Field(0.25, ge=0, le=10)
    """length of the noise on a latent, of length 1, when it is decoded in training (the paper: 0)"""
    decoder: Decoder = Decoder()
    loss: Loss = Loss()
    epochs: int = Field(20, ge=1, le=LARGEST)
    """passes over the training images"""
    batch_size: int = Field(128, ge=1, le=LARGEST)
    """images per step"""
    latent_lr: Rate = 0.01
    """Adam's learning rate of the latents (the paper: 0.01)"""
    decoder_lr: Rate = 0.001
    """Adam's learning rate of the decoder (the paper: 0.001)"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """learning rates over the run: cosine (down to 0) or constant"""
    ema: float = Field(0.99, ge=0, lt=1)
    """decay per step of the decoder's moving average, which is the one kept; 0: the last weights"""
    parameter_groups: list[ParameterGroup] = [ParameterGroup(match="*", gradient="normalize")]
    """settings by layer, e.g. [{match: "to_image.*", lr_multiplier: 0.5, gradient: clip_norm, limit: 1.0}]"""


class Mapping(Section):
    """The network from noise to latents."""

    kind: Literal["mlp", "residual"] = "residual"
    """mlp (the paper's, with batch normalisation) or residual (with layer normalisation)"""
    width: int = Field(256, ge=4, le=8192)
    """units per hidden layer (the paper: 128)"""
    depth: int = Field(3, ge=1, le=64)
    """hidden layers of mlp (the paper: 2), blocks of residual"""


class Imle(Section):
    """The mapping, fitted by nearest-neighbour matching (IMLE)."""

    noise_dim: int = Field(32, ge=1, le=4096)
    """numbers per noise draw (the paper: 32)"""
    mapping: Mapping = Mapping()
    candidates: float = Field(2, gt=0, le=1000)
    """noise draws per latent in each epoch's search (the paper: 2)"""
    index: str = "Flat"
    """Faiss index string: Flat is exact; for millions e.g. IVF4096,Flat;nprobe=8; docs/imle.md lists all"""
    refresh: int = Field(1, ge=1, le=LARGEST)
    """epochs between two searches for the nearest candidates (the paper: 1)"""
    epochs: int = Field(60, ge=1, le=LARGEST)
    """passes over the latents (the paper: 50)"""
    batch_size: int = Field(128, ge=2, le=LARGEST)
    """latents per step"""
    loss: Literal["distance", "squared"] = "distance"
    """what a matched pair costs: its distance, or that squared (the paper)"""
    lr: Rate = 0.003
    """Adam's learning rate (the paper: 0.001)"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """learning rate over the run: cosine (down to 0) or constant"""
    ema: float = Field(0.99, ge=0, lt=1)
    """decay per step of the mapping's moving average, which is the one kept; 0: the last weights"""
    correct_moments: bool = True
    """whether outputs, before residuals, are given the latents' mean and covariance (the paper: false)"""
    residuals: float = Field(0.0, ge=0, le=1)
    """share of matched pairs' residuals that samples nearby get, for variety; 0: none (the paper)"""
    parameter_groups: list[ParameterGroup] = []
    """settings by layer, as in glo"""

    @model_validator(mode="after")
    def _known_index(self) -> Self:
        parse_index(self.index)
        return self


class Sample(Section):
    """The pictures that the sample stage draws."""

    count: int = Field(64, ge=1, le=LARGEST)
    """images in the grid and in the folder of single images"""
    seed: int = Field(0, ge=0, lt=2**63)
    """which images: equal seeds give equal pictures"""
    truncation: float = Field(1.0, gt=0, le=10)
    """factor on the noise: below 1 more typical images, less variety"""
    interpolations: int = Field(6, ge=1, le=64)
    """rows of the interpolation strip"""
    interpolation_steps: int = Field(10, ge=2, le=64)
    """images per row of the interpolation strip, ends included"""


class Evaluate(Section):
    """How the model is measured."""

    features: Literal["auto", "inception", "vgg", "pixels"] = "auto"
    """inception (FID's network), vgg, pixels (PCA); auto: inception if its weights are here, else pixels"""
    weights: Text | None = None
    """weights of inception (torch-fidelity's .pth) or vgg (as glo.loss.weights); null: downloaded"""
    count: int = Field(5000, ge=2, le=LARGEST)
    """images per row of the table, at most; each row is compared with the hold-out images"""
    priors: list[Literal["gaussian", "mixture", "flow", "iresnet"]] = ["gaussian", "mixture"]
    """other models of the latents to compare with; flow needs the package zuko, iresnet normflows"""
    mixture_components: int = Field(50, ge=1, le=LARGEST)
    """components of the Gaussian mixture"""


class Params(Section):
    """All of params.yaml."""

    seed: int = Field(0, ge=0, lt=2**63)
    """of every random draw in every stage but sample, which has its own"""
    compute: Compute = Compute()
    prepare: Prepare = Prepare()
    glo: Glo = Glo()
    imle: Imle = Imle()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()

    @field_validator(*STAGES, "compute", mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value  # `glo:` with nothing below it

    @model_validator(mode="after")
    def _decoder_makes_the_size(self) -> Self:
        kind, size = self.glo.decoder.kind, self.prepare.resolution
        if size not in SIZES_MADE[kind]:
            others = [name for name, sizes in SIZES_MADE.items() if size in sizes]
            other = f", or choose glo.decoder.kind {' or '.join(others)}" if others else ""
            allowed = ", ".join(map(str, SIZES_MADE[kind]))
            raise ValueError(f"prepare.resolution: {size} px, but {kind} decoders make {allowed}{other}")
        return self


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a params.yaml.

    Raises
    ------
    GlannError
        One line with the file, the key path, what is wrong and what is allowed.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise GlannError(f"{path}: no such file; make one with: glann params > {path}") from None
    if values is not None and not isinstance(values, dict):
        raise GlannError(f"{path}: expected sections such as glo:, found a {type(values).__name__}")
    try:
        return Params.model_validate(values or {})
    except ValidationError as error:
        raise GlannError(f"{path}: {one_line(error, Params)}") from None
