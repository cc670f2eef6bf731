"""What all handlers of machines have: Flower's login, the executor, Redis off the loop, and who may steer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlparse

from flower.views import BaseHandler
from tornado.web import HTTPError, RequestHandler

from smqueue.errors import InvalidInput, SmqueueError
from smqueue.executor import Executor
from smqueue.flower.board import Namespace, namespace_of
from smqueue.flower.show import Show
from smqueue.flower.troubles import AWAY, NoExecutor, Trouble, told_of
from smqueue.overview import Overview

T = TypeVar("T")
log = logging.getLogger("smqueue.flower")
LOGIN = (
    "Flower has no login. To signal, cancel or pause from here start it with --basic-auth=name:password or --auth, "
    "or set FLOWER_UNAUTHENTICATED_API=1 where everybody who can reach it may do so."
)


class MachinesHandler(BaseHandler):
    """Flower's handler, with what is about machines."""

    def set_default_headers(self) -> None:
        """Flower's; nobody keeps a page, and no foreign page puts ours into a frame, to have its buttons clicked."""
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", "frame-ancestors 'self'")

    @property
    def flower(self) -> Any:
        """Flower's application; its attributes have no types."""
        return self.application

    @property
    def executors(self) -> dict[str, Executor]:
        """Those on Flower's application, by namespace; of several for one the first with the most modules."""
        found: dict[str, Executor] = {}
        for engine in getattr(self.flower.capp, "smqueue_engines", ()):
            executor: Executor = engine.executor
            known = found.get(engine.namespace)
            if known is None or len(executor.instances.ids()) > len(known.instances.ids()):
                found[engine.namespace] = executor
        return found

    @property
    def executor(self) -> Executor:
        """The one that is asked for, else the first; raises Trouble."""
        found, wanted = self.executors, self.get_query_argument("namespace", None)
        if not found or wanted not in {None, *found}:
            raise Trouble(NoExecutor(", ".join(found) or "none"))
        return next(iter(found.values())) if wanted is None else found[wanted]

    @property
    def kept(self) -> Namespace:
        """What is kept of the namespace that is asked for."""
        return namespace_of(self.flower.settings["smqueue"], self.executor, self.flower.executor)

    async def overview(self) -> Overview:
        """The namespace that is asked for, now or a second ago."""
        try:
            return await self.kept.overview()
        except SmqueueError as error:
            raise Trouble(error) from error

    async def off_loop(self, look: Callable[[], T]) -> T:
        """Run what blocks in Flower's threads; an error of ours becomes an answer."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.flower.executor, look)
        except SmqueueError as error:
            raise Trouble(error) from error

    @property
    def refusal(self) -> str | None:
        """Why nothing may be steered from here, by the rule of Flower's own buttons; ``None``: it may."""
        options = self.flower.options
        ours = str(getattr(self.flower.capp.conf, "smqueue_flower_read_only", None) or "").lower()
        if getattr(options, "read_only", False) or ours not in {"", "0", "false", "no", "off"}:
            return "Flower is read-only."
        return None if options.basic_auth or options.auth or self.unauthenticated_api else LOGIN

    def may_steer(self) -> None:
        """Raises 403 where nothing may be steered."""
        if (why := self.refusal) is not None:
            raise HTTPError(403, why)

    def show(self, now: datetime | None = None) -> Show:
        """How this handler's pages write links, times, numbers and states."""
        wanted = self.get_query_argument("namespace", None)
        known = self.executors.get(wanted) if wanted else next(iter(self.executors.values()), None)
        return Show(self.flower.options.url_prefix, wanted, now or datetime.now(UTC), known and known.instances)

    def operation(self, named: str) -> str:
        """The operation that is asked for: in the path, or, where its id cannot be in one, in the query."""
        return self.get_query_argument("op", "", strip=False) or named

    def sequence(self, name: str, given: str | None = None) -> int | None:
        """A sequence of a history from the query, or as given; raises Trouble when it is none."""
        text = self.get_query_argument(name, "") if given is None else given
        if text and not (text.isascii() and text.isdigit() and len(text) < 16):
            raise Trouble(InvalidInput(name, "not the sequence of a step"))
        return int(text) if text else None

    def same_site(self) -> None:
        """Raises 403 for a request that a page of another site has caused."""
        site, origin = self.request.headers.get("Sec-Fetch-Site"), self.request.headers.get("Origin")
        if site not in {None, "same-origin", "none"}:
            raise HTTPError(403, "Cross-site request forbidden")
        if site is None and origin and urlparse(origin).netloc != self.request.host:
            raise HTTPError(403, "Cross-origin request forbidden")

    def check_xsrf_cookie(self) -> None:
        """Of the same site, and with the token of a form: also where Flower has no login, and asks for none."""
        self.same_site()
        RequestHandler.check_xsrf_cookie(self)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """What a user is told needs no traceback in the log."""
        if isinstance(value, Trouble):
            log.log(logging.WARNING if value.status_code >= 500 else logging.INFO, "%s", value.error)
        else:
            super().log_exception(typ, value, tb)


class Page(MachinesHandler):
    """One that answers with HTML."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """An error of ours as a page that says what to do."""
        found = (kwargs.get("exc_info") or (None, None))[1]
        if not isinstance(found, Trouble):
            super().write_error(status_code, **kwargs)
            return
        if not hasattr(self, "_current_user"):
            self.current_user = None
        away = isinstance(found.error, AWAY)
        self.render("machines/trouble.html", show=self.show(), error=found.error, away=away)


class Api(MachinesHandler):
    """One that answers with JSON, by the rules of Flower's API."""

    def prepare(self) -> None:
        """Raises 401 where Flower's API is closed."""
        options = self.flower.options
        if not (options.basic_auth or options.auth) and not self.unauthenticated_api:
            raise HTTPError(
                401, "FLOWER_UNAUTHENTICATED_API environment variable is required to enable API without authentication"
            )

    def check_xsrf_cookie(self) -> None:
        """Of the same site; a browser's session needs a token, too, and a script's credentials do not."""
        self.same_site()
        if self.flower.options.auth and not self.request.headers.get("Authorization"):
            RequestHandler.check_xsrf_cookie(self)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """An object with the error's type and text, and of what is invalid the field."""
        found = (kwargs.get("exc_info") or (None, None))[1]
        if status_code == 401 and self.flower.options.basic_auth:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        told: dict[str, Any] = {"error": "HTTPError", "message": getattr(found, "log_message", None) or self._reason}
        if isinstance(found, Trouble):
            told = told_of(found.error)
        self.finish(told)
