"""The doctor's checks of Horovod."""

import importlib.util
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from distcnn.errors import DistcnnError
from distcnn.runtime.files import parse_json
from distcnn.runtime.finding import Finding
from distcnn.runtime.nvidia import count_nvidia_gpus


def check_horovod() -> Iterator[Finding]:
    """Checks that Horovod is installed, and built for the installed TensorFlow."""
    spec = importlib.util.find_spec("horovod")
    if spec is None or not spec.submodule_search_locations:
        yield Finding(
            "horovod",
            "warning",
            "not installed; several processes would use multi_worker",
            "distcnn install-horovod",
        )
        return
    file = Path(spec.submodule_search_locations[0]) / "metadata.json"
    built_for = parse_json(file.read_text()).get("tensorflow") if file.exists() else None
    installed = metadata.version("tensorflow")
    if built_for != installed:
        text = f"built for TensorFlow {built_for}, but {installed} is installed"
        yield Finding("horovod", "error", text, "distcnn install-horovod rebuilds it")
        return
    from distcnn.distribute.horovod import import_horovod

    try:
        hvd = import_horovod()
    except DistcnnError as error:
        yield Finding("horovod", "error", str(error), "distcnn install-horovod")
        return
    parts = {"Gloo": hvd.gloo_built(), "NCCL": hvd.nccl_built(), "MPI": hvd.mpi_built()}
    text = (
        f"{metadata.version('horovod')} with {', '.join(n for n, built in parts.items() if built)}"
    )
    if count_nvidia_gpus() and not parts["NCCL"]:
        fix = "distcnn install-horovod --cuda"
        yield Finding("horovod", "warning", f"{text}; GPUs would reduce through the host", fix)
    else:
        yield Finding("horovod", "ok", text)
