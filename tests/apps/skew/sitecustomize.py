"""On the path of a process, this sets its clock: ``TEST_SKEW_S`` seconds off, from before anything else is imported."""

from __future__ import annotations

import datetime
import os
import time

OFF_S = float(os.environ.get("TEST_SKEW_S", "0"))

_time, _time_ns, _datetime = time.time, time.time_ns, datetime.datetime


class _Kind(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _datetime)


class SkewedDatetime(_datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> SkewedDatetime:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> SkewedDatetime:
        return cls.now(datetime.UTC).replace(tzinfo=None)


if OFF_S:
    time.time = lambda: _time() + OFF_S
    time.time_ns = lambda: _time_ns() + int(OFF_S * 1_000_000_000)
    datetime.datetime = SkewedDatetime  # type: ignore[misc]
