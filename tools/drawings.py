"""The pack's drawings: docs/overview.svg (what goes in, what comes out), docs/icon.svg, docs/banner.svg.

python3 -m tools.drawings writes them. They are drawn, and say so: no picture here is a result of a model.
"""

from __future__ import annotations

from . import provision

FOLDER = provision.ROOT / "docs"
INK, PAPER, LINE, DIM = "#22262e", "#f7f5f0", "#b9b4a8", "#6d7078"
SKY, GRASS, HOUSE, ROOF, SUN = "#bfdcec", "#9dbb7a", "#e8d3a8", "#b5563f", "#f2c14e"
FONT = "font-family='ui-sans-serif, system-ui, sans-serif'"


def text(x: float, y: float, words: str, size: int = 15, colour: str = INK, anchor: str = "start", bold: bool = False) -> str:
    weight = " font-weight='600'" if bold else ""
    return f"<text x='{x}' y='{y}' {FONT} font-size='{size}' fill='{colour}' text-anchor='{anchor}'{weight}>{words}</text>"


def framed(x: float, y: float, inside: str, width: float = 120, height: float = 90) -> str:
    """A picture of 120x90 units (or wider) at a place."""
    return (
        f"<svg x='{x}' y='{y}' width='{width}' height='{height}' viewBox='0 0 {width} {height}'>{inside}"
        f"<rect x='0.75' y='0.75' width='{width - 1.5}' height='{height - 1.5}' fill='none' stroke='{INK}' stroke-width='1.5'/></svg>"
    )


def scene(roof: str = ROOF, cat: bool = False, left: float = 0, width: float = 120) -> str:
    """A house on a meadow, from x = left on; the roof's colour and a cat may differ."""
    parts = [
        f"<rect width='{width}' height='60' fill='{SKY}'/><rect y='60' width='{width}' height='30' fill='{GRASS}'/>",
        f"<g transform='translate({left} 0)'><circle cx='100' cy='18' r='9' fill='{SUN}'/>",
        f"<rect x='28' y='38' width='40' height='32' fill='{HOUSE}'/><path d='M22 40 L48 16 L74 40 Z' fill='{roof}'/>",
        f"<rect x='42' y='52' width='11' height='18' fill='{INK}'/>",
        animal(92, 76) if cat else "",
        "</g>",
    ]
    return "".join(parts)


def animal(x: float, y: float, size: float = 1, colour: str = "#4b4f58") -> str:
    return (
        f"<g transform='translate({x} {y}) scale({size})' fill='{colour}'><ellipse cx='0' cy='0' rx='11' ry='7'/>"
        "<circle cx='-11' cy='-7' r='5.5'/><path d='M-16 -9 L-15 -16 L-11 -12 L-7 -16 L-6 -9 Z'/>"
        f"<path d='M10 -2 Q20 -6 17 -14' fill='none' stroke='{colour}' stroke-width='3'/></g>"
    )


def arrow(x: float, y: float) -> str:
    return f"<path d='M{x} {y} h22 m-7 -6 l7 6 l-7 6' fill='none' stroke='{INK}' stroke-width='2'/>"


def mask(inside: str) -> str:
    return f"<rect width='120' height='90' fill='#15171b'/>{inside}"


def row(y: float, title: str, said: str, pictures: list[tuple[str, str]], result: tuple[str, str], wide: float = 120) -> str:
    """Title and prompt, pictures each with a word, and the result, from left to right."""
    parts = [text(24, y + 38, title, 18, bold=True), text(24, y + 62, said, 14, DIM)]
    for number, (inside, word) in enumerate(pictures):
        x = 610 - 140 * (len(pictures) - 1 - number)
        parts += [framed(x, y, inside), text(x + 60, y + 108, word, 13, DIM, "middle")]
    parts += [arrow(752, y + 45), framed(800, y, result[0], wide), text(800 + wide / 2, y + 108, result[1], 13, DIM, "middle")]
    return "".join(parts)


def page(width: int, height: int, inside: str) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}'>"
        f"<rect width='{width}' height='{height}' rx='14' fill='{PAPER}'/>{inside}</svg>\n"
    )


def overview() -> str:
    roof = mask("<path d='M16 44 L48 10 L80 44 Z' fill='#fff'/>")
    rows = [
        row(28, "Prompt", "a house on a meadow", [], (scene(), "image")),
        row(158, "References", "image 2 in front of image 1", [
            (scene(), "image 1"),
            (f"<rect width='120' height='90' fill='#ecdcdc'/>{animal(60, 56, 2)}", "image 2, strength 1.5"),
            (mask("<ellipse cx='60' cy='50' rx='46' ry='34' fill='#fff'/>"), "mask of image 2"),
        ], (scene(cat=True), "image")),
        row(288, "Edit under a mask", "the roof is blue", [(scene(), "picture"), (roof, "mask")],
            (scene("#3f6fb5"), "all else: the same pixels")),
        row(418, "Outpaint", "more of the meadow", [(scene(), "picture")], (scene(left=20, width=160), "picture, wider"), 160),
    ]  # fmt: skip
    return page(984, 566, "".join(rows) + text(960, 552, "drawn, not made by a model", 12, DIM, "end"))


def mark() -> str:
    """The sign of the pack, 100x100: references on the way into one picture."""
    squares = "".join(
        f"<rect x='{8 + 9 * n}' y='{8 + 9 * n}' width='52' height='52' rx='7' fill='{colour}' stroke='{PAPER}' stroke-width='3'/>"
        for n, colour in enumerate(("#7fa0b8", "#9dbb7a", "#f2c14e", "#b5563f"))
    )
    return f"{squares}<path d='M50 52 v22 M64 52 l-13 11 l13 11' fill='none' stroke='{PAPER}' stroke-width='5'/>"


def icon() -> str:
    return (
        "<svg xmlns='http://www.w3.org/2000/svg' width='400' height='400' viewBox='0 0 100 100'>"
        f"<rect width='100' height='100' rx='18' fill='{INK}'/>{mark()}</svg>\n"
    )


def banner() -> str:
    """21 by 9, as the registry shows it."""
    words = text(330, 200, "Klein 9B", 84, PAPER, bold=True) + text(334, 262, "ComfyUI nodes for FLUX.2 [klein]", 38, LINE)
    sign = f"<svg x='70' y='85' width='220' height='220' viewBox='0 0 100 100'>{mark()}</svg>"
    return (
        "<svg xmlns='http://www.w3.org/2000/svg' width='1050' height='450' viewBox='0 0 1050 450'>"
        f"<rect width='1050' height='450' fill='{INK}'/>{sign}{words}</svg>\n"
    )


DRAWINGS = {"overview.svg": overview, "icon.svg": icon, "banner.svg": banner}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
