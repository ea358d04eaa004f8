# syntax=docker/dockerfile:1
# docker build --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu -t polyhead:0.1.0-cpu .
# docker build -t polyhead:0.1.0-cuda .
#
# TORCH_INDEX_URL  where to look for torch besides pip's own index, whose Linux wheels bring CUDA
# WEIGHTS          a bundle whose weights become part of the image, e.g. demo; otherwise they belong in a volume
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/polyhead
ENV PATH=/opt/polyhead/bin:$PATH
WORKDIR /src
# Dependencies change seldom: their layer is made before the source is looked at.
COPY constraints.txt pyproject.toml ./
ARG TORCH_INDEX_URL=
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > requirements.txt \
 && pip install --constraint constraints.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
      --requirement requirements.txt
COPY LICENSE README.md ./
COPY polyhead polyhead
COPY encoders encoders
COPY decoders decoders
COPY serving serving
RUN pip install --constraint constraints.txt --no-deps .

FROM build AS weights
ARG WEIGHTS=
RUN mkdir -p /var/lib/polyhead \
 && if [ -n "$WEIGHTS" ]; then POLYHEAD_CACHE_DIR=/var/lib/polyhead polyhead pull "$WEIGHTS"; fi

FROM python:${PYTHON}
RUN useradd --uid 10001 --user-group --create-home polyhead
COPY --from=build /opt/polyhead /opt/polyhead
COPY --from=weights --chown=polyhead:polyhead /var/lib/polyhead /var/lib/polyhead
ENV PATH=/opt/polyhead/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    POLYHEAD_CACHE_DIR=/var/lib/polyhead
USER 10001:10001
WORKDIR /home/polyhead
# HTTP, gRPC, and the metrics of Ray and of HAProxy
EXPOSE 8000 9000 8090 9101
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["polyhead", "serve", "--host", "0.0.0.0"]
