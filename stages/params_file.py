"""params.yaml as text: its values with their line numbers, and one line for what is wrong that says where and what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from lightning_modules.errors import PipelineError
from stages.params_errors import Location, mistakes, shown


@dataclass(frozen=True)
class ParamsFile:
    """A YAML file read with its layout. `values` are plain Python types; `tree` knows the lines."""

    path: Path
    tree: Any
    values: Any

    def error(self, location: Location, problem: str) -> PipelineError:
        """The one line: file, line, dotted key, problem."""
        return PipelineError(f"{self.path}:{self.line(location)}: {_dotted(location)}: {problem}")

    def line(self, location: Location) -> int:
        """The line, from 1, of the key or list entry; of the nearest enclosing one where it is absent."""
        node, line = self.tree, 1
        for part in location:
            try:
                line = (node.lc.key(part) if isinstance(node, CommentedMap) else node.lc.item(part))[0] + 1
                node = node[part]
            except (AttributeError, KeyError, IndexError, TypeError):
                break
        return int(line)

    def schema_error(self, error: ValidationError, schema: type[BaseModel]) -> PipelineError:
        """The first thing in the file that `schema` does not allow, and how many more there are."""
        found = mistakes(error, schema, self.values)
        # A misspelt key is missing, too: only the misspelling is worth a word.
        worst = [mistake for mistake in found if mistake.misspelt] or found
        first = min(worst, key=lambda mistake: self.line(mistake.location))
        more = f" ({len(worst) - 1} more after this)" if len(worst) > 1 else ""
        return self.error(first.location, first.problem + more)


def read_params_file(path: Path) -> ParamsFile:
    """Reads YAML 1.2, as DVC does. Raises PipelineError for a file that is missing, empty, or not YAML."""
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(
            f"{path} does not exist: run this from the repository's root, or restore the file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} cannot be read: {error}") from None
    except YAMLError as error:
        raise PipelineError(syntax_problem(path, error)) from None
    if tree is None:
        raise PipelineError(f"{path}:1: the file is empty: restore it")
    if not isinstance(tree, CommentedMap):
        raise PipelineError(f"{path}:1: must be a mapping, key: value, not {shown(tree)}")
    return ParamsFile(path, tree, _plain(tree))


def syntax_problem(path: Path, error: YAMLError) -> str:
    """What is to be said of a file that is not YAML: the line, the problem, what to do."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    problem = str(error.problem) if isinstance(error, MarkedYAMLError) and error.problem else str(error).split("\n")[0]
    advice = "indent with spaces, not tabs" if "\\t" in problem else "mend the YAML there"
    if "duplicate key" in problem:
        problem, advice = problem.split(" with value")[0], "the key is there twice: remove one"
    return f"{path}{line}: {problem}: {advice}"


def _dotted(location: Location) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _plain(node: Any) -> Any:
    """ruamel's types, which carry the layout, as the plain ones that a strict schema accepts."""
    if isinstance(node, CommentedMap):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node
