"""TLS to Redis: verified by default, server's name included; what cannot be verified is refused in one clear line."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kombu
import pytest
import redis

from smqueue import Executor, StoreUnavailable
from smqueue.cli import Exit, run
from smqueue.worker.application import settings
from tests.brokers import free_port, process
from tests.integration.test_acl import PASSWORD
from tests.shopping import Shop
from tests.waiting import wait_until
from tests.workers import running


def certificate(directory: Path, name: str, address: str) -> Path:
    """Make an authority, and a server's certificate for an address that it has signed; returns their folder."""
    folder = directory / name
    folder.mkdir()
    (folder / "names").write_text(f"subjectAltName={address}\n")
    for command in (
        f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout ca.key -out ca.crt",
        "req -newkey rsa:2048 -nodes -subj /CN=server -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.crt",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True, timeout=60)
    return folder


@contextmanager
def tls_server(directory: Path, certificates: Path) -> Iterator[int]:
    """Run ``redis-server`` with TLS alone and a password; yields its port."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no redis-server on the PATH, and the embedded one has no TLS")
    port = free_port()
    options = {
        "port": "0", "tls-port": str(port), "tls-cert-file": str(certificates / "server.crt"), "bind": "127.0.0.1",
        "tls-key-file": str(certificates / "server.key"), "tls-ca-cert-file": str(certificates / "ca.crt"),
        "tls-auth-clients": "no", "dir": str(directory), "save": "", "requirepass": PASSWORD,
    }  # fmt: skip
    log = directory / "tls.log"
    with process(
        [binary, *(part for name, value in options.items() for part in (f"--{name}", value))], {}, log
    ) as server:

        def answers() -> bool:
            assert server.poll() is None, log.read_text()
            try:
                url = f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?ssl_cert_reqs=none"
                with redis.Redis.from_url(url) as client:
                    return bool(client.ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, "redis-server answers")
        yield port


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    return certificate(tmp_path, "trusted", "IP:127.0.0.1")


def executor_at(url: str, namespace: str, tmp_path: Path) -> Executor:
    """An executor whose state is at a URL."""
    return Shop(url, "memory://", namespace, tmp_path).executor


def test_all_of_it_goes_over_tls(trusted: Path, tmp_path: Path) -> None:
    """With ``rediss://…?ssl_ca_certs=…`` for state and broker every kind of trigger, the doorbell and channels among
    them, runs to its end on a server that speaks nothing but TLS."""
    with tls_server(tmp_path, trusted) as port:
        url, more = (
            f"rediss://:{PASSWORD}@127.0.0.1:{port}",
            f"ssl_cert_reqs=required&ssl_ca_certs={trusted / 'ca.crt'}",
        )
        world = Shop(f"{url}/0?{more}", f"{url}/1?{more}", "tls", tmp_path)
        with running(worker := world.worker("-c", "2")):
            worker.wait_ready()
            world.run_every_kind()


@pytest.mark.parametrize(
    ("address", "authority", "option", "why"),
    [
        ("IP:127.0.0.1", "", "", "certificate verify failed"),
        ("IP:127.0.0.1", "other", "", "certificate verify failed"),
        ("DNS:elsewhere.example", "own", "", "IP address mismatch"),
        ("DNS:elsewhere.example", "own", "&ssl_check_hostname=false", None),
        ("DNS:elsewhere.example", "own", "&ssl_cert_reqs=none", None),
        ("IP:127.0.0.1", "own", "", None),
    ],
)
def test_what_cannot_be_verified_is_refused(
    tmp_path: Path, namespace: str, capfd: pytest.CaptureFixture[str], address: str, authority: str, option: str,
    why: str | None,
) -> None:  # fmt: skip
    """No authority, a wrong one, and a certificate for another name are StoreUnavailable in one line that says so and
    shows no password; only who says so in the URL goes without a check."""
    own = certificate(tmp_path, "own", address)
    certificate(tmp_path, "other", address)
    given = f"ssl_ca_certs={own.parent / authority / 'ca.crt'}" if authority else ""
    with tls_server(tmp_path, own) as port:
        url = f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?{given}{option}"
        executor = executor_at(url, namespace, tmp_path)
        if why is None:
            assert list(executor.get_active_operations()) == []
            return
        with pytest.raises(StoreUnavailable, match=why) as caught:
            executor.has_active_states("op")
        assert PASSWORD not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        assert run(["list", "--url", url]) == Exit.UNAVAILABLE
        (line,) = capfd.readouterr().err.splitlines()
        assert why in line


def test_plain_text_to_a_server_with_tls(trusted: Path, tmp_path: Path, namespace: str) -> None:
    """``redis://`` where the server speaks TLS alone is StoreUnavailable in one line: nothing is sent in plain text."""
    with tls_server(tmp_path, trusted) as port:
        executor = executor_at(f"redis://127.0.0.1:{port}/0", namespace, tmp_path)
        with pytest.raises(StoreUnavailable) as caught:
            executor.has_active_states("op")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("option", ["", "ssl_ca_certs={other}"])
def test_a_broker_is_verified_too(trusted: Path, tmp_path: Path, option: str) -> None:
    """Under the settings that we ship a ``rediss://`` broker is verified as the state is, without a word in its URL,
    too: kombu alone would take any certificate."""
    other = certificate(tmp_path, "other", "IP:127.0.0.1") / "ca.crt"
    with tls_server(tmp_path, trusted) as port:
        url = f"rediss://:{PASSWORD}@127.0.0.1:{port}/1?{option.format(other=other)}".rstrip("?")
        broker = settings(url, "tls", url)["broker_url"]
        with (
            kombu.Connection(broker, connect_timeout=10) as refused,
            pytest.raises(Exception, match="CERTIFICATE_VERIFY"),
        ):
            refused.default_channel.client.ping()
        trusting = f"rediss://:{PASSWORD}@127.0.0.1:{port}/1?ssl_ca_certs={trusted / 'ca.crt'}"
        with kombu.Connection(settings(trusting, "tls", trusting)["broker_url"], connect_timeout=10) as taken:
            assert taken.default_channel.client.ping()
