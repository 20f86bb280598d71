"""Artifacts: finished or not, never edited, named by everything that decides their content."""

from dataclasses import replace
from pathlib import Path

import pytest

from qcrd.storage.artifacts import Artifact
from qcrd.storage.output import Storage


def test_an_artifact_is_finished_only_once_it_is_whole(tmp_path: Path):
    artifact = Artifact(Storage.of(tmp_path), "rationales", "svamp", "abc")
    folder = artifact.begin()
    (folder / "a.txt").write_text("1")
    assert not artifact.is_finished() and not artifact.path.exists()
    artifact.finish({"m": 5}, {"samples": "d"}, {"count": 1})
    assert artifact.is_finished() and not folder.exists()
    marker = artifact.marker()
    assert marker["settings"] == {"m": 5} and list(marker["files"]) == ["a.txt"] and marker["summary"] == {"count": 1}


def test_a_crash_leaves_no_finished_artifact_and_the_next_start_begins_clean(tmp_path: Path):
    artifact = Artifact(Storage.of(tmp_path), "s", "n", "f")
    (artifact.begin() / "half.txt").write_text("x")
    assert not artifact.is_finished()
    assert list(artifact.begin().iterdir()) == []


def test_the_first_of_two_finishers_stays(tmp_path: Path):
    one, two = Artifact(Storage.of(tmp_path), "s", "n", "f"), Artifact(Storage.of(tmp_path), "s", "n", "f")
    (one.begin() / "a").write_text("first")
    one.finish({}, {}, {})
    (two.begin() / "a").write_text("second")
    two.finish({}, {}, {})
    assert (one.path / "a").read_text() == "first"
    assert sorted(path.name for path in one.path.parent.iterdir()) == ["n-f"]


def test_the_digest_is_of_contents_and_not_of_the_summary(tmp_path: Path):
    digests = []
    for name, text, seconds in (("x", "1", 1.0), ("y", "1", 2.0), ("z", "2", 1.0)):
        artifact = Artifact(Storage.of(tmp_path), "s", name, "f")
        (artifact.begin() / "a").write_text(text)
        artifact.finish({}, {}, {"seconds": seconds})
        digests.append(artifact.digest())
    assert digests[0] == digests[1] != digests[2]


def test_an_unfinished_artifact_has_no_digest(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        Artifact(Storage.of(tmp_path), "s", "n", "f").digest()


def test_the_newest_revision_is_the_last_that_is_finished(tmp_path: Path):
    base = Artifact(Storage.of(tmp_path), "samples", "svamp", "abc")
    assert base.newest() == base  # nothing is finished
    revisions = [replace(base, revision=number) for number in range(4)]
    for artifact, newest in ((base, 0), (revisions[1], 1), (revisions[3], 1), (revisions[2], 3)):
        (artifact.begin() / "a").write_text(str(artifact.revision))
        artifact.finish({}, {}, {})
        assert base.newest() == revisions[newest]  # what comes after a gap does not count
    assert [artifact.path.name for artifact in revisions] == ["svamp-abc", *(f"svamp-abc.r{n}" for n in (1, 2, 3))]
    assert (base.newest().path / "a").read_text() == "3" and (base.path / "a").read_text() == "0"
    assert revisions[2].newest() == revisions[3] and len({artifact.digest() for artifact in revisions}) == 4


def test_a_revision_in_progress_is_not_the_newest(tmp_path: Path):
    base = Artifact(Storage.of(tmp_path), "s", "n", "f")
    (base.begin() / "a").write_text("1")
    base.finish({}, {}, {})
    following = replace(base, revision=1)
    following.begin()
    assert following.working_path.name.startswith("n-f.r1.") and base.newest() == base
