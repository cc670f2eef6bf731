"""The graph of a module as a picture: an SVG that a style sheet can dress, and a screen reader can read.

Graphviz lays it out. Its libraries come inside of the wheel of ``pygraphviz`` (the extra ``drawing``): no program is
run, no font is looked at, nothing is fetched. The picture itself is written here, for Graphviz's own could neither be
dressed in the colors of a page nor keep its shape while counts change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

from rich.cells import cell_len

from smqueue.errors import MissingExtra
from smqueue.graph import Counts, Edge, Graph

NAME, HANDLER, TRIGGER = 13, 12, 11
"""Heights of text, in pixels."""
CELL = 0.58
"""The width of a character, in heights of its text; what is wide of East Asia's has two of them."""
LEADING = 1.3
BESIDE, ABOVE = 16, 10
"""Between the text of a state and its border, in pixels."""
TIMES = "\N{MULTIPLICATION SIGN}"
MARGIN = 14
"""Around everything, in pixels; the badges of states reach into it."""

STYLE = """
.smqueue-graph { --lit: var(--smqueue-lit, #0969da); --on-lit: var(--smqueue-on-lit, #ffffff); max-width: 100%;
  height: auto; font-family: system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.smqueue-graph:root { color: #1f2328; background: #ffffff; }
.smqueue-graph .state > .box { fill: currentColor; fill-opacity: 0.04; stroke-width: 1.2; }
.smqueue-graph .state > .end { fill: none; stroke-width: 1; }
.smqueue-graph .dynamic > .box { stroke-dasharray: 5 3; }
.smqueue-graph .state > text { font-weight: 600; }
.smqueue-graph .current > .box { fill: var(--lit); fill-opacity: 0.16; stroke: var(--lit); stroke-width: 2.4; }
.smqueue-graph .badge > rect { fill: var(--lit); stroke: none; }
.smqueue-graph .badge > text { fill: var(--on-lit); font-weight: 600; }
.smqueue-graph .line { stroke-opacity: 0.62; }
.smqueue-graph .tip { fill-opacity: 0.62; }
.smqueue-graph .trigger { fill-opacity: 0.68; }
.smqueue-graph .count { fill: var(--lit); font-weight: 600; }
.smqueue-graph .taken > .line { stroke: var(--lit); stroke-opacity: 1; stroke-width: 1.8; }
.smqueue-graph .taken > .tip { fill: var(--lit); stroke: var(--lit); fill-opacity: 1; }
.smqueue-graph .seen > .line { stroke-dasharray: 5 3; }
@media (prefers-color-scheme: dark) {
  .smqueue-graph { --lit: var(--smqueue-lit, #58a6ff); --on-lit: var(--smqueue-on-lit, #0d1117); }
  .smqueue-graph:root { color: #e6edf3; background: #0d1117; }
}
""".strip()
"""What a picture brings along. A page of which it is a part gives it its text color, and may set the two colors
``--smqueue-lit`` and ``--smqueue-on-lit``. Without any style it is still drawn, in black lines."""


def svg(graph: Graph, *, current: Mapping[str, int] = {}, counts: Counts | None = None) -> str:
    """Draw a graph, from above to below.

    The layout depends on the graph alone, and on whether there are counts: pictures of one graph differ in their
    numbers and classes only, and another one takes no time. States are ``g.state[data-state]``, with ``terminal``,
    ``dynamic`` and ``current``; transitions ``g.transition[data-from][data-to][data-handler]``, with ``taken`` when
    counted, and ``seen`` where no handler declares what was counted; numbers are ``.badge`` and ``.count``. Each has a
    ``<title>`` in words.

    Args:
        graph: What to draw; :meth:`smqueue.Module.graph`.
        current: How many machines are in a state now: it is lit, and has a badge.
        counts: How often source, target and handler have made a transition; one left out counts as 0.

    Returns:
        One ``<svg>`` element, its style inside, without ids: several fit into one page, and it is a file of its own.

    Raises:
        MissingExtra: ``pygraphviz`` is not installed.
    """
    counted = {key: times for key, times in (counts or {}).items() if times}
    shown = graph.with_seen({node: here for node, here in current.items() if here}, counted)
    placed = _layout(shown, counts is not None)
    width, height = placed.width + 2 * MARGIN, placed.height + 2 * MARGIN
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" class="smqueue-graph" role="graphics-document" fill="none"',
        f'stroke="currentColor" width="{width:g}" height="{height:g}"',
        f'viewBox="{-MARGIN} {-MARGIN} {width:g} {height:g}">',
        f"<title>{_text(_summary(graph, current))}</title>",
        f"<style>{STYLE}</style>",
        *(f'<path class="line" d="{line.path}"/>{_tip(line)}' for line in placed.starts),
        *(f'<circle class="tip" cx="{x:g}" cy="{y:g}" r="5" fill="currentColor"/>' for x, y in placed.dots),
    ]
    declared = frozenset(graph.edges)
    for edge, line in zip(shown.edges, placed.lines, strict=True):
        count = None if counts is None else counts.get((edge.source, edge.target, edge.handler), 0)
        parts += _transition(edge, line, count, edge in declared)
    for node, box in zip(shown.nodes, placed.boxes, strict=True):
        parts += _state(shown, node, box, current.get(node, 0))
    return "\n".join([*parts, "</svg>"]) + "\n"


# --- where everything is ---------------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A state: its middle and its size."""

    x: float
    y: float
    width: float
    height: float


class Line(NamedTuple):
    """A transition: its path, the two ends of its arrow's head, and the middle of its label."""

    path: str
    base: tuple[float, float]
    tip: tuple[float, float]
    label: tuple[float, float]


class Layout(NamedTuple):
    """Places in pixels from above left, in the order of the graph's states and transitions."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    starts: tuple[Line, ...]
    dots: tuple[tuple[float, float], ...]


_one_at_a_time = Lock()  # Graphviz has variables of its own for the whole process


@lru_cache(maxsize=128)
def _layout(graph: Graph, counted: bool) -> Layout:
    try:
        import pygraphviz
    except ImportError:
        raise MissingExtra("drawing", "pygraphviz") from None
    # Sizes are given, labels are empty: which fonts a machine has changes nothing.
    drawn: Any = pygraphviz.AGraph(directed=True, strict=False, rankdir="TB", nodesep=0.45, ranksep=0.35)
    ids = {node: f"s{i}" for i, node in enumerate(graph.nodes)}
    sizes = _sizes(graph, counted)
    for node, name in ids.items():
        width, height = sizes[node]
        drawn.add_node(name, shape="box", label="", fixedsize="true", width=width / 72, height=height / 72)
    for i, edge in enumerate(graph.edges):
        width, height = _label_size(edge, counted)
        space = f'<<TABLE BORDER="0" FIXEDSIZE="TRUE" WIDTH="{width}" HEIGHT="{height}"><TR><TD></TD></TR></TABLE>>'
        drawn.add_edge(ids[edge.source], ids[edge.target], key=str(i), label=space)
    for i, node in enumerate(graph.beginnings):
        drawn.add_node(f"b{i}", shape="circle", label="", fixedsize="true", width=10 / 72, height=10 / 72)
        drawn.add_edge(f"b{i}", ids[node], key="")
    with _one_at_a_time:
        drawn.layout(prog="dot")
    _, _, right, top = map(float, drawn.graph_attr["bb"].split(","))

    def point(text: str) -> tuple[float, float]:
        x, y = map(float, text.split(","))
        return round(x, 1), round(top - y, 1)

    def line(source: str, target: str, key: str) -> Line:
        found = drawn.get_edge(source, target, key).attr
        tip, *spline = found["pos"].replace("\\\n", "").split()
        points = [point(pair) for pair in spline]
        rest = " ".join(f"{x:g},{y:g}" for x, y in points[1:])
        path = f"M{points[0][0]:g},{points[0][1]:g} C{rest}"
        return Line(path, points[-1], point(tip.removeprefix("e,")), point(found["lp"]) if found["lp"] else (0, 0))

    places = [point(drawn.get_node(name).attr["pos"]) for name in ids.values()]
    return Layout(
        right,
        top,
        tuple(Box(*place, *sizes[node]) for place, node in zip(places, ids, strict=True)),
        tuple(line(ids[edge.source], ids[edge.target], str(i)) for i, edge in enumerate(graph.edges)),
        tuple(line(f"b{i}", ids[node], "") for i, node in enumerate(graph.beginnings)),
        tuple(point(drawn.get_node(f"b{i}").attr["pos"]) for i, _ in enumerate(graph.beginnings)),
    )


def _sizes(graph: Graph, counted: bool) -> dict[str, tuple[int, int]]:
    """Width and height of states; as high as a label of a loop beside it, or loops would cross each other's."""
    found: dict[str, tuple[int, int]] = {}
    for node in graph.nodes:
        lines = _wrapped(node, 24)
        height = round(len(lines) * NAME * LEADING) + 2 * ABOVE
        loops = [_label_size(edge, counted)[1] + ABOVE for edge in graph.edges if edge.source == edge.target == node]
        found[node] = max(60, _width(lines, NAME) + 2 * BESIDE), max([height, *loops])
    return found


def _label_size(edge: Edge, counted: bool) -> tuple[int, int]:
    lines = [(size, text) for size, _, text in _label(edge, "8,888" if counted else "")]
    return max(_width([text], size) for size, text in lines) + 12, round(sum(s * LEADING for s, _ in lines)) + 4


def _width(lines: list[str], size: int) -> int:
    return round(max(map(cell_len, lines)) * size * CELL)


# --- what it looks like ----------------------------------------------------------------------------------------------


def _state(graph: Graph, node: str, box: Box, here: int) -> Iterator[str]:
    kinds = {"terminal": node in graph.terminal, "dynamic": node in graph.dynamic, "current": here > 0}
    classes = " ".join(["state", *(kind for kind, fits in kinds.items() if fits)])
    lit = ' aria-current="true"' if here else ""
    yield f'<g class="{classes}" data-state={quoteattr(_clean(node))} role="img"{lit}>'
    told = [f"state {node}"] + ["terminal"] * kinds["terminal"] + ["decides by itself"] * kinds["dynamic"]
    yield f"<title>{_text(', '.join([*told, _machines(here)] if here else told))}</title>"
    left, top = box.x - box.width / 2, box.y - box.height / 2
    yield _rectangle("box", left, top, box.width, box.height, 8)
    if kinds["terminal"]:
        yield _rectangle("end", left + 4, top + 4, box.width - 8, box.height - 8, 5)
    lines = _wrapped(node, 24)
    y = box.y - len(lines) * NAME * LEADING / 2
    for line in lines:
        y += NAME * LEADING
        yield _words("", box.x, y - NAME * 0.45, NAME, line)
    if here:
        width = max(18, _width([_short(here)], TRIGGER) + 12)
        x = left + box.width + 6 - width / 2
        yield f'<g class="badge">{_rectangle("", x - width / 2, top - 9, width, 18, 9)}'
        yield _words("", x, top + TRIGGER * 0.36, TRIGGER, _short(here)) + "</g>"
    yield "</g>"


def _transition(edge: Edge, line: Line, count: int | None, declared: bool) -> Iterator[str]:
    classes = "transition" + " taken" * bool(count) + " seen" * (not declared)
    names = zip(("from", "to", "handler"), (edge.source, edge.target, edge.handler), strict=True)
    data = " ".join(f"data-{name}={quoteattr(_clean(value))}" for name, value in names)
    yield f'<g class="{classes}" {data} role="img">'
    told = f"{edge.source} to {edge.target}: {edge.handler}" + f", {edge.trigger_text}" * bool(edge.trigger_text)
    times = "" if count is None else f", {count:,} {'time' if count == 1 else 'times'}"
    yield f"<title>{_text(told + times)}</title>"
    yield f'<path class="line" d="{line.path}"/>{_tip(line)}'
    label = _label(edge, _short(count) if count else "")
    y = line.label[1] - sum(size * LEADING for size, _, _ in label) / 2
    for size, name, text in label:
        y += size * LEADING
        yield _words(name, line.label[0], y - size * 0.35, size, text)
    yield "</g>"


def _label(edge: Edge, count: str) -> list[tuple[int, str, str]]:
    """The lines of a transition's label: height, class and text."""
    lines = [(HANDLER, "handler", text) for text in _wrapped(edge.handler, 24)]
    lines += [(TRIGGER, "trigger", text) for text in _wrapped(edge.trigger_text, 26)]
    return lines + ([(TRIGGER, "count", f"{TIMES} {count}")] if count else [])


def _tip(line: Line) -> str:
    """The head of an arrow, as wide as two thirds of its length."""
    (bx, by), (tx, ty) = line.base, line.tip
    dx, dy = (tx - bx) / 3, (ty - by) / 3
    return (
        f'<path class="tip" fill="currentColor" d="M{tx:g},{ty:g} L{bx - dy:.1f},{by + dx:.1f} '
        f'L{bx + dy:.1f},{by - dx:.1f} Z"/>'
    )


def _rectangle(name: str, x: float, y: float, width: float, height: float, radius: int) -> str:
    classes = f' class="{name}"' if name else ""
    return f'<rect{classes} x="{x:.1f}" y="{y:.1f}" width="{width:g}" height="{height:g}" rx="{radius}"/>'


def _words(name: str, x: float, y: float, size: int, text: str) -> str:
    classes = f' class="{name}"' if name else ""
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="middle"'
    return f'<text{classes} {place} fill="currentColor" stroke="none">{_text(text)}</text>'


def _wrapped(text: str, most: int) -> list[str]:
    """Three lines at most, broken between words, also those of CamelCase and snake_case; the title has all of it."""
    lines, rest = [""], re.findall(r"[^\W_][^A-Z\W_]*[\W_]*|[\W_]+", text)
    for piece in rest:
        if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > most:
            lines.append("")
        for character in piece:
            if cell_len(lines[-1] + character.rstrip()) > most:
                lines.append("")
            lines[-1] += character
    lines = [line.strip() for line in lines if line.strip()] or [""]
    return [*lines[:2], f"{lines[2]}…"] if len(lines) > 3 else lines


def _short(number: int) -> str:
    """A number in five characters: ``9,999``, ``12.3k``, ``1.2M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size and number >= 10_000:
            return f"{number / size:.3g}{unit}" if number < 1000 * size else f"{number // size:,}{unit}"
    return f"{number:,}"


def _machines(here: int) -> str:
    return f"{here:,} {'machine' if here == 1 else 'machines'} now"


def _summary(graph: Graph, current: Mapping[str, int]) -> str:
    size = f"State graph: {len(graph.nodes)} states, {len(graph.edges)} transitions"
    lit = [f"{_machines(n)} in {node}" for node, n in current.items() if n]
    return f"{size}; {', '.join(lit)}" if lit else size


def _clean(text: str) -> str:
    """Without characters that XML cannot hold."""
    return "".join(character if character.isprintable() else " " for character in text)


def _text(text: str) -> str:
    return escape(_clean(text))


__all__ = ["STYLE", "svg"]
