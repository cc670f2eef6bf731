"""Flower's templates with ours over them: its pages get an entry for Machines in their navigation."""

from __future__ import annotations

import re
from importlib.resources import files

from tornado.template import BaseLoader, Template

LAST = re.compile(r"reverse_url\('broker'\).*?</li>", re.DOTALL)
"""The entry of Flower's navigation behind which ours comes; in a Flower that has none it is not shown."""

ENTRY = """
{% if getattr(handler.application.capp, 'smqueue_engines', None) is not None %}
{% set below = handler.application.options.url_prefix %}
<li class="nav-item">
  <a class="nav-link{% if active_tab == 'machines' %} active{% end %}"
    href="{{ '/' + below.strip('/') if below else '' }}/machines"
    {% if active_tab == 'machines' %}aria-current="page"{% end %}>Machines</a>
</li>
{% end %}
"""


class Overlay(BaseLoader):
    """Templates by name: ``machines/…`` are ours, all others Flower's.

    Args:
        flowers: Where Flower's are.
    """

    def __init__(self, flowers: str) -> None:
        super().__init__()
        self._flowers = flowers

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:  # noqa: ARG002
        """Names are whole."""
        return name

    def _create_template(self, name: str) -> Template:
        if name.startswith("machines/"):
            text = files(__package__ or "smqueue.flower").joinpath("templates", name).read_text(encoding="utf-8")
        else:
            with open(f"{self._flowers}/{name}", encoding="utf-8") as file:
                text = file.read()
        if name == "navbar.html":
            text = LAST.sub(lambda found: found[0] + ENTRY, text, count=1)
        return Template(text, name=name, loader=self)
