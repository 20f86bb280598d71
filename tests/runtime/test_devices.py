"""On a GPU: the same losses, gradients and texts as on a CPU, and a run that was killed ends in the same bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qcrd.config import ExperimentConfig, LossConfig, with_overrides
from qcrd.distill.data import TrainingData
from qcrd.distill.qcrd_step import qcrd_step
from qcrd.models.generation import generate
from qcrd.models.student import Student
from qcrd.runtime.devices import set_up_torch
from tests.distill.helpers import bert_pair, gated_student, gradients_of, question_batch, tiny_student
from tests.distill.test_loop import Killed, config_of, data_of, train, weights
from tests.models.test_generation import rows, stream

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU in this machine")

T5_SMALL = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8}


def on_gpu(student: Student) -> Student:
    student.model.to("cuda")  # pyright: ignore[reportArgumentType]
    return student


@pytest.fixture
def gpu_config() -> ExperimentConfig:
    """What the runner sets up before a model stage."""
    config = config_of()
    assert set_up_torch(config.resources) == torch.device("cuda")
    return config


@pytest.mark.parametrize("make", [tiny_student, gated_student, bert_pair])
@pytest.mark.parametrize("scheme", ["minmax", "maxmin", "sampling", "mean", "weighted_mean"])
@pytest.mark.parametrize("margin", [0.5, 3.0, 100.0])  # no hinge active, some, all
def test_loss_and_every_gradient_are_those_of_a_cpu(
    gpu_config: ExperimentConfig, make: Callable[[], Student], scheme: str, margin: float
):
    config, found = LossConfig(scheme=scheme, margin=margin), []  # pyright: ignore[reportArgumentType]
    for student in (make(), on_gpu(make())):
        loss, _ = qcrd_step(student, question_batch(), config)
        found.append((loss.item(), gradients_of(loss, student)))
    (loss, gradients), (loss_there, gradients_there) = found
    assert loss_there == pytest.approx(loss, rel=1e-10)
    assert gradients.keys() == gradients_there.keys()
    for name, value in gradients.items():
        error = float((gradients_there[name].cpu() - value).norm())
        assert error <= 1e-9 * max(float(value.norm()), 1e-3), name


@pytest.mark.parametrize("make", [tiny_student, bert_pair])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_texts_are_those_of_a_cpu(gpu_config: ExperimentConfig, make: Callable[[], Student], temperature: float):
    options: dict[str, Any] = {"max_new_tokens": 8, "batch_size": 32, "temperature": temperature, "top_k": 50}
    here, there = (generate(student, rows(128), stream=stream, **options) for student in (make(), on_gpu(make())))
    assert here == there


def test_a_share_of_the_gpu_is_a_limit(gpu_config: ExperimentConfig):
    set_up_torch(with_overrides(gpu_config, {"resources.gpu_per_worker": "0.05"}).resources)
    try:
        most = torch.cuda.get_device_properties(0).total_memory
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(most // 10, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [{}, T5_SMALL], ids=["tiny", "t5-small"])
def test_killed_and_resumed_ends_in_the_same_bits(
    gpu_config: ExperimentConfig, tmp_path: Path, sizes: dict[str, int], dtype: str
):
    config = with_overrides(
        gpu_config, {"student.dtype": dtype, **{f"student.{name}": str(n) for name, n in sizes.items()}}
    )
    data: TrainingData = data_of(config, tmp_path)
    whole = train(config, data, tmp_path / "whole", device="cuda")
    with pytest.raises(Killed):
        train(config, data, tmp_path / "killed", die_at=3, device="cuda")
    resumed = train(config, data, tmp_path / "killed", device="cuda")
    assert resumed.rows == whole.rows
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
