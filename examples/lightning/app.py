"""What runs the wallet's machines: ``celery -A examples.lightning.app worker``.

The broker is taken from ``CELERY_BROKER_URL``, the state's Redis from ``SMQUEUE_URL`` and ``SMQUEUE_NAMESPACE``.
"""

from __future__ import annotations

from celery import Celery

from examples.lightning.peers import Federation, Gateway
from examples.lightning.receive import receives
from examples.lightning.refund import refunds
from examples.lightning.send import sends
from examples.lightning.signatures import mint
from examples.lightning.spend import spends
from smqueue import ExecutorBuilder

SPENT_NOTE = "spent-note"
UNFUNDED = "unfunded-contract"
KNOWN_PREIMAGE = "preimage the gateway learns by paying"

federation = Federation(
    offline=frozenset({3}), spent=frozenset({SPENT_NOTE}), unfunded=frozenset({UNFUNDED}), least_fee=1
)
gateway = Gateway(knows=frozenset({KNOWN_PREIMAGE}))

app = Celery("lightning")
executor = (
    ExecutorBuilder()
    .with_module("mint", mint, context=federation)
    .with_module("refunds", refunds, context=federation)
    .with_module("spends", spends, context=federation)
    .with_module("sends", sends, context=gateway)
    .with_module("receives", receives, context=federation)
    .build(app)
)
