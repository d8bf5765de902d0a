"""The host's patch hooks change our transformer as they change ComfyUI's own FLUX.2 transformer with the same weights.

Each hook is run on both; tolerance 1e-5 (float32, other order of sums). A hook must also change the result, or the
comparison would say nothing. Hooks that only newer hosts call are tested against their contract (design, decision 3).
"""

import pytest
import torch

from klein.model_loaders.flow.positions import rotate
from tools import inprocess, small
from tools.small import relative

SIZES = dict(hidden=256, heads=2, context=96, mlp=768, depth=2, single=3)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    path = small.save(small.flow_state(seed=2, **SIZES), tmp_path_factory.mktemp("hooks") / "flow.safetensors")
    return inprocess.hosted_flow(path)


@pytest.fixture(scope="module")
def hosts(ours):
    return inprocess.host_flux(small.flow_state(seed=2, **SIZES), SIZES["heads"], SIZES["context"])


def call(model, options=None, batch=2, references=((3, 5), (4, 2)), **more):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 128, 6, 4, generator=generator)
    context = torch.randn(batch, 512, SIZES["context"], generator=generator)
    latents = [torch.randn(batch, 128, *box, generator=generator) for box in references]
    t = torch.linspace(0.8, 0.4, batch)
    with torch.no_grad():
        return model(x, t, context, None, torch.full((batch,), 3.5), latents, transformer_options=options or {}, **more)


def compare(ours, hosts, make_options=dict, changes=True, **more):
    """Both results agree; with `changes` both differ from those without the hook."""
    got, want = call(ours, make_options(), **more), call(hosts, make_options(), **more)
    assert relative(got, want) < TOLERANCE
    if changes:
        references = {"references": more["references"]} if "references" in more else {}
        assert relative(want, call(hosts, **references)) > 100 * TOLERANCE
    return got


def test_without_hooks(ours, hosts):
    compare(ours, hosts, changes=False)


def test_without_references_and_batch_1(ours, hosts):
    compare(ours, hosts, changes=False, batch=1, references=())


def test_post_input(ours, hosts):
    def patch(args):
        ids = args["img_ids"].clone()
        ids[1, :, 1] += 3  # one image of the batch only
        return {"img": args["img"] * 1.5, "txt": args["txt"], "img_ids": ids, "txt_ids": args["txt_ids"] * 2}

    compare(ours, hosts, lambda: {"patches": {"post_input": [patch]}})


@pytest.mark.parametrize("kind", ["double_block", "single_block"])
def test_block_replacement(ours, hosts, kind):
    seen = []

    def replace(args, extra):
        options = args["transformer_options"]
        seen.append((options["block_type"], options["block_index"], options["total_blocks"], tuple(args["pe"].shape[-4:])))
        first = args["vec"][0][0] if kind == "double_block" else args["vec"]
        assert first.shift.shape == first.scale.shape == first.gate.shape
        out = extra["original_block"]({**args, "img": args["img"] * 1.3})
        return {**out, "img": out["img"] * 0.9}

    compare(ours, hosts, lambda: {"patches_replace": {"dit": {(kind, 1): replace}}})
    total = SIZES["depth" if kind == "double_block" else "single"]
    head = SIZES["hidden"] // SIZES["heads"]
    assert set(seen) == {(kind.split("_")[0], 1, total, (512 + 24 + 15 + 8, head // 2, 2, 2))}


@pytest.mark.parametrize("place", ["input", "output"])
def test_control_residuals(ours, hosts, place):
    residual = torch.randn(2, 24, SIZES["hidden"], generator=torch.Generator().manual_seed(1))
    compare(ours, hosts, control={"input": [], "output": [], place: [None, residual]})


def test_attention_override(ours, hosts):
    def override(attention, *args, **kwargs):
        return attention(*args, **kwargs) * 0.8

    compare(ours, hosts, lambda: {"optimized_attention_override": override})


def test_attention_mask(ours, hosts):
    bias = torch.zeros(1, 1, 1, 512 + 24 + 15 + 8)
    bias[..., 512 + 24 :] = -4.0
    compare(ours, hosts, attention_mask=bias)


ROPE = dict(scale_x=1.5, scale_y=0.5, shift_t=1.0, shift_x=2.0, shift_y=-1.0)


def test_rope_options(ours, hosts):
    compare(ours, hosts, lambda: {"rope_options": dict(ROPE)}, references=())


def test_rope_options_move_references_too_as_on_newer_hosts(ours):
    seen = []
    post_input = {"post_input": [lambda args: seen.append(args["img_ids"][0]) or args]}
    call(ours, {"patches": post_input})
    call(ours, {"patches": post_input, "rope_options": dict(ROPE)})
    plain, moved = seen
    want = torch.stack([plain[:, 0] + 1, plain[:, 1] * 0.5 - 1, plain[:, 2] * 1.5 + 2, plain[:, 3]], dim=1)
    assert torch.equal(moved, want) and set(plain[:, 0].tolist()) == {0, 10, 20}


@pytest.mark.parametrize("method", ["offset", "uxo", "index"])
def test_reference_latents_method(ours, hosts, method):
    compare(ours, hosts, changes=method != "index", ref_latents_method=method)


def test_default_reference_method(ours, hosts):
    for model in (ours, hosts):
        model.params.default_ref_method = "offset"
    try:
        got, want = call(ours), call(hosts)
    finally:
        for model in (ours, hosts):
            model.params.default_ref_method = "index"
    assert relative(got, want) < TOLERANCE
    assert relative(got, call(ours)) > 100 * TOLERANCE


def test_diffusion_model_wrapper(ours, hosts):
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor, x, timestep, context, *args, **kwargs):
        return executor(x * 0.7, timestep, context, *args, **kwargs) + 1

    compare(ours, hosts, lambda: {"wrappers": {WrappersMP.DIFFUSION_MODEL: {"test": [wrapper]}}})


def test_attn1_patch_sees_q_and_k_before_rope(ours):
    """What attention gets is what the patch saw, turned by pe, and not what it saw."""
    seen, attended = [], []

    def override(attention, q, k, v, *args, **kwargs):
        attended.append((q, k, v))
        return attention(q, k, v, *args, **kwargs)

    patch = lambda q, k, v, pe=None, **_: seen.append((q, k, v, pe)) or {}  # noqa: E731
    call(ours, {"patches": {"attn1_patch": [patch]}, "optimized_attention_override": override})
    assert len(seen) == len(attended) == 5
    for (q, k, v, pe), got in zip(seen, attended):
        assert all(map(torch.equal, (rotate(q, pe), rotate(k, pe), v), got))
        assert relative(q, got[0]) > 0.1 and relative(k, got[1]) > 0.1


def test_attn1_patch_replaces_v_and_is_told_where_it_is(ours):
    """Half of v is half of what attention gives; q, k, v are (batch, heads, tokens, head)."""
    head, tokens, seen = SIZES["hidden"] // SIZES["heads"], 512 + 24 + 15 + 8, []

    def patch(q, k, v, pe=None, attn_mask=None, extra_options=None):
        assert q.shape == k.shape == v.shape == (2, SIZES["heads"], tokens, head)
        seen.append((extra_options["block_type"], extra_options["block_index"]))
        assert extra_options["img_slice"] == [512, tokens]
        assert extra_options["reference_image_num_tokens"] == [15, 8]
        assert attn_mask is None and pe.shape == (1, 1, tokens, head // 2, 2, 2)
        return {"v": v * 0.5}

    got = call(ours, {"patches": {"attn1_patch": [patch]}})
    half = call(ours, {"optimized_attention_override": lambda attention, *args, **kwargs: attention(*args, **kwargs) * 0.5})
    assert relative(got, half) < TOLERANCE
    assert relative(got, call(ours)) > 100 * TOLERANCE
    assert seen == [("double", 0), ("double", 1), ("single", 0), ("single", 1), ("single", 2)]


def test_attn1_patch_can_replace_pe_and_mask(ours):
    bias = torch.zeros(1, 1, 1, 512 + 24 + 15 + 8)
    bias[..., -8:] = -3.0
    got = call(ours, {"patches": {"attn1_patch": [lambda q, k, v, **_: {"attn_mask": bias}]}})
    assert relative(got, call(ours, attention_mask=bias)) < TOLERANCE
    identity = torch.eye(2).expand(1, 1, 512 + 24 + 15 + 8, 64, 2, 2)
    flat = call(ours, {"patches": {"attn1_patch": [lambda q, k, v, **_: {"pe": identity}]}})
    zeroed = lambda args: {**args, "img_ids": args["img_ids"] * 0, "txt_ids": args["txt_ids"] * 0}  # noqa: E731
    assert relative(flat, call(ours, {"patches": {"post_input": [zeroed]}})) < TOLERANCE


def test_attn1_output_patch_changes_the_output_of_attention(ours):
    shapes = set()

    def patch(x, extra_options):
        shapes.add((tuple(x.shape), extra_options["block_type"]))
        return x * 0.8

    got = call(ours, {"patches": {"attn1_output_patch": [patch]}})
    want = call(ours, {"optimized_attention_override": lambda attention, *args, **kwargs: attention(*args, **kwargs) * 0.8})
    assert relative(got, want) < TOLERANCE
    assert shapes == {((2, 512 + 24 + 15 + 8, SIZES["hidden"]), kind) for kind in ("double", "single")}


def test_index_timestep_zero_modulates_references_as_at_t_0(ours):
    """The modulation that blocks get: this step's for text and image, that of t = 0 for references."""
    seen = {}

    def keep(name):
        def replace(args, extra):
            seen[name] = args["vec"][0][0] if isinstance(args["vec"], tuple) and "txt" in args else args["vec"]
            return extra["original_block"](args)

        return {"patches_replace": {"dit": {("double_block", 0): replace}}}

    got = call(ours, keep("zero"), ref_latents_method="index_timestep_zero")
    call(ours, keep("now"))
    x = torch.zeros(2, 128, 6, 4)
    with torch.no_grad():
        ours(x, torch.zeros(2), torch.zeros(2, 512, SIZES["context"]), transformer_options=keep("start"))
    for part in ("shift", "scale", "gate"):
        mixed, now, start = (getattr(seen[name], part) for name in ("zero", "now", "start"))
        assert torch.equal(mixed[:, :24], now.expand(-1, 24, -1)) and torch.equal(mixed[:, 24:], start.expand(-1, 23, -1))
    assert relative(got, call(ours)) > 100 * TOLERANCE


def test_hooks_leave_the_callers_options_as_they_were(ours):
    options = {"patches": {}}
    call(ours, options)
    assert options == {"patches": {}}


def data_of(model) -> dict:
    """Public attributes that are no methods, and layers."""
    return {name: value for name, value in {**vars(model), **model._modules}.items() if not name.startswith("_")}


def test_every_attribute_that_comfyuis_own_transformer_has_is_there(ours, hosts):
    """Core's RenormCFG reads in_channels; packs read the rest. Plain values are the same, layers may be ours."""
    for theirs, mine in ((hosts, ours), (hosts.pe_embedder, ours.pe_embedder)):
        want = data_of(theirs)
        assert [name for name in want if not hasattr(mine, name)] == []
        plain = {name for name, value in want.items() if isinstance(value, (int, float, str, list, tuple, type(None)))}
        plain -= {"dtype"}  # core's is built without one here
        assert {name: getattr(mine, name) for name in plain} == {name: want[name] for name in plain}
    assert vars(hosts.params).items() <= vars(ours.params).items()


def test_a_replaced_position_embedder_is_called(ours, hosts):
    """Packs for large canvases replace it."""

    class Halved(torch.nn.Module):
        def __init__(self, before):
            super().__init__()
            self.before = before

        def forward(self, ids):
            return self.before(ids * 0.5)

    plain, before = call(ours), (ours.pe_embedder, hosts.pe_embedder)
    ours.pe_embedder, hosts.pe_embedder = (Halved(each) for each in before)
    try:
        got, want = call(ours), call(hosts)
    finally:
        ours.pe_embedder, hosts.pe_embedder = before
    assert relative(got, want) < TOLERANCE
    assert relative(got, plain) > 100 * TOLERANCE
