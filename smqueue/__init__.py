"""Durable state machines on Celery and Redis."""

from smqueue.graph import Edge, Finding, Graph
from smqueue.modules import Module
from smqueue.schemas import Secret
from smqueue.states import Context, State, StateMachine, Transition
from smqueue.triggers import (
    Failed,
    Retry,
    Signal,
    Trigger,
    after,
    at,
    call,
    channel,
    finished,
    now,
    poll,
    reached,
    task,
    wait,
)

__all__ = [
    "Context",
    "Edge",
    "Failed",
    "Finding",
    "Graph",
    "Module",
    "Retry",
    "Secret",
    "Signal",
    "State",
    "StateMachine",
    "Transition",
    "Trigger",
    "after",
    "at",
    "call",
    "channel",
    "finished",
    "now",
    "poll",
    "reached",
    "task",
    "wait",
]
