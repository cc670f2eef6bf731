"""The Celery side: tasks, worker steps, events. The one place that imports Celery and kombu."""
