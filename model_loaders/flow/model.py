"""The FLUX.2 [klein] flow transformer, top to bottom.

Architecture and parameter names: Black Forest Labs' flux2, model.py. The order of the sequence is
[text, image, references]. `operations` is a namespace of layers (torch.nn, or the host's); `attention` is a callable
(q, k, v, mask, transformer_options) with q, k, v (B, heads, N, head) that returns (B, N, heads*head); `turn` one like
`rotate`, of positions.py.
`transformer_options` carries ComfyUI's patches; each is called where ComfyUI's own FLUX.2 transformer calls it.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from types import SimpleNamespace
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .controls import Control, add_masks, additive, progress, select, strength_bias
from .positions import THETA, box_of, image_ids, rotate, rotations, text_ids
from .reference_kv import AS_COMPUTED, ReferenceKV, Storage
from .sizes import FlowSizes

EPS = 1e-6


class Modulation(NamedTuple):
    """Each (B, 1, hidden), or (B, N, hidden) where tokens differ."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, transformer_options: dict | None = None) -> Tensor:
    """Attention outside a host."""
    return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b heads n head -> b n (heads head)")


def modulate(x: Tensor, modulation: Modulation) -> Tensor:
    return torch.addcmul(modulation.shift, x, 1 + modulation.scale)


def finite(x: Tensor) -> Tensor:
    """Float16 overflows in deep blocks: infinities become the largest number, as in ComfyUI's transformer."""
    return torch.nan_to_num(x, nan=0.0, posinf=65504, neginf=-65504) if x.dtype == torch.float16 else x


def timestep_embedding(t: Tensor, features: int = 256, max_period: float = 10000) -> Tensor:
    """t (B,) in [0, 1] -> (B, features) float32, cosines first. Source: flux2, model.py."""
    half = features // 2
    frequency = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = 1000 * t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class PositionEmbedder(nn.Module):
    """ids (B, N, axes) -> their rotations. A layer, as packs for large canvases replace it in ComfyUI's transformer."""

    def __init__(self, sizes: FlowSizes):
        super().__init__()
        self.dim, self.theta, self.axes_dim = sizes.head_dim, THETA, list(sizes.axes_dim)

    def forward(self, ids: Tensor) -> Tensor:
        return rotations(ids, tuple(self.axes_dim), self.theta)


class TimeEmbedder(nn.Module):
    def __init__(self, hidden: int, operations, **where):
        super().__init__()
        self.in_layer = operations.Linear(256, hidden, bias=False, **where)
        self.out_layer = operations.Linear(hidden, hidden, bias=False, **where)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class GlobalModulation(nn.Module):
    """One projection for all blocks of a kind: `sets` triples of shift, scale, gate."""

    def __init__(self, hidden: int, sets: int, operations, **where):
        super().__init__()
        self.sets = sets
        self.lin = operations.Linear(hidden, 3 * sets * hidden, bias=False, **where)

    def forward(self, vec: Tensor) -> list[Modulation]:
        parts = self.lin(F.silu(vec))[:, None, :].chunk(3 * self.sets, dim=-1)
        return [Modulation(*parts[3 * i : 3 * i + 3]) for i in range(self.sets)]


class QKNorm(nn.Module):
    def __init__(self, head: int, operations, **where):
        super().__init__()
        self.query_norm = operations.RMSNorm(head, eps=EPS, **where)
        self.key_norm = operations.RMSNorm(head, eps=EPS, **where)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q).to(v), self.key_norm(k).to(v)


class StreamAttention(nn.Module):
    """The projections of one stream; attention itself is joint."""

    def __init__(self, sizes: FlowSizes, operations, **where):
        super().__init__()
        self.heads = sizes.num_heads
        self.qkv = operations.Linear(sizes.hidden_size, 3 * sizes.hidden_size, bias=False, **where)
        self.norm = QKNorm(sizes.head_dim, operations, **where)
        self.proj = operations.Linear(sizes.hidden_size, sizes.hidden_size, bias=False, **where)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x), "b n (qkv heads head) -> qkv b heads n head", qkv=3, heads=self.heads)
        return *self.norm(q, k, v), v


class GatedMLP(nn.Sequential):
    """Linear, SiLU(first half) * second half, linear. The gate has index 1, so that names are those of the files."""

    def __init__(self, hidden: int, inner: int, operations, **where):
        super().__init__(
            operations.Linear(hidden, 2 * inner, bias=False, **where),
            Gate(),
            operations.Linear(inner, hidden, bias=False, **where),
        )


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(value)


def patched_attention(block, q, k, v, pe, mask, options: dict) -> Tensor:
    """Attention with ComfyUI's attn1 patches: inputs before RoPE, then the output (B, N, heads*head)."""
    patches = options.get("patches", {})
    for patch in patches.get("attn1_patch", ()):
        out = patch(q, k, v, pe=pe, attn_mask=mask, extra_options=options)
        q, k, v = out.get("q", q), out.get("k", k), out.get("v", v)
        pe, mask = out.get("pe", pe), out.get("attn_mask", mask)
    # A patch may leave q without the references whose keys it adds: the rotations cover the longer of the two.
    q, k = (block.turn(part, pe[:, :, : part.shape[2]]) for part in (q, k))
    if keys_values := options.get("klein_keys_values"):
        k, v, mask = keys_values(k, v, additive(mask, q), options)
    x = block.attention(q, k, v, mask=mask, transformer_options=options)
    for patch in patches.get("attn1_output_patch", ()):
        x = patch(x, options)
    return x


class DoubleBlock(nn.Module):
    def __init__(self, sizes: FlowSizes, attention, turn, operations, **where):
        super().__init__()
        self.attention, self.turn = attention, turn
        for stream in ("img", "txt"):
            norm = dict(eps=EPS, elementwise_affine=False, **where)
            self.add_module(f"{stream}_norm1", operations.LayerNorm(sizes.hidden_size, **norm))
            self.add_module(f"{stream}_attn", StreamAttention(sizes, operations, **where))
            self.add_module(f"{stream}_norm2", operations.LayerNorm(sizes.hidden_size, **norm))
            self.add_module(f"{stream}_mlp", GatedMLP(sizes.hidden_size, sizes.mlp_hidden, operations, **where))

    def forward(self, img: Tensor, txt: Tensor, vec, pe: Tensor, attn_mask=None, transformer_options: dict = {}):
        streams = [("txt", txt, vec[1]), ("img", img, vec[0])]
        streams = [stream for stream in streams if stream[1].shape[1]]  # references alone have no text
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(*(self._qkv(*stream) for stream in streams)))
        x = patched_attention(self, q, k, v, pe, attn_mask, transformer_options)
        attended = x.split([tokens.shape[1] for _, tokens, _ in streams], dim=1)
        out = {stream[0]: self._rest(*stream, x) for stream, x in zip(streams, attended)}
        return out["img"], out.get("txt", txt)

    def _qkv(self, name: str, x: Tensor, modulations: list[Modulation]) -> tuple[Tensor, Tensor, Tensor]:
        norm, attention = (getattr(self, f"{name}_{part}") for part in ("norm1", "attn"))
        return attention.split(modulate(norm(x), modulations[0]))

    def _rest(self, name: str, x: Tensor, modulations: list[Modulation], attended: Tensor) -> Tensor:
        attention, norm, mlp = (getattr(self, f"{name}_{part}") for part in ("attn", "norm2", "mlp"))
        x = torch.addcmul(x, modulations[0].gate, attention.proj(attended))
        return finite(torch.addcmul(x, modulations[1].gate, mlp(modulate(norm(x), modulations[1]))))


class SingleBlock(nn.Module):
    def __init__(self, sizes: FlowSizes, attention, turn, operations, **where):
        super().__init__()
        self.attention, self.turn, self.heads = attention, turn, sizes.num_heads
        self.widths = [3 * sizes.hidden_size, 2 * sizes.mlp_hidden]
        self.linear1 = operations.Linear(sizes.hidden_size, sum(self.widths), bias=False, **where)
        self.linear2 = operations.Linear(sizes.hidden_size + sizes.mlp_hidden, sizes.hidden_size, bias=False, **where)
        self.norm = QKNorm(sizes.head_dim, operations, **where)
        self.pre_norm = operations.LayerNorm(sizes.hidden_size, eps=EPS, elementwise_affine=False, **where)
        self.mlp_act = Gate()

    def forward(self, x: Tensor, vec: Modulation, pe: Tensor, attn_mask=None, transformer_options: dict = {}) -> Tensor:
        qkv, mlp = self.linear1(modulate(self.pre_norm(x), vec)).split(self.widths, dim=-1)
        q, k, v = rearrange(qkv, "b n (qkv heads head) -> qkv b heads n head", qkv=3, heads=self.heads)
        q, k = self.norm(q, k, v)
        attended = patched_attention(self, q, k, v, pe, attn_mask, transformer_options)
        out = self.linear2(torch.cat([attended, self.mlp_act(mlp)], dim=-1))
        return finite(torch.addcmul(x, vec.gate, out))


class FinalLayer(nn.Module):
    def __init__(self, sizes: FlowSizes, operations, **where):
        super().__init__()
        hidden = sizes.hidden_size
        self.norm_final = operations.LayerNorm(hidden, eps=EPS, elementwise_affine=False, **where)
        self.linear = operations.Linear(hidden, sizes.in_channels, bias=False, **where)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(hidden, 2 * hidden, bias=False, **where))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None, :].chunk(2, dim=-1)
        return self.linear(torch.addcmul(shift, self.norm_final(x), 1 + scale))


class Flow(nn.Module):
    """Velocity of the flow at x and t, given text and reference latents."""

    def __init__(self, sizes: FlowSizes, operations=nn, attention=sdpa, turn=rotate, dtype=None, device=None):
        super().__init__()
        where = dict(dtype=dtype, device=device)
        hidden = sizes.hidden_size
        self.sizes = sizes
        self.dtype = dtype
        self.params = SimpleNamespace(**asdict(sizes), axes_dim=sizes.axes_dim, default_ref_method="index")  # as the host's
        self.pe_embedder = PositionEmbedder(sizes)
        self.img_in = operations.Linear(sizes.in_channels, hidden, bias=False, **where)
        self.txt_in = operations.Linear(sizes.context_in_dim, hidden, bias=False, **where)
        self.time_in = TimeEmbedder(hidden, operations, **where)
        self.double_stream_modulation_img = GlobalModulation(hidden, 2, operations, **where)
        self.double_stream_modulation_txt = GlobalModulation(hidden, 2, operations, **where)
        self.single_stream_modulation = GlobalModulation(hidden, 1, operations, **where)
        kernels = (attention, turn, operations)
        self.double_blocks = nn.ModuleList(DoubleBlock(sizes, *kernels, **where) for _ in range(sizes.depth))
        self.single_blocks = nn.ModuleList(SingleBlock(sizes, *kernels, **where) for _ in range(sizes.depth_single_blocks))
        self.final_layer = FinalLayer(sizes, operations, **where)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        ref_latents: list[Tensor] | None = None,
        ref_latents_method: str | None = None,
        control_residuals: dict | None = None,
        attention_mask: Tensor | None = None,
        controls: tuple[Control, ...] = (),
        reference_kv: ReferenceKV | None = None,
        transformer_options: dict = {},
    ) -> Tensor:
        """x (B, channels, H, W) in the latent's units, timestep (B,) in [0, 1], context (B, L, width), references
        (B or 1, channels, h, w) each with its control, attention_mask over the whole sequence (additive, or boolean with
        False for left out) -> velocity like x. control_residuals: of a control network, lists of tensors by block under
        `input` (double) and `output` (single). With `reference_kv` (of `read_references`) the references themselves stay
        out of the sequence, and a mask may cover them or not."""
        batch, _, height, width = x.shape
        latents = [x, *(ref.expand(batch, -1, -1, -1) for ref in ref_latents or () if reference_kv is None)]
        boxes = [box_of(latent) for latent in latents]
        method = ref_latents_method or self.params.default_ref_method
        options = dict(transformer_options)

        tokens, *reference_tokens = [rearrange(latent, "b c h w -> b (h w) c") for latent in latents]
        ids, *reference_ids = image_ids(boxes, method, options.get("rope_options"), x.device)
        now = progress(timestep, options, controls)
        if reference_kv is not None:
            options["klein_keys_values"] = reference_kv.at(controls, now)
        references = select(reference_tokens, reference_ids, controls, now)
        if references:
            options["reference_image_num_tokens"] = [reference.tokens.shape[1] for reference in references]
        img = self.img_in(torch.cat([tokens, *(reference.tokens for reference in references)], dim=1))
        txt = self.txt_in(context)
        mask = add_masks(additive(attention_mask, img), strength_bias(references, txt.shape[1] + height * width, img))
        ids = torch.cat([ids, *(reference.ids for reference in references)], dim=1)
        img, txt, ids = self._post_input(img, txt, ids, text_ids(txt.shape[1], x.device), options)
        pe = self.pe_embedder(ids)

        vec = self.time_in(timestep_embedding(timestep).to(img.dtype))
        zero_tokens = img.shape[1] - height * width if method == "index_timestep_zero" else 0
        img = self._blocks(img, txt, vec, pe, zero_tokens, control_residuals, mask, options)
        velocity = self.final_layer(img[:, : height * width], vec)
        return rearrange(velocity, "b (h w) c -> b c h w", h=height, w=width)

    def read_references(
        self,
        ref_latents: list[Tensor],
        controls: tuple[Control, ...] = (),
        storage: Storage = AS_COMPUTED,
        ref_latents_method: str | None = None,
        canvas: tuple[int, int] = (0, 0),
        rope_options: dict | None = None,
    ) -> ReferenceKV:
        """Keys and values of references (B, channels, h, w) in every block, as the K/V variant has them: they attend to
        each other alone and are modulated as at t = 0. canvas: height and width of the image in tokens, which places
        them under the methods `offset` and `uxo`."""
        tokens = [rearrange(latent, "b c h w -> b (h w) c") for latent in ref_latents]
        boxes = [canvas, *(box_of(latent) for latent in ref_latents)]
        _, *ids = image_ids(boxes, ref_latents_method or self.params.default_ref_method, rope_options, tokens[0].device)
        references = select(tokens, ids, tuple(control.membership for control in controls), 0.0)
        found = ReferenceKV(references, storage)
        if references:
            img = self.img_in(torch.cat([reference.tokens for reference in references], dim=1))
            pe = self.pe_embedder(torch.cat([reference.ids for reference in references], dim=1))
            vec = self.time_in(timestep_embedding(img.new_zeros(len(img))).to(img.dtype))
            self._blocks(img, img[:, :0], vec, pe, 0, None, None, {"klein_keys_values": found.record})
        return found

    def _blocks(self, img, txt, vec, pe, zero_tokens, control_residuals, mask, options) -> Tensor:
        double = (self._modulation(self.double_stream_modulation_img, vec, img.shape[1], zero_tokens),
                  self.double_stream_modulation_txt(vec))  # fmt: skip
        (single,) = self._modulation(self.single_stream_modulation, vec, txt.shape[1] + img.shape[1], zero_tokens)
        length = txt.shape[1]
        options["img_slice"] = [length, length + img.shape[1]]
        replace = options.get("patches_replace", {}).get("dit", {})
        residuals = control_residuals or {}

        options.update(block_type="double", total_blocks=len(self.double_blocks))
        for i, block in enumerate(self.double_blocks):
            options["block_index"] = i
            args = dict(img=img, txt=txt, vec=double, pe=pe, attn_mask=mask, transformer_options=options)
            out = run_block(block, ("img", "txt"), args, replace.get(("double_block", i)))
            img, txt = add_residual(out["img"], residuals.get("input"), i), out["txt"]

        x = torch.cat([txt, img], dim=1)
        options.update(block_type="single", total_blocks=len(self.single_blocks))
        for i, block in enumerate(self.single_blocks):
            options["block_index"] = i
            args = dict(img=x, vec=single, pe=pe, attn_mask=mask, transformer_options=options)
            out = run_block(block, ("img",), args, replace.get(("single_block", i)))
            x = add_residual(out["img"], residuals.get("output"), i, start=length)
        return x[:, length:]

    def _modulation(self, layer: GlobalModulation, vec: Tensor, tokens: int, zero_tokens: int) -> list[Modulation]:
        """Modulation for this step; the last `zero_tokens` of `tokens` get that of t = 0."""
        now = layer(vec)
        if not zero_tokens:
            return now
        start = layer(self.time_in(timestep_embedding(vec.new_zeros(len(vec))).to(vec.dtype)))
        counts = (tokens - zero_tokens, zero_tokens)
        return [
            Modulation(*(torch.cat([p.expand(-1, n, -1) for p, n in zip(pair, counts)], dim=1) for pair in zip(a, b)))
            for a, b in zip(now, start)
        ]

    @staticmethod
    def _post_input(img, txt, img_ids, txt_ids, options):
        patches = options.get("patches", {}).get("post_input", ())
        if patches:  # a patch may change ids of one image of the batch: it sees them for each
            img_ids, txt_ids = img_ids.expand(len(img), -1, -1).clone(), txt_ids.expand(len(img), -1, -1).clone()
        for patch in patches:
            out = patch({"img": img, "txt": txt, "img_ids": img_ids, "txt_ids": txt_ids, "transformer_options": options})
            img, txt, img_ids, txt_ids = out["img"], out["txt"], out["img_ids"], out["txt_ids"]
        return img, txt, torch.cat([txt_ids, img_ids], dim=1)


def run_block(block: nn.Module, streams: tuple[str, ...], args: dict, patch=None) -> dict[str, Tensor]:
    """The block's streams by name, through ComfyUI's replacement patch where there is one."""

    def original(args: dict) -> dict[str, Tensor]:
        shared = {name: args.get(name) for name in ("vec", "pe", "attn_mask", "transformer_options")}
        out = block(*(args[name] for name in streams), **shared)
        return dict(zip(streams, out if isinstance(out, tuple) else (out,)))

    return patch(args, {"original_block": original}) if patch else original(args)


def add_residual(x: Tensor, residuals: list | None, index: int, start: int = 0) -> Tensor:
    """Add a control network's residual of block `index` to the first image tokens."""
    if residuals and index < len(residuals) and residuals[index] is not None:
        add = residuals[index]
        x[:, start : start + add.shape[1]] += add
    return x
