"""What moves the quality of samples: one factor at a time from params.yaml, several seeds each.

    dvc repro prepare
    python -m benchmarks.study --seeds 3 --out study.json [VARIANT ...]

Works on data/prepare of the current folder. Latents and decoders are kept in .study/, so variants of `imle`
train none anew. A table of means and largest deviations is printed, and everything is written to --out.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from benchmarks import variants
from benchmarks.matching import Adaptive, assign, blurred, reject_nearest
from glann.compute import Execution, execution
from glann.config import Mapping, Params, load_params
from glann.decoders import DecoderNetwork
from glann.features import Network, choose_kind, extract, feature_network
from glann.generator import Generator
from glann.glo import train_glo
from glann.imle import Match, fit_imle
from glann.mapping import MappingArchitecture, MappingNetwork
from glann.metrics import frechet_distance, precision_recall
from glann.neighbors import nearest
from glann.pictures import grid, save_png
from glann.priors import draw_prior
from glann.storage import load_npy, load_tensors, save_json, save_tensors
from glann.streams import stream

Replaced = dict[str, Any]
"""What is looked up elsewhere, by its full name, and what is found there instead."""

MATCHES: dict[str, Callable[[], Match]] = {
    "reject": lambda: reject_nearest(0.2),
    "assign": lambda: assign,
    "adaptive": lambda: Adaptive(0.8),
    "blurred": lambda: blurred(0.3),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "params.yaml": {},
    "latents: whitened": {"glo": {"latent_init": "pca_whitened"}},
    "latents: random": {"glo": {"latent_init": "random"}},
    "latents: 32 numbers": {"glo": {"latent_dim": 32}},
    "latent noise: 0": {"glo": {"latent_noise": 0.0}},
    "latent noise: 0.25": {"glo": {"latent_noise": 0.25}},
    "latent noise: 0.5": {"glo": {"latent_noise": 0.5}},
    "latent noise: 0.7": {"glo": {"latent_noise": 0.7}},
    "whitened, no noise": {"glo": {"latent_init": "pca_whitened", "latent_noise": 0.0}},
    "latents: projected every 5th epoch, no noise": {
        "glo": {"latent_noise": 0.0},  # which would project them
        "glo_with": {"glann.glo.LatentTable": variants.ProjectedSeldom},
    },
    "latents: frozen late": {"glo_with": {"glann.glo.LatentTable": variants.FrozenLate}},
    "latents: penalty": {"glo_with": {"glann.glo.LatentTable": variants.Penalised}},
    "glo: half the epochs": {"glo": {"epochs": 0.5}},
    "glo: batches twice as large": {"glo": {"batch_size": 2.0}},
    "glo: batches half as large": {"glo": {"batch_size": 0.5}},
    "glo: latent_lr threefold": {"glo": {"latent_lr": 3.0}},
    "glo: constant rates": {"glo": {"schedule": "constant"}},
    "glo: no average": {"glo": {"ema": 0.0}},
    "decoder: twice as wide": {"glo": {"decoder": {"width": 2.0}}},
    "decoder: twice as wide, half the epochs": {"glo": {"epochs": 0.5, "decoder": {"width": 2.0}}},
    "decoder: dcgan": {"glo": {"decoder": {"kind": "dcgan", "width": 2.0}}},
    "decoder: two blocks": {"glo_with": {"glann.decoders.ModulatedBlock": variants.TwoBlocks}},
    "decoder: normalised": {"glo_with": {"glann.decoders.ModulatedBlock": variants.NormalizedBlock}},
    "decoder: noise per pixel": {"glo_with": {"glann.decoders.ModulatedBlock": variants.NoisyBlock}},
    "decoder: bilinear": {"glo_with": {"glann.decoders.ResidualDecoder": variants.BilinearDecoder}},
    "decoder: transposed": {"glo_with": {"glann.decoders.ResidualDecoder": variants.TransposedDecoder}},
    "loss: 2 levels": {"glo": {"loss": {"levels": 2}}},
    "loss: 4 levels": {"glo": {"loss": {"levels": 4}}},
    "loss: pixels weigh a tenth": {"glo": {"loss": {"pixel_weight": 0.1}}},
    "loss: crops of 32 px": {"glo": {"loss": {"crop": 32}}},
    "imle: epochs a third": {"imle": {"epochs": 1 / 3}},
    "imle: epochs threefold": {"imle": {"epochs": 3.0}},
    "imle: lr a third": {"imle": {"lr": 1 / 3}},
    "imle: lr threefold": {"imle": {"lr": 3.0}},
    "imle: candidates half": {"imle": {"candidates": 0.5}},
    "imle: candidates fivefold": {"imle": {"candidates": 5.0}},
    "match: not the nearest fifth (RS-IMLE)": {"match": "reject"},
    "match: one-to-one": {"match": "assign"},
    "match: adaptive, 0.8": {"match": "adaptive"},
    "match: noise moved by 0.3": {"match": "blurred"},
    "imle: search every 5 epochs": {"imle": {"refresh": 5}},
    "mapping: the paper's": {"imle": {"mapping": {"kind": "mlp", "width": 128, "depth": 2}}},
    "mapping: twice as wide": {"imle": {"mapping": {"width": 2.0}}},
    "mapping: twice as deep": {"imle": {"mapping": {"depth": 2.0}}},
    "mapping: output off the sphere": {
        "imle_with": {"glann.mapping.MappingNetwork.project": variants.free_output}
    },
    "imle: noise of 16 numbers": {"imle": {"noise_dim": 16}},
    "imle: noise of 64 numbers": {"imle": {"noise_dim": 64}},
    "imle: no average": {"imle": {"ema": 0.0}},
    "imle: moments not corrected": {"imle": {"correct_moments": False}},
    "imle: no residuals": {"imle": {"residuals": 0.0}},
    "imle: residuals 0.8": {"imle": {"residuals": 0.8}},
    "imle: residuals whole": {"imle": {"residuals": 1.0}},
    "imle: squared distances": {"imle": {"loss": "squared"}},
    "imle: squared distances, lr a third": {"imle": {"loss": "squared", "lr": 1 / 3}},
    **{f"truncation: {t}": {"sample": {"truncation": t}} for t in (0.5, 0.7, 0.8, 0.9, 1.1, 1.2)},
    "instead of imle: Gaussian": {"prior": "gaussian"},
    "instead of imle: mixture": {"prior": "mixture"},
    "instead of imle: flow": {"prior": "flow"},
    "instead of imle: i-ResNet": {"prior": "iresnet"},
}
# floats multiply these
FACTORS = {"batch_size", "width", "depth", "epochs", "candidates", "lr", "latent_lr", "pixel_weight"}
# Changes of what is no key of params.yaml: other code in GLO, in IMLE, another match, another prior.
OTHERS = {"glo_with", "imle_with", "match", "prior"}
COLUMNS = (
    "frechet_reconstructions",
    "precision_reconstructions",
    "recall_reconstructions",
    "frechet",
    "precision",
    "recall",
    "seconds_glo",
    "seconds_prior",
)


def varied(params: Params, changes: dict[str, Any], seed: int) -> Params:
    """Return params with changed keys; a float changes a key in `FACTORS` by that factor."""

    def update(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        merged = dict(old)
        for key, value in new.items():
            if isinstance(value, dict):
                merged[key] = update(old[key], value)
            elif key in FACTORS and isinstance(value, float):
                merged[key] = type(old[key])(round(old[key] * value, 6))
            else:
                merged[key] = value
        return merged

    return Params.model_validate(update(params.model_dump(), changes) | {"seed": seed})


class Study:
    """Trains and measures variants of one set of images.

    Parameters
    ----------
    images, holdout
        uint8 [n, h, w, c] and [m, h, w, c].
    params
        What the variants differ from.
    kept
        Folder for trained latents and decoders.
    """

    def __init__(self, images: NDArray[np.uint8], holdout: NDArray[np.uint8], params: Params, kept: Path):
        self.images, self.params, self.kept = images, params, kept
        self.count = min(params.evaluate.count, len(images))
        self.execution: Execution = execution(params.compute)
        kind = choose_kind(params.evaluate.features, params.evaluate.weights)
        self.network: Network = feature_network(kind, params.evaluate.weights, holdout, self.execution)
        self.reference = extract(self.network, holdout, "features of hold-out")
        others = params.model_dump(exclude={"seed", "glo", "imle"})
        arrays = [hashlib.sha256(np.ascontiguousarray(rows)).hexdigest() for rows in (images, holdout)]
        self.fingerprint = hashlib.sha256(json.dumps([others, *arrays]).encode()).hexdigest()

    def measure(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Compare images with the hold-out."""
        features = extract(self.network, images, "features")
        precision, recall = precision_recall(features, self.reference)
        distance = frechet_distance(features, self.reference)
        return {"frechet": distance, "precision": precision, "recall": recall}

    def measure_reconstructions(self, latents: Tensor, decoder: DecoderNetwork) -> dict[str, float]:
        """Compare up to three sets of `count` reconstructions with the hold-out; return the means.

        Distances of so few images vary by a tenth with which they are.
        """
        rows = torch.randperm(len(latents), generator=stream(0, "study")).split(self.count)
        sets = [part for part in rows if len(part) == self.count][:3]
        generator = self.generator(decoder)
        measured = [self.measure(generator.decode(latents[part])) for part in sets]
        return {key: float(np.mean([one[key] for one in measured])) for key in measured[0]}

    def generator(self, decoder: DecoderNetwork, mapping: MappingNetwork | None = None) -> Generator:
        """Return what decodes latents, and maps noise if there is a mapping for it."""
        dim = decoder.architecture.latent_dim
        none = MappingArchitecture(config=Mapping(width=4, depth=1), noise_dim=1, latent_dim=dim)
        return Generator(mapping or MappingNetwork(none), decoder, self.execution)

    def glo(self, params: Params, instead: Replaced) -> tuple[Tensor, DecoderNetwork, dict[str, float]]:
        """Return latents, decoder and the measures of reconstructions: trained, or as kept."""
        path = self.kept_as(params.seed, instead, params.glo)
        if not (path / "measures.json").is_file():
            start = time.perf_counter()
            torch.manual_seed(params.seed)  # some decoders draw at random
            result = train_glo(self.images, params.glo, params.seed, self.execution)
            seconds = time.perf_counter() - start
            latents = F.normalize(result.latents, dim=1)  # where they are not always projected
            save_tensors(path / "latents.safetensors", {"latents": latents})
            result.decoder.save(path / "decoder.safetensors")
            measures = self.measure_reconstructions(latents, result.decoder) | {"seconds": seconds}
            save_json(path / "measures.json", measures)
        latents = load_tensors(path / "latents.safetensors")[0]["latents"]
        decoder = DecoderNetwork.load(path / "decoder.safetensors")
        return latents, decoder, json.loads((path / "measures.json").read_text())

    def mapping(
        self, latents: Tensor, params: Params, match: str | None, instead: Replaced
    ) -> tuple[MappingNetwork, float]:
        """Return the mapping and the seconds that it took: fitted, or as kept; `match` is of `MATCHES`."""
        path = self.kept_as(params.seed, instead | {"match": match}, params.glo, params.imle)
        if not (path / "seconds.json").is_file():
            start = time.perf_counter()
            torch.manual_seed(params.seed)  # some ways of matching draw at random
            chosen = MATCHES[match]() if match else None
            result = fit_imle(latents, params.imle, params.seed, self.execution, match=chosen)
            result.mapping.save(path / "mapping.safetensors")
            save_json(path / "seconds.json", time.perf_counter() - start)
        mapping = MappingNetwork.load(path / "mapping.safetensors")
        return mapping, json.loads((path / "seconds.json").read_text())

    def kept_as(self, seed: int, instead: Replaced, *sections: BaseModel) -> Path:
        """Return the folder of what these images, settings and replaced parts give."""
        parts = {name: getattr(part, "__name__", part) for name, part in instead.items() if part is not None}
        settings = [self.fingerprint, seed, *(section.model_dump() for section in sections), parts]
        return self.kept / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def run(self, changes: dict[str, Any], seed: int, picture: Path) -> dict[str, float]:
        """Train and measure one variant with one seed; draw 64 of its samples."""
        params = varied(self.params, {k: v for k, v in changes.items() if k not in OTHERS}, seed)
        parts = changes.get("glo_with", {})
        with replaced(parts):
            latents, decoder, reconstructed = self.glo(params, parts)
        with replaced(changes.get("imle_with", {})):
            drawn, seconds = self.draw(latents, decoder, params, changes)
            torch.manual_seed(seed)
            samples = self.generator(decoder).decode(drawn)
        drawn = F.normalize(drawn, dim=1)
        save_png(picture, grid(samples[:64]))
        return {
            "frechet_reconstructions": reconstructed["frechet"],
            "precision_reconstructions": reconstructed["precision"],
            "recall_reconstructions": reconstructed["recall"],
            **self.measure(samples),
            "latent_to_sample": nearest(latents, drawn)[0].mean().item(),
            "sample_to_latent": nearest(drawn, latents)[0].mean().item(),
            "seconds_glo": reconstructed["seconds"],
            "seconds_prior": seconds,
        }

    def draw(
        self, latents: Tensor, decoder: DecoderNetwork, params: Params, changes: dict[str, Any]
    ) -> tuple[Tensor, float]:
        """Return latents of samples, float32 [count, d], and the seconds that what draws them took to fit."""
        if prior := changes.get("prior"):
            start = time.perf_counter()
            drawn = draw_prior(prior, latents, self.count, params.seed, params.evaluate, self.execution)
            return drawn, time.perf_counter() - start
        parts = changes.get("glo_with", {}) | changes.get("imle_with", {})
        mapping, seconds = self.mapping(latents, params, changes.get("match"), parts)
        generator = self.generator(decoder, mapping)
        return generator.sample_latents(self.count, 1, params.sample.truncation), seconds


@contextmanager
def replaced(parts: Replaced) -> Iterator[None]:
    """Put other code where these names are looked up, for a while."""
    with ExitStack() as stack:
        for name, part in parts.items():
            stack.enter_context(patch(name, part))
        yield


def row(name: str, runs: list[dict[str, float]]) -> str:
    """Return a line of a Markdown table: means over seeds, and the largest deviations from them."""
    cells = []
    for column in COLUMNS:
        values = np.array([run[column] for run in runs])
        cells.append(f"{values.mean():.3g} ± {np.abs(values - values.mean()).max():.2g}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", help=f"default: all of: {', '.join(VARIANTS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("study.json"), help="pictures go beside it")
    options = parser.parse_args()
    unknown = set(options.variants) - set(VARIANTS)
    if unknown:
        parser.error(f"no variant called {', '.join(sorted(unknown))}; there are: {', '.join(VARIANTS)}")
    images = load_npy("data/prepare/images.npy", mmap=True)
    study = Study(images, load_npy("data/prepare/holdout.npy"), load_params(), Path(".study"))
    of = study.kept_as(0, {}, study.params.glo, study.params.imle).name
    results = json.loads(options.out.read_text()) if options.out.is_file() else {"of": of, "variants": {}}
    if results["of"] != of:
        parser.error(f"{options.out} is of other images or another params.yaml; choose another --out")
    print(f"| variant | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}", flush=True)
    for name in options.variants or VARIANTS:
        runs = results["variants"].setdefault(name, [])
        for seed in range(len(runs), options.seeds):  # what was interrupted goes on
            picture = options.out.with_name(
                f"{options.out.stem}-{''.join(filter(str.isalnum, name))}-{seed}.png"
            )
            runs.append(study.run(VARIANTS[name], seed, picture))
            save_json(options.out, results)
        print(row(name, runs), flush=True)


if __name__ == "__main__":
    main()
