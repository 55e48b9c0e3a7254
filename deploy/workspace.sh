#!/bin/sh
# Brings the code that this stands in into the workspace, the current folder, and runs a command there: what a container of
# the image starts with. `sh DIRECTORY/deploy/workspace.sh COMMAND …`
#
# A workspace that is a git clone is left as it is. Any other gets the code at the first start and again where the image
# has other code; params.yaml, data and all that the pipeline has made stay the workspace's.
set -eu
image=$(cd "$(dirname "$0")/.." && pwd)

if [ ! -e .git ] && [ "$image" != "$(pwd)" ]; then
  for path in "$image"/* "$image"/.dvc "$image"/.dvcignore; do
    name=$(basename "$path")
    case $name in
      .dvc | data | params.yaml | dvc.lock) [ -e "$name" ] || cp -R "$path" "$name" ;;
      *)
        if ! diff -rq --exclude=__pycache__ "$path" "$name" > /dev/null 2>&1; then
          echo "bringing $name of the image into the workspace"
          rm -rf "./$name"
          cp -R "$path" "$name"
        fi ;;
    esac
  done
  [ -e .dvc/config.local ] || printf '[core]\n    no_scm = true\n' > .dvc/config.local
fi
exec "$@"
