"""Settings: overrides, and one clear line for each kind of bad input."""

import json
from typing import Any

import pytest

from qcrd.config import TEACHER_MEANS, ConfigError, ExperimentConfig, OpenAITeacherConfig, flatten, with_overrides

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
        ({"teacher.kind": "imported"}, "teacher.imported.path", "None", "needs a file"),
        ({"teacher.base_url": "http://me:pw@host/v1"}, "teacher.base_url", "a name, password or query", "key"),
        ({"teacher.mode": "batch", "teacher.kind": "vllm"}, "teacher.mode", "'batch'", "only with openai"),
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


# -- identity -----------------------------------------------------------------------------------------------------

NO_IDENTITY: dict[str, Any] = {
    "output": "elsewhere", "task.path": "/data", "resources.device": "cpu",
    "resources.threads": 3, "resources.workers": 2, "resources.negatives_actors": 2, "train.micro_batch_size": 2,
    "negatives.placement": "async", "tracking.enabled": False, "checkpoint.keep": 5, "teacher.mode": "batch",
    "teacher.base_url": "http://elsewhere/v1", "teacher.api_key_env": "K", "teacher.api_key_file": "/k",
    "teacher.store": "/s", "teacher.flush_seconds": 1.0, "teacher.concurrency": 7, "teacher.actors": 3,
    "teacher.samples_per_request": 2, "teacher.requests_per_minute": 60, "teacher.tokens_per_minute": 1000,
    "teacher.timeout_seconds": 3.0, "teacher.max_attempts": 2, "teacher.budget_usd": 1.0, "teacher.prices": "/p",
    "teacher.tokenizer": "/t", "teacher.batch.poll_seconds": 1.0,
}  # fmt: skip


def test_paths_hardware_and_how_replies_are_got_are_no_part_of_the_identity():
    means = {key.split(".")[1] for key in NO_IDENTITY if key.startswith("teacher.")}
    of_other_kinds = {"tensor_parallel_size", "gpu_memory_utilization", "max_model_len", "path", "aligned_to"}
    assert means | of_other_kinds == TEACHER_MEANS and set(OpenAITeacherConfig.model_fields) >= means
    for key, value in NO_IDENTITY.items():
        changed = with_overrides(BASE, {key: value})
        assert changed != BASE and changed.identity() == BASE.identity(), key
    assert with_overrides(BASE, NO_IDENTITY).identity() == BASE.identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "y"}, {"method": "dss"}, {"seed": 1}, {"task.seed": 1}, {"task.name": "svamp"},
        {"teacher.model": "other"}, {"teacher.temperature": 0.8}, {"teacher.top_p": 0.9}, {"teacher.max_tokens": 9},
        {"teacher.num_samples": 6}, {"teacher.seed": 1}, {"teacher.api": "completions"}, {"teacher.prompt": "/p"},
        {"teacher.extra_body": {"top_k": 40}}, {"teacher.parser": "last_number"}, {"teacher.kind": "simulated"},
        {"teacher.max_tokens": 7},
        {"rationales.num_samples": 4}, {"student.model": "other"}, {"train.steps": 9}, {"loss.beta": 0.3},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_what_may_change_a_result_is_part_of_the_identity(changes: dict[str, Any]):
    assert with_overrides(BASE, changes).identity() != BASE.identity()


def test_the_identity_is_plain_data():
    identity = BASE.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert BASE.teacher.model == "gpt-3.5-turbo" and "base_url" not in identity["teacher"]
    assert "batch" in BASE.model_dump()["teacher"]  # the config itself is whole
