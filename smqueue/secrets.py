"""Secrets at rest: what is marked ``Secret`` is encrypted before it leaves the process, when a codec was given.

A state is its own identity: its record is found by its bytes. So the secrets of a state are encrypted
deterministically, under what the record belongs to: one secret has one ciphertext within one operation and field, and
another one anywhere else. After a rotation of keys a record may be stored under an earlier key, and is looked for under
each.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from smqueue.errors import DefinitionError, MissingExtra, SecretDamaged, SecretKeyMissing
from smqueue.places import here
from smqueue.schemas import Codec, JsonValue, canonical
from smqueue.schemas.sealed import escaped, is_sealed, opened, sealed
from smqueue.schemas.secrets import HIDDEN, Path

SHORTEST = 4
"""Characters of the shortest secret that is looked for in the texts of errors: a shorter one would blot out words."""


class SecretCodec(ABC):
    """Encrypts what is marked ``Secret``; given to ``ExecutorBuilder.with_secrets``. Used by many threads at once.

    ``about`` is what a secret belongs to: operation, module, and where it stands. It is not secret. A ciphertext must
    not decrypt under another one, or who can write to Redis could have a secret shown elsewhere.
    """

    @abstractmethod
    def encrypt(self, plain: bytes, about: bytes) -> str:
        """Encrypt a secret that nothing is looked up by; twice the same need not give the same."""

    @abstractmethod
    def spellings(self, plain: bytes, about: bytes) -> Sequence[str]:
        """Encrypt a secret of a state, deterministically: its ciphertext under each key, the newest first.

        The first is stored. A record is found by any of them, so their number and order must not depend on ``plain``.
        """

    @abstractmethod
    def decrypt(self, text: str, about: bytes) -> bytes:
        """Decrypt what either of the two has returned.

        Raises:
            SecretKeyMissing: It was encrypted under a key that is not here: its record is left to others.
            SecretDamaged: It was altered, or belongs to something else: its record is set aside.
        """


class _Key(NamedTuple):
    id: str
    fernet: Any
    siv: Any


class FernetCodec(SecretCodec):
    """Fernet for payloads and outcomes, AES-SIV (RFC 5297) for states, both under the same keys.

    To rotate: add the new key as the last one, everywhere; then put it first, everywhere. A key can go when no record
    under it is left: a record whose key is missing waits for a process that has it.

    Args:
        keys: Of ``cryptography.fernet.Fernet.generate_key()``, the newest first: it encrypts, all decrypt.

    Raises:
        MissingExtra: ``cryptography`` is not installed.
        DefinitionError: No key, or one that is none.
    """

    def __init__(self, keys: str | bytes | Iterable[str | bytes]) -> None:
        try:
            from cryptography.fernet import Fernet
            from cryptography.hazmat.primitives.ciphers.aead import AESSIV
        except ImportError:
            raise MissingExtra("encryption", "cryptography") from None
        where = here()
        made: list[_Key] = []
        for key in [keys] if isinstance(keys, str | bytes) else list(keys):
            try:
                fernet = Fernet(key)
            except (ValueError, TypeError):  # whose text is not shown: it may hold the key
                fernet = None
            if fernet is None:
                raise DefinitionError(
                    f"key number {len(made) + 1} of FernetCodec is none: make one with Fernet.generate_key()", where
                )
            raw = base64.urlsafe_b64decode(key)
            made.append(_Key(_derived(raw, b"id", 6).hex(), fernet, AESSIV(_derived(raw, b"siv", 64))))
        if not made:
            raise DefinitionError("FernetCodec needs a key: make one with Fernet.generate_key()", where)
        self._keys = made
        self._by_id = {key.id: key for key in made}

    def __repr__(self) -> str:
        return f"<FernetCodec {', '.join(self._by_id)}>"

    def encrypt(self, plain: bytes, about: bytes) -> str:
        """See ``SecretCodec``; Fernet has no place for ``about``, so that its digest is encrypted along."""
        key = self._keys[0]
        return f"{key.id}.{key.fernet.encrypt(_digest(about) + plain).decode()}"

    def spellings(self, plain: bytes, about: bytes) -> Sequence[str]:
        """See ``SecretCodec``."""
        return [f"{key.id}:{base64.urlsafe_b64encode(key.siv.encrypt(plain, [about])).decode()}" for key in self._keys]

    def decrypt(self, text: str, about: bytes) -> bytes:
        """See ``SecretCodec``."""
        id, kind, rest = text[:12], text[12:13], text[13:]
        if len(id) != 12 or kind not in {".", ":"}:
            raise SecretDamaged("it is no ciphertext of FernetCodec")
        if (key := self._by_id.get(id)) is None:
            raise SecretKeyMissing(id, ", ".join(self._by_id))
        try:
            if kind == ":":
                return key.siv.decrypt(base64.urlsafe_b64decode(rest), [about])
            plain: bytes = key.fernet.decrypt(rest)
        except Exception:  # InvalidTag, InvalidToken, binascii.Error, …: all mean the same
            plain = b""
        if not hmac.compare_digest(plain[:16], _digest(about)):
            raise SecretDamaged(f"it was altered, or moved here from elsewhere (key {id})")
        return plain[16:]


def _derived(key: bytes, purpose: bytes, length: int) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), length, None, b"smqueue secrets " + purpose).derive(key)


def _digest(about: bytes) -> bytes:
    return hashlib.blake2b(about, digest_size=16).digest()


class Secrets:
    """What an executor does with secret fields: nothing, unless it was given a codec.

    Args:
        codec: The codec.
        stored_plain: States may be stored as they were before there was a codec, and are looked for so, too.
    """

    def __init__(self, codec: SecretCodec | None = None, *, stored_plain: bool = False) -> None:
        self.codec, self._stored_plain = codec, stored_plain

    def seals(self, schema: Codec[Any]) -> bool:
        """Whether values of a schema are stored encrypted."""
        return self.codec is not None and bool(schema.secret_fields)

    def state(self, schema: Codec[Any], data: JsonValue, *about: str) -> list[JsonValue]:
        """The forms in which a state may be stored; the first is the one to store it in.

        Args:
            schema: Of the state.
            data: The state, dumped.
            *about: Operation, module instance and type.
        """
        codec = self.codec
        if codec is None or not schema.secret_fields:
            return [escaped(data) if is_sealed(data) else data]
        tokens: list[Sequence[str]] = []

        def spell(secret: str, path: Path) -> str:
            tokens.append(codec.spellings(secret.encode(), _about("state", about, path)))
            return tokens[-1][0]

        forms = [sealed(data, schema, spell)]
        for place in range(1, len(tokens[0]) if tokens else 1):  # all of a record is under one key
            rest = iter([spelled[place] for spelled in tokens])
            forms.append(sealed(data, schema, lambda _secret, _path, rest=rest: next(rest)))
        return [*forms, data] if self._stored_plain else forms

    def value(self, schema: Codec[Any], data: JsonValue, *about: str) -> JsonValue:
        """A payload or outcome as it is stored; ``about`` are operation and module instance."""
        codec = self.codec
        if codec is not None and schema.secret_fields:
            return sealed(
                data, schema, lambda secret, path: codec.encrypt(secret.encode(), _about("value", about, path))
            )
        return escaped(data) if is_sealed(data) else data

    def opened(self, kind: str, data: JsonValue, *about: str) -> JsonValue:
        """The data of a stored ``"state"`` or ``"value"``.

        Raises:
            SecretKeyMissing, SecretDamaged: See ``SecretCodec.decrypt``.
        """
        if not is_sealed(data):
            return data
        return opened(data, lambda text, path: json.loads(self._decrypted(text, _about(kind, about, path))))

    def whole(self, data: JsonValue, *about: str) -> str:
        """Any data as one ciphertext, where no schema says what of it is secret.

        Raises:
            SecretKeyMissing: There is no codec.
        """
        if self.codec is None:
            raise SecretKeyMissing("any", "none")
        return self.codec.encrypt(canonical(data).encode(), _about("whole", about, ()))

    def opened_whole(self, text: str, *about: str) -> Any:
        """What ``whole`` was given; raises as ``opened``."""
        return json.loads(self._decrypted(text, _about("whole", about, ())))

    def _decrypted(self, text: str, about: bytes) -> bytes:
        if self.codec is None:
            raise SecretKeyMissing(text[:12], "none")
        return self.codec.decrypt(text, about)


def _about(kind: str, about: tuple[str, ...], path: Path) -> bytes:
    return canonical([kind, *about, list(path)]).encode()


def scrubbed(text: str, *shown: tuple[Codec[Any], JsonValue]) -> str:
    """A text, such as that of a user's error, with the secrets of these dumped values replaced by ``***``."""
    found: set[str] = set()
    for codec, data in shown:
        codec.veil(data, lambda secret, _path: found.update(_texts(secret)) or None)
    spelled = {way for one in found for way in (one, repr(one)[1:-1], json.dumps(one)[1:-1], ascii(one)[1:-1])}
    for one in sorted(spelled, key=len, reverse=True):
        if len(one) >= SHORTEST:
            text = text.replace(one, HIDDEN)
    return text


def _texts(secret: JsonValue) -> list[str]:
    """All that is said in a secret."""
    if isinstance(secret, dict):
        return [one for key, value in secret.items() for one in (key, *_texts(value))]
    if isinstance(secret, list):
        return [one for value in secret for one in _texts(value)]
    return [] if secret is None or isinstance(secret, bool) else [str(secret)]
