"""compare: measure GLANN and its rivals on the same hold-out images."""

from pathlib import Path
from typing import get_args

from stages.frame import stage
from stages.frame.dvc import Place

place = Place("compare", Path("data/peers/compared"), "peers", Path("peers/dvc.yaml"))

with stage(place) as this:
    from glann.params import load_settings
    from glann.peers.comparison import compare_peers
    from glann.peers.report import print_peers, write_peers_report
    from glann.peers.runs import find_runs, load_foreign
    from glann.peers.settings import Name, Peers
    from glann.projection.projector import Known, Projector
    from glann.runtime.checkpoint_files import remove_finished
    from glann.runtime.npy import load_latents
    from glann.sample.generator import Generator

    params, settings = this.params, load_settings("peers/params.yaml", Peers)
    for training in (*get_args(Name), "glann_glo", "glann_imle"):
        remove_finished(this.checkpoints, training)
    runs = find_runs(Path("data/peers/trained"), settings)
    generator = Generator.load("data/imle/generator.safetensors", params.compute)
    drawn = generator.decoder.architecture
    latents = load_latents("data/glo/latents.npy", drawn.latents)
    images, holdout = this.prepared("images"), this.prepared("holdout")
    foreign = load_foreign(this.located(settings.foreign), holdout, drawn)
    # Without hold-out images: they would be projected to say how far others are from the model.
    projector = Projector(generator, Known(images, latents, holdout[:0]), params.glo.loss.weights)
    with this.outputs() as folder:
        comparison = compare_peers(
            runs,
            settings,
            params.evaluate,
            params.seed,
            images,
            holdout,
            foreign,
            projector,
            latents,
            params.glo.loss.weights,
        )
        write_peers_report(comparison, holdout, folder)
        print_peers(comparison)
