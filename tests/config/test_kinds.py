"""Groups of several kinds: overrides of a kind come first, the old kind's own fields go, a kind may be told."""

import itertools
from typing import Any

import pytest

from qcrd.config import (
    BenchmarkTaskConfig,
    ConfigError,
    EncoderPairStudentConfig,
    ExperimentConfig,
    GeneratedTaskConfig,
    ImportedTeacherConfig,
    PretrainedDiscriminatorConfig,
    ScratchDiscriminatorConfig,
    ScratchStudentConfig,
    Seq2SeqStudentConfig,
    SimulatedTeacherConfig,
    VllmTeacherConfig,
    validated,
    with_overrides,
)

NAMED = ExperimentConfig(name="x", student=Seq2SeqStudentConfig(model="t5-small", revision="main", max_input_tokens=77))
SCRATCH = ExperimentConfig(name="x", student=ScratchStudentConfig(d_model=64), task=GeneratedTaskConfig(train_size=9))


def in_all_orders(config: ExperimentConfig, changes: dict[str, str]) -> ExperimentConfig:
    """The one outcome of overrides, whatever their order."""
    (first, *others) = [with_overrides(config, dict(order)) for order in itertools.permutations(changes.items())]
    assert all(other == first for other in others)
    return first


def test_a_kind_is_applied_first_whatever_the_order():
    config = in_all_orders(NAMED, {"student.d_model": "32", "student.kind": "scratch", "student.num_layers": "1"})
    assert config.student == ScratchStudentConfig(d_model=32, num_layers=1, max_input_tokens=77)


def test_common_fields_stay_the_old_kinds_own_are_dropped_the_new_kinds_are_defaults():
    assert with_overrides(NAMED, {"student.kind": "scratch"}).student == ScratchStudentConfig(max_input_tokens=77)
    changed = with_overrides(NAMED, {"student.kind": "encoder_pair"}).student
    assert changed == EncoderPairStudentConfig(model="t5-small", revision="main", max_input_tokens=77)
    back = in_all_orders(SCRATCH, {"student.kind": "seq2seq", "student.model": "t5-small"})
    assert back.student == Seq2SeqStudentConfig(model="t5-small")


@pytest.mark.parametrize(
    ("changes", "group"),
    [
        ({"task.name": "cqa"}, BenchmarkTaskConfig(name="cqa")),
        ({"task.name": "svamp", "task.seed": "3"}, BenchmarkTaskConfig(name="svamp", seed=3)),
        ({"task.kind": "benchmark", "task.name": "cqa"}, BenchmarkTaskConfig(name="cqa")),
        ({"teacher.kind": "simulated", "teacher.error_rate": "0.5"}, SimulatedTeacherConfig(error_rate=0.5)),
        ({"teacher.kind": "imported", "teacher.path": "x.json"}, ImportedTeacherConfig(path="x.json")),
        ({"discriminator.kind": "scratch", "discriminator.d_ff": "8"}, ScratchDiscriminatorConfig(d_ff=8)),
        ({"discriminator.model": "bert"}, PretrainedDiscriminatorConfig(model="bert")),
    ],
)
def test_every_group_has_kinds(changes: dict[str, str], group: Any):
    config = in_all_orders(ExperimentConfig(name="x"), changes)
    assert getattr(config, next(iter(changes)).partition(".")[0]) == group


def test_back_to_the_generated_task():
    cqa = with_overrides(SCRATCH, {"task.name": "cqa", "task.path": "/data"})
    assert cqa.task == BenchmarkTaskConfig(name="cqa", path="/data")
    assert with_overrides(cqa, {"task.name": "arithmetic", "task.max_steps": "1"}).task == GeneratedTaskConfig(
        max_steps=1
    )


def test_in_plain_data_a_kind_is_told_by_a_field_that_it_alone_has():
    data = {"name": "x", "task": {"name": "cqa"}, "student": {"d_model": 8}, "discriminator": {"d_model": 8}}
    config = validated(data)
    assert config.task == BenchmarkTaskConfig(name="cqa")
    assert config.student == ScratchStudentConfig(d_model=8)
    assert config.discriminator == ScratchDiscriminatorConfig(d_model=8)
    assert validated({"name": "x", "teacher": {"error_rate": 0.1}}).teacher == SimulatedTeacherConfig(error_rate=0.1)
    assert validated(config.model_dump()) == config


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (NAMED, {"student.d_model": "8"}, "student.d_model: not a setting of student.kind = seq2seq; scratch has it"),
        (SCRATCH, {"student.revision": "x"},
         "student.revision: not a setting of student.kind = scratch; seq2seq and encoder_pair has it"),
        (NAMED, {"teacher.error_rate": "1"},
         "teacher.error_rate: not a setting of teacher.kind = openai; simulated has it"),
        (NAMED, {"teacher.kind": "simulated", "teacher.base_url": "http://x"},
         "teacher.base_url: not a setting of teacher.kind = simulated; openai has it"),
        (NAMED, {"task.path": "x"}, "task.path: not a setting of task.kind = generated; benchmark has it"),
        (NAMED, {"task.name": "cqa", "task.max_steps": "1"},
         "task.max_steps: not a setting of task.kind = benchmark; generated has it"),
        (NAMED, {"discriminator.d_model": "8"},
         "discriminator.d_model: not a setting of discriminator.kind = pretrained; scratch has it"),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_one_line_that_says_which(
    base: ExperimentConfig, changes: dict[str, str], message: str
):
    with pytest.raises(ConfigError) as caught:
        with_overrides(base, changes)
    assert str(caught.value) == message.replace("encoder_pair has it", "encoder_pair have it")


def test_an_unknown_kind_says_which_there_are():
    with pytest.raises(ConfigError, match=r"^student\.kind: 'gpt'.*seq2seq.*encoder_pair.*scratch"):
        with_overrides(NAMED, {"student.kind": "gpt"})
    with pytest.raises(ConfigError, match=r"did you mean d_model"):
        with_overrides(SCRATCH, {"student.d_modle": "8"})


def test_a_teacher_is_never_replaced_by_a_misspelt_setting():
    paid = with_overrides(NAMED, {"teacher.kind": "vllm", "teacher.model": "m", "teacher.dtype": "float16"})
    assert paid.teacher == VllmTeacherConfig(model="m", dtype="float16")
    with pytest.raises(ConfigError):
        with_overrides(NAMED, {"teacher.eror_rate": "0.1"})
