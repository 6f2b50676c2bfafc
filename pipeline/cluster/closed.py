"""A Ray of this machine alone that nobody else reaches: every port on loopback, and a token of its own.

Whoever reaches a port of Ray's without a token runs code as its user. What the user has set stays as it is.
"""

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from rayssl.pipeline.cluster.ray_private import LOOPBACK_ONLY, read_settings_anew

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"  # interfaces over which workers talk to each other


# A call of each server that an open one answers with whatever; a token is asked for only where there is the call.
OF_HEAD, OF_CLIENT_SERVER = "/ray.rpc.NodeInfoGcsService/GetClusterId", "/ray.rpc.RayletDriver/ClusterInfo"


ASK_SECONDS = 5.0


def closed_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to an environment so that a Ray started in it is closed to others.

    The token is random, and in the environment of Ray's processes only: no file, log or command line has it.
    """
    interface = loopback_interface()
    settings = {LOOPBACK_ONLY: "0", MODE: "token", GLOO: interface, NCCL: f"={interface}"}  # =: no other that starts so
    if not {MODE, TOKEN, TOKEN_PATH} & set(environment):
        settings[TOKEN] = secrets.token_hex(32)
    return {name: value for name, value in settings.items() if name not in environment}


def loopback_interface() -> str:
    """The name of the interface with 127.0.0.1: lo0 on a Mac."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), "lo")


@contextmanager
def closed_to_others() -> Iterator[None]:
    """Settings under which a Ray may be started here, for the time; afterwards the environment is as it was."""
    settings = closed_settings(os.environ)
    os.environ.update(settings)
    read_settings_anew()
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
        read_settings_anew()


def lets_anybody_in(address: str) -> bool:
    """Whether a Ray at HOST:PORT or ray://HOST:PORT answers a call that carries no token."""
    import grpc

    place = urlsplit(address if "://" in address else f"//{address}").netloc
    name = OF_CLIENT_SERVER if address.startswith("ray://") else OF_HEAD
    not_told = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED)
    with grpc.insecure_channel(place) as channel:
        call = channel.unary_unary(name, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=ASK_SECONDS)
        except grpc.RpcError as error:
            return error.code() not in (grpc.StatusCode.UNAUTHENTICATED, *not_told)
    return True
