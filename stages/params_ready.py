"""What is looked at once, before a run: what stages would refuse for reasons that params.yaml alone does not show.

Costs some 0.5 s each for prepare.languages and prepare.weights, where there are any.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from lightning_modules.errors import PipelineError
from stages.params_checks import Problem
from stages.params_schema import Params

PRETRAINING_ALONE = (
    "pre-train: python -m flows --targets pretrain evaluate_pretraining "
    "(make demo ARGS='--targets pretrain evaluate_pretraining')"
)


def unready(params: Params, root: Path, stages: Collection[str] | None) -> Iterator[Problem]:
    """What these stages of dvc.yaml would refuse, each with where it stands.

    `stages` None is all of them, tasks or not. `root` is the folder that paths in params.yaml start from.
    """
    for name, source in params.sources.local.items():
        if (stages is None or f"fetch_local@{name}" in stages) and not (root / source.path).exists():
            advice = ": ~ is not expanded, write the home folder out" if str(source.path).startswith("~") else ""
            yield ("sources", "local", name, "path"), f"{source.path} does not exist{advice}"
    if stages is None or "prepare" in stages:
        yield from _refused(("prepare", "languages"), params.prepare.languages, lambda: _languages(params))
        yield from _refused(("prepare", "weights"), params.prepare.weights, lambda: _weights(params))
    if stages is not None and "report" in stages and not params.tasks:
        yield ("tasks",), f"the report needs one, and there is none: add one, or only {PRETRAINING_ALONE}"


def _refused(location: tuple[str, str], given: object, check: Callable[[], None]) -> Iterator[Problem]:
    """What a stage's own `check` of the key says, which loads libraries: asked only where something is `given`."""
    if given:
        try:
            check()
        except PipelineError as error:
            yield location, str(error).removeprefix(f"{'.'.join(location)}: ")


def _languages(params: Params) -> None:
    from stages.languages import check_languages

    check_languages(params.prepare.languages)


def _weights(params: Params) -> None:
    from stages.selection import require_known_sources

    require_known_sources(params)
