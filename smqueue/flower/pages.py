"""The pages: a namespace at a glance with its search, a module, an operation, and what asks before it acts."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, NamedTuple

from tornado.web import HTTPError, StaticFileHandler, authenticated

from smqueue.errors import InvalidInput, SmqueueError
from smqueue.flower import acts, looks
from smqueue.flower.acts import ACTS, Act, Sendable
from smqueue.flower.base import Page
from smqueue.flower.forms import WHOLE, Misread, controls, payload
from smqueue.flower.looks import Asked
from smqueue.flower.troubles import Trouble, status_of
from smqueue.keys import new_id
from smqueue.overview import Overview as Namespace

SAID = "smqueue_said"
"""A cookie with what an act has done, for the next page."""
FIELD = "field:"
"""Begins the names of a payload's fields in a form."""


class Static(StaticFileHandler):
    """Our style sheet and script: from the package, no outside address."""

    def initialize(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Where they are."""
        super().initialize(str(files("smqueue.flower").joinpath("static")))

    def set_extra_headers(self, path: str) -> None:  # noqa: ARG002
        """They are scripts and styles, and nothing else."""
        self.set_header("X-Content-Type-Options", "nosniff")


class Overview(Page):
    """``/machines``: the namespace, and a search."""

    @authenticated
    async def get(self) -> None:
        """All of it; with ``part=glance``, ``part=overview`` or ``part=found`` a part of it."""
        asked = Asked.of(lambda name: self.get_query_argument(name, ""))
        show = self.show()
        if asked.operation and asked == Asked(operation=asked.operation) and not asked.operation.endswith("*"):
            self.redirect(show.at("op", asked.operation))  # its page tells of past machines, too
            return
        executor, part = self.executor, self.get_query_argument("part", None)
        found, problem = None, None
        if asked.anything and part not in {"glance", "overview"}:
            try:
                found = await self.off_loop(lambda: looks.find(executor, asked))
            except Trouble as trouble:
                if not isinstance(trouble.error, InvalidInput):
                    raise
                problem = trouble.error
                self.set_status(400)
        whole: Namespace | None = None
        if part != "found":
            whole = await self.overview()
        paused = await self.off_loop(lambda: executor.paused(100)) if whole is not None else []
        known = sorted({*executor.instances.ids(), *(state.module for state in (whole.states if whole else ()))})
        self.render(
            f"machines/{part}.html" if part in {"glance", "overview", "found"} else "machines/machines.html",
            show=self.show(whole.at if whole else None), whole=whole, rates=self.kept.rates, asked=asked, found=found,
            problem=problem, namespaces=sorted(self.executors), here=executor.deployment.settings.namespace,
            modules=known, paused=paused,
        )  # fmt: skip


class ModulePage(Page):
    """``/machines/module/…``: its graph, with all machines in it and all transitions ever made."""

    @authenticated
    async def get(self, module: str) -> None:
        """All of it, or with ``part=now`` what changes."""
        executor = self.executor
        whole = await self.overview()
        states = [state for state in whole.states if state.module == module]
        if not states and module not in executor.instances:
            raise HTTPError(404, f"there is no module {module}")
        counts = {
            (edge.source, edge.target, edge.trigger): edge.count
            for edge in whole.edges
            if edge.module == module and edge.source is not None and edge.target is not None
        }
        current = {state.state: state.active for state in states if state.active}
        drawn = await self.off_loop(lambda: looks.draw(executor, module, current, counts))
        part = self.get_query_argument("part", None)
        name = "machines/module_now.html" if part == "now" else "machines/module.html"
        self.render(name, show=self.show(whole.at), module=module, states=states, drawn=drawn, rates=self.kept.rates)


class OperationPage(Page):
    """``/machines/op/…``: one operation."""

    @authenticated
    async def get(self, op: str) -> None:
        """All of it; ``part=now`` and ``part=timeline`` (``before`` or ``after`` a sequence) are parts of it."""
        executor, part = self.executor, self.get_query_argument("part", None)
        before, after = self._number("before"), self._number("after")
        if part == "timeline":
            steps = await self.off_loop(lambda: looks.past(executor, op, before, after))
            self.render("machines/timeline.html", show=self.show(), op=op, steps=steps, live=after is not None)
            return
        found = await self.off_loop(lambda: looks.seen(executor, op))
        name, steps = "machines/now.html", None
        if part != "now":
            name, steps = "machines/operation.html", await self.off_loop(lambda: looks.past(executor, op, before))
        self.render(
            name, show=self.show(found.diagnosis.at), op=op, found=found, steps=steps, refusal=self.refusal,
            said=self._said(), before=before, live=False,
        )  # fmt: skip

    def _number(self, name: str) -> int | None:
        given = self.get_query_argument(name, "")
        return int(given) if given.isascii() and given.isdigit() and len(given) < 16 else None

    def _said(self) -> str:
        if self.get_query_argument("part", None):
            return ""
        if said := self.get_signed_cookie(SAID):
            self.clear_cookie(SAID)
        return said.decode() if said else ""


class Filled(NamedTuple):
    """A form as it is shown."""

    act: Act
    signal: Sendable | None = None
    signals: tuple[Sendable, ...] = ()
    values: dict[str, str] = {}  # noqa: RUF012 - never written to
    error: str = ""
    field: str = ""
    """The control that the error is about."""


class Steer(Page):
    """``/machines/op/…/cancel`` and the others: asks, and does it when it is confirmed."""

    @authenticated
    async def get(self, op: str, act: str) -> None:
        """The question; ``part=form`` alone, for a dialog."""
        self.may_steer()
        signals = await self.off_loop(lambda: acts.sendable(self.executor)) if act == "signal" else []
        wanted = self.get_query_argument("signal", None)
        chosen = self._chosen(signals, self.get_query_argument("module", None), wanted) if act == "signal" else None
        values = {"signal": wanted or "", "id": new_id()}
        self._ask(op, Filled(ACTS[act], chosen, tuple(signals), values))

    @authenticated
    async def post(self, op: str, act: str) -> None:
        """Do it; what is wrong is told at the form."""
        self.may_steer()
        values = {name: self.get_body_argument(name, "") for name in self.request.body_arguments}
        filled = Filled(ACTS[act], values=values)
        executor = self.executor
        try:
            given: dict[str, Any] = values
            if act == "signal":
                signals = await self.off_loop(lambda: acts.sendable(executor))
                chosen = self._chosen(signals, values.get("module"), values.get("signal"))
                filled = filled._replace(signal=chosen, signals=tuple(signals))
                given = {**values, **self._payload(chosen, values)}
            said, _ = await self.off_loop(lambda: acts.perform(executor, op, act, given))
        except Misread as problem:
            self.set_status(400)
            self._ask(op, filled._replace(error=f"{problem.name} is {problem.problem}", field=problem.name))
            return
        except Trouble as trouble:
            self.set_status(status_of(trouble.error))
            self._ask(op, filled._replace(error=str(trouble.error), field=_field(trouble.error, values)))
            return
        if self.get_query_argument("part", None) == "form":
            self.finish({"said": said})
        else:
            self.set_signed_cookie(SAID, said, expires_days=None, httponly=True, samesite="Lax")
            self.redirect(self.show().at("op", op), status=303)

    @staticmethod
    def _chosen(signals: list[Sendable], module: str | None, name: str | None) -> Sendable | None:
        """Which signal; without modules any name goes."""
        if not signals:
            return Sendable(None, name or "", None)
        fits = [one for one in signals if name in {None, one.name} and module in {None, "", one.module}]
        return fits[0] if fits and (name or len(signals) == 1) else None

    @staticmethod
    def _payload(chosen: Sendable | None, values: dict[str, str]) -> dict[str, Any]:
        if chosen is None:
            raise Misread("signal", "none that the modules here declare")
        entered = {name.removeprefix(FIELD): text for name, text in values.items() if name.startswith(FIELD)}
        return {"payload": payload(chosen.codec, entered), "signal": chosen.name or values.get("signal", "")}

    def _ask(self, op: str, filled: Filled) -> None:
        form = self.get_query_argument("part", None) == "form"
        wanted = controls(filled.signal.codec) if filled.signal is not None else ()
        self.render(
            "machines/form.html" if form else "machines/act.html",
            show=self.show(), op=op, filled=filled, controls=wanted, prefix=FIELD,
        )  # fmt: skip


def _field(error: SmqueueError, values: dict[str, str]) -> str:
    """The control that an error is about: ``payment.amount`` is the control ``amount``."""
    if not isinstance(error, InvalidInput):
        return ""
    parts = error.field.split(".")
    return next((part for part in parts[1:2] if FIELD + part in values), WHOLE if FIELD + WHOLE in values else "")
