"""The store: nothing lost, torn lines skipped, one winner a key."""

from pathlib import Path

from qcrd.teacher.base import Reply
from qcrd.teacher.store import Failure, SampleStore, StoreWriter, sample_key


def test_replies_are_there_as_soon_as_they_are_written(tmp_path: Path):
    writer = StoreWriter(tmp_path)
    writer.write("k1", Reply("text \ud83d", "why", "stop", 3, None, 2))
    writer.write("k2", Failure("status 400: no", 1))
    found = SampleStore(tmp_path).load({"k1", "k2", "k3"})  # before close: as after kill -9
    assert found == {"k1": Reply("text ?", "why", "stop", 3, None, 2), "k2": Failure("status 400: no", 1)}
    assert SampleStore(tmp_path).replies({"k1", "k2"}) == {"k1"}  # failures are asked again


def test_torn_and_damaged_lines_are_skipped_and_counted(tmp_path: Path):
    with StoreWriter(tmp_path) as writer:
        for i in range(3):
            writer.write(f"k{i}", Reply(f"text {i}"))
    lines = writer.path.read_text().splitlines(keepends=True)
    writer.path.write_text(lines[0] + lines[1].replace("text 1", "text 9") + lines[2][:20])
    store = SampleStore(tmp_path)
    assert store.load({"k0", "k1", "k2"}) == {"k0": Reply("text 0")} and store.num_skipped == 2


def test_of_two_replies_the_same_one_wins_whatever_the_order(tmp_path: Path):
    winners = []
    for order in (("a", "b"), ("b", "a")):
        folder = tmp_path / order[0]
        for text in order:
            with StoreWriter(folder) as writer:
                writer.write("k", Reply(text))
        winners.append(SampleStore(folder).load({"k"})["k"])
    assert winners[0] == winners[1]


def test_a_reply_beats_an_error(tmp_path: Path):
    for record in (Failure("timeout", 3), Reply("text"), Failure("timeout", 3)):
        with StoreWriter(tmp_path) as writer:
            writer.write("k", record)
    assert SampleStore(tmp_path).load({"k"}) == {"k": Reply("text")}


def test_keys_are_of_content():
    base = ("svamp", "1 + 1?", "prompt", {"model": "m", "temperature": 0.7}, 0)
    keys = {sample_key(*base), sample_key("cqa", *base[1:]), sample_key(*base[:4], 1)}
    keys |= {sample_key(*base[:3], {"model": "m", "temperature": 0.8}, 0), sample_key(*base[:2], "other", *base[3:])}
    assert len(keys) == 5 and sample_key(*base[:3], {"temperature": 0.7, "model": "m"}, 0) in keys
