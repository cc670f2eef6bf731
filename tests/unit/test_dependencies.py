"""What is installed with smqueue, and what must not be."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
CORE = {one.name: one for one in map(Requirement, PROJECT["dependencies"])}


def test_what_kombu_needs_is_declared() -> None:
    """kombu's Redis transport imports ``packaging`` and fails without it; its extra, which would bring it, pins one
    version: we name it, without a pin, and do without the extra."""
    assert "packaging" in CORE
    assert not CORE["packaging"].specifier
    for name in ("kombu", "celery"):
        assert not CORE[name].extras


def test_marshmallow_is_the_one_that_fields_are_derived_for() -> None:
    """Marshmallow 4, on every Python that we support; none of the packages that derive schemas, of which one takes
    marshmallow back to 3 there, and another warns where it should refuse."""
    assert not CORE["marshmallow"].specifier.contains("3.26.1")
    assert CORE["marshmallow"].specifier.contains("4.0.0")
    groups = (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    assert not [one for group in groups for one in group if re.match(r"marshmallow[-_]", one)]


def test_everything_is_pinned() -> None:
    """The lock file has one version of each requirement, extras included, that satisfies it; and names no index."""
    text = (Path(__file__).parents[2] / "requirements.lock").read_text()
    assert "://" not in text
    lines = [line for line in text.splitlines() if line and line.lstrip()[0] != "#"]
    locked = [Requirement(line) for line in lines]
    pins = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in locked}
    assert all(str(one.specifier).startswith("==") for one in locked)
    groups = (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for wanted in [Requirement(one) for group in groups for one in group]:
        if wanted.name != "smqueue":
            assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted.name
