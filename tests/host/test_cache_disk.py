"""Keys and values of references on disk, in this process: each run is one of a cache node that has nothing in memory, as in a
fresh server, and is compared, bit for bit, with one that looks for nothing. (Two servers: test_known.py.)"""

import pytest
import torch

from klein.store.store import Store
from tools import inprocess, small

LAYER = "diffusion_model.double_blocks.0.img_attn.qkv.weight"


@pytest.fixture
def store(parts, monkeypatch, tmp_path):
    module, own = inprocess.import_adapter("store"), Store(tmp_path / "store", 2**30, 0)
    monkeypatch.setattr(module, "store", lambda: own)
    return own


@pytest.fixture
def fresh(parts, run, caplog, store):
    """fresh(model) -> latents, and whether keys and values were read from disk."""

    def fresh(model=parts[1], dtype="model", device="gpu", **settings):
        patcher = parts[0].attach(model, "on_disk", device, dtype)[0]
        latents, _ = run(patcher, **settings)
        return latents, "read from disk" in caplog.text

    return fresh


def patched(model, value=1 / 50, strength=1.0):
    model = model.clone()
    model.add_patches({LAYER: (torch.full((768, 256), value),)}, strength)
    return model


def test_what_one_cache_node_computed_the_next_one_reads_and_paints_the_same(run, parts, fresh):
    want, _ = run(parts[1], fresh=True)
    assert [fresh()[1], fresh()[1], fresh(batch=2)[1], fresh(device="cpu")[1]] == [False, True, True, True]
    assert torch.equal(fresh()[0], want)


def test_what_is_read_is_what_the_steps_use(fresh, store):
    want, _ = fresh()
    for entry in store.entries():
        tensors = store.get(entry.key)
        if entry.what.startswith("keys and values") and "spans" not in entry.what:
            store.put(entry.key, {name: torch.zeros_like(x) for name, x in tensors.items()}, entry.what)
    got, read = fresh()
    assert read and not torch.equal(got, want)


def test_other_references_another_order_dtype_or_patch_are_computed(run, parts, fresh):
    model, latents = parts[1], run.references
    others = [
        dict(latents=latents[::-1]), dict(latents=latents[:1]), dict(dtype="float8_e4m3fn"), dict(model=patched(model)),
        dict(model=patched(model, 1 / 40)), dict(model=patched(model, strength=0.5)),
    ]  # fmt: skip
    fresh()
    computed, known = ([fresh(**settings) for settings in others] for _ in range(2))
    assert not any(read for _, read in computed) and all(read for _, read in known)
    assert all(torch.equal(got, want) for (got, _), (want, _) in zip(known, computed))  # in float8 too
    for settings in others:
        if "dtype" not in settings:
            want, _ = run(settings.get("model", model), fresh=True, latents=settings.get("latents", latents))
            assert torch.equal(fresh(**settings)[0], want)


def test_a_lora_is_known_by_what_it_holds_and_not_by_its_node(parts, fresh):
    """Each server gives its patches a number of its own."""
    fresh(patched(parts[1]))
    assert fresh(patched(parts[1]))[1]


def test_a_lora_at_call_time_is_known_too(parts, fresh, tmp_path):
    """On quantised weights, by Klein LoRA Loader."""
    flow, lora = inprocess.import_adapter("flow"), inprocess.import_adapter("lora")
    path = small.save(small.flow_state(**small.FLOW), tmp_path / "flow-kv.safetensors")
    generator, name = torch.Generator().manual_seed(3), LAYER.removesuffix(".weight")
    shapes = {"A": (4, 256), "B": (768, 4)}
    weights = {f"{name}.lora_{n}.weight": torch.randn(*s, generator=generator) / 8 for n, s in shapes.items()}
    file = small.save(weights, tmp_path / "lora.safetensors")
    quantised = flow.load_model(path, "fp8_e4m3fn")
    models = [lora.attach(quantised, None, file, strength, 1.0)[0] for strength in (1.0, 1.0, 0.5)]
    assert [fresh(model)[1] for model in models] == [False, True, False]
    assert not fresh(quantised)[1]


def test_a_patch_of_a_kind_that_is_not_known_stays_in_memory_and_says_so(parts, fresh, store, caplog):
    model = parts[1].clone()
    model.add_patches({LAYER: (torch.ones(768, 256) / 50,)}, 1.0)
    model.patches[LAYER] = [(*model.patches[LAYER][0][:4], lambda weight: weight * 0.5)]
    fresh(model)
    assert "kept in memory only, as the model has patches that cannot be told again" in caplog.text
    assert not [entry for entry in store.entries() if entry.what.startswith("keys and values")]


@pytest.mark.parametrize("damage", ["truncated", "gone", "flipped"])
def test_a_damaged_entry_is_computed_again(run, parts, fresh, store, damage):
    want, _ = run(parts[1], fresh=True)
    fresh()
    entry = next(entry for entry in store.entries() if entry.what == "keys and values of references, double 0")
    path = store.disk.folder / f"{entry.key}.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.unlink() if damage == "gone" else path.write_bytes(data[: len(data) // 2] if damage == "truncated" else data)
    got, read = fresh()
    assert torch.equal(got, want) and not read
    assert fresh()[1]


def test_a_store_that_is_too_small_is_said_and_nothing_is_half_written(run, parts, fresh, store, caplog):
    store.disk.most = 2**17
    want, _ = run(parts[1], fresh=True)
    got, read = fresh()
    assert torch.equal(got, want) and not read
    assert "not written to disk" in caplog.text and "raise KLEIN_STORE_GB" in caplog.text
    assert not [entry for entry in store.entries() if entry.what.startswith("keys and values")]


def test_the_report_says_where_and_warns_where_nothing_can_be_kept(parts, store, monkeypatch, tmp_path):
    cache, model, _ = parts
    _, report = cache.attach(model, "on_disk", "gpu", "model")
    assert f"on disk: {len(store.entries())} entries" in report and str(store.disk.folder) in report
    module = inprocess.import_adapter("store")
    monkeypatch.setattr(module, "store", lambda: Store(None, 0, 0))
    _, report = cache.attach(model, "on_disk", "gpu", "model")
    assert "Warning: kept in memory only, as the store is off (KLEIN_STORE=off)" in report
