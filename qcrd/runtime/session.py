"""Ray's session: connecting to a cluster, or starting Ray on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping

import ray
from ray._private import ray_constants

from qcrd.config import ResourcesConfig

RAY_DEFAULTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a checkpoint's commit waits for this poll
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray's own logs stay in its session folder
}


def start_ray() -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray on this machine, on loopback."""
    for name, value in RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"  # else Ray would join whatever cluster it finds here
        with _on_loopback(address == "local"):
            ray.init(
                address, log_to_driver=False, logging_level=logging.ERROR, dashboard_host="127.0.0.1",
                include_dashboard=False,  # of a Ray of our own, where ray[default] would add eleven processes
            )  # fmt: skip


@contextlib.contextmanager
def _on_loopback(alone: bool) -> Iterator[None]:
    """Where `alone`, a Ray that is started meanwhile listens on loopback only, as it does on macOS and Windows anyway;
    on Linux it would listen on all interfaces."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not alone
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def stop_ray() -> None:
    """End what still runs on Ray; its state is on the disk."""
    ray.shutdown()


def cluster_resources() -> Mapping[str, float]:
    """What the cluster has by kind, such as CPU and GPU; nothing where Ray has not been started."""
    return ray.cluster_resources() if ray.is_initialized() else {}


def uses_gpu(resources: ResourcesConfig) -> bool:
    """Whether model stages ask Ray for a GPU: `resources.device`, or for `auto` whether the cluster has one."""
    if resources.device == "auto":
        return ray.cluster_resources().get("GPU", 0) > 0
    return resources.device == "cuda"
