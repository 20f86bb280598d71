"""A student in MLflow: logged as a model of its run, and registered under a name."""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from qcrd.tracking.tracker import Item

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST = "qcrd.digest"


def send_student(
    client: MlflowClient, experiment_id: str, run_id: str, item: Item, student: Path, folder: Path
) -> None:
    """Log the model folder `student` as a model of the run; one that exists for this content is finished, not made
    twice. `folder`: where it may lie for a moment as MLflow wants it."""
    import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    digest = item["digest"]
    query = f"source_run_id = '{run_id}' AND tags.`{DIGEST}` = '{digest}'"
    found = client.search_logged_models([experiment_id], query, max_results=1)
    if found and found[0].status == "READY":
        return
    tags = {DIGEST: digest}
    model = found[0] if found else client.create_logged_model(experiment_id, item["name"], run_id, tags)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "question")]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema([ParamSpec("explain", DataType.boolean, False)]),
    )
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", "torch", "transformers")]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".model-") as temporary:
        target = Path(temporary) / "model"
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(Path(__file__).with_name("mlflow_student.py")),
            artifacts={"model": str(student)},
            pip_requirements=versions,
            signature=signature,
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                run_id=run_id,
                model_uuid=model.model_id,
                model_id=model.model_id,
            ),
        )
        client.log_model_artifacts(model.model_id, str(target))
    client.finalize_logged_model(model.model_id, "READY")


def register(client: MlflowClient, experiment_id: str, item: Item) -> None:
    """One version for one content; the alias moves to it."""
    from mlflow.exceptions import MlflowException

    name, digest = item["name"], item["digest"]
    found = client.search_logged_models([experiment_id], f"tags.`{DIGEST}` = '{digest}'")
    model = next((model for model in found if model.status == "READY"), None)
    if model is None:
        raise ValueError(f"no model with the content of {item['path']} is logged yet")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((one for one in versions if one.tags.get(DIGEST) == digest), None)
    if version is None:
        version = client.create_model_version(
            name, model.artifact_location, model.source_run_id, {DIGEST: digest}, model_id=model.model_id
        )
    client.set_registered_model_alias(name, item["alias"], version.version)
