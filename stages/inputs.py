"""inputs: note the content of pictures and weights, so that DVC sees when they change."""

from stages.frame import stage

with stage("inputs") as this:
    from glann.glo.settings import EARLIER_FILES
    from glann.inputs.digests import of_file, of_files, pictures
    from glann.runtime.console import say
    from glann.runtime.files import load_json, save_json

    prepare, glo, evaluate = this.params.prepare, this.params.glo, this.params.evaluate
    weights = glo.loss.weights if glo.loss.kind == "perceptual" else None
    memory = this.project / ".cache/inputs.sqlite"
    inputs = {
        "pictures": (prepare.path, pictures(prepare, memory)),
        "glo_weights": (weights, of_file(weights, memory)),
        "glo_start": (glo.start_from, of_files(glo.start_from, EARLIER_FILES, memory)),
        "evaluate_weights": (evaluate.weights, of_file(evaluate.weights, memory)),
    }
    noted, new_weights = {}, False
    for name, (path, content) in inputs.items():
        file = this.folder / f"{name}.json"
        noted[name] = load_json(file) if file.is_file() else {}
        if content is None and noted[name]:
            # Results that are there stay valid without their inputs, e.g. in a colleague's clone.
            say(f"inputs: {path} is not there; taken to be as it was")
        elif content != noted[name]:
            noted[name] = content or {}
            new_weights |= name != "pictures"
    if new_weights:
        from glann.preflight import check_weights

        check_weights(this.params)  # an hour of training must not come before the news that a file is wrong
    with this.outputs() as folder:
        for name, content in noted.items():
            save_json(folder / f"{name}.json", content)
