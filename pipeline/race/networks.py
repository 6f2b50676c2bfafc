"""Networks with weights that are on this machine, and the one command that fetches weights which would help."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models.pretrained import available, pretrained_encoder
from rayssl.pipeline.models.teachers import HELPFUL, as_teacher
from rayssl.pipeline.race.candidates import MOST_NETWORKS, Network


def found_networks() -> list[Network]:
    """At most a few networks with weights on this machine; nothing is downloaded."""
    return unlike([Network(one.name, one.weights) for one in available()])[:MOST_NETWORKS]


def unlike(networks: Sequence[Network]) -> list[Network]:
    """The first of each name."""
    return list({network.short: network for network in reversed(networks)}.values())[::-1]


def sized(networks: Sequence[Network], *, channels: int, image_side: int, warn: Callable[[str], None]) -> list[Network]:
    """The networks with the size at which they see images of `image_side` pixels.

    One that was found and cannot be used is left out, with a warning; raises UserError for one that was named.
    """
    fitting = []
    for network in unlike(networks):
        try:
            encoder = pretrained_encoder(network, channels=channels, image_side=image_side)
        except UserError as error:
            if network.teacher:
                raise UserError(as_teacher(str(error))) from None
            if network.asked:
                raise
            warn(f"{network.name} is left out: {error}")
            continue
        fitting.append(replace(network, size=encoder.image_size))
    return fitting


def weights_line(channels: int) -> str:
    """The command that fetches weights which would help; empty where none would."""
    return f"rayssl weights {HELPFUL}" if channels == 3 else ""
