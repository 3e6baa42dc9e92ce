# Wheels bundle GDAL, so nothing is installed from the distribution; torch's bring CUDA along, which --gpus all makes use of.
#   docker build -t rsdistill .
#   docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" rsdistill predict scene.tif --out mask.tif
FROM python:3.12-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MPLCONFIGDIR=/tmp/matplotlib HOME=/tmp

WORKDIR /opt/rsdistill
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY rsdistill rsdistill
RUN pip install --constraint constraints.txt ".[onnx,parquet]"

RUN useradd --create-home --uid 10001 mapper
USER mapper
WORKDIR /data
ENTRYPOINT ["rsdistill"]
CMD ["--help"]
