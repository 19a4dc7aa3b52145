# docker build -t detr_fast .                                                      for CPUs
# docker build -t detr_fast --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 .  with CUDA kernels
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
RUN python3 -m venv "$VIRTUAL_ENV" && pip install --no-cache-dir torch

COPY . /src
RUN pip install --no-cache-dir "/src[train,export]" && detr-fast doctor

WORKDIR /work
ENTRYPOINT ["detr-fast"]
