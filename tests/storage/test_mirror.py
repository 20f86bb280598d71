"""Small files that grow, in a bucket behind a real S3 protocol."""

from __future__ import annotations

from qcrd.storage import mirror
from tests.storage.nodes import Node, write


def test_growing_files_follow_a_driver_to_another_node(on_node: Node) -> None:
    here = on_node("a")
    with here.mirror("records/x", without=("tune",)):
        write(here.folder / "records/x/metrics.jsonl", "1\n")
        write(here.folder / "records/x/tune/state", "big")
        write(here.folder / "records/x/.lock", "")
    there = on_node("b")
    assert there._bucket.names("records") == ["records/x/metrics.jsonl"]
    with there.mirror("records/x"):
        path = there.folder / "records/x/metrics.jsonl"
        assert path.read_text() == "1\n"
        write(path, "1\n2\n")
    here = on_node("a")
    with here.mirror("records/x"):  # the other node has written since
        assert (here.folder / "records/x/metrics.jsonl").read_text() == "1\n2\n"
    write(here.folder / "records/x/metrics.jsonl", "1\n2\n3\n")  # as by a driver that died before it was sent
    with here.mirror("records/x"):
        assert (here.folder / "records/x/metrics.jsonl").read_text() == "1\n2\n3\n"
    assert on_node("c").for_reading().pull("records/x").joinpath("metrics.jsonl").read_text() == "1\n2\n3\n"


def test_who_reads_leaves_alone_what_a_driver_on_the_same_node_writes(on_node: Node) -> None:
    here = on_node("a")
    path = here.folder / "sweeps/x/trials.jsonl"
    with here.mirror("sweeps/x"):
        write(path, "1\n")
        mirror.push(here._bucket, here.folder, "sweeps/x")
        write(path, "1\n2\n")  # not sent yet
        assert here.for_reading().pull("sweeps").joinpath("x/trials.jsonl").read_text() == "1\n"
        assert path.read_text() == "1\n2\n"
    assert here.for_reading().pull("sweeps").joinpath("x/trials.jsonl").read_text() == "1\n2\n"
