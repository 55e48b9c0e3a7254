"""The model as MLflow serves it: rows with a column `source` in, a list of texts out.

MLflow copies this file and `lightning_modules/` into the logged model (models from code, nothing is pickled), so it
loads where our repository is not. It must therefore import nothing else of ours.
"""

from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from lightning_modules.text_to_text import TextToText


class ServedModel(PythonModel):  # type: ignore[misc]
    """A fine-tuned text-to-text model."""

    def load_context(self, context: Any) -> None:
        """Loads the model folder, once. MLflow insists on the parameter's name."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = TextToText.load(Path(context.artifacts["model"]), device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """A text for each row of the column `source`.

        Raises MlflowException where one holds no text, which the server answers as status 400, with the message.
        """
        sources = model_input["source"].tolist()
        for row, source in enumerate(sources):
            if not isinstance(source, str):
                # A null is None or, from pandas, a number.
                kind = "null" if source is None or isinstance(source, float) else f"a {type(source).__name__}"
                told = f"row {row} (the first is 0) has {kind} as its source: a text is wanted; no row was answered"
                raise MlflowException.invalid_parameter_value(told)
        return self.model.generate(sources)


set_model(ServedModel())
