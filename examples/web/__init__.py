"""The orders of ``examples.orders`` over HTTP: an application that has no machine code, and asks the workers.

What it needs, a worker, and the application:

    pip install smqueue fastapi uvicorn
    export CELERY_BROKER_URL=redis://localhost:6379/0 SMQUEUE_URL=redis://localhost:6379/0
    celery -A examples.orders.app worker
    WEBHOOK_SECRET=sesame uvicorn examples.web.app:app

An order, what happens to it, and its payment:

    curl -X PUT localhost:8000/orders/o-1 -H 'content-type: application/json' -d '{"total": 300}'
    curl -N localhost:8000/events/o-1 &
    curl -X POST localhost:8000/orders/o-1/payment -H 'content-type: application/json' -d '{"amount": 300}'
"""
