"""Lightning, without three libraries that it would load and that nothing here uses.

For two classes Lightning imports torchmetrics, and that imports SciPy, Matplotlib and Transformers wherever they are
installed, for metrics that need them: more than a quarter of the time from a training's start to its first step
(`python -m benchmarks.resume`). So torchmetrics is imported first, and told that they are not there. Who wants one of
those metrics in the same process imports torchmetrics before this module.
"""

from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError

from lightning_utilities.core import imports

UNUSED = {"scipy", "matplotlib", "transformers"}


def _import_torchmetrics() -> None:
    asked = vars(imports)  # what torchmetrics asks whether something is installed, by these two functions
    find_spec, version = asked["find_spec"], asked["_version"]

    def find_spec_of_used(name: str) -> ModuleSpec | None:
        return None if name in UNUSED else find_spec(name)

    def version_of_used(name: str) -> str:
        if name in UNUSED:
            raise PackageNotFoundError(name)
        return str(version(name))

    asked.update(find_spec=find_spec_of_used, _version=version_of_used)
    try:
        import torchmetrics  # noqa: F401
    finally:
        asked.update(find_spec=find_spec, _version=version)


_import_torchmetrics()
import pytorch_lightning as pl  # noqa: E402
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment  # noqa: E402
from lightning_fabric.utilities.exceptions import MisconfigurationException  # noqa: E402

__all__ = ["MisconfigurationException", "SLURMEnvironment", "pl"]
