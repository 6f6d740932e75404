"""The settings of the rivals: peers/params.yaml."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from glann.networks.decoders.settings import Decoder
from glann.runtime.settings import IN_FILE, LARGEST, PathText, Section
from glann.training.settings import BETAS, ParameterGroup, Rate

LESS_MEMORY = "lower the peer's batch_size in peers/params.yaml, or glo.decoder.width"
"""what to advise if memory runs out"""
MOST_IMAGES = 10**12
SNAPSHOTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""fractions of the training after which the decoder is kept"""
Beta = Annotated[float, Field(ge=0, lt=1)]
Name = Literal["vae", "gan", "wgan_gp", "ogan", "energy"]


def is_deep(decoder: Decoder) -> bool:
    """Return whether a decoder, and thereby its judge, consists of residual blocks."""
    return decoder.kind in ("residual", "smooth")


def _or_usual(value: float | None, decoder: Decoder, shallow: float, deep: float) -> float:
    """Return a setting, or what it is by default with a shallow or a deep decoder."""
    if value is not None:
        return value
    return deep if is_deep(decoder) else shallow


class Peer(Section):
    """What all rivals have in common."""

    rates: ClassVar[tuple[float, float]] = 0.0005, 0.0002
    """learning rates with shallow decoders and with deep ones, whose judges are deep too, without
    normalisation; there, higher rates diverged"""

    images: int = Field(1_000_000, ge=1, le=MOST_IMAGES)
    """images seen in training, repeats counted; rounded to whole passes"""
    seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    """time that these images take, to be reported; `glann peers` writes both; null: not measured"""
    batch_size: int = Field(64, ge=2, le=LARGEST)
    """images per step"""
    lr: Rate | None = None
    """learning rate of all networks; parameter_groups can change it for one of them; null: 0.0005 with
    decoders infogan and dcgan, 0.0002 with residual and smooth"""
    betas: list[Beta] = Field([*BETAS], min_length=2, max_length=2)
    """decays per step of Adam's means of gradients and of squared gradients"""
    schedule: Literal["cosine", "constant"] = "constant"
    """learning rate over time: cosine (decays to 0) or constant"""
    ema: float = Field(0.999, ge=0, lt=1)
    """decay per step of the decoder's moving average, which becomes the result; 0: no averaging"""
    parameter_groups: list[ParameterGroup] = Field([])
    """settings per layer, as in glo; names begin with decoder, judge or statistics"""

    def rate(self, decoder: Decoder) -> float:
        """Return the learning rate."""
        return _or_usual(self.lr, decoder, *self.rates)


class Vae(Peer):
    """Variational autoencoder (arXiv:1312.6114) with the reconstruction loss of GLO."""

    rates: ClassVar[tuple[float, float]] = 0.001, 0.0003

    lr: Rate | None = None
    """learning rate of all networks; parameter_groups can change it for one of them; null: 0.001 with
    decoders infogan and dcgan, 0.0003 with residual and smooth"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """learning rate over time: cosine (decays to 0) or constant"""
    parameter_groups: list[ParameterGroup] = Field([ParameterGroup(match="*", gradient="normalize")])
    """settings per layer, as in glo; names begin with decoder or judge"""
    beta: float | None = Field(None, ge=0, le=1000)
    """weight of the KL divergence, per dimension of the latent, against glo.loss (arXiv:1804.03599); null: if
    this is perceptual, 30 with decoders infogan and dcgan, 3 with residual and smooth; otherwise 0.02"""

    def weight(self, decoder: Decoder, loss: str) -> float:
        """Return the weight of the divergence, beside a kind of loss."""
        if loss != "perceptual":  # features differ by far larger numbers than pixels
            return _or_usual(self.beta, decoder, 0.02, 0.02)
        return _or_usual(self.beta, decoder, 30.0, 3.0)


class Gan(Peer):
    """Generative adversarial network (arXiv:1406.2661): non-saturating loss, R1 (arXiv:1801.04406)."""

    penalty: float | None = Field(None, ge=0, le=1e6)
    """weight gamma of R1, half the squared gradient of the discriminator at training images; null: 1 with
    decoders infogan and dcgan, 10 with residual and smooth"""
    penalty_every: int = Field(4, ge=1, le=1000)
    """steps from one penalty to the next, which then counts as often (arXiv:1912.04958)"""

    def weight(self, decoder: Decoder) -> float:
        """Return the weight of the penalty."""
        return _or_usual(self.penalty, decoder, 1.0, 10.0)


class WganGp(Peer):
    """Wasserstein GAN with a gradient penalty (arXiv:1704.00028)."""

    penalty: float = Field(10.0, ge=0, le=1e6)
    """weight of the penalty"""
    critic_steps: int = Field(2, ge=1, le=100)
    """steps of the critic per step of the decoder, each with batch_size images (in the paper: 5)"""


class Ogan(Peer):
    """O-GAN (arXiv:1903.01931): the discriminator is also the encoder."""

    rates: ClassVar[tuple[float, float]] = 0.0005, 0.0001

    lr: Rate | None = None
    """learning rate of all networks; parameter_groups can change it for one of them; null: 0.0005 with
    decoders infogan and dcgan, 0.0001 with residual and smooth"""
    correlation: float | None = Field(None, ge=0, le=1000)
    """weight of the correlation of noise and code; null: 0.1 with decoders infogan and dcgan, 0.5 (as in the
    paper) with residual and smooth"""

    def weight(self, decoder: Decoder) -> float:
        """Return the weight of the correlation."""
        return _or_usual(self.correlation, decoder, 0.1, 0.5)


class Energy(Peer):
    """Energy-based model whose generator has as much entropy as possible (arXiv:1901.08508)."""

    rates: ClassVar[tuple[float, float]] = 0.0005, 0.0001

    lr: Rate | None = None
    """learning rate of all networks; parameter_groups can change it for one of them; null: 0.0005 with
    decoders infogan and dcgan, 0.0001 with residual and smooth"""
    penalty: float | None = Field(None, ge=0, le=1e6)
    """weight of the squared gradient of the energy at training images; null: 0.1 with decoders infogan and
    dcgan, 10 with residual and smooth"""
    entropy: float = Field(0.1, ge=0, le=1e6)
    """weight of the mutual information of noise and image, which stands for the entropy"""

    def weight(self, decoder: Decoder) -> float:
        """Return the weight of the penalty."""
        return _or_usual(self.penalty, decoder, 0.1, 10.0)


class Refine(Section):
    """How samples are refined by their energy, with Langevin steps of their noise (arXiv:1901.08508)."""

    steps: int = Field(20, ge=1, le=100_000)
    """steps per sample"""
    rate: float = Field(0.01, gt=0, le=10)
    """size of a step"""
    weight: float = Field(0.1, gt=0, le=1e6)
    """factor on the energy of an image, so that samples stay varied"""


class Peers(Section):
    """All of peers/params.yaml."""

    printed_by: ClassVar[str] = "glann params --peers"

    models: list[Name] = Field(["vae", "gan", "wgan_gp", "ogan", "energy"], min_length=1)
    """rivals to train: vae, gan, wgan_gp, ogan, energy"""
    seeds: list[int] = Field([0], min_length=1)
    """a training of each rival per seed, with the seed instead of that in params.yaml"""
    glann_curve: bool = True
    """train GLANN for 1/16, 1/8, 1/4 and 1/2 of its epochs too, for its curve, if the seed of params.yaml is
    one of the seeds; takes nearly as long again"""
    foreign: PathText | None = None
    """pictures that a model should find foreign, .npy, uint8 [n, h, w] or [n, h, w, c]; null: the held-out
    images with inverted brightness"""
    vae: Vae = Vae()
    gan: Gan = Gan()
    wgan_gp: WganGp = WganGp()
    ogan: Ogan = Ogan()
    energy: Energy = Energy()
    refine: Refine = Refine()

    @model_validator(mode="after")
    def _has_what_dvc_reads(self, info: ValidationInfo) -> Self:
        needed = {"models", "seeds", "glann_curve", "foreign", "refine", *self.models}
        missing = [name for name in type(self).model_fields if name in needed - self.model_fields_set]
        if info.context == IN_FILE and missing:
            raise ValueError(
                f"{', '.join(missing)}: missing, and DVC reads the file without defaults; copy from what "
                "glann params --peers prints"
            )
        return self

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("models", "seeds"):
            if len({*(values := getattr(self, name))}) != len(values):
                raise ValueError(f"{name}: each one once")
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError("seeds: use numbers from 0 to 2**63 - 1")
        return self
