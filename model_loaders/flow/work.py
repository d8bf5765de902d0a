"""What a step costs, from sizes and numbers of tokens alone: floating-point operations and memory.

An operation is a multiplication or an addition of a matrix product, as torch.utils.flop_counter counts; what goes by
element (norms, rotations, SiLU) is left out, as there.
"""

from __future__ import annotations

from dataclasses import dataclass

from .positions import ROTATION_BYTES
from .sizes import FlowSizes


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


def activation_bytes(sizes: FlowSizes, tokens: Sequence, itemsize: int, rows: int = 1, cast: bool = False) -> int:
    """The peak of a step beside weights and kept keys: that of a single block (model.py), which is above a double one's.
    Attention is taken to need no matrix of all queries by all keys, as no kernel of today does. cast: weights are of another
    dtype, and each matrix is cast while it is used."""
    h, mlp, queries = sizes.hidden_size, sizes.mlp_hidden, rows * tokens.queries
    streams, fused = 3 * h, 3 * h + 2 * mlp  # before and after the double blocks, and x; what linear1 gives
    held = streams + fused + 2 * h  # normed q and k
    turning = held + h + h + (8 * h // itemsize if itemsize < 4 else 0)  # k in float32, when q is done
    attending = held + 3 * h  # q and k turned, and the result
    joining = held + h + mlp + h + mlp  # attended and gated, and both side by side for linear2
    longer = 2 * h * rows * tokens.keys if tokens.kept else 0  # keys and values with those kept
    phases = [turning * queries, attending * queries + longer, joining * queries]
    if cast:
        phases.append((streams + h + fused) * queries + h * fused)  # modulated x, and linear1's matrix
        phases.append((held + h + h + mlp + h) * queries + h * (h + mlp))  # attended, joined, the result; linear2's matrix
    inputs = rows * (sizes.context_in_dim * tokens.text + 2 * sizes.in_channels * tokens.image)
    return (max(phases) + inputs) * itemsize + ROTATION_BYTES * sizes.head_dim * tokens.queries


def kept_bytes(sizes: FlowSizes, itemsize: int) -> int:
    """Keys and values of one token of a reference in all blocks."""
    return 2 * (sizes.depth + sizes.depth_single_blocks) * sizes.hidden_size * itemsize
