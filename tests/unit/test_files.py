"""Safetensors files and folders as they are opened: what is found, and what is refused by its name."""

import json
import os
from dataclasses import FrozenInstanceError

import pytest
import torch

from klein.errors import KleinError
from klein.model_loaders.formats import files
from klein.model_loaders.formats.files import open_checkpoint
from tools import small

ONE, TWO = {"a.weight": torch.ones(2, 3)}, {"b.weight": torch.full((2,), 2.0)}


def index(folder, weight_map: dict, name="model.safetensors.index.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return folder / name


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@pytest.mark.parametrize("code", DTYPES)
def test_the_header_gives_the_shape_and_dtype_of_every_tensor(tmp_path, code):
    """Written out by hand, as the format's page says."""
    size = 6 * DTYPES[code].itemsize
    header = json.dumps(
        {"a.b": {"dtype": code, "shape": [2, 3], "data_offsets": [0, size]}, "__metadata__": {"k": "v"}}
    ).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.shapes == {"a.b": (2, 3)} and checkpoint.dtypes == {"a.b": DTYPES[code]}
    assert checkpoint.metadata == {"k": "v"}
    assert torch.equal(checkpoint["a.b"], torch.zeros(2, 3, dtype=DTYPES[code]))


def test_a_dtype_that_torch_does_not_read_is_refused_by_name(tmp_path):
    header = json.dumps({"a.b": {"dtype": "U16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(KleinError, match=f"^x.safetensors stores a.b as U16, expected one of {', '.join(DTYPES)}: "):
        open_checkpoint(tmp_path / "x.safetensors")


def test_tensors_are_asked_for_by_name_and_listed_by_layer(tmp_path):
    names = ["a.weight", "a.b.weight", "a.b.c.d.e", "a.b.c.d.e.f", "ab.weight", "alone"]
    checkpoint = open_checkpoint(small.save({name: torch.ones(1) for name in names}, tmp_path / "x.safetensors"))
    assert "a.weight" in checkpoint and "a" not in checkpoint
    assert sorted(checkpoint.beside("a")) == ["a.b.c.d.e", "a.b.weight", "a.weight"]  # four names deep, which is enough
    assert sorted(checkpoint.beside("a.b")) == ["a.b.c.d.e", "a.b.c.d.e.f", "a.b.weight"]
    assert checkpoint.beside("ab") == ["ab.weight"] and checkpoint.beside("alone") == checkpoint.beside("b") == []


def test_what_was_read_of_a_file_does_not_change(tmp_path):
    checkpoint = open_checkpoint(small.save(ONE, tmp_path / "x.safetensors"))
    for made, name in ((checkpoint, "shapes"), (checkpoint._homes["a.weight"], "stamp")):
        with pytest.raises(FrozenInstanceError):
            setattr(made, name, getattr(made, name))


def test_a_folder_of_one_file_is_that_file(tmp_path):
    small.save(ONE, tmp_path / "folder/any name.safetensors")
    (tmp_path / "folder/readme.txt").write_text("not this")
    assert open_checkpoint(tmp_path / "folder").shapes == {"a.weight": (2, 3)}


def test_a_folder_of_several_files_or_none_needs_an_index(tmp_path):
    (tmp_path / "folder").mkdir()
    for count in (0, 2):
        with pytest.raises(
            KleinError, match=f"^The folder folder holds {count} safetensors files and no index, expected one file"
        ):
            open_checkpoint(tmp_path / "folder")
        for name, state in (("1", ONE), ("2", TWO)):
            small.save(state, tmp_path / f"folder/{name}.safetensors")


def test_the_shards_of_an_index_are_one_model_and_other_files_are_not(tmp_path):
    for name, state in (("1", ONE), ("2", TWO), ("3", {"c": torch.ones(1)})):
        small.save(state, tmp_path / f"{name}.safetensors", {"of": name, f"only {name}": "yes"})
    index(tmp_path, {"a.weight": "1.safetensors", "b.weight": "2.safetensors", "b.bias": "2.safetensors"})
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint["a.weight"], ONE["a.weight"]) and torch.equal(checkpoint["b.weight"], TWO["b.weight"])
    assert checkpoint.shapes == {"a.weight": (2, 3), "b.weight": (2,)}
    assert checkpoint.metadata == {"of": "2", "only 1": "yes", "only 2": "yes"}


def test_a_pipelines_folder_is_read_in_the_part_that_is_wanted(tmp_path):
    small.save(ONE, tmp_path / "pipe/transformer/x.safetensors")
    small.save(TWO, tmp_path / "pipe/x.safetensors")
    assert open_checkpoint(tmp_path / "pipe", "transformer").path == tmp_path / "pipe/transformer"
    assert open_checkpoint(tmp_path / "pipe", "transformer").shapes.keys() == ONE.keys()
    for part in ("vae", None):
        assert open_checkpoint(tmp_path / "pipe", part).shapes.keys() == TWO.keys()
    assert open_checkpoint(tmp_path / "pipe/x.safetensors", "transformer").shapes.keys() == TWO.keys()


def test_what_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(KleinError, match=r"gone.safetensors does not exist: choose a file that is in the list, or refresh"):
        open_checkpoint(tmp_path / "gone.safetensors")


def test_a_file_without_tensors_is_refused(tmp_path):
    with pytest.raises(
        KleinError, match="^x.safetensors holds no tensors, expected the weights of a model: download it again.$"
    ):
        open_checkpoint(small.save({}, tmp_path / "x.safetensors"))


def test_an_index_is_not_read_when_it_is_larger_than_any_models(tmp_path, monkeypatch):
    small.save(ONE, tmp_path / "1.safetensors")
    path = index(tmp_path, {"a.weight": "1.safetensors"})
    size = path.stat().st_size
    monkeypatch.setattr(files, "LARGEST_INDEX", size)
    assert open_checkpoint(tmp_path).shapes.keys() == ONE.keys()
    monkeypatch.setattr(files, "LARGEST_INDEX", size - 1)
    with pytest.raises(
        KleinError, match=rf"^model.safetensors.index.json is not a safetensors index \({size} bytes\): download"
    ):
        open_checkpoint(tmp_path)


def test_no_index_has_more_than_64_mib(tmp_path):
    """A hole in the file: nothing is written."""
    path = index(tmp_path, {})
    with path.open("r+b") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(KleinError, match=r"\(67108865 bytes\)"):
        open_checkpoint(tmp_path)


def written_over(path, data):
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def longer(path, data):
    kept = path.stat().st_mtime_ns
    path.write_bytes(data + b"0")
    os.utime(path, ns=(0, kept))


def another_in_its_place(path, data):
    kept = path.stat().st_mtime_ns
    (path.parent / "new").write_bytes(data)
    os.utime(path.parent / "new", ns=(0, kept))
    os.replace(path.parent / "new", path)


@pytest.mark.parametrize("change", [written_over, longer, another_in_its_place])
def test_a_file_that_changed_in_any_way_since_it_was_opened_is_not_read(tmp_path, change):
    """Its header's places would be read from other tensors: by its time, its size, or which file it is."""
    checkpoint = open_checkpoint(small.save(ONE, tmp_path / "x.safetensors"))
    assert torch.equal(checkpoint["a.weight"], ONE["a.weight"])
    change(checkpoint.path, checkpoint.path.read_bytes())
    with pytest.raises(KleinError, match="^x.safetensors has changed since its header was read: load it again.$"):
        checkpoint["a.weight"]
