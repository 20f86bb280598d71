"""The student as an MLflow model: logged, loaded again, and its answers compared with the model's own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qcrd.config import TrackingConfig
from qcrd.tracking.mlflow_server import tracking_uri
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.tracker import RunId
from tests.tracked import id_of

pytestmark = pytest.mark.e2e
PREFIXES = {"predict": "predict: ", "explain": "explain: "}
QUESTIONS = ["what is one and two", "what is two", "how many are one and one and two"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with random weights, its word-level tokenizer, and qcrd.json."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = sorted({word for text in QUESTIONS for word in text.split()} | {"predict", "explain", ":"})
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "decoder_start_token_id": 0,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
    }
    t5 = T5Config(vocab_size=len(tokenizer), initializer_factor=4.0, **sizes)
    path = tmp_path_factory.mktemp("student") / "model"
    T5ForConditionalGeneration(t5).save_pretrained(path)
    tokenizer.save_pretrained(path)
    settings = {"prefixes": PREFIXES, "max_input_tokens": 8, "max_label_tokens": 3, "max_target_tokens": 9}
    (path / "qcrd.json").write_text(json.dumps(settings))
    return path


def direct(folder: Path, prefix: str, length: int) -> list[str]:
    """Each question by itself, without padding."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    texts = []
    for question in QUESTIONS:
        ids = tokenizer(prefix + question, truncation=True, max_length=8, return_tensors="pt")["input_ids"]
        tokens = model.generate(input_ids=ids, max_new_tokens=length, do_sample=False)
        texts.append(tokenizer.decode(tokens[0], skip_special_tokens=True).strip())
    return texts


def test_logged_once_loaded_and_answers_like_the_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    for _ in range(2):
        run = open_run_record(tmp_path / "run", RunId("key", "name"), TrackingConfig(), tmp_path, said.append)
        run.begin_sync()
        run.add_student(folder)
        run.close("FINISHED")
    (tmp_path / "run" / "mlflow.json").unlink()  # a lost cursor makes no second model either
    run = open_run_record(tmp_path / "run", RunId("key", "name"), TrackingConfig(), tmp_path, said.append)
    run.begin_sync()
    run.close("FINISHED")
    assert said == []

    import mlflow
    import pandas as pd

    uri = tracking_uri(TrackingConfig(), tmp_path)
    client = mlflow.MlflowClient(tracking_uri=uri)
    run_id = id_of(run)
    (model,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert (model.name, str(model.status), model.source_run_id) == ("student", "READY", run_id)
    outputs = client.get_run(run_id).outputs
    assert outputs is not None
    assert [output.model_id for output in outputs.model_outputs] == [model.model_id]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # which the next call sets for good
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    table = pd.DataFrame({"question": QUESTIONS})
    labels, rationales = loaded.predict(table), loaded.predict(table, params={"explain": True})
    assert labels == direct(folder, "predict: ", 3)
    assert rationales == direct(folder, "explain: ", 9)
    assert any(labels)
    assert labels != rationales


def test_with_an_answer_phrase_the_label_is_what_follows_its_last_occurrence(folder: Path, tmp_path: Path) -> None:
    import shutil

    import pandas as pd

    from qcrd.tracking.mlflow_student import Student

    texts = direct(folder, "predict: ", 12)
    phrase = texts[0].split()[0]
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    settings = json.loads((copy / "qcrd.json").read_text()) | {"max_label_tokens": 12, "answer_phrase": phrase.upper()}
    (copy / "qcrd.json").write_text(json.dumps(settings))
    student = Student()
    student.load_context(SimpleNamespace(artifacts={"model": str(copy)}))
    labels = student.predict(None, pd.DataFrame({"question": QUESTIONS}))
    assert labels == [text.rpartition(phrase)[2].strip() if phrase in text else "" for text in texts]
    rationales = student.predict(None, pd.DataFrame({"question": QUESTIONS}), {"explain": True})
    assert rationales == direct(folder, "explain: ", 9)


def test_folder_without_settings_is_refused(tmp_path: Path) -> None:
    run = open_run_record(tmp_path / "run", RunId("key", "name"), TrackingConfig(enabled=False), tmp_path)
    with pytest.raises(ValueError, match=r"qcrd\.json"):
        run.add_student(tmp_path)
