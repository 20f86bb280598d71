"""A finished student's folder with a tiny real model, and the folders that the evaluation reads."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from qcrd.models.student import Student, build_student
from tests.distill.helpers import tiny_config, tiny_tokenizer

LIMITS = {"max_input_tokens": 40, "max_label_tokens": 6, "max_target_tokens": 12}
PREFIXES = {"predict": "predict: ", "explain": "explain: "}


def write_student(folder: Path, seed: int = 0) -> Student:
    """A model folder as training leaves it."""
    student = build_student(tiny_config("float32"), tiny_tokenizer(), seed, torch.device("cpu"))
    student.model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "qcrd.json").write_text(json.dumps({"prefixes": PREFIXES, **LIMITS}))
    return student


def write_artifact(output: Path, name: str, method: str = "qcrd") -> Path:
    """A finished artifact of the student stage, with its best student alone."""
    folder = output / "student" / name
    write_student(folder / "best")
    (folder / "artifact.json").write_text(json.dumps({"stage": "student", "settings": {"method": method}}))
    return folder
