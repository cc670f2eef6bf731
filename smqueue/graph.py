"""The graph of a module: its states, the transitions that handlers declare, a diagram, and what is odd about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from smqueue.states import StateType

Here = Mapping[str, int]
"""State → how many machines are in it now."""
Counts = Mapping[tuple[str, str, str], int]
"""Source, target and handler → how often."""


@dataclass(frozen=True)
class Edge:
    """A transition that a handler declares.

    Attributes:
        source: The state it leaves.
        target: The state it enters.
        handler: The handler.
        trigger_text: Its trigger in a few words.
    """

    source: str
    target: str
    handler: str
    trigger_text: str


@dataclass(frozen=True)
class Finding:
    """Something odd about a graph.

    Attributes:
        kind: ``unreachable``: a terminal state that nothing enters (others may be added from outside); ``trapped``: a
            state from which no terminal state can be reached.
        state: The state.
    """

    kind: Literal["unreachable", "trapped"]
    state: str

    def __str__(self) -> str:
        if self.kind == "unreachable":
            return f"{self.state} is terminal, but no handler returns it"
        return f"from {self.state} no terminal state can be reached"


@dataclass(frozen=True)
class Graph:
    """States and declared transitions.

    Attributes:
        nodes: Names of the states, in the order of their definition.
        edges: In the order of their declaration.
        terminal: Names of terminal states.
        dynamic: Names of states that decide by themselves what they wait for; their edges are not known.
    """

    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]
    terminal: frozenset[str] = frozenset()
    dynamic: frozenset[str] = frozenset()

    @property
    def beginnings(self) -> tuple[str, ...]:
        """States that no other one leads to, and that are no ends."""
        entered = {edge.target for edge in self.edges if edge.target != edge.source}
        return tuple(node for node in self.nodes if node not in entered and node not in self.terminal)

    def with_seen(self, current: Here, counts: Counts) -> Graph:
        """Add the states and transitions that no definition tells of: of dynamic states, and of earlier versions.

        Args:
            current: States with machines.
            counts: Transitions that were made.
        """
        named = [*current, *(node for source, target, _ in counts for node in (source, target))]
        nodes = tuple(dict.fromkeys([*self.nodes, *sorted(named)]))
        declared = {(edge.source, edge.target, edge.handler) for edge in self.edges}
        seen = tuple(Edge(*key, "") for key in sorted(counts) if key not in declared)
        return replace(self, nodes=nodes, edges=self.edges + seen, dynamic=self.dynamic | {*nodes[len(self.nodes) :]})

    def mermaid(self, current: Here | None = None, counts: Counts | None = None) -> str:
        """Return a Mermaid ``stateDiagram-v2``; states that no transition enters are drawn as beginnings.

        Args:
            current: How many machines are in a state now.
            counts: How often a transition was made.
        """
        current, counts = current or {}, counts or {}
        ids = {
            node: node if re.fullmatch(r"[A-Za-z_]\w*", node, re.ASCII) else f"s{i}"
            for i, node in enumerate(self.nodes)
        }
        lines = ["stateDiagram-v2"]
        lines += [f'    state "{_plain(node)}" as {ids[node]}' for node in self.nodes if ids[node] != node]
        for node in self.nodes:
            if node in self.beginnings:
                lines.append(f"    [*] --> {ids[node]}")
            elif not any(node in (edge.source, edge.target) for edge in self.edges):
                lines.append(f"    {ids[node]}")
        lines += [
            f"    {ids[edge.source]} --> {ids[edge.target]} : {_plain(_label(edge, counts))}" for edge in self.edges
        ]
        lines += [f"    {ids[node]} : decides by itself" for node in self.nodes if node in self.dynamic]
        lines += [f"    {ids[node]} : {current[node]} now" for node in self.nodes if current.get(node)]
        lines += [f"    {ids[node]} --> [*]" for node in self.nodes if node in self.terminal]
        return "\n".join(lines) + "\n"

    def dot(self, current: Here | None = None, counts: Counts | None = None) -> str:
        """Return it in Graphviz's language.

        Args:
            current: How many machines are in a state now.
            counts: How often a transition was made.
        """
        current, counts = current or {}, counts or {}
        lines = ["digraph {", "    rankdir=LR; node [shape=box, style=rounded];"]
        for node in self.nodes:
            looks = "peripheries=2" if node in self.terminal else "style=dashed" if node in self.dynamic else ""
            label = f"label={_quoted(f'{node} ({current[node]} now)')}" if current.get(node) else ""
            extra = ", ".join(filter(None, (label, looks)))
            lines.append(f"    {_quoted(node)}{f' [{extra}]' if extra else ''};")
        for edge in self.edges:
            ends = f"{_quoted(edge.source)} -> {_quoted(edge.target)}"
            lines.append(f"    {ends} [label={_quoted(_label(edge, counts))}];")
        return "\n".join([*lines, "}"]) + "\n"

    def check(self) -> list[Finding]:
        """Return what is odd, in the order of definition; nothing that a dynamic state might explain."""
        entered = {edge.target for edge in self.edges}
        unreachable = set(self.terminal - entered) if not self.dynamic else set[str]()
        ends = set(self.terminal | self.dynamic)
        while more := {edge.source for edge in self.edges if edge.target in ends} - ends:
            ends |= more
        return [
            Finding("unreachable" if node in unreachable else "trapped", node)
            for node in self.nodes
            if node in unreachable or node not in ends
        ]


def graph_of(types: Iterable[StateType]) -> Graph:
    """Return the graph of the resolved state types of one module."""
    types = tuple(types)
    names = {known.cls: known.name for known in types}
    edges = tuple(
        Edge(known.name, names[target], handler.name, handler.trigger.text)
        for known in types
        for handler in known.handlers
        for target in handler.declared
    )
    return Graph(
        tuple(names.values()),
        edges,
        terminal=frozenset(known.name for known in types if known.terminal),
        dynamic=frozenset(known.name for known in types if known.dynamic and not known.terminal),
    )


def _label(edge: Edge, counts: Counts) -> str:
    trigger = f" ({edge.trigger_text})" if edge.trigger_text else ""
    times = counts.get((edge.source, edge.target, edge.handler), 0)
    return f"{edge.handler}{trigger}{f', {times} times' if times else ''}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _plain(label: str) -> str:
    """Return a label without the characters that Mermaid would read as syntax."""
    return " ".join(re.sub(r'[:;#{}"<>%]', " ", label).split())
