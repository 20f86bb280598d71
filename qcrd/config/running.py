"""Settings of the machine and of the tracker. Nothing here changes a result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qcrd.config.base import Positive, Settings


class ResourcesConfig(Settings):
    """Hardware. Nothing here changes a result, so none of it enters a fingerprint."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Positive = Field(default=1, description="data-parallel training workers")
    gpu_per_worker: float = Field(
        default=1.0, gt=0, le=1, description="GPU share of a model stage's worker: below 1, trials or cells share a GPU"
    )
    deterministic: bool = Field(
        default=True, description="on a GPU: sums in a fixed order, so that a run which goes on ends in the same bits"
    )
    threads: Positive | None = Field(
        default=None, description="CPU threads of a model stage; None: all cores, shared by the training workers"
    )
    negatives_actors: Positive = Field(default=1, description="for negatives.placement = async")
    negatives_cpus: float = Field(default=1.0, ge=0, description="CPUs that Ray reserves for each of them")
    negatives_gpus: float | None = Field(
        default=None, ge=0, le=1, description="GPU share of each; None: a whole one where training has GPUs"
    )
    max_failures: int = Field(default=3, ge=0, description="restarts of a training worker that dies")
    gpu_hour_usd: float | None = Field(default=None, ge=0, description="price of a GPU hour, for the plan of a grid")


class TrackingConfig(Settings):
    """MLflow. The local record is always written, whatever stands here."""

    enabled: bool = True
    uri: str | None = Field(default=None, description="default: MLFLOW_TRACKING_URI, else SQLite in the output folder")
    experiment: str = "qcrd"
    log_model: bool = True
