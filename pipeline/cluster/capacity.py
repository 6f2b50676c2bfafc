"""How many workers a Ray cluster has room for."""

from typing import Any


def alive_nodes() -> list[dict[str, float]]:
    """What each node of the connected cluster has, by Ray's names: CPU, GPU."""
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in found if node["Alive"]]


def count_workers(nodes: list[dict[str, float]], cpus: float, gpus: float) -> int:
    """How many workers with so many cores and GPUs there is room for: none is spread over two nodes."""
    return sum(
        min(_times(node.get("CPU", 0), cpus), _times(node.get("GPU", 0), gpus) if gpus else 10**9) for node in nodes
    )


def _times(there: float, each: float) -> int:
    return int(there / each + 1e-9)  # 1 / 0.2 is 5, which 1 // 0.2 is not


def cores_a_worker(nodes: list[dict[str, float]], workers: int, gpus: float) -> int:
    """The most cores that so many workers, with so many GPUs each, can have."""
    most = int(max(node.get("CPU", 0) for node in nodes))
    return max((n for n in range(1, most + 1) if count_workers(nodes, n, gpus) >= workers), default=1)
