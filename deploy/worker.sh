#!/bin/sh
# A Prefect process worker for the workspace in the current folder, one run at a time; PREFECT_API_URL says where the server
# is. `sh deploy/worker.sh POOL [OPTION OF prefect worker start …]`
#
# The pool, the automation of automations.yaml and the deployments of prefect.yaml are made first, or brought up to date.
# SIGTERM ends the run that it has, then the worker: a training saves a checkpoint, and the next run goes on from there.
set -eu
pool=$1
shift
prefect --no-prompt work-pool inspect "$pool" > /dev/null 2>&1 \
  || prefect --no-prompt work-pool create --type process "$pool"
python -c 'from pathlib import Path; from flows.serve import put_automations; put_automations(Path("automations.yaml"))'
prefect --no-prompt deploy --all
exec python -m flows.worker --pool "$pool" --type process --limit 1 "$@"
