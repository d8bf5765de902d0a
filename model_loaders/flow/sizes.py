"""The sizes of a flow transformer, read from tensor shapes and never from a table of known models."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import KleinError
from ..formats.names import Plan, block_count

AXES = 4  # t, h, w, l: Black Forest Labs' flux2, model.py


@dataclass(frozen=True)
class FlowSizes:
    """in_channels: latent channels of one token; context_in_dim: width of the text embeddings; mlp_hidden: width
    after the gate; depth and depth_single_blocks: number of double and single blocks."""

    in_channels: int
    context_in_dim: int
    hidden_size: int
    num_heads: int
    mlp_hidden: int
    depth: int
    depth_single_blocks: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def axes_dim(self) -> tuple[int, ...]:
        return (self.head_dim // AXES,) * AXES


def flow_sizes(plan: Plan) -> FlowSizes:
    """Sizes from the shapes of a checkpoint's header; KleinError when the shapes do not make one model."""
    shapes = plan.shapes
    name = plan.checkpoint.path.name
    depth, depth_single = (block_count(shapes, stack) for stack in ("double_blocks", "single_blocks"))
    if not depth or not depth_single:
        raise KleinError(f"{name} has {depth} double and {depth_single} single blocks, expected both: download it again.")
    hidden, channels = plan.sides("img_in.weight", 2)
    (head,) = plan.sides("double_blocks.0.img_attn.norm.query_norm.weight", 1)
    if hidden % head or head % (2 * AXES):
        raise KleinError(
            f"{name} has hidden size {hidden} and heads of {head}, expected whole heads of a multiple of {2 * AXES}: download it again."
        )
    sizes = FlowSizes(
        in_channels=channels,
        context_in_dim=plan.sides("txt_in.weight", 2)[1],
        hidden_size=hidden,
        num_heads=hidden // head,
        mlp_hidden=plan.sides("double_blocks.0.img_mlp.2.weight", 2)[1],
        depth=depth,
        depth_single_blocks=depth_single,
    )
    plan.expect(expected_shapes(sizes), f"hidden size {hidden} and {hidden // head} heads of {head}")
    return sizes


def expected_shapes(sizes: FlowSizes) -> dict[str, tuple[int, ...]]:
    """Canonical weight name -> shape, for a model of these sizes."""
    h, head, mlp = sizes.hidden_size, sizes.head_dim, sizes.mlp_hidden
    shapes: dict[str, tuple[int, ...]] = {
        "img_in": (h, sizes.in_channels),
        "txt_in": (h, sizes.context_in_dim),
        "time_in.in_layer": (h, 256),
        "time_in.out_layer": (h, h),
        "double_stream_modulation_img.lin": (6 * h, h),
        "double_stream_modulation_txt.lin": (6 * h, h),
        "single_stream_modulation.lin": (3 * h, h),
        "final_layer.adaLN_modulation.1": (2 * h, h),
        "final_layer.linear": (sizes.in_channels, h),
    }
    for i in range(sizes.depth):
        for stream in ("img", "txt"):
            shapes[f"double_blocks.{i}.{stream}_attn.qkv"] = (3 * h, h)
            shapes[f"double_blocks.{i}.{stream}_attn.norm.query_norm"] = (head,)
            shapes[f"double_blocks.{i}.{stream}_attn.norm.key_norm"] = (head,)
            shapes[f"double_blocks.{i}.{stream}_attn.proj"] = (h, h)
            shapes[f"double_blocks.{i}.{stream}_mlp.0"] = (2 * mlp, h)
            shapes[f"double_blocks.{i}.{stream}_mlp.2"] = (h, mlp)
    for i in range(sizes.depth_single_blocks):
        shapes[f"single_blocks.{i}.linear1"] = (3 * h + 2 * mlp, h)
        shapes[f"single_blocks.{i}.linear2"] = (h, h + mlp)
        shapes[f"single_blocks.{i}.norm.query_norm"] = (head,)
        shapes[f"single_blocks.{i}.norm.key_norm"] = (head,)
    return {f"{layer}.weight": shape for layer, shape in shapes.items()}
