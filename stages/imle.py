"""imle: fit the mapping from noise to latents; with the decoder it is the generator."""

from stages.frame import stage

with stage("imle") as this:
    from copy import deepcopy
    from pathlib import Path

    import torch
    from torch.nn.functional import normalize

    from glann.images.classes import load_classes, needed
    from glann.imle.fit import fit_imle
    from glann.networks.decoders.network import DecoderNetwork
    from glann.networks.generator import save_generator
    from glann.runtime.checkpoint_files import remove_finished
    from glann.runtime.compute import execution
    from glann.runtime.files import file_digest, load_json, save_json
    from glann.runtime.npy import load_latents
    from glann.runtime.processes import rank
    from glann.training.checkpoints import Checkpoints
    from glann.training.watch import Watch

    params = this.params

    def work() -> None:
        """Fit the mapping to the latents and write the generator."""
        on = execution(params.compute)
        decoder = DecoderNetwork.load("data/glo/decoder.safetensors")
        latents = load_latents("data/glo/latents.npy", decoder.architecture.latents)
        noted = [load_json(path) for path in sorted(Path("data/inputs").glob("imle_*.json"))]
        digest = file_digest("data/glo/latents.npy")
        inputs = [params.imle.model_dump(), params.seed, on.numerics, digest, noted]
        labels, names = None, None
        if params.imle.conditional:
            classes = needed(load_classes("data/prepare/classes.json"), params.prepare.source)
            labels, names = torch.from_numpy(classes.images), classes.names
            inputs += [classes.images.tolist(), names]
        checkpoints = Checkpoints(this.checkpoints, "imle", inputs, params.compute.checkpoint_minutes)

        watch = None
        if rank() == 0 and (params.compute.watch_minutes or this.events):
            drawing = deepcopy(decoder).to(on.device).eval()
            watch = Watch(
                this.page,
                "imle: samples",
                params.compute.watch_minutes,
                lambda reached: drawing(normalize(reached, dim=1)),
                this.events,
            )
        result = fit_imle(latents, params.imle, params.seed, on, checkpoints, watch, labels, names)

        if rank() == 0:
            with this.outputs() as folder:
                save_generator(folder / "generator.safetensors", result.mapping, decoder)
                save_json(folder / "losses.json", result.history)

    remove_finished(this.checkpoints, "glo")
    this.launch(work)
