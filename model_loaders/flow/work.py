"""What a step costs, from sizes and numbers of tokens alone: floating-point operations and memory.

An operation is a multiplication or an addition of a matrix product, as torch.utils.flop_counter counts; what goes by
element (norms, rotations, SiLU) is left out, as there.
"""

from __future__ import annotations

from dataclasses import dataclass

from .positions import ROTATION_BYTES
from .sizes import FlowSizes, expected_shapes


@dataclass(frozen=True)
class Sequence:
    """Tokens of one model call: `kept` are those of references whose keys and values were computed before."""

    text: int
    image: int
    references: int = 0
    kept: int = 0

    @property
    def queries(self) -> int:
        return self.text + self.image + self.references

    @property
    def keys(self) -> int:
        return self.queries + self.kept


def step_operations(sizes: FlowSizes, tokens: Sequence, rows: int = 1) -> int:
    """Of one model call with `rows` in its batch."""
    h = sizes.hidden_size
    pictures = tokens.image + tokens.references
    ends = 2 * h * (sizes.in_channels * (pictures + tokens.image) + sizes.context_in_dim * tokens.text)
    modulation = 2 * h * (256 + h + (6 + 6 + 3 + 2) * h)
    return rows * (_blocks(sizes, tokens.queries, tokens.keys) + ends + modulation)


def reading_operations(sizes: FlowSizes, references: int) -> int:
    """Of the one pass over the references alone that computes their keys and values."""
    h = sizes.hidden_size
    return _blocks(sizes, references, references) + 2 * h * sizes.in_channels * references + 2 * h * (256 + h + (6 + 6 + 3) * h)


def _blocks(sizes: FlowSizes, queries: int, keys: int) -> int:
    """A token goes through as many matrices in a double block (those of its stream) as in a single one."""
    h = sizes.hidden_size
    matrices = 2 * h * (4 * h + 3 * sizes.mlp_hidden)
    return (sizes.depth + sizes.depth_single_blocks) * queries * (matrices + 4 * h * keys)


def activation_bytes(sizes: FlowSizes, tokens: Sequence, itemsize: int, rows: int = 1) -> int:
    """The peak of a step beside weights and kept keys: that of a single block (model.py), which is above a double one's.
    Attention is taken to need no matrix of all queries by all keys, as no kernel of today does."""
    h, mlp = sizes.hidden_size, sizes.mlp_hidden
    held = 3 * h + 3 * h + 2 * mlp + 2 * h  # the streams before and after the double blocks, x; linear1; normed q and k
    turning = held + h + h + (8 * h // itemsize if itemsize < 4 else 0)  # k in float32, when q is done
    attending = held + 3 * h  # q and k turned, and the result
    joining = held + h + mlp + h + mlp  # attended and gated, and both side by side for linear2
    longer = 2 * h * tokens.keys if tokens.kept else 0  # keys and values with those kept
    elements = max(turning * tokens.queries, attending * tokens.queries + longer, joining * tokens.queries)
    inputs = sizes.context_in_dim * tokens.text + 2 * sizes.in_channels * tokens.image
    return rows * (elements + inputs) * itemsize + ROTATION_BYTES * sizes.head_dim * tokens.queries


def cast_bytes(sizes: FlowSizes, itemsize: int) -> int:
    """The largest matrix of a block in the dtype of the activations: what weights of another dtype are cast to, one at a
    time."""
    shapes = expected_shapes(sizes)
    return max(a * b for a, b in (shape for shape in shapes.values() if len(shape) == 2)) * itemsize


def kept_bytes(sizes: FlowSizes, itemsize: int) -> int:
    """Keys and values of one token of a reference in all blocks."""
    return 2 * (sizes.depth + sizes.depth_single_blocks) * sizes.hidden_size * itemsize
