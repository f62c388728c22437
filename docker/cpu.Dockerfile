# distcnn for CPUs, with Horovod. Run from the project's folder:
#
#   docker build -f docker/cpu.Dockerfile -t distcnn:0.1.0-cpu .
#   docker run --rm distcnn:0.1.0-cpu        checks itself; see docker/README.md
FROM python:3.11.14-slim-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ make patch \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/distcnn
COPY pyproject.toml README.md LICENSE ./
COPY distcnn distcnn
COPY launch launch
ENV XDG_CACHE_HOME=/tmp/cache
RUN launch/install.sh && launch/install_horovod.sh && rm -rf /tmp/cache

FROM python:3.11.14-slim-bookworm
# launch/k8s/mpijob.yaml needs openssh-server, Horovod's launcher needs openssh-client.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends openssh-client openssh-server \
 && rm -rf /var/lib/apt/lists/* \
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
