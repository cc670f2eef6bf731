"""Real workers in pytest-celery's clusters: in containers, or as processes where there is no Docker engine."""
