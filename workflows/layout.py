"""Where the nodes of a graph stand: in columns from left to right, by step, so that no wire runs behind a node.

A wire that passes over a column finds its nodes below it, and a KLEIN_CANVAS, which leaves the lower half of a node, finds them
above it. Where pictures stand two abreast, the wires of the left ones run through the gaps between the right ones, which stand
lower by half a row, to a reroute."""

from __future__ import annotations

from dataclasses import dataclass

COLUMNS = (("Models",), ("Prompt", "Pictures"), ("Canvas",), ("Sample",), ("Result",))  # steps, from left to right
LEFT, TOP = 40, 100  # of the first node
APART, ABREAST = 70, 20  # pixels between columns, and between two pictures
TITLE, GAP, HEAD = 30, 30, 50  # of a node's own title, below a node, of a group's title with its border
ROW, TURN = 60, 40  # between the rows of pictures that stand two abreast, and to the right of them for wires that turn up
TALL = 1000  # of all pictures together, where they no longer stand below each other
CLEAR = TITLE + HEAD + 10  # from a wire to the first node below it


@dataclass(frozen=True)
class Box:
    number: int
    step: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Wire:
    source: int
    output: int
    target: int
    input: int
    type: str


@dataclass
class Layout:
    places: dict[int, tuple[int, int]]
    widths: dict[int, int]
    groups: list[tuple[str, tuple[int, int, int, int]]]  # step; left, top, width, height
    reroutes: list[tuple[int, tuple[int, int]]]  # source of the wires, place


def below(slot: int) -> int:
    """From the place of a node to the middle of a slot, as the frontend draws it."""
    return 14 + 20 * slot


def laid_out(boxes: list[Box], wires: list[Wire]) -> Layout:
    column_of = {box.number: i for box in boxes for i, steps in enumerate(COLUMNS) if box.step in steps}

    def reach(number: int) -> int:
        """The last column that a node's wires end in; through a node of its own column, so that the two stand together."""
        ends = [wire.target for wire in wires if wire.source == number]
        return max((column_of[end] if column_of[end] > column_of[number] else reach(end) for end in ends), default=0)

    stacks = {
        step: sorted((box for box in boxes if box.step == step), key=lambda box: -reach(box.number) if step == "Models" else 0)
        for steps in COLUMNS
        for step in steps
    }
    tops: dict[int, int] = {}
    for _ in COLUMNS:  # what stands to the right decides how low a column begins, and the first column is never moved
        tops = _tops(stacks, wires, column_of, tops)
    return _across(stacks, tops)


def _tops(stacks: dict, wires: list[Wire], column_of: dict, before: dict[int, int]) -> dict[int, int]:
    def passing(column: int) -> list[Wire]:
        return [wire for wire in wires if column_of[wire.source] < column < column_of[wire.target]]

    def ends(wire: Wire) -> list[int]:
        return [before.get(wire.source, TOP) + below(wire.output), before.get(wire.target, TOP) + below(wire.input)]

    tall = {box.number: box.size[1] for boxes in stacks.values() for box in boxes}
    lowest = [max((before[n] + tall[n] for n in before if column_of[n] == i), default=0) for i in range(len(COLUMNS))]
    floors: dict[int, int] = {}
    for column in range(len(COLUMNS)):
        for wire in passing(column):
            if wire.type == "KLEIN_CANVAS":
                for node, slot in ((wire.source, wire.output), (wire.target, wire.input)):
                    floors[node] = max(floors.get(node, 0), lowest[column] + GAP // 2 - below(slot))

    tops = {}
    for column, steps in enumerate(COLUMNS):
        over = [end for wire in passing(column) if wire.type != "KLEIN_CANVAS" for end in ends(wire)]
        top = max([TOP, *(end + CLEAR for end in over)])
        for step in steps:
            two = abreast(step, stacks[step])
            foot = top
            for i, box in enumerate(stacks[step]):
                top = max(top, floors.get(box.number, 0))
                tops[box.number] = top + (below(0) + TITLE + ROW // 2 if two and i % 2 else 0)
                foot = tops[box.number] + box.size[1]
                if not two or i % 2:
                    top += box.size[1] + TITLE + (ROW if two else GAP)
            if stacks[step]:
                top = foot + GAP + HEAD + TITLE
    return tops


def abreast(step: str, boxes: list[Box]) -> bool:
    return step == "Pictures" and sum(box.size[1] for box in boxes) > TALL


def _across(stacks: dict, tops: dict[int, int]) -> Layout:
    made, left = Layout({}, {}, [], []), LEFT
    for steps in COLUMNS:
        inside = [(step, stacks[step]) for step in steps if stacks[step]]
        single = max((box.size[0] for step, boxes in inside for box in boxes if not abreast(step, boxes)), default=0)
        right = left
        for step, boxes in inside:
            two = abreast(step, boxes)
            wide = max(box.size[0] for box in boxes) if two else single
            for i, box in enumerate(boxes):
                made.places[box.number] = (left + (i % 2) * (wide + ABREAST) * two, tops[box.number])
                made.widths[box.number] = wide
            right = max(right, left + wide + (wide + ABREAST) * two)
            if two:
                made.reroutes += [(box.number, (right + APART, tops[box.number] + below(0))) for box in boxes[::2]]
        for step, boxes in inside:
            top, foot = min(tops[box.number] for box in boxes), max(tops[box.number] + box.size[1] for box in boxes)
            high = top - TITLE - HEAD
            made.groups.append((step, (left - 20, high, right - left + 40, foot + 20 - high)))
        if inside:
            left = right + APART + TURN * any(abreast(step, boxes) for step, boxes in inside)
    return made
