"""The graph of a module: its states, the transitions that handlers declare, a diagram, and what is odd about it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from smqueue.states import StateType


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

    def mermaid(self) -> str:
        """Return a Mermaid ``stateDiagram-v2``; states that no transition enters are drawn as beginnings."""
        ids = {
            node: node if re.fullmatch(r"[A-Za-z_]\w*", node, re.ASCII) else f"s{i}"
            for i, node in enumerate(self.nodes)
        }
        lines = ["stateDiagram-v2"]
        lines += [f'    state "{_plain(node)}" as {ids[node]}' for node in self.nodes if ids[node] != node]
        entered = {edge.target for edge in self.edges if edge.target != edge.source}
        for node in self.nodes:
            if node not in entered and node not in self.terminal:
                lines.append(f"    [*] --> {ids[node]}")
            elif not any(node in (edge.source, edge.target) for edge in self.edges):
                lines.append(f"    {ids[node]}")
        lines += [
            f"    {ids[edge.source]} --> {ids[edge.target]} : {_plain(f'{edge.handler} ({edge.trigger_text})')}"
            for edge in self.edges
        ]
        lines += [f"    {ids[node]} : decides by itself" for node in self.nodes if node in self.dynamic]
        lines += [f"    {ids[node]} --> [*]" for node in self.nodes if node in self.terminal]
        return "\n".join(lines) + "\n"

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


def _plain(label: str) -> str:
    """Return a label without the characters that Mermaid would read as syntax."""
    return " ".join(re.sub(r'[:;#{}"<>%]', " ", label).split())
