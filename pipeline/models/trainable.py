"""A network from its input to its output: which parts are trained, at which rate, and by adapters beside the weights.

A stage is what `Encoder.stages` calls so; of a transformer it is a block. What comes before the first stage (a stem,
position embeddings) belongs to it, and what comes after the last one to the last.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models.encoder import Encoder


def stage_paths(encoder: Encoder) -> tuple[str, ...]:
    """Where the stages of a network lie in `encoder.net`, from the input on; none where it has no parts."""
    net = encoder.net
    if hasattr(net, "layer_names"):  # the project's own
        return tuple(net.layer_names)  # type: ignore[arg-type]
    if blocks := transformer_blocks(net):
        return blocks
    if hasattr(net, "feature_info"):  # timm's
        return tuple(info["module"] for info in net.feature_info)  # type: ignore[union-attr]
    return tuple(str(path) for path in encoder._taps.values())


def transformer_blocks(net: nn.Module) -> tuple[str, ...]:
    """The blocks of a transformer: the parts of a chain each of which attends."""
    for path, module in net.named_modules():
        if path.rpartition(".")[2] not in ("blocks", "layers"):
            continue
        parts = dict(module.named_children())
        if len(parts) > 1 and all(_attends(part) for part in parts.values()):
            return tuple(f"{path}.{name}" for name in parts)
    return ()


def _attends(module: nn.Module) -> bool:
    return any("Attention" in type(part).__name__ for part in module.modules())


def stage_numbers(net: nn.Module, paths: Sequence[str]) -> Iterator[tuple[nn.Parameter, int]]:
    """Every parameter of a network with the number of its stage, 0 for the first one.

    Networks list their modules in the order in which an image passes them.
    """
    stage, inside = 0, False
    for path, module in net.named_modules():
        if inside and not _lies_in(path, paths[stage]):
            stage = min(stage + 1, len(paths) - 1)
        inside = _lies_in(path, paths[stage])
        yield from ((parameter, stage) for parameter in module.parameters(recurse=False))


def _lies_in(path: str, whole: str) -> bool:
    return path == whole or path.startswith(f"{whole}.")


def rate_scales(encoder: Encoder, decay: float) -> dict[Tensor, float]:
    """By how much the learning rate of each parameter is smaller: `decay` to the power of the stages behind it.

    UserError for a network without stages. Clark et al., "ELECTRA", ICLR 2020, appendix B, for fine-tuning.
    """
    paths = _required(encoder, f"--train.layer-decay {decay:g}", "use 1")
    return {parameter: decay ** (len(paths) - 1 - stage) for parameter, stage in stage_numbers(encoder.net, paths)}


def parameter_groups(
    model: nn.Module, weight_decay: float, scales: Mapping[Tensor, float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: weights decay; biases and normalisation (ndim ≤ 1) do not.

    `scales`: what the learning rate of some is multiplied by, "scale" of their group; 1 for all others.
    """
    scales = scales or {}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = dict.fromkeys(scales.get(parameter, 1.0) for parameter in trainable)
    groups = [
        {"params": [p for p in trainable if (p.ndim > 1) is decays and scales.get(p, 1.0) == scale],
         "weight_decay": weight_decay if decays else 0.0, "scale": scale}
        for scale in found for decays in (True, False)
    ]  # fmt: skip
    return [group for group in groups if group["params"]]


def freeze_stages(encoder: Encoder, count: int) -> None:
    """The first `count` stages are not trained from here on; UserError where none would be left."""
    paths = _required(encoder, f"--train.freeze {count}", "use 0")
    if count >= len(paths):
        raise UserError(
            f"--train.freeze {count}: {encoder.name} has {len(paths)} stages, the last of which must be trained: "
            f"at most {len(paths) - 1}"
        )
    for parameter, stage in list(stage_numbers(encoder.net, paths)):
        if stage < count:
            parameter.requires_grad_(False)


def _required(encoder: Encoder, told: str, instead: str) -> tuple[str, ...]:
    paths = stage_paths(encoder)
    if not paths:
        raise UserError(f"{told}: {encoder.name} has no stages: {instead}")
    return paths


def add_adapters(encoder: Encoder, rank: int, freeze: int = 0) -> None:
    """Train matrices of that rank beside the linear layers of a transformer's blocks, and nothing else of the network.

    Hu et al., "LoRA: Low-rank adaptation of large language models", ICLR 2022, by peft: it begins as the network is.
    `freeze`: the first blocks get none. UserError for a network without such layers, or without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(f"--train.lora {rank} needs peft: pip install 'rayssl[lora]'") from None

    paths = transformer_blocks(encoder.net)
    targets = [name for name in _linear_layers(encoder) if any(_lies_in(name, path) for path in paths[freeze:])]
    if not targets:
        raise UserError(
            f"--train.lora {rank}: {encoder.name} has no linear layers in blocks of a transformer: train it without, "
            "or with --train.freeze N, which needs less memory too"
        )
    encoder.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), encoder.net)


def _linear_layers(encoder: Encoder) -> list[str]:
    """Those that are called: some networks take a layer's weight and multiply by themselves, past any adapter."""
    called: list[str] = []
    plain = [(name, module) for name, module in encoder.net.named_modules() if type(module) is nn.Linear]
    hooks = [module.register_forward_hook(lambda *_, name=name: called.append(name)) for name, module in plain]
    try:
        encoder.output_shape(encoder)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(called))


def without_adapters(encoder: Encoder) -> Encoder:
    """The encoder itself, as a plain network again: adapters are added to the weights that they were beside."""
    for name, module in list(encoder.net.named_modules()):
        if hasattr(module, "get_base_layer"):  # peft's
            module.merge()
            encoder.net.set_submodule(name, module.get_base_layer())
    return encoder


def keep_statistics(model: nn.Module) -> None:
    """BatchNorm whose weights are not trained keeps its statistics, and normalises by them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and not module.weight.requires_grad:
            module.eval()
