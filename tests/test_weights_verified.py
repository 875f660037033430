"""A weight file that is not what was written is refused, wherever its sum is recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bblab.errors import BblabError
from bblab.weights import load, save
from bblab.weights.verifying import verify

STATE = {"a.weight": torch.arange(4096, dtype=torch.float32), "b.weight": torch.ones(3)}


def zero(path: Path, count: int = 4000) -> None:
    """Write zeroes into the middle of a file, where its tensors are."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + count] = bytes(count)
    path.write_bytes(content)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"state_dict": STATE}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_zeroes_in_a_checkpoint_are_found_by_its_own_checksums(checkpoint: Path) -> None:
    assert verify(checkpoint) is None
    assert torch.equal(load(checkpoint)[0]["a.weight"], STATE["a.weight"])
    zero(checkpoint)
    torch.load(checkpoint, weights_only=True)  # torch takes it
    with pytest.raises(BblabError, match=r"net\.pth is damaged: the checksum of net/data/0 inside does not hold"):
        load(checkpoint)


def test_zeroes_in_a_file_of_ours_are_found_by_the_sum_of_its_content(tmp_path: Path) -> None:
    path = save(STATE, tmp_path / "net.safetensors", {"spec_id": "abc"})
    assert load(path)[0].keys() == STATE.keys()
    zero(path)
    with pytest.raises(BblabError, match="its tensors are not those that were written"):
        load(path)


def _sidecar(path: Path, digest: str) -> str:
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}\n")
    return f"{path.name}.sha256"


def _sums(path: Path, digest: str) -> str:
    path.with_name("SHA256SUMS").write_text(f"{'0' * 64}  other.pth\n{digest} *{path.name}\n")
    return "SHA256SUMS"


def _record(path: Path, digest: str) -> str:
    lines = [{"kind": "checkpoint", "file": path.name, "sha256": digest}, {"kind": "checkpoint", "file": "other.pth"}]
    path.with_name("record.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"cut')
    return "record.jsonl"


def _manifest(path: Path, digest: str) -> str:
    path.with_name("manifest.json").write_text(json.dumps({"files": {path.name: digest}}))
    return "manifest.json"


@pytest.mark.parametrize("write", [_sidecar, _sums, _record, _manifest])
def test_a_sum_beside_a_file_is_compared_with(checkpoint: Path, write: Callable[[Path, str], str]) -> None:
    place = write(checkpoint, hashlib.sha256(checkpoint.read_bytes()).hexdigest())
    assert verify(checkpoint) == place
    load(checkpoint)
    torch.save({"state_dict": {"a.weight": torch.zeros(2)}}, checkpoint)  # whole, but another file
    with pytest.raises(BblabError, match="damaged or another file") as error:
        load(checkpoint)
    assert place in str(error.value) and "copy or download it again" in error.value.hint


def test_a_file_that_was_written_twice_may_be_either(checkpoint: Path) -> None:
    """A training that lost its newest epoch writes its checkpoint again, under the same name."""
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    lines = [{"kind": "checkpoint", "file": checkpoint.name, "sha256": d} for d in (digest, "1" * 64)]
    checkpoint.with_name("record.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert verify(checkpoint) == "record.jsonl"


def test_the_best_checkpoint_is_one_of_those_on_record(checkpoint: Path) -> None:
    _record(checkpoint, hashlib.sha256(checkpoint.read_bytes()).hexdigest())
    best = checkpoint.rename(checkpoint.with_name("best.pth"))
    assert verify(best) == "record.jsonl"
    zero(best)
    with pytest.raises(BblabError, match=r"best\.pth is damaged"):
        load(best)


def test_unreadable_lists_and_files_without_sums_are_nobodys_fault(tmp_path: Path) -> None:
    old = tmp_path / "old.pth"
    torch.save(STATE, old, _use_new_zipfile_serialization=False)
    (tmp_path / "manifest.json").write_text("[1, 2")
    (tmp_path / "record.jsonl").write_bytes(b"\xff\xfe\n{}\n")
    assert verify(old) is None
    assert load(old)[0].keys() == STATE.keys()


def test_a_damaged_file_is_not_imported(
    bblab: Callable[..., object], spec_file: Callable[..., Path], tmp_path: Path
) -> None:
    from bblab import build, spec
    from bblab.lab import Lab

    text = "stages:\n  a: {block: conv, out: 64, stride: 2}\n  b: {block: conv, out: 64, stride: 2}\n"
    path = spec_file(text, "net")
    lab = Lab(tmp_path / "lab")
    net = build.Backbone(spec.parse(text, lab.kinds, name="net"), lab.kinds)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    zero(tmp_path / "net.pth")
    ran = bblab("import", path, "--from", tmp_path / "net.pth")
    assert ran.code == 2 and "is damaged: the checksum of" in ran.err  # type: ignore[attr-defined]
