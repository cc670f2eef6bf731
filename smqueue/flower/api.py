"""``/api/machines`` for scripts: the same in JSON, under the rules of Flower's own API."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Any

from tornado.web import HTTPError, authenticated

from smqueue.errors import InvalidInput
from smqueue.flower import acts, looks
from smqueue.flower.base import Api
from smqueue.flower.looks import Asked
from smqueue.flower.steps import dumped
from smqueue.flower.troubles import Trouble
from smqueue.rows import rows_of

LIMIT = 1_000


class Search(Api):
    """``GET /api/machines?operation=order-1*&module=&state=&older=2h&quarantined=1&newest=1&limit=&cursor=``."""

    @authenticated
    async def get(self) -> None:
        """A page of active machines, and where the next begins: ``{"machines": […], "cursor": …}``."""
        asked = Asked.of(lambda name: self.get_query_argument(name, ""))
        limit, executor = self.get_query_argument("limit", str(looks.FOUND)), self.executor
        if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 0 < int(limit) <= LIMIT):
            raise Trouble(InvalidInput("limit", f"a number from 1 to {LIMIT}"))
        found = await self.off_loop(lambda: looks.find(executor, asked, int(limit)))
        self.finish({"machines": [one._asdict() for one in found.machines], "cursor": found.cursor})


class OverviewApi(Api):
    """``GET /api/machines-overview``."""

    @authenticated
    async def get(self) -> None:
        """The namespace at a glance, as ``smqueue.Overview`` has it, with rates a minute."""
        whole, kept = await self.overview(), self.kept
        told: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(whole), default=_text))
        for state in told["states"]:
            rate = kept.rates.per_minute((state["module"], state["state"]))
            state["entered_per_min"], state["left_per_min"] = rate or (None, None)
        self.finish({**told, "transitions_per_min": kept.rates.transitions})


class OperationApi(Api):
    """``GET /api/machines/<op>``."""

    @authenticated
    async def get(self, op: str) -> None:
        """Its machines as ``smqueue show --json`` has them, why they stand, and its last steps, the newest first.

        With ``before`` a sequence, its steps before that.
        """
        op, executor, before = self.operation(op), self.executor, self.sequence("before")
        found = await self.off_loop(lambda: looks.seen(executor, op, drawn=False))
        steps = await self.off_loop(lambda: looks.past(executor, op, before))
        self.finish(
            {
                "operation_id": op,
                "standing": found.standing,
                "machines": list(rows_of(found.diagnosis.explanation, executor.instances)),
                "more": found.more,
                "why": [line for sentence, below in found.sentences for line in (sentence, *below)],
                "causes": [dataclasses.asdict(cause) for cause in found.diagnosis.causes],
                "steps": dumped(steps.steps),
                "total_steps": steps.total,
                "before": steps.before,
            }
        )


class Steering(Api):
    """A POST of one JSON object."""

    def given(self) -> dict[str, Any]:
        """The object; raises what is wrong with it, or where nothing may be steered."""
        self.may_steer()
        if self.request.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise HTTPError(415, "send a JSON object as application/json")
        try:
            return acts.as_json(self.request.body)
        except InvalidInput as error:
            raise Trouble(error) from None


class SteerApi(Steering):
    """``POST /api/machines/<op>/signal``, ``cancel``, ``pause``, ``resume`` and ``retry``."""

    @authenticated
    async def post(self, op: str, act: str) -> None:
        """Do it: ``{"done": …, "message": …}``."""
        op, given = self.operation(op), self.given()
        if act == "signal" and not given.get("signal"):
            raise Trouble(InvalidInput("signal", "missing"))
        executor = self.executor
        said, done = await self.off_loop(lambda: acts.perform(executor, op, act, given))
        self.finish({"done": done, "message": said})


class SteerModuleApi(Steering):
    """``POST /api/machines/module/<id>/pause`` and ``resume``, with ``state`` for one state of it."""

    @authenticated
    async def post(self, module: str, act: str) -> None:
        """Do it: ``{"done": null, "message": …}``."""
        given, executor = self.given(), self.executor
        state = given.get("state") or self.get_query_argument("state", "")
        said = await self.off_loop(lambda: acts.perform_on_module(executor, module, state, act, given))
        self.finish({"done": None, "message": said})


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
