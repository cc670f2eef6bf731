"""The Lua scripts that ship, run in this process by the same version of Lua as Redis has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from typing import TYPE_CHECKING, Any

from smqueue.drivers.scripts import script
from smqueue.errors import MissingExtra
from smqueue.testing.values import ReplyError, Status

if TYPE_CHECKING:
    from smqueue.testing.store import Store


@cache
def _lua() -> Any:
    """Lua 5.1, which is Redis's; bytes stay bytes."""
    try:
        from lupa import lua51
    except ImportError:
        raise MissingExtra("testing", "lupa") from None
    return lua51


class Scripts:
    """Scripts over one store; Lua starts with the first of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runtime: Any = None
        self._compiled: dict[str, Any] = {}

    def run(self, name: str, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        """Run the script of that name."""
        return self.evaluate(script(name).text, keys, args)

    def evaluate(self, text: str, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        """Run a script; an error reply is a value."""
        self.start()
        runtime: Any = self._runtime
        known = self._compiled.get(text)
        if known is None:
            whole = f"function(redis, cjson, KEYS, ARGV) {text}\nend"
            known = self._compiled[text] = runtime.eval(whole.encode())
        try:
            reply = known(self._redis, self._cjson, self._table(keys), self._table(args))
        except ReplyError as error:
            return error
        except _lua().LuaError as error:
            return ReplyError(f"ERR {error}")
        return self._reply(reply)

    def start(self) -> None:
        """Start Lua, unless it has been.

        Raises:
            MissingExtra: It is not installed.
        """
        if self._runtime is not None:
            return
        runtime = self._runtime = _lua().LuaRuntime(encoding=None, unpack_returned_tuples=False)
        known = {b"call": self._call, b"pcall": self._pcall, b"sha1hex": _sha1hex, b"acl_check_cmd": _permitted}
        self._redis = runtime.table_from(known)
        self._cjson = runtime.table_from({b"decode": self._decode, b"encode": self._encode})

    def _call(self, name: bytes, *args: Any) -> Any:
        reply = self._store.do(name, *args)
        if isinstance(reply, Exception):
            raise reply
        return self._value(reply)

    def _pcall(self, name: bytes, *args: Any) -> Any:
        reply = self._store.do(name, *args)
        if isinstance(reply, Exception):
            return self._runtime.table_from({b"err": str(reply).encode()})
        return self._value(reply)

    def _value(self, reply: Any) -> Any:
        """A reply as Lua sees it: nil is false, a status is a table."""
        if reply is None:
            return False
        if isinstance(reply, Status):
            return self._runtime.table_from({b"ok": bytes(reply)})
        if isinstance(reply, list):
            return self._table([self._value(one) for one in reply])
        return reply

    def _table(self, items: Sequence[Any]) -> Any:
        return self._runtime.table_from(list(items))

    def _decode(self, raw: bytes) -> Any:
        return self._from_json(json.loads(raw))

    def _from_json(self, value: Any) -> Any:
        match value:
            case str():
                return value.encode()
            case list():
                return self._table([self._from_json(one) for one in value])
            case dict():
                return self._runtime.table_from({key.encode(): self._from_json(one) for key, one in value.items()})
            case _:
                return value

    def _encode(self, table: Any) -> bytes:
        pairs = {key.decode(): value.decode() for key, value in table.items()}  # the scripts encode flat objects only
        return json.dumps(pairs, separators=(",", ":"), ensure_ascii=False).encode()

    def _reply(self, value: Any) -> Any:
        """What a script returns, as a client sees it: a table ends at its first nil, numbers lose their fraction."""
        if _lua().lua_type(value) == "table":
            found: list[Any] = []
            while (one := value[len(found) + 1]) is not None:
                found.append(self._reply(one))
            return found
        if value is False:
            return None
        if value is True:
            return 1
        return int(value) if isinstance(value, float) else value


def _sha1hex(text: bytes) -> bytes:
    return sha1(text, usedforsecurity=False).hexdigest().encode()


def _permitted(*_: bytes) -> bool:
    return True
