"""One sampling job on Ray as a process of its own, for the benchmark: it can be timed, weighed and killed.

The questions are generated and the endpoint is simulated. Prints one line of JSON when it is done.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path

from qcrd.config import ExperimentConfig
from qcrd.pipeline.stages.samples import sample_source
from qcrd.runtime.session import start_ray
from qcrd.tasks import get_task, load_questions
from qcrd.teacher.sample import sample


def config_of(base_url: str, output: str, questions: int, samples: int, timeout: float) -> ExperimentConfig:
    """`questions` x `samples` calls, 64 at once."""
    made = {"train_size": questions, "validation_size": 4, "test_size": 4, "max_number": 100}
    return ExperimentConfig.model_validate(
        {
            "name": "benchmark",
            "output": output,
            "task": {"name": "arithmetic", "train_limit": None, **made},
            "teacher": {
                "kind": "openai", "base_url": base_url, "model": "simulated-endpoint", "num_samples": samples,
                "samples_per_request": 1, "concurrency": 64, "timeout_seconds": timeout,
            },
            "rationales": {"num_samples": samples},
        }
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--questions", type=int, required=True)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=120.0)
    given = parser.parse_args()
    config = config_of(given.base_url, given.output, given.questions, given.samples, given.timeout)
    task = get_task("arithmetic")
    questions = load_questions(task, config.task)
    start_ray()

    def show(done: int, total: int, info: object) -> None:
        print(f"  {done}/{total} {info}", file=sys.stderr)

    Path(given.output).mkdir(parents=True, exist_ok=True)
    summary = sample(sample_source(config), questions, Path(given.output) / "samples.parquet", show)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"errors": summary["errors"], "asked": summary["asked"], "driver_peak_mib": peak}))


if __name__ == "__main__":
    main()
