# ACE Music Studio for NVIDIA cards with CUDA 13, on x86-64 and aarch64. docs/containers.md says how to use it.
#
# The CUDA libraries come with torch's own packages; the host brings the driver (580 or newer) and NVIDIA's container
# toolkit. Python 3.12 is what requirements.txt chooses torch 2.11.0 for, which docker/constraints.txt repeats.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0"

WORKDIR /app
COPY requirements.txt docker/constraints.txt ./
# torch alone and first: a layer of gigabytes that a change of the rest does not touch, and that nothing replaces.
RUN pip install -c constraints.txt torch \
    && python -c "import torch; assert torch.version.cuda.startswith('13.'), torch.version.cuda"
RUN pip install -c constraints.txt -r requirements.txt

COPY *.py ./
COPY assets ./assets
COPY presets ./presets
COPY static ./static
COPY docker/health.py ./docker/

# Weights and songs outlive the container; models/ holds links into the weights that the studio makes at start.
RUN useradd --create-home --uid 1000 studio \
    && mkdir -p /weights /songs models \
    && chown studio:studio /weights /songs models
USER studio
ENV HF_HOME=/weights \
    ACE_STUDIO_OUTPUT=/songs \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860
VOLUME ["/weights", "/songs"]
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s --retries=3 CMD ["python", "docker/health.py"]
ENTRYPOINT ["python", "app.py"]
