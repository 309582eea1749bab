# One image for every service of docker-compose.yml: tuner, MLflow's server, optuna-dashboard.
# VARIANT=cpu takes the wheel of torch without CUDA; VARIANT=cuda the one of PyPI, which brings CUDA.
# After an upgrade of the base its digest is `docker buildx imagetools inspect python:...`.
ARG PYTHON=python:3.11.13-slim-bookworm@sha256:86adf8dbadc3d6e82ee5dd2c74bec2e1c2467cdad47886280501df722372d2e1

FROM ${PYTHON} AS build
ARG VARIANT=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/tuner
WORKDIR /src
COPY constraints.txt ./
# torch first and without what it needs, which comes from PyPI with everything else, as pinned
RUN case "$VARIANT" in \
    cpu) /opt/tuner/bin/pip install --no-deps --index-url https://download.pytorch.org/whl/cpu \
        "$(grep '^torch==' constraints.txt)" ;; \
    cuda) ;; \
    *) echo "VARIANT: expected cpu or cuda, got $VARIANT" >&2; exit 2 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY tuner tuner
COPY studies studies
RUN /opt/tuner/bin/pip install -c constraints.txt '.[server,dashboard]'

FROM ${PYTHON}
COPY --from=build /opt/tuner /opt/tuner
COPY deploy/entrypoint /usr/local/bin/entrypoint
COPY deploy/make-accounts /usr/local/bin/make-accounts
COPY deploy/basic_auth.ini /etc/tuner/basic_auth.ini
# volumes take their owner from here
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin tuner \
    && install -d -o tuner -g tuner /app /var/lib/tuner /var/lib/mlflow
ENV PATH=/opt/tuner/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    MPLCONFIGDIR=/tmp OMP_NUM_THREADS=1
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["entrypoint"]
CMD ["tuner", "--help"]
