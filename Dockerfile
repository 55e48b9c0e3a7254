# The pipeline's environment and code, as a Prefect process worker; with another command, any of its programs:
#   docker build -t transformer-pipeline:0.1.0 .                                    the CUDA build of torch: some 6 GB more
#   docker build -t transformer-pipeline:0.1.0 --build-arg TORCH_INDEX=ADDRESS .    another build: see requirements-torch.txt
#   docker run --rm -v workspace:/workspace transformer-pipeline:0.1.0 python -m stages.params
# Data, models, caches and checkpoints live in the volume /workspace; nothing in the image changes while it runs.
FROM python:3.11-slim-bookworm AS environment
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.lock requirements-torch.txt /build/
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-deps --require-hashes -r /build/requirements.lock \
 && /opt/venv/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r /build/requirements-torch.txt

FROM python:3.11-slim-bookworm
# git is DVC's; with the compiler torch.compile builds on GPUs what it loads. Debian keeps no old versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc git libc6-dev make \
 && rm -rf /var/lib/apt/lists/* \
 && git config --system --add safe.directory /workspace \
 && useradd --uid 10001 --create-home pipeline \
 && install --directory --owner pipeline /workspace
COPY --from=environment /opt/venv /opt/venv
COPY . /opt/pipeline
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp PREFECT_HOME=/tmp/prefect \
    DO_NOT_TRACK=true
USER 10001
WORKDIR /workspace
VOLUME /workspace
ENTRYPOINT ["sh", "/opt/pipeline/deploy/workspace.sh"]
CMD ["sh", "deploy/worker.sh", "workstation"]
