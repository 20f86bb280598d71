"""What content is known by."""

from pathlib import Path

from qcrd.storage.atomic import write_atomically
from qcrd.storage.fingerprints import fingerprint, folder_digest


def test_fingerprints_change_with_stage_version_settings_and_inputs():
    marks = {
        fingerprint("s", 1, {"a": 1}, {"q": "d"}), fingerprint("t", 1, {"a": 1}, {"q": "d"}),
        fingerprint("s", 2, {"a": 1}, {"q": "d"}), fingerprint("s", 1, {"a": 2}, {"q": "d"}),
        fingerprint("s", 1, {"a": 1}, {"q": "e"}),
    }  # fmt: skip
    assert len(marks) == 5
    assert fingerprint("s", 1, {"a": 1, "b": 2}, {}) == fingerprint("s", 1, {"b": 2, "a": 1}, {})


def test_write_atomically_leaves_one_file(tmp_path: Path):
    write_atomically(tmp_path / "a.json", "old")
    write_atomically(tmp_path / "a.json", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "new")]
    before = folder_digest(tmp_path)
    (tmp_path / "b").write_text("")
    assert folder_digest(tmp_path) != before
