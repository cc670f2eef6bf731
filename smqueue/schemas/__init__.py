"""Strict schemas: what a state, payload or outcome may hold, and the bytes it is known by.

Schemas are marshmallow's, derived from type hints by the small walker in ``derive`` or given by the user. A kept
library was considered and not taken: marshmallow-dataclass warns where it should refuse, and marshmallow-recipe
downgrades marshmallow on Python 3.11. marshmallow's own fields coerce (``Boolean`` takes 1, ``Float`` takes "1.5",
``String`` takes bytes) and never validate on dump, so derived schemas use fields of our own in both directions.

| hint | JSON | taken |
|---|---|---|
| ``str`` | string | valid Unicode; in states stored in normal form C |
| ``int`` | number without a fraction | up to 14,000 bits; no bool |
| ``bool`` | true, false | |
| ``float`` | number | finite, or an int it represents exactly (as in typing); payloads and outcomes only |
| ``Decimal`` | string | finite; 12.5, 12.50 and 1.25E+1 are one value and one string |
| ``datetime`` | string, ISO 8601 in UTC, µs | aware only; one instant in two zones is one string |
| ``date`` | string, ISO 8601 | no datetime |
| ``timedelta`` | number of µs | |
| ``UUID`` | string | |
| ``Enum`` | its name | no ``Flag`` |
| ``bytes`` | string, base64 | |
| ``list[T]``, ``tuple[A, B]``, ``tuple[T, ...]`` | array | exactly that class |
| ``dict[str, T]`` | object | |
| ``Literal[...]`` of str, int, bool, None | the value | |
| ``X | None`` | the value or null | |
| a dataclass | object | exactly that class |
| ``A | B`` | ``{"A": ...}`` | payloads and outcomes only |
| ``Any``, bare ``list``, ``dict``, ``tuple`` | any JSON | payloads and outcomes only |

Unicode: "é" may be one code point or two, which look the same and mean the same. A state is its own identity, so its
strings are stored in normal form C and both spellings are one machine. (Refusing the other spelling would quarantine
a machine for what a customer's keyboard produced.) Payloads and outcomes are kept code point by code point: nothing is
looked up by them. What must keep its spelling in a state, such as a file name, is ``bytes``.
"""

from smqueue.schemas.codec import Codec, canonical, codec_for, dataclass_codec, redact
from smqueue.schemas.problem import JsonValue, ValidationProblem
from smqueue.schemas.secrets import HIDDEN, Secret

__all__ = [
    "HIDDEN",
    "Codec",
    "JsonValue",
    "Secret",
    "ValidationProblem",
    "canonical",
    "codec_for",
    "dataclass_codec",
    "redact",
]
