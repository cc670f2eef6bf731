"""Machines of a wallet that holds e-cash of a federation and pays over Lightning, against simulated peers.

    signatures.py   notes are signed by a threshold of peers, or their issuance is rejected
    refund.py       a rejected transaction starts the refund of what it would have spent
    spend.py        notes handed out are taken back, by the user's cancel or at a deadline
    send.py         a gateway pays an invoice; or the preimage shows elsewhere; or the money comes back
    receive.py      a contract is watched until it is funded or has expired, and claimed

``celery -A examples.lightning.app worker`` runs them; ``peers.py`` has the other side.
"""
