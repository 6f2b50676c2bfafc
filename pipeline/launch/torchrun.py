"""The stages in processes that torchrun has started."""

import os
from dataclasses import replace
from datetime import timedelta

from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.launch.plan import WORKER, Plan, finish, prepare_shown


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def start_under_torchrun(plan: Plan, display: Display) -> None:
    """The same stages in processes that are there already; rank 0 prepares, writes and reports."""
    import torch
    import torch.distributed as dist

    from rayssl.pipeline.base import collectives
    from rayssl.pipeline.base.reporter import LocalReporter, Silent
    from rayssl.pipeline.run.context import Stopped
    from rayssl.pipeline.run.plan import Machine
    from rayssl.pipeline.stages.story import pending, run_worker_stages

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=2))  # rank 0 reads the images first
    configs = [replace(c, cluster=replace(c.cluster, workers=dist.get_world_size())) for c in plan.configs]
    machine = Machine("cuda" if cuda else "cpu", os.cpu_count() or 1, dist.get_world_size())
    main = collectives.rank() == 0
    reporter = LocalReporter(display)
    prepared = []
    names = [stage for stage in plan.stages if stage in WORKER]
    try:
        for config, run in zip(configs, plan.folders):
            todo = None  # stays so where rank 0 fails: it alone says why
            try:
                if main:
                    shown = prepare_shown(
                        config, run, plan.command, display, plan.stages, machine=machine, alone=len(configs) == 1
                    )
                    prepared.append(shown)
                    todo = pending(run, names, prepared[-1].config, prepared[-1].dataset)
            finally:
                todo = collectives.broadcast_object(todo)
            if todo is None:
                raise SystemExit(2)
            with reporter.stop_on_signals():
                run_worker_stages(run, todo, reporter if main else Silent())
        if main:
            finish(prepared, plan, display)
    except Stopped as stopped:
        reporter.message(str(stopped))
        raise KeyboardInterrupt from None
    finally:
        dist.destroy_process_group()
