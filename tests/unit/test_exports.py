"""What users may catch, they can import and read."""

from __future__ import annotations

import pytest

import smqueue
import smqueue.testing
from smqueue import errors


def test_every_error_is_exported() -> None:
    """Each error is exported from ``smqueue``, or from ``smqueue.testing`` if only tests meet it; and by its module."""
    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SmqueueError)]
    assert sorted(kind.__name__ for kind in own) == sorted(errors.__all__)
    exported = {*smqueue.__all__, *smqueue.testing.__all__}
    assert [kind.__name__ for kind in own if kind.__name__ not in exported] == []
    for name in errors.__all__:
        places = [place for place in (smqueue, smqueue.testing) if name in place.__all__]
        assert [getattr(place, name) for place in places] == [getattr(errors, name)] * len(places)


@pytest.mark.parametrize("indent", ["    ", ""])
def test_an_error_is_one_line(indent: str) -> None:
    """An error's text is one line: the first paragraph of its docstring, which from Python 3.13 on has no indents."""

    class Wrapped(errors.SmqueueError):
        __doc__ = f"It has {{name}},\n{indent}and goes on.\n\n{indent}Args: not these."
        fields = ("name",)

    assert str(Wrapped("x")) == "It has x, and goes on."
