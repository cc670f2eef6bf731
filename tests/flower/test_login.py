"""Who may see machines in Flower, and who may steer them: Flower's own rules."""

from __future__ import annotations

import sys
from base64 import b64encode
from pathlib import Path

from tornado.web import create_signed_value

from tests.apps import shop
from tests.flower.site import flower
from tests.shopping import Shop

PAGES = ("/machines", "/machines/events", "/machines/module/orders", "/machines/op/known", "/machines/op/known/events")
PAGES += ("/machines/op/known/signal", "/api/machines", "/api/machines-overview", "/api/machines/known")
POSTS = tuple(f"/{kind}/known/{act}" for kind in ("machines/op", "api/machines") for act in ("cancel", "signal"))
MODULES = ("/machines/module/orders/pause", "/api/machines/module/orders/pause", "/api/machines/module/orders/resume")
PAGES += MODULES[:1]
POSTS += MODULES


def test_basic_auth_guards_every_page_below_a_prefix(world: Shop) -> None:
    """With ``--basic-auth`` nothing is shown or done without the password; with it all is, also under
    ``--url-prefix``, and a script's POST needs no token."""
    world.add("known", shop.Awaiting("1", 5))
    with flower(world, "--basic-auth=me:secret", "--url-prefix=ops/flower", prefix="/ops/flower") as site:
        for path in PAGES:
            assert site.get(path).status == 401, path
        for path in POSTS:
            assert site.post(path, {}).status in {401, 403}, path
        assert world.executor.has_active_states("known")
        assert not world.executor.paused()
        site.headers["Authorization"] = "Basic " + b64encode(b"me:secret").decode()
        assert 'href="/ops/flower/machines"' in site.get("/").text
        found = site.get("/machines/op/known")
        assert 'href="/ops/flower/machines/op/known/cancel"' in found.text
        assert 'data-events="/ops/flower/machines/op/known/events"' in found.text
        assert site.get("/machines/static/machines.js").status == 200
        left = site.fill("/machines/op/known/pause")
        assert (left.status, left.headers["Location"]) == (303, "/ops/flower/machines/op/known")
        assert site.post("/api/machines/known/cancel", {}).json["done"] == 1


def test_a_read_only_flower_shows_and_does_nothing(world: Shop, tmp_path: Path) -> None:
    """With ``--auth`` pages lead to the login, and a session that is logged in sees them; with ``--read_only`` it has
    no buttons, and neither form nor API acts. Over a Unix socket, too."""
    world.add("kept", shop.Awaiting("1", 5))
    options = ("--auth=.*@example.com", "--auth_provider=flower.views.auth.GithubLoginHandler", "--cookie_secret=s")
    path = Path(f"/tmp/{world.namespace}.sock")  # pytest's directories are too long for one
    try:
        with flower(world, *options, "--read_only=true", f"--unix_socket={path}") as site:
            nobody = site.get("/machines/op/kept")
            assert (nobody.status, nobody.headers["Location"]) == (302, "/login?next=%2Fmachines%2Fop%2Fkept")
            site.headers["Cookie"] = "user=" + create_signed_value("s", "user", "me@example.com").decode()
            found = site.get("/machines/op/kept")
            assert found.status == 200
            assert "Flower is read-only." in found.text
            assert "data-act" not in found.text
            assert site.get("/machines/op/kept/cancel").status == 403
            assert site.post("/api/machines/kept/cancel", {}).status == 403  # no token
            site.headers["Cookie"] += "; _xsrf=t"
            refused = site.post("/api/machines/kept/cancel", {}, X_Xsrftoken="t")
            assert (refused.status, refused.json["message"]) == (403, "Flower is read-only.")
            assert site.submit("/machines/op/kept/cancel", {"_xsrf": "t"}).status == 403
            assert "data-act" not in site.get("/machines/module/orders").text
            for address in MODULES:
                assert site.post(address, {}, X_Xsrftoken="t").status == 403, address
    finally:
        path.unlink(missing_ok=True)
    assert world.executor.has_active_states("kept")


def test_without_modules_and_login_all_is_shown_and_nothing_done(world: Shop) -> None:
    """``smqueue flower`` needs no modules to show machines as they are stored, with a graph of what was seen. Where
    Flower has no login, and no word that it may do without, its pages read only, and its API is closed."""
    world.add("bare", shop.Awaiting("1", 5))
    world.executor.signal("bare", shop.payment, shop.Payment(7))
    command = (sys.executable, "-m", "smqueue", "flower", "--url", world.url, "--namespace", world.namespace)
    env = {"CELERY_BROKER_URL": world.broker}
    with flower(world, command=command, env=env) as site:
        assert ">Machines</a>" in site.get("/").text
        found = site.get("/machines/op/bare")
        assert found.status == 200
        assert '<g class="state dynamic current" data-state="Packing"' in found.text
        assert "Flower has no login." in found.text
        assert "data-act" not in found.text
        assert "order_id=&quot;1&quot;" in site.get("/machines?module=orders&state=Packing").text
        assert site.get("/machines/op/bare/cancel").status == 403
        assert site.get("/api/machines").status == 401
        assert site.post("/api/machines/bare/cancel", {}).status == 401
        assert site.post("/api/machines/module/orders/pause", {}).status == 401
        assert "does not have the code of this module" not in site.get("/machines/module/orders").text  # nor a login
    assert world.executor.has_active_states("bare")
