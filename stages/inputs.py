"""inputs: note the content of pictures and weights, so that DVC sees when they change."""

from stages.frame import stage

with stage("inputs") as this:
    from glann.glo.settings import EARLIER_FILES
    from glann.inputs.digests import of_file, of_files, pictures
    from glann.runtime.console import say
    from glann.runtime.files import load_json, save_json
    from stages.frame.dvc import recorded
    from stages.frame.running import at

    prepare, glo, evaluate = this.params.prepare, this.params.glo, this.params.evaluate
    memory = this.project / ".cache/inputs.sqlite"
    weights = glo.loss.weights if glo.loss.kind == "perceptual" else None
    measuring = None if evaluate.features == "pixels" else evaluate.weights
    # By name of the file: the content, its path, the stage that uses it, what else decides whether it fits.
    inputs = {
        "pictures": (pictures(prepare, memory), prepare.path, "prepare", ["prepare.path"]),
        "glo_weights": (of_file(weights, memory), weights, "glo", ["glo.loss"]),
        "glo_start": (
            of_files(glo.start_from, EARLIER_FILES, memory),
            glo.start_from,
            "glo",
            ["glo.start_from", "glo.latent_dim"],
        ),
        "evaluate_weights": (
            of_file(measuring, memory),
            measuring,
            "evaluate",
            ["evaluate.weights", "evaluate.features"],
        ),
    }
    new: dict[str, object] = {}
    check: list[str] = []
    for name, (content, path, user, keys) in inputs.items():
        file = this.folder / f"{name}.json"
        noted = load_json(file) if file.is_file() else None
        same = all(at(recorded(user), key) == at(this.settings, key) for key in keys)
        if content is None and noted and same:
            # Results that are there stay valid without their inputs, e.g. in a colleague's clone.
            say(f"inputs: {path} is not there; taken to be as it was")
            continue
        if content != noted or not same:
            check.append(name)
        if content != noted:
            new[name] = content
    if any(inputs[name][0] != {} for name in check):
        from glann import preflight

        checks = {
            "pictures": preflight.check_pictures,
            "glo_weights": preflight.check_loss_weights,
            "glo_start": preflight.check_start,
            "evaluate_weights": preflight.check_evaluation_weights,
        }
        for name in check:  # an hour of training must not come before the news that a file is wrong
            checks[name](this.params)
    with this.outputs() as folder:
        for name, changed in new.items():
            save_json(folder / f"{name}.json", changed)
