"""When and where it runs: the Prefect flow over the stages of dvc.yaml."""
