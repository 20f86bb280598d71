"""A student of `single_task` writes rationale and label in one; what is scored is the label."""

from dataclasses import replace

import torch

from qcrd.config import LossConfig
from qcrd.distill.batch import QuestionBatch
from qcrd.distill.data import TrainingData
from qcrd.distill.label_step import finetune_step
from qcrd.distill.labels import Asking, accuracy_of, greedy_labels
from qcrd.distill.methods import METHODS
from qcrd.evaluate.predictions import predict_labels
from qcrd.models.generation import generate
from qcrd.models.student import build_student
from qcrd.models.tokenizer import encode_inputs, encode_targets, train_tokenizer
from qcrd.rationales.single_task import PHRASE, encode_whole_targets, max_answer_tokens
from qcrd.records import Question
from qcrd.tasks import get_task
from tests.distill.helpers import LABELS, QUESTIONS, TEXTS, tiny_config


def test_validation_and_predictions_read_the_label_at_the_end_of_what_a_student_writes():
    settings = tiny_config("float32").model_copy(update={"max_target_tokens": 30, "max_label_tokens": 20})
    asking = Asking(settings, 64, METHODS["single_task"].answer_phrase)
    tokenizer = train_tokenizer([*TEXTS * 3, *[PHRASE] * 20], 140)
    student = build_student(settings, tokenizer, 0, torch.device("cpu"))
    thoughts = ["8 + 3 = 11 apples.", ""]
    targets, _ = encode_whole_targets(
        thoughts,
        LABELS[:2],
        max_answer_tokens(settings, asking.answer_phrase),
        lambda t, limit: encode_targets(tokenizer, t, limit),
    )
    inputs = encode_inputs(tokenizer, ["predict: " + q for q in QUESTIONS[:2]], 99)
    batch = QuestionBatch(inputs, inputs, targets, [[], []])
    optimizer = torch.optim.Adam(student.model.parameters(), lr=1e-2)
    for _ in range(80):  # until it knows both by heart
        optimizer.zero_grad()
        loss, _ = finetune_step(student, batch, LossConfig())
        loss.backward()
        optimizer.step()
    answers = tokenizer.batch_decode(
        [one.ids for one in generate(student, inputs, max_new_tokens=50, batch_size=2)], skip_special_tokens=True
    )
    assert answers == [f"8 + 3 = 11 apples. {PHRASE} ( 8 + 3 )", f"{PHRASE} ( 12 - 5 )"]
    questions = [
        Question(f"q{n}", "validation", QUESTIONS[n], LABELS[n], answer) for n, answer in enumerate(["11", "7"])
    ]
    assert greedy_labels(asking, student, tokenizer, questions) == LABELS[:2]
    task = get_task("arithmetic")
    data = TrainingData([], questions, tokenizer, None)
    assert accuracy_of(asking, student, data, task) == 1.0
    predictions = predict_labels(asking, student, tokenizer, task, questions, "best")
    assert [(p.text, p.right) for p in predictions] == [("( 8 + 3 )", True), ("( 12 - 5 )", True)]
    other = replace(asking, answer_phrase=METHODS["finetune"].answer_phrase)  # whose label is all that it writes
    assert accuracy_of(other, student, data, task) == 0.0
