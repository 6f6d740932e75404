"""imle: latents become a mapping from noise; joined with the decoder it is the generator."""

from stages.frame import stage

with stage("imle") as this:
    from glann.checkpoints import Checkpoints, remove_finished
    from glann.compute import execution
    from glann.decoders import DecoderNetwork
    from glann.generator import Generator
    from glann.imle import fit_imle, load_latents
    from glann.processes import rank
    from glann.storage import file_digest, save_json

    params = this.params

    def run() -> None:
        """Fit the mapping to the latents, and write the generator."""
        how = execution(params.compute)
        decoder = DecoderNetwork.load("data/glo/decoder.safetensors")
        latents = load_latents("data/glo/latents.npy", decoder.architecture.latents)
        inputs = [params.imle.model_dump(), params.seed, how.numerics, file_digest("data/glo/latents.npy")]
        checkpoints = Checkpoints(this.checkpoints, "imle", inputs, params.compute.checkpoint_minutes)

        result = fit_imle(latents, params.imle, params.seed, how, checkpoints)

        if rank() == 0:
            with this.outputs() as folder:
                Generator(result.mapping, decoder, how).save(folder / "generator.safetensors")
                save_json(folder / "losses.json", result.history)

    remove_finished(this.checkpoints, "glo")
    this.launch(run)
