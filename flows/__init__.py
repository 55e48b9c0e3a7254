"""When and where it runs: the Prefect flow over the stages of dvc.yaml."""

from lightning_modules.collector import collect_rarely

collect_rarely()
