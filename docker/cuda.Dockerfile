# distcnn for NVIDIA GPUs, with Horovod and NCCL. Run from the project's folder:
#
#   docker build -f docker/cuda.Dockerfile -t distcnn:0.1.0-cuda .
#   mkdir -p runs
#   docker run --rm --gpus all --shm-size=1g --user "$(id -u):$(id -g)" -v "$PWD/runs:/runs" \
#     distcnn:0.1.0-cuda python -m distcnn.horovodrun --gloo -np 4 python -m distcnn.train --out /runs/article
#
# Not yet built, nor tested on a GPU.
FROM nvidia/cuda:12.9.1-cudnn-devel-ubuntu24.04 AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ make patch python3.12 python3.12-venv python3.12-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/distcnn
COPY pyproject.toml README.md LICENSE ./
COPY distcnn distcnn
COPY launch launch
ENV XDG_CACHE_HOME=/tmp/cache PYTHON=python3.12
RUN launch/install.sh cuda && launch/install_horovod.sh --cuda && rm -rf /tmp/cache

# TensorFlow brings the CUDA libraries; Horovod needs the NCCL of the runtime image.
FROM nvidia/cuda:12.9.1-runtime-ubuntu24.04
RUN apt-get update \
 && apt-get install --yes --no-install-recommends openssh-client openssh-server python3.12 python3.12-venv \
 && rm -rf /var/lib/apt/lists/* \
 && userdel --remove ubuntu \
 && useradd --create-home --uid 1000 distcnn \
 && install -d -o distcnn -g distcnn /runs /home/distcnn/.ssh /home/distcnn/sshd
COPY --from=build /opt/distcnn /opt/distcnn
COPY docker/sshd_config /etc/distcnn/sshd_config
ENV PATH=/opt/distcnn/.venv/bin:$PATH XDG_CACHE_HOME=/tmp/.cache KERAS_HOME=/tmp/.keras
USER distcnn
RUN ssh-keygen -q -t ed25519 -N '' -f /home/distcnn/sshd/host_key
WORKDIR /runs
HEALTHCHECK --interval=5m --timeout=60s --start-period=60s CMD ["python", "-m", "distcnn.doctor", "--quick"]
CMD ["python", "-m", "distcnn.doctor"]
