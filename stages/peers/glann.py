"""peers: GLANN with another seed, and after less time; the seed is the argument."""

import sys
from pathlib import Path

from stages.frame import stage
from stages.frame.dvc import Place

seed = (*sys.argv[1:], "")[0]
folder = Path("data/peers/trained", f"glann-{seed}")

with stage(Place("glann", folder, "peers", Path("peers/dvc.yaml"), {"model": "glann", "seed": seed})) as this:
    import torch

    from glann.errors import DivergedError, GlannError
    from glann.glo.train import train_glo
    from glann.images.classes import load_classes, needed
    from glann.imle.fit import fit_imle
    from glann.networks.generator import load_generator, save_generator
    from glann.params import load_settings
    from glann.peers.settings import SNAPSHOTS, Peers
    from glann.runtime.compute import execution
    from glann.runtime.console import say
    from glann.runtime.files import load_json, save_json
    from glann.runtime.processes import from_first, rank, ranks
    from glann.training.checkpoints import Checkpoints
    from stages.peers.outcome import launch

    if not seed.isdecimal():
        raise GlannError("peers: name a seed, as in: 0")
    params = this.params
    # With the seed of params.yaml, the model is that of the pipeline itself, and shorter trainings show how
    # good it is after less time.
    known, epochs = int(seed) == params.seed, params.glo.epochs
    earlier = SNAPSHOTS if load_settings("peers/params.yaml", Peers).glann_curve else ()
    fractions = {max(1, round(at * epochs)) / epochs for at in earlier} - {1.0} if known else {1.0}

    def work() -> None:
        """Train for each fraction of the epochs, and write the generators."""
        images = this.prepared("images", check=rank() == 0)
        on = execution(params.compute)
        classes = None
        if params.imle.conditional:
            classes = needed(load_classes("data/prepare/classes.json"), params.prepare.source)
        noted = [load_json(path) for path in sorted(Path("data/inputs").glob("*.json"))]
        dataset = load_json("data/prepare/dataset.json")
        found = {}
        for at in sorted(fractions):
            glo = params.glo.model_copy(update={"epochs": round(at * epochs)})
            imle = params.imle.model_copy(update={"epochs": max(1, round(at * params.imle.epochs))})
            inputs = [glo.model_dump(), imle.model_dump(), seed, on.numerics, dataset, noted]
            of_glo, of_imle = (
                Checkpoints(this.checkpoints, f"glann_{name}", inputs, params.compute.checkpoint_minutes)
                for name in ("glo", "imle")
            )
            labels = None if classes is None else torch.from_numpy(classes.images)
            names = None if classes is None else classes.names
            try:
                trained = train_glo(images, glo, int(seed), on, of_glo)
                latents = from_first(trained.latents)  # which alone has all of them
                fitted = fit_imle(latents, imle, int(seed), on, of_imle, labels=labels, class_names=names)
            except DivergedError as error:
                if not known or ranks() > 1:  # the other processes may not have noticed
                    raise
                say(f"the curve of GLANN has no point at {at:g} of the training: {error}")
            else:
                found[at] = fitted.mapping, trained.decoder
        if known:
            found[1.0] = load_generator("data/imle/generator.safetensors")
        if rank() == 0:
            with this.outputs() as made:
                for at, networks in found.items():
                    name = "generator" if at == 1 else f"snapshots/{at:g}"
                    save_generator(made / f"{name}.safetensors", *networks)
                save_json(made / "result.json", {"images": epochs * len(images), "failed": None})

    launch(this, work)
