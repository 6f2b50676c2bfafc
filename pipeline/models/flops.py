"""Operations are counted without torch's compiler, whose import takes seconds of every command that plans a run."""

from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

_MARKED = "__dynamo_disable"  # see torch/_compile.py; where torch names it otherwise nothing is gained and nothing lost


def count_operations() -> FlopCounterMode:
    """A counter of floating-point operations, silent.

    torch marks what it calls as nothing to compile, and imports the compiler to do so. What it keeps beside a function
    that has been marked is put there beforehand.
    """
    plain = getattr(_FlopCounterMode.__torch_dispatch__, "__wrapped__", None)
    if plain is not None and not hasattr(plain, _MARKED):
        setattr(plain, _MARKED, plain)
    return FlopCounterMode(display=False)
