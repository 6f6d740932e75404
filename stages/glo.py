"""glo: images become a decoder and one latent each."""

from stages.frame import stage

with stage("glo") as this:
    from glann.checkpoints import Checkpoints
    from glann.compute import execution
    from glann.glo import train_glo
    from glann.processes import rank
    from glann.storage import file_digest, load_json, save_json, save_npy

    params = this.params

    def run() -> None:
        """Train on the prepared images, and write the result."""
        images = this.prepared("images", check=rank() == 0)
        how = execution(params.compute)
        inputs = [params.glo.model_dump(), params.seed, how.numerics, load_json("data/prepare/dataset.json")]
        checkpoints = Checkpoints(this.checkpoints, "glo", inputs, params.compute.checkpoint_minutes)

        result = train_glo(images, params.glo, params.seed, how, checkpoints)

        if rank() == 0:
            with this.outputs() as folder:
                save_npy(folder / "latents.npy", result.latents.numpy())
                result.decoder.save(folder / "decoder.safetensors", file_digest(folder / "latents.npy"))
                save_json(folder / "losses.json", result.history)

    this.launch(run)
