"""What this machine does not have: hosts that compute in the weights' own dtype, as on a GPU, NVIDIA's rules, newer
loaders. The host is real and in this process; only its answers about the machine are changed."""

import pytest
import torch

from tools import inprocess, small
from tools.small import comfy_noise, relative

HALF = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(scope="module")
def adapters():
    return {name: inprocess.import_adapter(name) for name in ("flow", "encoder", "vae", "files", "sampling", "operations")}


@pytest.fixture
def gpu_like(adapters, monkeypatch):
    """Weights in bf16, fp16 or float32 are computed with as they are, others in bf16."""
    import comfy.model_management

    def manual_cast(dtype, device, supported=None):
        return None if dtype in HALF else torch.bfloat16

    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", manual_cast)


def text():
    return torch.randn(1, 512, small.FLOW["context"], generator=torch.Generator().manual_seed(2))


def velocity(model):
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    with torch.no_grad():
        return model.model.apply_model(comfy_noise(1), torch.tensor([0.5]), c_crossattn=text()).float()


def changed(state, dtype, layers):
    return {name: w.to(dtype) if any(part in name for part in layers) and w.ndim == 2 else w for name, w in state.items()}


@pytest.mark.parametrize(
    ("dtype", "layers", "tolerance"),
    [
        (torch.float32, ["final_layer"], 0.03),
        (torch.float32, ["img_in"], 0.03),
        (torch.float8_e4m3fn, ["_blocks."], 0.2),
        (torch.float8_e4m3fn, [""], 0.2),
    ],
)
def test_a_flow_file_of_two_dtypes_runs_where_weights_are_not_cast(adapters, gpu_like, tmp_path, dtype, layers, tolerance):
    """Tolerance: bf16 arithmetic, or fp8 weights without a scale."""
    state = {name: w.bfloat16() for name, w in small.flow_state(**small.FLOW).items()}
    exact = small.velocity(
        small.flow_oracle({n: w.float() for n, w in state.items()}), comfy_noise(1), torch.tensor([0.5]), text()
    )
    path = small.save(changed(state, dtype, layers), tmp_path / "flow.safetensors")
    import comfy.model_sampling

    model = adapters["flow"].load_model(path)
    got = velocity(model)
    sampling = model.model.model_sampling
    want = sampling.calculate_denoised(torch.tensor([0.5]), exact, comfy_noise(1))
    assert isinstance(sampling, comfy.model_sampling.CONST)
    assert relative(got, want) < tolerance


@pytest.mark.parametrize("layers", [["_blocks."], ["img_in", "norm"]])
def test_a_loader_that_streams_weights_keeps_the_dtype_of_each_layer(adapters, tmp_path, layers):
    """On a GPU newer hosts cast each weight to the dtype they noted for it: done here by hand. Tolerance: float32 sums."""
    state = changed(small.flow_state(**small.FLOW), torch.bfloat16, layers)
    flow = adapters["flow"].load_model(small.save(state, tmp_path / "flow.safetensors")).model.diffusion_model
    assert {weight.dtype for weight in flow.parameters()} == {torch.bfloat16, torch.float32}
    for module in flow.modules():
        for name, weight in module.named_parameters(recurse=False):
            weight.data = weight.data.to(getattr(module, f"{name}_comfy_model_dtype", weight.dtype))
    oracle = small.flow_oracle({name: w.float() for name, w in state.items()})
    with torch.no_grad():
        got = flow(comfy_noise(1), torch.tensor([0.5]), text())
    assert relative(got, small.velocity(oracle, comfy_noise(1), torch.tensor([0.5]), text())) < 1e-6


@pytest.fixture(scope="module")
def encoder():
    return small.encoder_state(small.encoder_oracle(**small.ENCODER))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_encoder_on_the_cpu_of_an_nvidia_machine(adapters, encoder, monkeypatch, tmp_path, dtype):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "is_nvidia", lambda: True)
    path = small.save({name: w.to(dtype) for name, w in encoder.items()}, tmp_path / "qwen_3_4b.safetensors")
    clip = adapters["encoder"].load_clip(path, "cpu")
    assert clip.encode_from_tokens(clip.tokenize("a cat")).isfinite().all()


def test_an_encoder_file_of_two_dtypes_runs_with_bf16_activations(adapters, encoder, monkeypatch, tmp_path):
    mixed = {name: w.float() if "mlp" in name else w.bfloat16() for name, w in encoder.items()}
    path = small.save(mixed, tmp_path / "qwen_3_4b.safetensors")
    want = adapters["encoder"].load_clip(path).encode_from_tokens(adapters["encoder"].load_clip(path).tokenize("a cat"))
    monkeypatch.setattr(adapters["encoder"], "activations", lambda dtype, device: torch.bfloat16)
    clip = adapters["encoder"].load_clip(path)
    assert relative(clip.encode_from_tokens(clip.tokenize("a cat")), want) < 0.1


@pytest.mark.parametrize("scheme", ["comfy_quant", "scaled_fp8"])
def test_an_fp8_embedding_is_read_on_every_host(adapters, encoder, tmp_path, scheme):
    state, metadata, by_hand = small.fp8_state(encoder, scheme, layers=r"model\.embed_tokens|.*_proj")
    clip = adapters["encoder"].load_clip(small.save(state, tmp_path / "qwen_3_8b.safetensors", metadata))
    plain = adapters["encoder"].load_clip(small.save(by_hand, tmp_path / "plain/qwen_3_8b.safetensors"))
    got, want = (c.encode_from_tokens(c.tokenize("a cat")) for c in (clip, plain))
    assert relative(got, want) < 1e-5


def test_the_host_can_load_clip_and_vae_anew(adapters, encoder, tmp_path):
    clip = adapters["encoder"].load_clip(small.save(encoder, tmp_path / "qwen_3_4b.safetensors"))
    vae = adapters["vae"].load_vae(small.save(small.vae_state(small.vae_oracle()), tmp_path / "vae.safetensors"))
    for patcher in (clip.patcher, vae.patcher):
        make, arguments = patcher.cached_patcher_init
        again = make(*arguments, disable_dynamic=True).model.state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in patcher.model.state_dict().items())


def test_rounding_weights_to_fp8_never_asks_for_fp8_products(adapters, tmp_path):
    """Hosts that multiply in fp8 would round the activations too."""
    path = small.save(small.flow_state(**small.FLOW), tmp_path / "flow.safetensors")
    _, layers = adapters["flow"].storage(adapters["flow"].read_flow(path), torch.float8_e4m3fn)
    assert layers and all(codec.full_precision_matrix_mult for codec in layers.values())


def test_older_fp8_files_say_when_products_are_in_full_precision_and_1_is_no_input_scale(adapters, tmp_path):
    state, _, _ = small.fp8_state(small.flow_state(**small.FLOW), "scaled_fp8")
    layers = [name.removesuffix(".scale_weight") for name in state if name.endswith(".scale_weight")]
    state |= {f"{layer}.scale_input": torch.tensor(1.0) for layer in layers}
    plain = adapters["flow"].read_flow(small.save(state, tmp_path / "a.safetensors")).plan
    assert not any(codec.full_precision_matrix_mult for codec in plain.quantised.values())
    assert not any(name.endswith("input_scale") for name, _ in plain.tensors())
    state |= {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} | {
        f"{layer}.scale_input": torch.tensor(0.5) for layer in layers
    }
    precise = adapters["flow"].read_flow(small.save(state, tmp_path / "b.safetensors")).plan
    assert all(codec.full_precision_matrix_mult for codec in precise.quantised.values())
    assert not any(name.endswith("input_scale") for name, _ in precise.tensors())


@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_that_is_not_qwen3s_is_refused(adapters, encoder, tmp_path, special):
    from tokenizers import AddedToken, Tokenizer, models

    stray = Tokenizer(models.WordLevel({"hi": 0, "?": 1}, unk_token="?"))
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"] if special else ["<|endoftext|>"]
    stray.add_tokens([AddedToken(name, special=True) for name in names])
    stray.save(str(tmp_path / "tokenizer.json"))
    sentence = "does not split text as Qwen3's does" if special else "has no token <|im_start|>, <|im_end|>, <think>, </think>"
    with pytest.raises(Exception, match=sentence):
        adapters["encoder"].load_clip(small.save(encoder, tmp_path / "qwen_3_4b.safetensors"))


def test_a_name_that_comes_over_a_link_is_left_to_the_run(adapters):
    assert adapters["files"].known("diffusion_models", "transformer", None) is True


def test_folders_with_the_same_name_or_without_one_model_hide_nothing(adapters, monkeypatch, tmp_path):
    import folder_paths

    def put(*parts):
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")

    put("diffusers", "klein", "transformer", "config.json"), put("diffusers", "klein", "transformer", "a.safetensors")
    put("diffusion_models", "klein", "other.safetensors")  # no config.json: an ordinary folder of files
    put("diffusion_models", "mine", "config.json")
    put("diffusion_models", "mine", "a.safetensors"), put("diffusion_models", "mine", "b.safetensors")
    roots = {name: ([str(tmp_path / name)], {".safetensors"}) for name in ("diffusers", "diffusion_models")}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {**folder_paths.folder_names_and_paths, **roots})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    names = adapters["files"].choices("diffusion_models", "transformer")
    *own, tiny = [name.replace("\\", "/") for name in names]
    assert sorted(own) == ["klein", "klein/other.safetensors", "mine/a.safetensors", "mine/b.safetensors"]
    assert tiny == "klein-tiny.safetensors"  # comes with the pack
    assert adapters["files"].resolve("diffusion_models", "transformer", "klein") == tmp_path / "diffusers/klein"


def test_conditioning_without_text_or_with_the_latent_of_another_vae_is_refused_in_a_sentence(adapters, tmp_path):
    model = adapters["flow"].load_model(small.save(small.flow_state(**small.FLOW), tmp_path / "flow.safetensors")).model
    check = adapters["flow"].check_conditioning
    with pytest.raises(
        Exception, match=r"^The conditioning holds no text embedding: connect Klein Prompt, or CLIP Text Encode\.$"
    ):
        check(model, None, ())
    sentence = r"^Reference 2 has shape \[1, 16, 8, 8\], expected \[batch, 128, height/16, width/16\]: encode it with the FLUX.2 VAE\.$"
    with pytest.raises(Exception, match=sentence):
        check(model, text(), [torch.zeros(1, 128, 4, 4), torch.zeros(1, 16, 8, 8)])


def test_no_step_loads_no_model(adapters):
    latent = {"samples": torch.zeros(1, 128, 4, 4)}

    class Model:
        model = None

    for sigmas in (torch.tensor([]), torch.tensor([1.0])):
        out, report = adapters["sampling"].sample(Model, [], None, latent, 0, 4, 1.0, 1.0, "official", sigmas)
        assert out["samples"] is latent["samples"] and report == "64x64, 0 steps at cfg 1"


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("flux-2-klein-9b-fp8.safetensors", "distilled"),
        ("flux-2-klein-base-9b.safetensors", "base"),
        ("Flux2KleinBase9B.safetensors", "base"),
        ("flux-2-klein-9b-kv-fp8.safetensors", "kv"),
        ("my-database-klein.safetensors", "distilled"),
    ],
)
def test_the_variant_is_told_by_the_words_of_the_file_name(adapters, name, variant):
    assert adapters["flow"].variant_of(name) == variant
