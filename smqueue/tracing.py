"""Spans of OpenTelemetry. The one module that knows it; where it is not in use, nothing here does anything.

It is in use once the program has imported it and set a tracer provider. What that raises, a sampler or a processor of
the program's, costs a span and no more: it is logged once. A span's context is passed on as a *header*:
its W3C ``traceparent``, with its ``tracestate``, if it has one, behind a blank. Baggage is not passed on: it would be
stored with machines, and holds whatever anybody has put there.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from smqueue.errors import StoreUnavailable, error_text
from smqueue.roundtrip import LostReply

if TYPE_CHECKING:
    from opentelemetry import trace as api
    from opentelemetry.context import Context

Y = TypeVar("Y")
T = TypeVar("T")
Attribute = str | int | bool

log = logging.getLogger("smqueue.tracing")
SYSTEM = "smqueue"
_well_formed = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}( [ !#-\[\]-~]{1,512})?").fullmatch
"""Printable ASCII without quotes and backslashes: scripts look for a header at the head of a JSON text."""


class Span:
    """A span of ours, under way. One that is never ended is never told of."""

    __slots__ = ("_span", "header")

    def __init__(self, span: api.Span) -> None:
        self._span = span
        self.header = _header(span.get_span_context())
        """What its children are given."""

    @contextmanager
    def current(self) -> Generator[None]:
        """Spans that the block begins are its children."""
        from opentelemetry import trace

        with trace.use_span(self._span, record_exception=False, set_status_on_exception=False):
            yield

    def inside(self, fn: Callable[[Y], T]) -> Callable[[Y], T]:
        """The function, so that spans that it begins are children."""

        def run(argument: Y) -> T:
            with self.current():
                return fn(argument)

        return run

    def tell(self, attributes: Mapping[str, Attribute]) -> None:
        """Add what has become known."""
        with _harmless():
            self._span.set_attributes({f"{SYSTEM}.{name}": value for name, value in attributes.items()})

    def happened(self, event: str) -> None:
        """Note that something has happened meanwhile."""
        with _harmless():
            self._span.add_event(f"{SYSTEM}.{event}")

    def failed(self, kind: str, text: str) -> None:
        """It has failed with this type of error. No traceback: nobody knows what its last line holds."""
        from opentelemetry import trace

        with _harmless():
            self._span.add_event("exception", {"exception.type": kind, "exception.message": text})
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, text))

    def end(self) -> None:
        """It is over."""
        with _harmless():
            self._span.end()


def header_of(span: Span | None) -> str:
    """Its header; empty without a span."""
    return "" if span is None else span.header


def on() -> bool:
    """Whether this process has a tracer provider."""
    return _tracer() is not None


def begin(
    operation: str,
    kind: Literal["PRODUCER", "CONSUMER"],
    attributes: Mapping[str, Attribute],
    *,
    parent: str | None = None,
    link: str = "",
) -> Span | None:
    """Begin a span ``smqueue.<operation>``; ``None`` when tracing is off.

    Args:
        operation: What is done.
        kind: Whether it asks for something, or does what was asked for.
        attributes: Their names without ``smqueue.``; never a payload, nor anything of a state.
        parent: The header of its parent, of whatever form; unless given, the current span.
        link: The header of another that has led to it.
    """
    with _harmless():
        if (tracer := _tracer()) is not None:
            return _begun(tracer, operation, kind, attributes, parent, link)
    return None


def _begun(
    tracer: api.Tracer, operation: str, kind: str, attributes: Mapping[str, Attribute], parent: str | None, link: str
) -> Span | None:
    from opentelemetry import trace

    linked = trace.get_current_span(_context(link)).get_span_context() if link and link != parent else None
    span = tracer.start_span(
        f"{SYSTEM}.{operation}",
        context=None if parent is None else _context(parent),
        kind=trace.SpanKind[kind],
        attributes={
            "messaging.system": SYSTEM,
            "messaging.operation.type": "send" if kind == "PRODUCER" else "process",
            **{f"{SYSTEM}.{name}": value for name, value in attributes.items()},
        },
        links=[trace.Link(linked)] if linked is not None and linked.is_valid else [],
    )
    return Span(span) if span.get_span_context().is_valid else None


def spanning(
    span: Span | None, steps: Generator[Y, Any, T], told: Callable[[T], Mapping[str, Attribute]] = lambda _: {}
) -> Generator[Y, Any, T]:
    """A protocol, or turns, with whose end the span ends; without a span, as they are.

    Args:
        span: The span.
        steps: What it spans.
        told: What the span is told of the result.
    """
    return steps if span is None else _spanning(span, steps, told)


def _spanning(
    span: Span, steps: Generator[Y, Any, T], told: Callable[[T], Mapping[str, Attribute]]
) -> Generator[Y, Any, T]:
    try:
        result = yield from steps
        span.tell(told(result))
        return result
    except (LostReply, GeneratorExit) as error:  # given up by its driver, which says so to the caller
        span.failed(StoreUnavailable.__name__, str(error.__cause__ or "no answer"))
        raise
    except Exception as error:
        span.failed(type(error).__name__, error_text(error))
        raise
    finally:
        span.end()


# --- headers ---------------------------------------------------------------------------------------------------------


def current() -> str:
    """The header of the span that this code runs in; empty when there is none."""
    if _tracer() is None:
        return ""
    from opentelemetry import trace

    return _header(trace.get_current_span().get_span_context())


def checked(header: object) -> str:
    """A header that others have given; empty when it is none."""
    return header if isinstance(header, str) and _well_formed(header) else ""


def under(header: str) -> AbstractContextManager[object]:
    """In the block, the span of this header is the current one; an empty one changes nothing."""
    return nullcontext() if not header or _tracer() is None else _attached(_context(header))


def apart() -> AbstractContextManager[object]:
    """In the block there is no current span: what it does is for many."""
    return nullcontext() if _tracer() is None else _attached(_context(""))


def injected() -> dict[str, str]:
    """The current span as headers of a message, in the form that the program has chosen; else none."""
    headers: dict[str, str] = {}
    if _tracer() is not None:
        from opentelemetry import propagate

        with _harmless():
            propagate.inject(headers)
    return headers


def received(header: Callable[[str], object]) -> AbstractContextManager[object]:
    """In the block, the sender's span is the current one, unless an instrumentation has seen to that.

    Args:
        header: Name of a header of the message → its value; ``None``: it has no such header.
    """
    if _tracer() is None:
        return nullcontext()
    from opentelemetry import propagate, trace

    if trace.get_current_span().get_span_context().is_valid:
        return nullcontext()
    names = propagate.get_global_textmap().fields
    return _attached(propagate.extract({name: value for name in names if isinstance(value := header(name), str)}))


def without(headers: dict[str, Any]) -> None:
    """Take out of a message's headers what belongs to one span: it is sent by many."""
    if _tracer() is not None:
        from opentelemetry import propagate

        for name in propagate.get_global_textmap().fields:
            headers.pop(name, None)


# --- inside ----------------------------------------------------------------------------------------------------------

_raised = False
"""Whether that is logged already."""


@contextmanager
def _harmless() -> Generator[None]:
    """In the block the program's provider may raise what it likes."""
    global _raised
    try:
        yield
    except Exception as error:
        if not _raised:
            _raised = True
            log.exception("the tracer provider raises, and spans are missing; this is said once: %s", error_text(error))


_made: tuple[Any, Any] | None = None
"""A provider, and our tracer of it."""


def _tracer() -> api.Tracer | None:
    """That of the program's provider; it may be set at any time, and in a worker usually is after the fork.

    It is looked for with each call, and with most there is none: where the API keeps it, since its own function takes
    several µs to say so. (Of a later version that keeps it elsewhere that function is asked.)
    """
    global _made
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:  # then nobody can have set one
        return None
    provider = getattr(trace, "_TRACER_PROVIDER", trace)
    if _made is not None and _made[0] is provider:
        return _made[1]
    if provider is trace or (provider is None and _made is None):  # at first it may have to be made, too
        provider = trace.get_tracer_provider()
    if _made is None or _made[0] is not provider:
        _made = (provider, None if provider is None or _is_off(trace, provider) else provider.get_tracer(SYSTEM))
    return _made[1]


def _is_off(trace: Any, provider: Any) -> bool:
    disabled = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS") or ""
    return isinstance(provider, trace.ProxyTracerProvider) or SYSTEM in re.split(r"\s*,\s*", disabled.strip())


def _header(context: api.SpanContext) -> str:
    if not context.is_valid:
        return ""
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return checked(f"{parent} {context.trace_state.to_header()}") or parent


def _context(header: str) -> Context:
    """Empty for what is no header."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent, _, state = header.partition(" ")
    return TraceContextTextMapPropagator().extract({"traceparent": parent, "tracestate": state}, Context())


@contextmanager
def _attached(context: Context) -> Generator[None]:
    from opentelemetry.context import attach, detach

    token = attach(context)
    try:
        yield
    finally:
        detach(token)
