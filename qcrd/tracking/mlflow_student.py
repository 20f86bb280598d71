"""The student as an MLflow model ("models from code"): MLflow copies this file and runs it where the model is loaded.

Input is a table with a column `question`; the parameter `explain` asks for rationales instead of labels. The model
folder holds a Hugging Face model, its tokenizer and `qcrd.json` (prefixes, lengths, the phrase before a label). This
file needs mlflow, torch and transformers; it knows nothing about the rest of the package, which need not be installed
where the model is served.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlflow.models
import pandas as pd
from mlflow.pyfunc.model import PythonModel

BATCH = 32


class Student(PythonModel):
    """Answers questions greedily."""

    def load_context(self, context: Any) -> None:
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        folder = context.artifacts["model"]
        self.settings: dict[str, Any] = json.loads((Path(folder) / "qcrd.json").read_text())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder).eval().to(self.device)

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride] - mlflow's is typed as returning None
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """One text for each row of `model_input["question"]`."""
        explain = bool((params or {}).get("explain", False))
        prefix = self.settings["prefixes"]["explain" if explain else "predict"]
        length = self.settings["max_target_tokens" if explain else "max_label_tokens"]
        # Between the two texts of a question, as in training (qcrd.distill.student.with_separator).
        separator = self.tokenizer.eos_token or self.tokenizer.sep_token
        inputs = [prefix + question.replace("</s>", separator) for question in model_input["question"]]
        answers: list[str] = []
        for begin in range(0, len(inputs), BATCH):
            answers += self._generate(inputs[begin : begin + BATCH], length)
        return answers if explain else [self._label(text) for text in answers]

    def _label(self, text: str) -> str:
        """The label in an answer, as in evaluation (qcrd.rationales.single_task.label_of)."""
        if "answer_phrase" not in self.settings:
            return text
        parts = re.split(re.escape(self.settings["answer_phrase"]), text, flags=re.IGNORECASE)
        return parts[-1].strip() if len(parts) > 1 else ""

    def _generate(self, inputs: list[str], max_new_tokens: int) -> list[str]:
        import torch

        limit = self.settings["max_input_tokens"]
        batch = self.tokenizer(inputs, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        ids, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
        with torch.inference_mode():
            tokens = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
            )
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


mlflow.models.set_model(Student())
