"""The checks that need two GPUs or more."""

import json

from tests.gpu.checking import Bench, Check, FailedError, require, sentence

_FLAGS = ("--train.global_batch_size=64", "--precision.policy=float32", "--precision.tf32=false")


def nccl(bench: Bench) -> str:
    """Horovod reduces through NCCL, correctly."""
    bench.run("distcnn.doctor", "--quick", "--json=doctor.json", visible=bench.all_visible)
    findings = json.loads((bench.folder / "doctor.json").read_text())
    built = next((f["text"] for f in findings if f["subject"] == "horovod"), "no horovod")
    require("NCCL" in built or not bench.on_gpu, built)
    bench.run("distcnn.probe", workers=bench.gpus)
    return f"{built}; {bench.gpus} workers reduce correctly"


def pinning(bench: Bench) -> str:
    """Each worker has the GPU of its local rank."""
    bench.run("tests.gpu.placement", "placed", workers=bench.gpus)
    placed = {}
    for file in sorted((bench.folder / "placed").glob("*.json")):
        placed[int(file.stem)] = json.loads(file.read_text())
    expected = [f"/physical_device:GPU:{rank}" for rank in range(bench.gpus)]
    found = [",".join(placed[rank]) for rank in sorted(placed)]
    require(found == (expected if bench.on_gpu else [""] * bench.gpus), f"{found}")
    return ", ".join(name.rpartition(":")[2] or "CPU" for name in found)


def too_many(bench: Bench) -> str:
    """More workers than GPUs are refused by name."""
    if not bench.on_gpu:
        return "not on a CPU"
    try:
        bench.run("distcnn.train", *bench.flags("--out=run"), workers=bench.gpus + 1)
    except FailedError as error:
        require("processes on this host, but only" in str(error), str(error))
        return str(error).partition("error: ")[2]
    raise FailedError("they were not")


def lockstep(bench: Bench) -> str:
    """Any number of workers trains the weights of one."""
    model = "--model.factory=tests.tiny:plain"  # without dropout, which differs by worker
    one = bench.train("one", *_FLAGS, model)
    several = bench.train("several", *_FLAGS, model, workers=bench.gpus)
    require(several["weights_agree"], "the weights differ between ranks")
    difference = abs(one["val_loss"] - several["val_loss"]) / one["val_loss"]
    text = f"validation loss {one['val_loss']:.5f} and {several['val_loss']:.5f}"
    require(difference < 0.002, text)
    bench.run(
        "distcnn.doctor", "--lockstep", str(bench.gpus), "--recipe=quickstart",
        visible=bench.all_visible,
    )  # fmt: skip
    return f"{text}; the doctor's proof of five steps holds"


def _strategy(name: str, in_one_process: bool) -> Check:
    def check(bench: Bench) -> str:
        chosen = (*_FLAGS, f"--distribute.strategy={name}")
        if in_one_process:
            count = f"--distribute.devices={bench.gpus}"
            done = bench.train("run", *chosen, count, visible=bench.all_visible)
        else:
            done = bench.train("run", *chosen, workers=bench.gpus)
        require(done["weights_agree"], "the weights differ between replicas")
        require(done["world_size"] == bench.gpus, f"{done['world_size']} workers")
        return f"{done['world_size']} workers, validation accuracy {done['val_accuracy']:.3f}"

    return Check(name.replace("_", "-"), f"{name} trains in lockstep", "many-gpus", check, 2)


def overflow(bench: Bench) -> str:
    """A step that overflows on any worker is skipped on every worker."""
    said = bench.run("tests.gpu.overflow", workers=bench.gpus)
    return sentence(said, "the first step was skipped")


def compression(bench: Bench) -> str:
    """Gradients can travel as float16 through NCCL."""
    done = bench.train("run", *_FLAGS, "--distribute.compression=fp16", workers=bench.gpus)
    require(done["weights_agree"], "the weights differ between ranks")
    return f"validation accuracy {done['val_accuracy']:.3f}"


def xla_reduction(bench: Bench) -> str:
    """XLA compiles the steps of several workers, also around the reduction of batch statistics."""
    xla = ("--precision.xla=on",)
    done = bench.train("run", *xla, workers=bench.gpus)
    synchronised = bench.train("sync", *xla, "--distribute.sync_batchnorm=true", workers=bench.gpus)
    for run in (done, synchronised):
        require(run["xla"], f"XLA is off: {run['xla_reason']}")
        require(run["weights_agree"], "the weights differ between ranks")
    accuracies = f"{done['val_accuracy']:.3f}, {synchronised['val_accuracy']:.3f}"
    return f"validation accuracy, without and with synchronised statistics: {accuracies}"


def scaling(bench: Bench) -> str:
    """The efficiency of each strategy."""
    one = bench.speed()["images_per_second"]
    figures = []
    for strategy in ("horovod", "mirrored", "multi_worker"):
        row = bench.speed(f"--distribute.strategy={strategy}", workers=bench.gpus)
        rate = row["images_per_second"]
        figures.append(f"{strategy} {rate:.0f} images/s ({rate / one / bench.gpus:.0%})")
    return f"one {one:.0f} images/s; " + ", ".join(figures)


CHECKS = (
    Check("nccl", "Horovod reduces through NCCL", "installation", nccl, 2),
    Check("pinning", "each worker has the GPU of its local rank", "many-machines", pinning, 2),
    Check("too-many", "more workers than GPUs are refused", "many-gpus", too_many, 2),
    Check("lockstep", "several GPUs train the weights of one", "lockstep", lockstep, 2),
    _strategy("mirrored", in_one_process=True),
    _strategy("multi_worker", in_one_process=False),
    Check("overflow", "an overflow is skipped on every worker", "lockstep", overflow, 2),
    Check("compression", "gradients travel as float16", "many-machines", compression, 2),
    Check("xla-reduction", "XLA compiles a step that reduces", "many-machines", xla_reduction, 2),
    Check("scaling", "efficiency by strategy", "many-gpus", scaling, 2),
)
