"""The project's own promises: layout, dvc.yaml against the import graph, generated files."""

import ast
import json

import grimp
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from glann.config import STAGES, Params
from glann.presets import params_yaml, preset

FRAME = ("frame", "running", "dvc")  # modules beside the scripts of the stages, which all of them use
DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())


def modules_reached(stage: str) -> set[str]:
    imported = {
        node.module
        for name in (stage, *FRAME)
        for node in ast.walk(ast.parse((ROOT / "stages" / f"{name}.py").read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("glann")
    }
    graph = grimp.build_graph("glann")
    reached = imported.union(*(graph.find_upstream_modules(module) for module in imported))
    return {module.replace(".", "/") + ".py" for module in reached} | {"glann/__init__.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_modules_that_it_reaches(stage: str):
    deps = {dep for dep in DVC["stages"][stage]["deps"] if dep.startswith("glann/")}
    assert deps == modules_reached(stage)


def test_each_stage_has_its_name_in_five_places():
    assert tuple(DVC["stages"]) == STAGES
    for stage, entry in DVC["stages"].items():
        assert entry["cmd"] == f"python -m stages.{stage}"
        assert {f"stages/{name}.py" for name in (stage, *FRAME)} <= {*entry["deps"]}
        assert (ROOT / "stages" / f"{stage}.py").is_file() and (ROOT / "glann" / f"{stage}.py").is_file()
        assert stage in entry["params"] and stage in Params.model_fields
        outs = [path for out in entry["outs"] for path in ([out] if isinstance(out, str) else out)]
        assert all(path.startswith(f"data/{stage}/") for path in outs)


def test_how_a_run_is_executed_invalidates_nothing():
    assert all("compute" not in entry["params"] for entry in DVC["stages"].values())


def test_no_key_has_a_name_that_dvcs_run_cache_leaves_out():
    """DVC drops entries called size and nfiles before it hashes a run: their change would go unnoticed."""

    def keys(values: object) -> set[str]:
        if isinstance(values, dict):
            return set(values).union(*map(keys, values.values()))
        return set()

    assert not keys(Params().model_dump()) & {"size", "nfiles"}


def test_params_yaml_is_the_default_preset():
    assert (ROOT / "params.yaml").read_text() == params_yaml(preset("avatars"))


def test_the_schema_for_editors_is_up_to_date():
    assert json.loads((ROOT / "docs/params.schema.json").read_text()) == Params.model_json_schema()


def test_dvc_reports_nothing_home():
    assert "analytics = false" in (ROOT / ".dvc/config").read_text()
