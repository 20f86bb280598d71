"""A sample store that commit 989d59e wrote is read as that commit read it; what it had bought in a batch comes home."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from openai.types import Batch

from qcrd.config import ExperimentConfig
from qcrd.records import Question
from qcrd.tasks import get_task
from qcrd.teacher.backends.base import Failure, Reply
from qcrd.teacher.batch import mode as batch_module
from qcrd.teacher.probe import samples_per_request
from qcrd.teacher.prompts import task_prompts
from qcrd.teacher.requests import build_call, missing_mask, wanted_samples
from qcrd.teacher.store import SampleStore
from qcrd.teacher.store_format import KEY_TYPE
from qcrd.teacher.store_writer import StoreWriter

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "store.json").read_text(encoding="utf-8"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the store."""
    return Path(shutil.copytree(HERE / "store", tmp_path / "store"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def array(*keys: str) -> np.ndarray:
    return np.array([bytes.fromhex(key) for key in keys], dtype=KEY_TYPE)


def config_of(**teacher: Any) -> ExperimentConfig:
    settings = {"name": "golden", "task": {"name": "svamp"}, "teacher": teacher, "rationales": {"num_samples": 1}}
    return ExperimentConfig.model_validate(settings)


def test_every_record_is_read_as_it_was(place: Path):
    index = SampleStore(place).index()
    expected = GOLDEN["records"]
    keys, unknown = array(*expected), array(*GOLDEN["unknown"])
    assert len(index) == len(expected)
    for (key, fields), record in zip(expected.items(), index.records(keys), strict=True):
        kind = Failure if fields["kind"] == "failure" else Reply
        assert type(record) is kind, key
        found = {"kind": fields["kind"], **asdict(record)}
        assert {name: found[name] for name in fields} == fields
    assert index.answered(keys).tolist() == [fields["kind"] == "reply" for fields in expected.values()]
    assert index.failed(keys).tolist() == [fields["kind"] == "failure" for fields in expected.values()]
    assert not index.answered(unknown).any() and not index.failed(unknown).any()
    assert list(index.records(unknown)) == [None]


def test_reading_leaves_the_store_as_it_is(place: Path):
    SampleStore(place).index()
    assert bytes_of(place) == bytes_of(HERE / "store") and sorted(bytes_of(place)) == GOLDEN["files"]


def test_a_line_is_written_as_it_was(place: Path, tmp_path: Path):
    """A reply that two versions bring is one line twice; a new field enters a line only where it says something."""
    index = SampleStore(place).index()
    keys = list(GOLDEN["records"])
    with StoreWriter(tmp_path / "again", 60) as writer:
        records = [record for record in index.records(array(*keys)) if record is not None]
        writer.write(list(zip(map(bytes.fromhex, keys), records, strict=True)))
    (part,) = (tmp_path / "again").glob("part-*.jsonl")
    old = b"".join(path.read_bytes() for path in (HERE / "store").glob("part-*.jsonl")).split(b"\n")
    again = part.read_bytes().split(b"\n")
    unseen = [line for line in again if line not in old]
    assert len(unseen) == 1 and b"a count that is none" in unseen[0]  # it was kept unseen once


def test_what_is_known_of_an_endpoint_is_still_known(place: Path):
    honours, refuses = GOLDEN["endpoints"].values()
    store = SampleStore(place)
    assert samples_per_request(config_of(kind="openai", num_samples=4, **honours).teacher, store) == 4
    assert samples_per_request(config_of(kind="openai", num_samples=4, **refuses).teacher, store) == 1


# -- a batch that was in flight when the process ended ------------------------------------------------------------


def body_of(row: int) -> dict[str, Any]:
    choices = [{"message": {"content": f"reply {row}.{n}\u2028"}, "finish_reason": "stop"} for n in range(2)]
    return {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": 4}}


class Endpoint:
    """The endpoint of the batch, a day later. Nothing may be sent up."""

    def __init__(self, config: Any) -> None:
        self.base_url, self.route = config.base_url, "/v1/chat/completions"

    async def retrieve(self, batch_id: str) -> Batch:
        assert batch_id == GOLDEN["batch"]["batch"]
        counts = {"completed": 2, "failed": 0, "total": 2}
        return Batch.model_construct(
            id=batch_id, status="completed", output_file_id="file-down", error_file_id=None, request_counts=counts
        )

    async def download(self, file_id: str, target: IO[bytes]) -> None:
        for row, keys in enumerate(GOLDEN["batch"]["keys"]):
            answer = {"custom_id": keys[0], "response": {"status_code": 200, "body": body_of(row)}}
            target.write(json.dumps(answer).encode() + b"\n")
        target.seek(0)

    def safe(self, reason: str) -> str:
        return reason

    async def close(self) -> None:
        """Nothing is open."""


def test_a_batch_in_flight_is_waited_for_and_not_bought_again(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch_module, "BatchEndpoint", Endpoint)
    told = GOLDEN["batch"]
    config, task = config_of(**told["teacher"], batch={"poll_seconds": 0.01}), get_task(told["task"])
    questions = [Question(one["id"], "train", one["text"], "", "") for one in told["questions"]]
    prompts = task_prompts(task, config.teacher.prompt)
    wanted = wanted_samples(config.teacher, prompts, questions)
    assert [[key.hex() for key in wanted.keys_of(row, 0, 2)] for row in range(2)] == told["keys"]
    calls = [
        (build_call(config.teacher, prompts, question, 0, 2), wanted.keys_of(row, 0, 2))
        for row, question in enumerate(questions)
    ]
    store = SampleStore(place)
    assert missing_mask(wanted, store.index(), retry_errors=False).all()
    with StoreWriter(place, 60) as writer:  # the file is made again, and its digest finds the batch
        running = batch_module.run_batches(config.teacher, prompts.stop, store, writer, calls, lambda done: None)
        summary = asyncio.run(running)
    assert (summary.submitted, summary.resumed, summary.replies) == (0, 1, 4)
    records = list(SampleStore(place).index().records(wanted.keys.reshape(-1)))
    assert [record.text for record in records if isinstance(record, Reply)] == [
        f"reply {row}.{n}\u2028" for row in range(2) for n in range(2)
    ]
    assert all(record is not None and record.batch for record in records)
    assert json.loads((place / told["file"]).read_text())["state"] == "done"


def test_a_batchs_file_is_named_as_it_was():
    told = GOLDEN["batch"]
    place = hashlib.sha256(f"{told['teacher']['base_url']} {told['digest']}".encode()).hexdigest()
    assert told["file"].startswith(f"batch-{place[:32]}-")
