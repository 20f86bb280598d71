"""The whole of QCRD in minutes, offline, on two CPU cores.

The task is generated, the teacher is simulated (no language model is asked), the student is a T5 of about a million
weights that starts from scratch. Its numbers say that the method runs, not how good it is.
"""

from qcrd.config import (
    CheckpointConfig,
    EvaluationConfig,
    ExperimentConfig,
    GeneratedTaskConfig,
    NegativesConfig,
    ScratchDiscriminatorConfig,
    ScratchStudentConfig,
    SimulatedTeacherConfig,
    TrainConfig,
)


def recipe() -> ExperimentConfig:
    return ExperimentConfig(
        name="quickstart",
        task=GeneratedTaskConfig(
            train_size=2400, validation_size=200, test_size=400, min_steps=1, max_steps=1, max_number=20
        ),
        teacher=SimulatedTeacherConfig(num_samples=3, error_rate=0.25),
        rationales={"num_samples": 3},  # pyright: ignore[reportArgumentType]
        student=ScratchStudentConfig(
            d_model=128,
            d_ff=384,
            d_kv=32,
            num_heads=4,
            num_layers=2,
            num_decoder_layers=2,
            max_label_tokens=16,
            max_target_tokens=64,
        ),
        discriminator=ScratchDiscriminatorConfig(
            d_model=64,
            d_ff=128,
            d_kv=16,
            num_heads=4,
            num_layers=2,
            max_steps=150,
            batch_questions=16,
            learning_rate=1e-3,
            eval_every=75,
            update_steps=5,
        ),
        negatives=NegativesConfig(gap=2, num_samples=1, max_new_tokens=32),
        train=TrainConfig(steps=400, iteration_steps=80, global_batch_size=16, learning_rate=3e-3, log_every=20),
        checkpoint=CheckpointConfig(keep=1),
        evaluation=EvaluationConfig(batch_size=200),
    )
