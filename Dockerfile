# The default application, for docker-compose.yml: the library from its wheel, and around it what runs.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY smqueue smqueue
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
# Logs at once, and no bytecode beside code that its user may not write.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Modules given by name are imported late, when the folder that `celery` was started in is no longer on the path.
ENV PYTHONPATH=/app
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/smqueue-*.whl)[flower]" && rm -r /wheels
RUN useradd --system --uid 10001 --no-create-home smqueue
WORKDIR /app
COPY celeryconfig.py ./
COPY workers workers
COPY examples examples
USER smqueue
CMD ["celery", "-A", "workers", "worker"]
