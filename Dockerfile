# docker build --target cpu -t llmserve:cpu .
# docker run --rm --init -p 127.0.0.1:8000:8000 -v llmserve-cache:/cache llmserve:cpu
#
# Targets: cpu · cuda (NVIDIA's driver and container toolkit on the host) · rocm (AMD's driver on the host).
# configs/compose.*.yaml runs each. Models are downloaded, converted and compiled at the first start, into the volume.

FROM python:3.12-slim-trixie AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY llmserve ./llmserve
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-trixie AS base
# g++ stays: it links each model when that is compiled. Versions are the distribution's.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 llmserve \
 && install --directory --owner=llmserve --group=llmserve /cache
ENV LLMSERVE_CACHE=/cache/llmserve \
    HF_HOME=/cache/huggingface \
    PYTHONUNBUFFERED=1
WORKDIR /home/llmserve
VOLUME /cache
EXPOSE 8000
# The first start may download gigabytes before the port opens. Asks port 8000, whatever --port says.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["llmserve"]
CMD ["serve", "--host", "0.0.0.0"]

FROM base AS cpu
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl \
 && rm -rf /wheels
USER 10001

FROM base AS cuda
# The driver is the host's; its container toolkit brings that in by these names. CUDA's compiler and runtime are pip's.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[cuda]" \
 && rm -rf /wheels
USER 10001

FROM base AS rocm
# HIP's runtime, and the linker for its kernels. Versions are the distribution's.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends lld libamdhip64-dev \
 && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl \
 && rm -rf /wheels
USER 10001
