#!/bin/sh
# A Prefect process worker for the workspace in the current folder, one run at a time; PREFECT_API_URL says where the server
# is. `sh deploy/worker.sh POOL [OPTION OF prefect worker start …]`
#
# The pool, the automation of automations.yaml and the deployments of prefect.yaml are made first. SIGTERM ends the worker and the run that it has: a training
# saves a checkpoint, and the next run goes on from there.
set -eu
pool=$1
shift
prefect --no-prompt work-pool inspect "$pool" > /dev/null 2>&1 \
  || prefect --no-prompt work-pool create --type process "$pool"
prefect --no-prompt automation inspect runs-without-a-sign-of-life > /dev/null 2>&1 \
  || prefect --no-prompt automation create --from-file automations.yaml
prefect --no-prompt deploy --all
exec prefect worker start --pool "$pool" --type process --limit 1 "$@"
