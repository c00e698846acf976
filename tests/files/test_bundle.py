"""A bundle is what its manifest says, or it is refused in a line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from recbole_kd.errors import UserError
from recbole_kd.files.bundle import FORMATS, best, is_bundle, read_bundle, read_tensors
from recbole_kd.files.reading import file_digest

#: Two users and three items: what u1 has seen is x and z, what u2 has seen is nothing.
USERS = np.array([[1, 0], [0.5, 2]], dtype=np.float32)
ITEMS = np.array([[3, 0], [2, 1], [1, 4]], dtype=np.float32)
SEEN = {"offsets": np.array([0, 2, 2]), "items": np.array([0, 2])}


def write(folder: Path, tensors: dict[str, Any], seen: dict[str, Any] = SEEN, ids: Any = None, **manifest: Any) -> Path:
    """A bundle of two towers, with the digests of what is in it."""
    folder.mkdir(exist_ok=True)
    for name, tokens in (ids or {"users": ["u1", "u2"], "items": ["x", "y", "z"]}).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(token) + "\n" for token in tokens))
    safetensors.numpy.save_file(tensors, folder / "vectors.safetensors")
    safetensors.numpy.save_file(seen, folder / "seen.safetensors")
    files = {}
    for path in folder.iterdir():
        sha256, size = file_digest(path)
        files[path.name] = {"bytes": size, "sha256": sha256}
    told = {"format": FORMATS[0], "model": "BPR", "dataset": "three", "score": "inner product", "users": 2, "items": 3}
    (folder / "manifest.json").write_text(json.dumps({**told, "files": files, **manifest}))
    return folder


@pytest.mark.parametrize("manifest", [{"format": FORMATS[0]}, {"format": FORMATS[1], "kind": "vectors"}])
def test_every_format_is_read(manifest: dict[str, Any], tmp_path: Path) -> None:
    bundle = read_bundle(write(tmp_path / "bundle", {"users": USERS, "items": ITEMS}, **manifest))
    assert (bundle.kind, bundle.users, bundle.item_rows) == ("vectors", ["u1", "u2"], {"x": 0, "y": 1, "z": 2})
    assert [bundle.seen(row).tolist() for row in (0, 1)] == [[0, 2], []]
    assert bundle.user_scores(0).tolist() == [3, 2, 1]
    assert bundle.recommend(0, k=5) == [(1, 2.0)]
    assert bundle.recommend(1, k=2) == [(2, 8.5), (1, 3.0)]


def test_vectors_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    bundle = read_bundle(write(tmp_path / "bundle", {"users": USERS, "items": ITEMS}))
    table = bundle.vectors["items"]
    while not isinstance(table, np.memmap):
        table = table.base
    with pytest.raises(ValueError, match="read-only"):
        bundle.vectors["items"][0, 0] = 1


def test_int8_rows_have_a_scale_each_and_float16_is_widened(tmp_path: Path) -> None:
    scaled = {
        "users": np.array([[2, 0], [1, 4]], dtype=np.int8),
        "users_scale": np.full(2, 0.5, dtype=np.float32),
        "items": np.array([[3, 0], [2, 1], [1, 4]], dtype=np.int8),
        "items_scale": np.array([1, 2, 1], dtype=np.float32),
    }
    bundle = read_bundle(write(tmp_path / "int8", scaled))
    assert bundle.vector(1).tolist() == [0.5, 2]
    assert bundle.user_scores(1).tolist() == [1.5, 6, 8.5]
    halves = {"users": USERS.astype(np.float16), "items": ITEMS.astype(np.float16)}
    bundle = read_bundle(write(tmp_path / "float16", halves))
    assert bundle.user_scores(1).tolist() == [1.5, 3, 8.5]
    assert bundle.user_scores(1).dtype == np.float32


def test_the_best_are_those_that_are_left() -> None:
    scores = np.array([1, 5, 3, 4, -np.inf], dtype=np.float32)
    assert best(scores.copy(), np.array([1]), 2) == [(3, 4.0), (2, 3.0)]
    assert best(scores.copy(), np.array([], dtype=np.int64), 9) == [(1, 5.0), (3, 4.0), (2, 3.0), (0, 1.0)]


@pytest.mark.parametrize("name", ["users.jsonl", "items.jsonl", "seen.safetensors", "vectors.safetensors"])
def test_a_changed_or_missing_file_is_named(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle", {"users": USERS, "items": ITEMS})
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} was changed after the export: its sha256 is"):
        read_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"cannot read {name}"):
        read_bundle(folder)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another format": (
        {"format": "recbole-kd-export/9"},
        "is of the format 'recbole-kd-export/9'; expected recbole-kd",
    ),
    "another kind": (
        {"format": FORMATS[1], "kind": "tree"},
        "is of the kind 'tree'; expected one of vectors, sequence",
    ),
    "no files": ({"files": {}}, "its manifest lacks 'users.jsonl' or names it wrongly"),
    "a field of another type": ({"users": "2"}, "field users is the text '2'; expected a whole number"),
    "more users": ({"users": 3}, "users.jsonl does not hold 3 different ids"),
    "fewer items": ({"items": 2}, "items.jsonl does not hold 2 different ids"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_manifest_that_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    manifest, message = BAD[case]
    folder = write(tmp_path / "bundle", {"users": USERS, "items": ITEMS}, **manifest)
    with pytest.raises(UserError) as raised:
        read_bundle(folder)
    assert message in str(raised.value)


def test_no_file_outside_of_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    folder = write(tmp_path / "bundle", {"users": USERS, "items": ITEMS})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"bytes": 0, "sha256": file_digest(tmp_path / "secret")[0]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="its manifest lacks '../secret' or names it wrongly"):
        read_bundle(folder)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rows": ({"users": USERS[:1], "items": ITEMS}, SEEN, "users are float32 of shape (1, 2), of 2 rows"),
    "dimensions": ({"users": USERS[:, :1].copy(), "items": ITEMS}, SEEN, "have different dimensions"),
    "no items": ({"users": USERS}, SEEN, "items"),
    "int8 without a scale": ({"users": USERS.astype(np.int8), "items": ITEMS}, SEEN, "users are int8"),
    "offsets": ({"users": USERS, "items": ITEMS}, {**SEEN, "offsets": np.array([0, 3, 2])}, "no lists of item rows"),
    "an item": ({"users": USERS, "items": ITEMS}, {**SEEN, "items": np.array([0, 3])}, "no lists of item rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_are_no_bundle_s_are_refused(case: str, tmp_path: Path) -> None:
    tensors, seen, message = WRONG[case]
    folder = write(tmp_path / "bundle", tensors, seen)
    with pytest.raises(UserError) as raised:
        read_bundle(folder)
    assert message in str(raised.value)
    assert "export it again" in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", (1 << 60).to_bytes(8, "little")])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises((ValueError, KeyError, TypeError, IndexError, AttributeError)):
        read_tensors(tmp_path / "x.safetensors")


def test_a_folder_without_a_manifest_holds_no_bundle(tmp_path: Path) -> None:
    assert not is_bundle(tmp_path)
    with pytest.raises(UserError, match="holds no bundle .*; give a folder that recbole-kd export wrote"):
        read_bundle(tmp_path)
    assert is_bundle(write(tmp_path / "bundle", {"users": USERS, "items": ITEMS}))


@pytest.mark.parametrize("name", ["users.jsonl", "items.jsonl", "seen.safetensors", "vectors.safetensors"])
def test_a_damaged_file_with_the_right_digest_is_read_or_refused_in_a_line(name: str, tmp_path: Path) -> None:
    """Who writes a bundle by hand writes its digests too: bytes are changed, left out and added at random."""
    folder = write(tmp_path / "bundle", {"users": USERS, "items": ITEMS})
    whole, manifest = (folder / name).read_bytes(), json.loads((folder / "manifest.json").read_text())
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(generator.integers(1, 4)):
            place = int(generator.integers(len(content)))
            change = int(generator.integers(3))
            content[place : place + (change > 0)] = b"" if change == 1 else bytes([int(generator.integers(256))])
        (folder / name).write_bytes(content)
        sha256, size = file_digest(folder / name)
        manifest["files"][name] = {"bytes": size, "sha256": sha256}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        try:
            read_bundle(folder)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 20
