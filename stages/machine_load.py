"""The machine's load, as MLflow shows it beside a training's metrics. A sample costs about a millisecond."""

from collections.abc import Callable
from typing import Any


def load_sampler() -> Callable[[], dict[str, float]]:
    """A function that measures the machine (CPU, memory, disk, network, GPUs) under MLflow's own names."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except Exception:  # no GPU, no driver, or no library for it
        monitors = monitors[:3]

    def sample() -> dict[str, float]:
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values

    return sample
