"""Settings: overrides, and one clear line for each kind of bad input."""

import pytest

from qcrd.config import ConfigError, ExperimentConfig, flatten, with_overrides

BASE = ExperimentConfig(name="x")


def test_overrides_are_read_by_the_fields_type():
    changes = {
        "train.learning_rate": "3e-4", "negatives.gap": "3", "discriminator.enabled": "false", "train.iteration_steps":
        "epoch", "student.dropout": "None", "negatives.source": "none", "task.max_number": 50,
    }  # fmt: skip
    config = with_overrides(BASE, changes)
    assert config.train.learning_rate == 3e-4 and config.negatives.gap == 3
    assert config.discriminator.enabled is False and config.train.iteration_steps == "epoch"
    assert config.student.dropout is None and config.negatives.source == "none"
    assert config.task.max_number == 50
    assert BASE.negatives.gap == 5


@pytest.mark.parametrize(
    ("changes", "field", "value", "allowed"),
    [
        ({"train.learnin_rate": "1"}, "train.learnin_rate", "'1'", "did you mean learning_rate"),
        ({"trian.steps": "1"}, "trian.steps", "'1'", "allowed here: name, method"),
        ({"train.steps.more": "1"}, "train.steps.more", "'1'", "unknown key"),
        ({"train.learning_rate": "fast"}, "train.learning_rate", "'fast'", "valid number"),
        ({"rationales.num_samples": "6"}, "rationales.num_samples", "6", "at most teacher.num_samples = 5"),
        ({"negatives.gap": "0"}, "negatives.gap", "'0'", "greater than or equal to 1"),
        ({"negatives.temperature": "-0.1"}, "negatives.temperature", "'-0.1'", "greater than or equal to 0"),
        ({"teacher.temperature": "-1"}, "teacher.temperature", "'-1'", "greater than or equal to 0"),
        ({"loss.beta": "0"}, "loss.beta", "'0'", "greater than 0"),
        ({"loss.margin": "nan"}, "loss.margin", "'nan'", "finite"),
        ({"loss.scheme": "best"}, "loss.scheme", "'best'", "'minmax', 'maxmin', 'sampling'"),
        ({"train.iteration_steps": "0"}, "train.iteration_steps", "'0'", "greater than 0"),
        ({"name": "a b"}, "name", "'a b'", "pattern"),
        ({"task.min_steps": "3", "task.max_steps": "2"}, "task.min_steps", "3", "most"),
        ({"teacher.kind": "imported"}, "teacher.path", "None", "needs a file"),
        ({"teacher.base_url": "http://me:pw@host/v1"}, "teacher.base_url", "a name, password or query", "key"),
        ({"teacher.mode": "batch", "teacher.kind": "vllm"}, "teacher.mode", "teacher.kind = vllm", "openai has it"),
        ({"teacher.samples_per_request": "0"}, "teacher.samples_per_request", "'0'", "'auto'"),
        ({"negatives.source": "fixed"}, "negatives.fixed", "None", "needs a model folder"),
        ({"resources.workers": "3"}, "train.global_batch_size", "8", "a multiple of resources.workers = 3"),
        ({"resources.workers": "16"}, "train.global_batch_size", "8", "a multiple of resources.workers = 16"),
        ({"train.micro_batch_size": "3"}, "train.global_batch_size", "8", "train.micro_batch_size = 1 x 3"),
        (
            {"resources.workers": "2", "train.micro_batch_size": "3"},
            "train.global_batch_size",
            "8",
            "a multiple of resources.workers x train.micro_batch_size = 2 x 3",
        ),
        ({"resources.workers": "0"}, "resources.workers", "'0'", "greater than 0"),
        ({"train.micro_batch_size": "0"}, "train.micro_batch_size", "'0'", "greater than 0"),
    ],
)
def test_bad_settings_are_one_line_with_field_value_and_what_is_allowed(
    changes: dict[str, str], field: str, value: str, allowed: str
):
    with pytest.raises(ConfigError) as caught:
        with_overrides(BASE, changes)
    message = str(caught.value)
    assert message.startswith(f"{field}: ") and value in message and allowed in message and "\n" not in message


def test_a_pass_is_never_larger_than_a_workers_share():
    config = with_overrides(BASE, {"resources.workers": "4", "train.micro_batch_size": "8"})
    assert config.micro_batch_size() == 2 and BASE.micro_batch_size() == 8


def test_configs_are_frozen_and_flat_names_are_dotted():
    with pytest.raises(ValueError, match="frozen"):
        BASE.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert flatten(BASE)["task.train_size"] == 2000


def test_defaults_are_the_papers():
    c = BASE
    assert (c.loss.beta, c.loss.margin, c.loss.label_weight, c.loss.discriminator_decay) == (0.2, 3.0, 0.5, 0.9)
    assert (c.negatives.gap, c.negatives.temperature, c.negatives.num_samples, c.negatives.top_k) == (5, 1.5, 1, 50)
    assert (c.train.learning_rate, c.train.steps, c.train.global_batch_size) == (1e-5, 10_000, 8)
    assert (c.teacher.temperature, c.teacher.num_samples, c.rationales.num_samples) == (0.7, 5, 5)
