"""What `search.vectors` names: checked before anything trains, and found among the sources afterwards."""

from collections.abc import Mapping

from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.config import Config
from rayssl.pipeline.features import LAST
from rayssl.pipeline.features.pooled import names_of
from rayssl.pipeline.models.descriptors import DESCRIPTORS
from rayssl.pipeline.models.pretrained import ENLARGED, available, pretrained_encoder
from rayssl.pipeline.run.build import new_encoder
from rayssl.pipeline.search.parts import JOIN, PIXELS, Seen
from rayssl.pipeline.stages.search_networks import Given, frozen_names, named_networks
from rayssl.pipeline.stages.search_sources import UNTRAINED, Source, own_name


def wanted_of(asked: str, sources: dict[str, Source], own: str) -> list[Seen] | None:
    """What `search.vectors` names, NAME[:STAGE[:POOL]] or two of them with a plus; None: everything.

    Raises UserError for what there is not.
    """
    if asked == "auto":
        return None
    known = {name: source.names for name, source in sources.items()}
    return [_seen(f"{own}:{LAST}" if name == LAST else name, known) for name in asked.split(JOIN)]


def check_vectors(config: Config) -> None:
    """Raises UserError for `search.vectors` that there will not be, before anything trains.

    Which networks there are on a cluster is known only there.
    """
    asked = config.search.vectors
    if asked in ("auto", LAST):
        return
    others = others_at_hand(config)
    known = known_names(config)
    for name in asked.split(JOIN):
        source, _, stage = name.partition(":")
        if name == LAST or (config.cluster.address is not None and source not in known):
            continue
        if source not in others:
            _seen(name, known | dict.fromkeys(sorted(others), (LAST,)))
        elif stage:
            _seen(name, {source: frozen_stages(others[source], config)})


def others_at_hand(config: Config) -> dict[str, Given]:
    """Pretrained networks that are on this machine, by label; of those with the same one the first that is named."""
    found: dict[str, Given] = {}
    for given in (*named_networks(config), *(Given(one.name, one.weights) for one in available())):
        if given.label != own_name(config):
            found.setdefault(given.label, given)
    return found


def frozen_stages(given: Given, config: Config) -> tuple[str, ...]:
    """What a pretrained network can be seen at in a run."""
    data = config.data
    assert data.channels is not None
    assert data.image_size is not None
    encoder = pretrained_encoder(given, channels=data.channels, image_side=data.image_size, enlarged=ENLARGED)
    return frozen_names(encoder)


def known_names(config: Config) -> dict[str, tuple[str | None, ...]]:
    """What a run will have to be searched by, and the stages of each, but for networks that others trained."""
    found: dict[str, tuple[str | None, ...]] = dict.fromkeys((*DESCRIPTORS, PIXELS), (None,))
    encoder = new_encoder(config, weights=False)
    if config.method is None:
        return found | {own_name(config): frozen_names(encoder)}
    return found | {UNTRAINED: (LAST,), own_name(config): tuple(names_of(encoder))}


def _seen(name: str, sources: Mapping[str, tuple[str | None, ...]]) -> Seen:
    """Of sources by name, each with the stages that it has."""
    source, _, what = name.partition(":")
    names = sources.get(source)
    if names is not None:
        options = [option for option in names if option is not None]
        what = what or (LAST if options else "")
        if not options and not what:
            return Seen(source)
        fitting = [option for option in options if option == what or option == f"{what}:avg"]
        if fitting:
            return Seen(source, fitting[0])
    known = [Seen(source, what).name for source, names in sources.items() for what in names]
    raise UserError(f"--search.vectors {name}{nearest(name, known)}: there are auto, last, {', '.join(known)}")
