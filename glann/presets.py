"""Presets, and params.yaml as text with a comment above every key."""

import io
from typing import Any

from pydantic import BaseModel
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from glann.errors import GlannError
from glann.params import Params
from glann.runtime.validation import did_you_mean, nearest
from glann.runtime.yaml_file import yaml_editor

SCHEMA_FILE = "docs/params.schema.json"

# For digits and clothes: the paper's decoder, and its sizes of latents and noise. Our mapping draws better.
_DIGITS: dict[str, Any] = {
    "glo": {
        "latent_dim": 64,
        "latent_noise": 0.7,
        "decoder": {"kind": "infogan", "width": 64},
        "loss": {"kind": "perceptual", "coarse": 0.4, "texture": 0.7},
        "epochs": 25,
        "batch_size": 64,
    },
    "imle": {"epochs": 130, "candidates": 4, "residuals": 0.9},  # measured on digits only
}

# For photographs. They also differ in small components: without whitening, or with noise, these are learned
# far more slowly.
_PHOTOGRAPHS: dict[str, Any] = {
    "latent_dim": 64,
    "latent_init": "pca_whitened",
    "latent_noise": 0.0,
    "decoder": {"kind": "smooth", "width": 32},
    # Features are some hundred times larger than pixel values. Without more weight on pixels, a decoder that
    # cannot yet tell images apart settles on one texture for all of them.
    "loss": {
        "kind": "perceptual",
        "levels": 3,
        "pixel_weight": 100.0,
        "coarse": 0.6,
        "texture": 2.0,
        # The features of 5,000 images of 64 px take 5.3 GiB in bfloat16, at both sizes; cached, a step takes
        # a third less time.
        "cache_gib": 6.0,
    },
    "batch_size": 16,
    "latent_lr": 0.01,
    "ema": 0.995,
}

_LONG_FIT = {"epochs": 300, "candidates": 8}

# What each preset changes; all other settings have their defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "avatars": {
        "prepare": {"count": 3500, "holdout": 500},
        # Small batches: with few images and few minutes, the number of steps matters most.
        "glo": {"epochs": 40, "batch_size": 16, "latent_lr": 0.02, "ema": 0.995},
        "imle": _LONG_FIT,
    },
    "faces64": {
        "prepare": {"source": "folder", "count": None, "resolution": 64},
        "glo": {
            **_PHOTOGRAPHS,
            "latent_dim": 32,  # with 64 and the decoder "residual", more samples are smeared
            # In a long training, larger steps would blur the order in which latents start.
            "latent_lr": 0.005,
            "epochs": 60,
        },
        "imle": _LONG_FIT,
    },
    # About 100 photographs. Latents lie so far apart that only long noise teaches the decoder what to draw
    # between them.
    "few": {
        "prepare": {"source": "folder", "count": None, "resolution": 64, "holdout": 20, "mirror": True},
        "glo": {
            **_PHOTOGRAPHS,
            "latent_dim": 16,
            "latent_noise": 1.0,
            "decoder": {"kind": "residual", "width": 32},  # "smooth" and slower latents were not tried
            "loss": {**_PHOTOGRAPHS["loss"], "texture": 1.0},
            "latent_lr": 0.02,
            "epochs": 600,
        },
        "imle": {"epochs": 400, "candidates": 10, "batch_size": 32, "lr": 0.001},
        "evaluate": {"features": "vgg"},  # principal components of 20 hold-out images would mean little
    },
    "mnist": {
        "prepare": {"source": "mnist", "count": None, "resolution": 28, "channels": 1},
        **_DIGITS,
    },
    "fashion_mnist": {
        "prepare": {"source": "fashion_mnist", "count": None, "resolution": 28, "channels": 1},
        **_DIGITS,
    },
    "cifar10": {
        "prepare": {"source": "cifar10", "count": None, "resolution": 32},
        "glo": {**_PHOTOGRAPHS, "epochs": 20},
        "imle": {"epochs": 100, "candidates": 4},
    },
    "celeba64": {
        "prepare": {"source": "celeba", "count": None, "resolution": 64},
        "glo": {**_PHOTOGRAPHS, "epochs": 10},  # not measured
    },
}


def preset(name: str) -> Params:
    """Return the settings of a preset.

    Raises
    ------
    GlannError
        If there is no preset of that name.
    """
    if name not in PRESETS:
        raise GlannError(
            f'no preset "{name[:60]}"; there are: {", ".join(PRESETS)}{did_you_mean(nearest(name, PRESETS))}'
        )
    return Params.model_validate(PRESETS[name])


def params_yaml(params: Params) -> str:
    """Return params as the text of a params.yaml, with a comment above each key."""
    return (
        f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
        '# "The paper" is GLANN (arXiv:1812.08985), "the GLO paper" is arXiv:1707.05776.\n'
        f"{commented_yaml(params)}"
    )


def commented_yaml(settings: BaseModel) -> str:
    """Return settings as YAML, with a comment above each key."""
    document = _commented(settings, indent=0)
    yaml = yaml_editor()
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def _commented(model: BaseModel, indent: int) -> CommentedMap:
    document = CommentedMap()
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        comment = field.description
        if isinstance(value, BaseModel):
            comment = comment or type(value).__doc__
            value = _commented(value, indent + 2)
        elif isinstance(value, list):
            value = CommentedSeq(v.model_dump() if isinstance(v, BaseModel) else v for v in value)
            value.fa.set_flow_style()
        document[name] = value
        document.yaml_set_comment_before_after_key(name, before=comment, indent=indent)
    return document
