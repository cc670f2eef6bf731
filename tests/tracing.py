"""Spans as tests look at them: recorded in this process, or read from the files that others leave."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import opentelemetry.trace
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.util._once import Once


@dataclass(frozen=True)
class Seen:
    """A span that has ended."""

    name: str
    trace: str
    id: str
    parent: str | None
    links: tuple[str, ...]
    kind: str
    status: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    pid: int = 0

    def __getitem__(self, name: str) -> Any:
        return self.attributes.get(f"smqueue.{name}")


def seen(span: ReadableSpan) -> Seen:
    """What there is to be seen of a span."""
    assert span.context is not None
    return Seen(
        span.name,
        f"{span.context.trace_id:032x}",
        f"{span.context.span_id:016x}",
        f"{span.parent.span_id:016x}" if span.parent is not None else None,
        tuple(f"{link.context.span_id:016x}" for link in span.links),
        span.kind.name,
        span.status.status_code.name,
        dict(span.attributes or {}),
        [(event.name, dict(event.attributes or {})) for event in span.events],
        os.getpid(),
    )


class Lines(SpanExporter):
    """Appends each span to a file of its process's own, as a line of JSON."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def export(self, spans: Iterable[ReadableSpan]) -> SpanExportResult:
        with (self._directory / f"spans-{os.getpid()}.jsonl").open("a") as file:
            file.writelines(json.dumps(seen(span).__dict__) + "\n" for span in spans)
        return SpanExportResult.SUCCESS


def written(directory: Path) -> list[Seen]:
    """The spans of all processes so far."""
    found: list[Seen] = []
    for file in directory.glob("spans-*.jsonl"):
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # else it is still being written
                data = json.loads(line)
                found.append(Seen(**{**data, "links": tuple(data["links"])}))
    return found


class Recorder(SpanExporter):
    """What this process records."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.provider: TracerProvider

    def export(self, spans: Iterable[ReadableSpan]) -> SpanExportResult:
        self.spans += map(seen, spans)
        return SpanExportResult.SUCCESS

    def named(self, name: str) -> list[Seen]:
        """Those of a name, in the order of their end."""
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Seen:
        """The only one of a name."""
        (found,) = self.named(name)
        return found

    @contextmanager
    def span(self, name: str) -> Generator[Seen]:
        """A span of the program's own."""
        with self.provider.get_tracer("tests").start_as_current_span(name) as span:
            assert isinstance(span, ReadableSpan)
            yield seen(span)


def may_set_a_provider(patch: pytest.MonkeyPatch) -> None:
    """A program sets a tracer provider once, for good; what is patched here is undone for the tests that follow."""
    patch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", None)
    patch.setattr(opentelemetry.trace, "_TRACER_PROVIDER_SET_ONCE", Once())


@contextmanager
def recording(sampler: Sampler | None = None) -> Generator[Recorder]:
    """In the block this process has a tracer provider."""
    recorder = Recorder()
    recorder.provider = TracerProvider(**({} if sampler is None else {"sampler": sampler}))
    recorder.provider.add_span_processor(SimpleSpanProcessor(recorder))
    with pytest.MonkeyPatch.context() as patch:
        may_set_a_provider(patch)
        opentelemetry.trace.set_tracer_provider(recorder.provider)
        yield recorder
