"""glo: train a decoder, and one latent per image."""

from pathlib import Path

from stages.frame import stage

with stage("glo") as this:
    from glann.glo.train import train_glo
    from glann.images.classes import load_classes, needed
    from glann.runtime.compute import execution
    from glann.runtime.files import file_digest, load_json, save_json
    from glann.runtime.npy import save_npy
    from glann.runtime.processes import rank
    from glann.training.checkpoints import Checkpoints
    from glann.training.watch import Watch

    params = this.params

    def work() -> None:
        """Train on the prepared images and write the result."""
        images = this.prepared("images", check=rank() == 0)
        on = execution(params.compute)
        noted = [load_json(path) for path in sorted(Path("data/inputs").glob("glo_*.json"))]
        dataset = load_json("data/prepare/dataset.json")
        inputs = [params.glo.model_dump(), params.seed, on.numerics, dataset, noted]
        checkpoints = Checkpoints(this.checkpoints, "glo", inputs, params.compute.checkpoint_minutes)

        watch = None
        if rank() == 0:
            jumps = params.glo.loss.kind == "perceptual" and params.glo.loss.coarse > 0
            about = "The loss jumps where the coarse part ends." if jumps else ""
            minutes = params.compute.watch_minutes
            watch = Watch(this.page, "glo: reconstructions", minutes, events=this.events, about_losses=about)
        result = train_glo(images, params.glo, params.seed, on, checkpoints, watch)

        if rank() == 0:
            with this.outputs() as folder:
                save_npy(folder / "latents.npy", result.latents.numpy())
                prepared = {key: dataset[key] for key in ("fit", "background")}
                digest = file_digest(folder / "latents.npy")
                result.decoder.save(folder / "decoder.safetensors", digest, prepared)
                save_json(folder / "losses.json", result.history)

    if params.imle.conditional:
        # now, not after an hour
        needed(load_classes("data/prepare/classes.json"), params.prepare.source)
    this.launch(work)
