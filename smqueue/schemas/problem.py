"""How a value fails its schema. Texts name types, never values: a value may be a secret."""

from __future__ import annotations

from typing import Any, TypeAlias

from marshmallow import ValidationError

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"


MAX_NAME = 100  # characters of one step of a path


class ValidationProblem(ValidationError):
    """A value does not fit its schema; callers turn it into ``InvalidState``, ``InvalidPayload`` or ``InvalidOutcome``.

    It is a marshmallow ``ValidationError`` so that derived schemas work nested in users' own.

    Attributes:
        field: Dotted path of the field, such as ``lines.0.price``; empty for the value itself.
        problem: What is wrong, with the type of what was given.
    """

    def __init__(self, field: str, problem: str) -> None:
        messages: list[str] | dict[str, Any] = [problem]
        for name in reversed(field.split(".") if field else []):
            messages = {name: messages}
        super().__init__(messages)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" if self.field else self.problem

    def __reduce__(self) -> tuple[type[ValidationProblem], tuple[str, str]]:
        return type(self), (self.field, self.problem)

    def under(self, name: object) -> ValidationProblem:
        """The same problem, seen from the container that holds the field as ``name``."""
        # the name of an unknown field comes from outside: it must print, and not fill the log
        step = str(name).encode(errors="backslashreplace").decode()
        step = step if len(step) <= MAX_NAME else f"{step[:MAX_NAME]}…"
        return ValidationProblem(f"{step}.{self.field}" if self.field else step, self.problem)


def type_name(value: object) -> str:
    """The type of a value, as problems show it."""
    return "None" if value is None else type(value).__name__


def refusal(expected: str, given: object) -> ValidationProblem:
    """The problem of a value of the wrong type."""
    return ValidationProblem("", f"expected {expected}, got {type_name(given)}")
