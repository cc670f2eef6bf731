"""How long, how often and how many: the figures that the protocols share."""

from __future__ import annotations

LEASE_MS = 4_000
"""What is claimed is due again after this long, unless it is committed or its lease renewed."""

MAX_ALONE = 2
"""A machine that has not come back this often, running alone after it was in a group that did not, is set aside: it
kills its worker. Only what runs alone is accused, for others die beside it."""

PARK_MS = 3_600_000
"""What waits for ever is looked at again after about this long."""

HINT_MS = 1_000
"""Life of the flag that says a transition hint is under way, up to a half more where a pump set it: what a lost hint
costs at most."""

WATCH_MS = 1_000
"""How long one process looks when things fall due, before another may. What falls due sooner than that rings for it."""

RESEND_MS = 5_000
"""First interval after which a trigger's task is sent again when none has started; it doubles, up to 5 minutes."""

MARKER_S = 60
"""How long a commit without a record can be recognised by the one who lost its reply."""

MAX_ATTEMPTS = 100
"""How often a commit is tried while others keep changing what it depends on."""

RESENDS = 10
"""How often a script that recognises its own repetition is sent, when replies are lost."""

REQUESTS_KEPT = 10_000
"""Requests that may wait for a worker before a client is refused. What a transition has left counts, and is never
refused."""

UPDATES_KEPT = 10_000
"""Updates of all operations kept for those who follow them, about; 160 bytes each and more."""
