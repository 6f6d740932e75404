"""peers: train one rival; its name and its seed are the arguments."""

import sys
from pathlib import Path

from stages.frame import stage
from stages.frame.dvc import Place

name, seed = (*sys.argv[1:], "", "")[:2]
folder = Path("data/peers/trained", f"{name}-{seed}")

with stage(Place("train", folder, "peers", Path("peers/dvc.yaml"), {"model": name, "seed": seed})) as this:
    from glann.errors import GlannError
    from glann.networks.decoders.network import DecoderArchitecture
    from glann.networks.generator import save_generator
    from glann.params import load_settings
    from glann.peers.settings import Peers
    from glann.peers.train import STEPS, identity, train_peer
    from glann.runtime.compute import execution
    from glann.runtime.files import load_json, save_json
    from glann.runtime.processes import rank
    from glann.training.checkpoints import Checkpoints
    from glann.training.watch import Watch
    from stages.peers.outcome import launch

    params, settings = this.params, load_settings("peers/params.yaml", Peers)
    if name not in STEPS or not seed.isdecimal():
        raise GlannError(f"peers: name a rival ({', '.join(STEPS)}) and a seed, as in: gan 0")
    config = getattr(settings, name)

    def work() -> None:
        """Train on the prepared images and write the result."""
        images = this.prepared("images", check=rank() == 0)
        on = execution(params.compute)
        dataset = load_json("data/prepare/dataset.json")
        prepared = {key: dataset[key] for key in ("fit", "background")}
        architecture = DecoderArchitecture(
            config=params.glo.decoder,
            latent_dim=params.glo.latent_dim,
            size=images.shape[1],
            channels=images.shape[3],
            origin=params.glo.loss.origin.model_copy(update=prepared),
        )
        noted = load_json("data/inputs/glo_weights.json")
        used = config.model_dump(exclude={"seconds"})
        inputs = [architecture.model_dump(), params.glo.loss.model_dump(), used, seed]
        checkpoints = Checkpoints(
            this.checkpoints, name, [*inputs, on.numerics, dataset, noted], params.compute.checkpoint_minutes
        )
        watch = None
        if rank() == 0:
            watch = Watch(this.page, f"{name}: samples", params.compute.watch_minutes, events=this.events)
        result = train_peer(
            name, images, config, architecture, params.glo.loss, int(seed), on, checkpoints, watch
        )
        if rank() == 0:
            with this.outputs() as made:
                mapping = identity(architecture.latent_dim)
                save_generator(made / "generator.safetensors", mapping, result.decoder)
                for at, decoder in result.snapshots.items():
                    save_generator(made / f"snapshots/{at:g}.safetensors", mapping, decoder)
                result.judge.save(made / "judge.safetensors")
                save_json(made / "losses.json", result.history)
                seen = len(result.history) * len(images)
                outcome = {"images": seen, "seconds": config.seconds, "failed": None}
                save_json(made / "result.json", outcome)

    launch(this, work)
