"""The pages: a namespace at a glance with its search, a module, an operation, and what asks before it acts."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, NamedTuple

from tornado.web import HTTPError, StaticFileHandler, authenticated

from smqueue.errors import InvalidInput, SmqueueError
from smqueue.flower import acts, looks
from smqueue.flower.acts import ACTS, OF_MODULES, Act, Sendable
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


class Told(Page):
    """A page that tells once what an act has done."""

    def said(self) -> str:
        """What it has; nothing for a part of the page."""
        if self.get_query_argument("part", None):
            return ""
        if said := self.get_signed_cookie(SAID):
            self.clear_cookie(SAID)
        return said.decode() if said else ""


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


class ModulePage(Told):
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
        known = executor.instances.get(module).module.types if module in executor.instances else {}
        names = sorted({*known, *(state.state for state in states)})
        paused = await self.off_loop(lambda: looks.pauses(executor, module, names))
        part = self.get_query_argument("part", None)
        self.render(
            "machines/module_now.html" if part == "now" else "machines/module.html", show=self.show(whole.at),
            module=module, states={state.state: state for state in states}, names=names, known=known, drawn=drawn,
            rates=self.kept.rates, paused=paused, refusal=self.refusal, said=self.said(),
        )  # fmt: skip


class OperationPage(Told):
    """``/machines/op/…``: one operation."""

    @authenticated
    async def get(self, op: str) -> None:
        """All of it; ``part=now`` and ``part=timeline`` (``before`` or ``after`` a sequence) are parts of it."""
        executor, part = self.executor, self.get_query_argument("part", None)
        op, before, after = self.operation(op), self.sequence("before"), self.sequence("after")
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
            said=self.said(), before=before, live=False,
        )  # fmt: skip


class Filled(NamedTuple):
    """A form as it is shown."""

    act: Act
    what: str
    """What is acted on: an operation, ``module orders``, ``state orders.Awaiting``."""
    action: str
    """Where it is sent."""
    back: str
    """The page that it was opened from."""
    op: str = ""
    signal: Sendable | None = None
    signals: tuple[Sendable, ...] = ()
    values: dict[str, str] = {}  # noqa: RUF012 - never written to
    error: str = ""
    field: str = ""
    """The control that the error is about."""


class Asking(Page):
    """Asks before it acts, and tells what has come of it."""

    def ask(self, filled: Filled) -> None:
        """The question; ``part=form`` alone, for a dialog."""
        form = self.get_query_argument("part", None) == "form"
        wanted = controls(filled.signal.codec) if filled.signal is not None else ()
        self.render(
            "machines/form.html" if form else "machines/act.html",
            show=self.show(), filled=filled, controls=wanted, prefix=FIELD, dialog=form,
        )  # fmt: skip

    def entered(self) -> dict[str, str]:
        """What a form was filled with."""
        return {name: self.get_body_argument(name, "") for name in self.request.body_arguments}

    def refused(self, filled: Filled, trouble: Trouble) -> None:
        """Tell at the form what is wrong."""
        self.set_status(status_of(trouble.error))
        self.ask(filled._replace(error=str(trouble.error), field=_field(trouble.error, filled.values)))

    def done(self, filled: Filled, said: str) -> None:
        """Tell what was done, and go back to where it was asked."""
        if self.get_query_argument("part", None) == "form":
            self.finish({"said": said})
        else:
            self.set_signed_cookie(SAID, said, expires_days=None, httponly=True, samesite="Lax")
            self.redirect(filled.back, status=303)


class Steer(Asking):
    """``/machines/op/…/cancel`` and the others: asks, and does it when it is confirmed."""

    @authenticated
    async def get(self, op: str, act: str) -> None:
        """The question; ``part=form`` alone, for a dialog."""
        self.may_steer()
        signals = await self.off_loop(lambda: acts.sendable(self.executor)) if act == "signal" else []
        wanted = self.get_query_argument("signal", None)
        chosen = self._chosen(signals, self.get_query_argument("module", None), wanted) if act == "signal" else None
        values = {"signal": wanted or "", "id": new_id()}
        self.ask(self._filled(op, act)._replace(signal=chosen, signals=tuple(signals), values=values))

    @authenticated
    async def post(self, op: str, act: str) -> None:
        """Do it; what is wrong is told at the form."""
        self.may_steer()
        values, executor = self.entered(), self.executor
        filled = self._filled(op, act)._replace(values=values)
        try:
            given: dict[str, Any] = values
            if act == "signal":
                signals = await self.off_loop(lambda: acts.sendable(executor))
                chosen = self._chosen(signals, values.get("module"), values.get("signal"))
                filled = filled._replace(signal=chosen, signals=tuple(signals))
                given = {**values, **self._payload(chosen, values)}
            said, _ = await self.off_loop(lambda: acts.perform(executor, filled.op, act, given))
        except Misread as problem:
            self.set_status(400)
            self.ask(filled._replace(error=f"{problem.name} is {problem.problem}", field=problem.name))
        except Trouble as trouble:
            self.refused(filled, trouble)
        else:
            self.done(filled, said)

    def _filled(self, named: str, act: str) -> Filled:
        op, show = self.operation(named), self.show()
        return Filled(ACTS[act], op, show.at("op", op, act), show.at("op", op), op)

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


class SteerModule(Asking):
    """``/machines/module/…/pause`` and ``resume``, with ``state`` for one state of it."""

    @authenticated
    async def get(self, module: str, act: str) -> None:
        """The question; ``part=form`` alone, for a dialog."""
        self.may_steer()
        self.ask(self._filled(module, act))

    @authenticated
    async def post(self, module: str, act: str) -> None:
        """Do it; what is wrong is told at the form."""
        self.may_steer()
        values, executor, state = self.entered(), self.executor, self.get_query_argument("state", "")
        filled = self._filled(module, act)._replace(values=values)
        try:
            said = await self.off_loop(lambda: acts.perform_on_module(executor, module, state, act, values))
        except Trouble as trouble:
            self.refused(filled, trouble)
        else:
            self.done(filled, said)

    def _filled(self, module: str, act: str) -> Filled:
        state, show = self.get_query_argument("state", ""), self.show()
        action = show.at("module", module, act, state=state)
        return Filled(OF_MODULES[act], acts.named(module, state), action, show.at("module", module))


def _field(error: SmqueueError, values: dict[str, str]) -> str:
    """The control that an error is about: ``payment.amount`` is the control ``amount``."""
    if not isinstance(error, InvalidInput):
        return ""
    parts = error.field.split(".")
    return next((part for part in parts[1:2] if FIELD + part in values), WHOLE if FIELD + WHOLE in values else "")
