"""Lightning without what it would load and nothing here uses, which is most of what its import takes.

For two classes Lightning imports torchmetrics, and that imports SciPy, Matplotlib and Transformers wherever they are
installed, for metrics that need them. So torchmetrics is imported first, and told that they are not there. Who wants
one of those metrics in the same process imports torchmetrics before this module.

To tell whether a model is compiled Lightning imports torch's compiler, and that SymPy: 2.5 s, for trainings that
compile nothing. Whoever does compile loads it by that (`python -m benchmarks.resume` has the times).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any

from lightning_utilities.core import imports

UNUSED = {"scipy", "matplotlib", "transformers"}
COMPILER = "torch._dynamo"


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


class _Compiled(type):
    def __instancecheck__(cls, model: object) -> bool:
        compiler = sys.modules.get(COMPILER)
        return compiler is not None and isinstance(model, compiler.OptimizedModule)


class _CompilerNotLoaded(ModuleType):
    """The two names that Lightning takes from the compiler; it is loaded for any other."""

    class OptimizedModule(metaclass=_Compiled):
        """As `isinstance` sees it, the compiler's."""

    @staticmethod
    def disable(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        """Keeps a function out of a compiled one: Lightning's own, and what is compiled here never calls them."""
        return function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import of a module looks at
            raise AttributeError(name)
        if sys.modules[COMPILER] is self:
            del sys.modules[COMPILER]
        return getattr(import_module(COMPILER), name)


@contextmanager
def _compiler_not_loaded() -> Iterator[None]:
    ours = sys.modules.setdefault(COMPILER, _CompilerNotLoaded(COMPILER))
    try:
        yield
    finally:
        if isinstance(ours, _CompilerNotLoaded) and sys.modules[COMPILER] is ours:
            del sys.modules[COMPILER]


with _compiler_not_loaded():
    _import_torchmetrics()
    import pytorch_lightning as pl
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.utilities.exceptions import MisconfigurationException

__all__ = ["MisconfigurationException", "SLURMEnvironment", "pl"]
