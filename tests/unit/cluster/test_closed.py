"""The settings that close a Ray of this machine to others, without Ray's start."""

import os
import subprocess
import sys
from concurrent import futures

import grpc
import pytest

from rayssl.pipeline.cluster import closed

NAMES = (closed.LOOPBACK_ONLY, closed.MODE, closed.TOKEN, closed.TOKEN_PATH, closed.GLOO, closed.NCCL)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_every_ray_has_a_random_token_of_its_own():
    first, second = closed.closed_settings({}), closed.closed_settings({})
    assert first[closed.MODE] == "token"
    assert first[closed.LOOPBACK_ONLY] == "0"
    assert len(first[closed.TOKEN]) == 64
    assert first[closed.TOKEN] != second[closed.TOKEN]
    assert (first[closed.GLOO], first[closed.NCCL]) == (closed.loopback_interface(), f"={closed.loopback_interface()}")


@pytest.mark.parametrize(
    ("own", "mode"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, None),
        ({"RAY_AUTH_MODE": "token"}, None),
        ({"RAY_AUTH_TOKEN": "mine"}, "token"),
        ({"RAY_AUTH_TOKEN_PATH": "/mine"}, "token"),
    ],
)
def test_what_the_user_has_set_stays(own, mode):
    added = closed.closed_settings({**own, "GLOO_SOCKET_IFNAME": "eth7"})
    assert closed.TOKEN not in added
    assert added.get(closed.MODE) == mode
    assert "GLOO_SOCKET_IFNAME" not in added
    assert added[closed.LOOPBACK_ONLY] == "0"


def test_the_environment_is_afterwards_as_it_was(monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    before = dict(os.environ)
    with closed.closed_to_others():
        assert os.environ[closed.TOKEN]
        assert os.environ["NCCL_SOCKET_IFNAME"] == "eth7"
    assert dict(os.environ) == before


def test_a_ray_that_is_imported_already_obeys():
    program = """
import ray
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode
from rayssl.pipeline.cluster.closed import closed_to_others
from ray.util import get_node_ip_address
outside = get_authentication_mode(), get_node_ip_address()
tokens = []
for _ in range(2):
    with closed_to_others():
        assert get_node_ip_address() == "127.0.0.1", get_node_ip_address()
        assert get_authentication_mode() == AuthenticationMode.TOKEN
        tokens.append(AuthenticationTokenLoader.instance().get_raw_token())
assert tokens[0] != tokens[1] and len(tokens[0]) == 64
assert (get_authentication_mode(), get_node_ip_address()) == outside
"""
    subprocess.run([sys.executable, "-c", program], check=True)


class Door(grpc.GenericRpcHandler):
    """A server that answers everything in one way."""

    def __init__(self, code):
        self.code = code

    def service(self, details):
        def answer(request, context):
            if self.code is not None:
                context.abort(self.code, "no")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize(
    ("code", "anybody"),
    [(None, True), (grpc.StatusCode.UNAUTHENTICATED, False), (grpc.StatusCode.INVALID_ARGUMENT, True)],
)
@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_answers_without_a_token_lets_anybody_in(code, anybody, form):
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Door(code)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert closed.lets_anybody_in(form.format(port)) == anybody
    finally:
        server.stop(None)
    assert not closed.lets_anybody_in(form.format(port))
