"""Hosts that stream weights from the file (0.29 and newer, on NVIDIA): what is kept beside a model, and what their loader
reads. Driven on the CPU: as devices stand `cpu:0` and `cpu:1`, which hosts do not take for the CPU, and as virtual memory a
count of what a model has there; layers then copy their weights from the mapped file at each call."""

import collections
import gc

import pytest
import torch

from tools import inprocess, small

DEVICE, OTHER = torch.device("cpu:0"), torch.device("cpu:1")
SIZE = 2 * 3 * 256 * 4 * 23  # of keys and values: 3 blocks of width 256, float32, 15 + 8 tokens
inprocess.import_adapter("flow")


class Memory:
    """In place of comfy_aimdo's ModelVBAR: all of a model is there once it is loaded."""

    def __init__(self, size, device):
        self.there = 0

    def prioritize(self):
        pass

    def alloc(self, nbytes):
        self.there += nbytes
        return self, 0, nbytes

    def loaded_size(self):
        return self.there

    def free_memory(self, nbytes):
        freed = min(int(nbytes), self.there)
        self.there -= freed
        return freed


class Pinned:
    """In place of comfy_aimdo's HostBuffer: nothing is ever pinned."""

    size = 0

    def __init__(self, *args):
        pass


@pytest.fixture
def host(monkeypatch):
    """comfy.model_management, with `free` bytes on each device and nothing loaded; skipped where hosts do not stream."""
    import comfy.model_management as manage
    import comfy.model_patcher

    if not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        pytest.skip("this ComfyUI does not stream weights")
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar

    monkeypatch.setattr(comfy_aimdo.model_vbar, "ModelVBAR", Memory)
    monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", Pinned)
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
    monkeypatch.setattr(manage, "get_torch_device", lambda: DEVICE)
    monkeypatch.setattr(manage, "set_torch_device", lambda device: None)
    monkeypatch.setattr(manage, "is_device_cpu", lambda device: device == torch.device("cpu"))
    monkeypatch.setattr(manage, "current_loaded_models", [])
    manage.free = 2**40
    monkeypatch.setattr(
        manage, "get_free_memory", lambda device=None, torch_free_too=False: (manage.free, 0) if torch_free_too else manage.free
    )
    yield manage
    del manage.free


def load_again(parts):
    """The MODEL of the K/V variant, streamed."""
    load, (path, *_) = parts[1].cached_patcher_init
    patcher = load(path)
    assert patcher.is_dynamic() and patcher.load_device == DEVICE
    return patcher


@pytest.fixture
def streamed(host, parts):
    return load_again(parts)


@pytest.fixture
def kept(streamed, parts):
    return parts[0].attach(streamed, "across_runs", "gpu", "model")[0]


def counted(host) -> list[tuple]:
    """What the host counts of what is kept: (device, bytes) of each."""
    kept = [each for each in host.current_loaded_models if type(each.model).__name__ == "Entry"]
    return sorted((str(each.device), each.model_loaded_memory()) for each in kept if each.model_loaded_memory())


def bytes_of(parts, patcher, flow=None) -> int:
    """Of what is really there."""
    last = parts[0].cache_of(patcher).last
    return sum(
        x.untyped_storage().nbytes()
        for key, each in (last.found.items() if last else ())
        if flow is None or key[0]() is flow
        for pair in each.blocks.values()
        for x, _ in pair
    )


def test_it_samples_as_a_model_that_is_loaded_whole(run, kept, across):
    """Within 1e-6: matrices are multiplied from other addresses. What is kept changes nothing, bit for bit."""
    want, first, second = run(kept, fresh=True)[0], run(kept), run(kept)
    assert torch.equal(first[0], want) and torch.equal(second[0], want)
    assert (first[1], second[1]) == (False, True)
    assert small.relative(want, run(across)[0]) < 1e-6


def test_what_is_kept_is_counted_and_given_back_for_another_streamed_model(host, run, kept, parts):
    run(kept)
    assert bytes_of(parts, kept) == SIZE and counted(host) == [("cpu:0", SIZE)]
    model = next(each for each in host.current_loaded_models if each.model.is_dynamic())
    there = model.model_loaded_memory()
    host.free = 0
    host.free_memory(1, DEVICE, for_dynamic=True)
    assert bytes_of(parts, kept) == 0 and counted(host) == []
    assert model in host.current_loaded_models and model.model_loaded_memory() == there  # it streams: nothing is asked of it
    host.free = 2**40
    assert [run(kept)[1], run(kept)[1]] == [False, True]
    assert counted(host) == [("cpu:0", SIZE)]


def test_where_memory_is_free_it_stays(host, run, kept):
    run(kept)
    host.free_memory(2**30, DEVICE, for_dynamic=True)
    assert counted(host) and run(kept)[1]


def test_while_the_model_of_a_run_is_loaded_what_the_run_needs_stays(host, run, kept):
    run(kept)
    host.free = 2**20
    assert [run(kept)[1], run(kept)[1]] == [True, True]


def test_what_lies_elsewhere_or_goes_after_the_run_is_no_model_of_the_hosts(host, run, streamed, parts):
    for settings in (("within_run", "gpu"), ("across_runs", "cpu")):
        run(parts[0].attach(streamed, *settings, "model")[0])
        assert counted(host) == []


def test_it_goes_with_the_node_and_its_place_with_the_model(host, run, parts):
    model = load_again(parts)
    kept = parts[0].attach(model, "across_runs", "gpu", "model")[0]
    run(kept)
    del kept
    gc.collect()
    assert counted(host) == []
    del model
    gc.collect()
    assert host.current_loaded_models == []


def test_a_clone_that_does_not_stream_finds_what_it_kept_and_gives_it_back(host, run, kept, parts):
    """As TorchCompileModel asks for: a second model of the file, in the host's own patcher."""
    run(kept)
    clone = kept.clone(disable_dynamic=True)
    assert type(clone).__name__ == "ModelPatcher" and parts[0].cache_of(clone) is parts[0].cache_of(kept)
    assert [run(clone)[1], run(clone)[1]] == [False, True]
    assert bytes_of(parts, clone) == SIZE and counted(host) == [("cpu:0", SIZE)]  # and nothing of the first model
    host.free = 0
    host.free_memory(1, DEVICE, for_dynamic=True)
    assert bytes_of(parts, clone) == 0 and counted(host) == []


def test_each_gpu_keeps_its_own_once_and_all_go_together(host, run, kept, parts):
    """The host's copies for several GPUs: at cfg 4 each of the two computes one of the conditionings. Within 1e-5: cfg
    enlarges what a batch of two rounds otherwise."""
    want = run(kept, fresh=True, cfg=4.0)[0]
    copy = kept.deepclone_multigpu(new_load_device=OTHER)
    copy.is_multigpu_base_clone = True
    both = kept.clone()
    both.set_additional_models("multigpu", [copy])
    first = run(both, cfg=4.0)
    computed = parts[0].cache_of(both).last.found
    second = run(both, cfg=4.0)
    assert computed == parts[0].cache_of(both).last.found  # the very same, on both
    assert small.relative(first[0], want) < 1e-5 and torch.equal(first[0], second[0]) and second[1]
    own, others = both.model.diffusion_model, copy.model.diffusion_model
    assert [bytes_of(parts, both, flow) for flow in (own, others, None)] == [SIZE, SIZE, 2 * SIZE]
    assert counted(host) == [("cpu:0", SIZE), ("cpu:1", SIZE)]
    host.free = 0
    host.free_memory(1, OTHER, for_dynamic=True)
    assert bytes_of(parts, both) == 0 and counted(host) == []


@pytest.fixture
def reads(host, monkeypatch):
    """reads(module) -> names of the weights that the host's own reader finds in their files, each read anew and compared."""
    import comfy.memory_management as memory

    def reads(module):
        found = set()
        for name, weight in module.named_parameters():
            weight = getattr(weight, "_qdata", weight)  # an fp8 weight's own numbers
            again = torch.empty_like(weight)
            if memory.read_tensor_file_slice_into(weight, again):
                assert torch.equal(again.view(torch.uint8), weight.view(torch.uint8)), name
                found.add(name)
        return found

    monkeypatch.setattr(memory, "aimdo_enabled", True)
    return reads


def test_mapped_weights_carry_their_place_in_the_file(reads, parts, tmp_path):
    """Those that are cast or put together when they are loaded are in memory anyway."""
    flow = load_again(parts).model.diffusion_model
    assert reads(flow) == {name for name, _ in flow.named_parameters()}
    state = small.flow_state(**small.FLOW)
    load = inprocess.import_adapter("flow").load_model
    fp8, metadata, _ = small.fp8_state({name: weight.bfloat16() for name, weight in state.items()}, "metadata")
    flow = load(small.save(fp8, tmp_path / "fp8.safetensors", metadata)).model.diffusion_model
    assert {f"{name}.weight" for name, layer in flow.named_modules() if hasattr(layer, "layout_type")} <= reads(flow)
    assert "double_blocks.0.img_attn.qkv.weight" in reads(flow) and "img_in.weight" not in reads(flow)  # cast to float32


@pytest.mark.parametrize("streams", [True, False])
def test_a_place_is_where_the_numbers_of_a_weight_lie_and_is_told_only_where_the_host_streams(parts, monkeypatch, streams):
    """On hosts that do not stream too: read as their loader would."""
    slice_of = collections.namedtuple("Slice", "file_ref lock offset size")
    monkeypatch.setattr(inprocess.import_adapter("places"), "file_slice", lambda: slice_of if streams else None)
    load, (path, *_) = parts[1].cached_patcher_init
    for name, weight in load(path).model.diffusion_model.named_parameters():
        place = getattr(weight.untyped_storage(), "_comfy_tensor_file_slice", None)
        assert (place is not None) == streams, name
        if place:
            with place.lock:
                place.file_ref.seek(place.offset)
                assert place.file_ref.read(place.size) == weight.view(torch.uint8).numpy().tobytes(), name


def test_an_encoders_too(reads, oracle, tmp_path):
    adapter = inprocess.import_adapter("encoder")
    clip = adapter.load_clip(small.save(small.encoder_state(oracle.text_encoder), tmp_path / "encoder.safetensors"))
    clip.cond_stage_model.read_weights()
    assert reads(clip.cond_stage_model) == {name for name, _ in clip.cond_stage_model.named_parameters()}


def test_a_file_that_was_replaced_is_not_read_anew(reads, parts, tmp_path, monkeypatch):
    """Between its mapping and the look at its header."""
    places, operations = inprocess.import_adapter("places"), inprocess.import_adapter("operations")
    path = small.save(small.flow_state(**small.FLOW), tmp_path / "flow.safetensors")

    def replaced(tensors):
        small.save(small.flow_state(**small.FLOW), tmp_path / "new").replace(path)
        places.tell_places(tensors)

    monkeypatch.setattr(operations, "tell_places", replaced)
    assert reads(inprocess.import_adapter("flow").load_model(path).model.diffusion_model) == set()
