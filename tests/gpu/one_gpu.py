"""The checks that need one GPU."""

import json
import signal
import subprocess
import time
from pathlib import Path

from tests.gpu.checking import Bench, Check, SkippedError, require, sentence

_SLOWER = 1.03
"""By which factor a time may exceed another one before it counts as longer."""


def devices(bench: Bench) -> str:
    """A run uses the GPU, and the doctor finds nothing wrong."""
    bench.run("distcnn.doctor", "--quick", "--json=doctor.json")
    findings = json.loads((bench.folder / "doctor.json").read_text())
    warnings = [f"{f['subject']}: {f['text']}" for f in findings if f["level"] != "ok"]
    used = bench.train("run")["device"]
    require((used != "CPU") == bench.on_gpu, f"the run used {used}")
    return "; ".join([used, *warnings])


def policy(bench: Bench) -> str:
    """The policy follows from the compute capability."""
    chosen = bench.train("run", "--precision.policy=auto")
    found, why = chosen["precision"], chosen["precision_reason"]
    if bench.on_gpu:
        capability = bench.machine.capability
        best = "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16"
        expected = best if capability >= (7, 0) else "float32"
        require(found == expected, f"{found} ({why}); expected {expected}")
    return f"{found} ({why})"


def precisions(bench: Bench) -> str:
    """The chosen policy is the fastest."""
    rates = {
        name: bench.speed(f"--precision.policy={name}")["images_per_second"]
        for name in ("auto", *bench.policies)
    }
    rates["float32 without TF32"] = bench.speed(
        "--precision.policy=float32", "--precision.tf32=false"
    )["images_per_second"]
    text = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()) + " images/s"
    slow = rates["auto"] * _SLOWER < max(rates["float32"], rates["mixed_bfloat16"])
    require(bench.quick or not slow, text)
    return text


def xla(bench: Bench) -> str:
    """XLA is on for a GPU, and faster there; the fast form adds nothing to it."""
    chosen = bench.train("run")
    require(chosen["xla"] == bench.on_gpu, f"XLA is {chosen['xla']} ({chosen['xla_reason']})")
    rates = {
        f"XLA {xla}, fast form {form}": bench.speed(
            f"--precision.xla={xla}", f"--train.fast_path={form}"
        )["images_per_second"]
        for xla, form in (("on", "off"), ("on", "on"), ("off", "on"), ("off", "off"))
        if bench.on_gpu or xla == "off"
    }
    text = ", ".join(f"{name}: {rate:.0f}" for name, rate in rates.items()) + " images/s"
    if bench.on_gpu and not bench.quick:
        require(rates["XLA on, fast form off"] * _SLOWER >= max(rates.values()), text)
    return text


def xla_cache(bench: Bench) -> str:
    """A later start reads what XLA has compiled."""
    if not bench.on_gpu:
        raise SkippedError("on a CPU nothing is kept")
    bench.environment["XDG_CACHE_HOME"] = str(bench.folder / "cache")
    first, second = (bench.speed()["compile_seconds"] for _ in range(2))
    files = [path for path in Path(bench.folder, "cache/distcnn/xla").rglob("*") if path.is_file()]
    text = f"{first:.1f} s, then {second:.1f} s; {len(files)} files"
    require(files and second < first, text)
    return text


def loss_scaling(bench: Bench) -> str:
    """A step that overflows in float16 changes nothing but the loss scale."""
    return sentence(bench.run("tests.gpu.overflow"), "the first step was skipped")


def float16(bench: Bench) -> str:
    """Training in float16 reaches what float32 reaches."""
    accuracy = {
        name: bench.train(name, "--train.epochs=8", f"--precision.policy={name}")["val_accuracy"]
        for name in bench.policies
    }
    text = ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items())
    require(min(accuracy.values()) > accuracy["float32"] - 0.03, text)
    return f"validation accuracy {text}"


def determinism(bench: Bench) -> str:
    """Repeated runs are the same to the last bit, also if one is interrupted."""
    flags = ("--precision.deterministic=true", "--train.epochs=6")
    first, second = (bench.train(name, *flags) for name in ("first", "second"))
    hashes = [first["weights_sha256"], second["weights_sha256"]]
    process = bench.start("stopped", *flags)
    rows = bench.folder / "stopped" / "metrics.jsonl"
    while process.poll() is None and not (rows.exists() and rows.read_bytes().count(b"\n") >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    hashes.append(bench.train("stopped", *flags)["weights_sha256"])
    require(len(set(hashes)) == 1, f"weights {', '.join(each[:8] for each in hashes)}")
    plain = bench.train("plain", "--train.epochs=6")
    ratio = first["train_seconds"] / plain["train_seconds"]
    stopped = f"once stopped (exit code {code})"
    return f"weights {hashes[0][:8]} three times, {stopped}; {ratio:.2f} x the time"


def virtual_workers(bench: Bench) -> str:
    """With virtual workers, deterministic kernels are chosen, and the weights do not vary."""
    flags = (
        *("--train.virtual_workers=4", "--train.global_batch_size=64"),
        "--distribute.sync_batchnorm=false",
    )
    counts = {1, *(count for count in (2, 4) if count <= bench.gpus)}
    hashes = {
        count: bench.train(f"run{count}", *flags, workers=count)["weights_sha256"][:8]
        for count in sorted(counts)
    } | {0: bench.train("again", *flags)["weights_sha256"][:8]}
    text = ", ".join(f"{count or 'one again'}: {hash_}" for count, hash_ in hashes.items())
    require(len(set(hashes.values())) == 1, text)
    return f"weights by workers {text}"


def shared_gpu(bench: Bench) -> str:
    """Two runs share a GPU if memory grows as needed."""
    bench.environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    runs = [bench.start(name, "--train.epochs=20") for name in ("first", "second")]
    used = 0
    while any(run.poll() is None for run in runs):
        used = max(used, _memory_used() if bench.on_gpu else 0)
        time.sleep(0.2)
    codes = [run.returncode for run in runs]
    require(codes == [0, 0], f"exit codes {codes}")
    return f"both ended; {used} of {bench.machine.memory_mb} MB in use at most"


def _memory_used() -> int:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    done = subprocess.run(query, capture_output=True, text=True, check=True)
    return int(done.stdout.strip())


def largest_batch(bench: Bench) -> str:
    """The largest batch is found by running out of the GPU's memory."""
    size, images, low = ("32", "64", "32") if bench.quick else ("224", "8192", "64")
    model = "MobileNetV3Small" if bench.quick else "ResNet50"
    bench.run(
        "distcnn.find_batch",
        *(f"--model.name={model}", "--data.name=synthetic", f"--data.image_size={size}"),
        *(f"--data.synthetic_examples={images}", f"--low={low}", "--bisections=1"),
        *("--seconds=3", "--json=found.json"),
    )
    found = json.loads((bench.folder / "found.json").read_text())
    shown = ", ".join(
        f"{each['batch']}: {each['images_per_second']:.0f}"
        for each in found["sizes"]
        if each["fits"]
    )
    return f"{model}, {size} pixels: {found['largest']}; images/s by batch {shown}"


def learning_rates(bench: Bench) -> str:
    """The range test suggests a rate on a GPU."""
    bench.run(
        "distcnn.find_lr", "--recipe=quickstart", "--json=found.json", "--steps=60", "--low=1e-4"
    )
    found = json.loads((bench.folder / "found.json").read_text())
    require(found["steepest"] is not None, f"{len(found['rates'])} steps without a suggestion")
    return f"{found['steepest']:.2g} after {len(found['rates'])} steps"


def profile(bench: Bench) -> str:
    """A profile for TensorBoard can be taken."""
    flags = ("--logging.tensorboard=true", "--logging.profile=3,6")
    bench.run("distcnn.train", *bench.flags(*flags, "--out=run"))
    found = [path for path in (bench.folder / "run").rglob("*.xplane.pb") if path.is_file()]
    require(found, "there is no profile")
    content = found[0].read_bytes()
    require(b"/device:GPU:0" in content or not bench.on_gpu, "it says nothing of the GPU")
    return f"{len(content) / 1e6:.1f} MB"


def benchmark(bench: Bench) -> str:
    """The benchmark writes its table and its plots, and compares with plain Keras."""
    counts = [count for count in (1, 2, 4, 8, 16) if count <= bench.gpus]
    steps = ("--steps=5", "--compare_steps=5") if bench.quick else ("--steps=40",)
    batch = "--train.batch_size=16" if bench.quick else "--train.batch_size=512"
    printed = bench.run(
        "distcnn.benchmark",
        *("--data.name=synthetic", f"--workers={','.join(map(str, counts))}", *steps, batch),
        *("--compare=plain", "--budget=120", "--out=table"),
        visible=bench.all_visible,
    )
    require("images/s" in printed or "images per second" in printed, "there is no table")
    plots = sorted(path.name for path in (bench.folder / "table").glob("*.png"))
    require(plots, "there is no plot")
    rows = json.loads((bench.folder / "table" / "results.json").read_text())["rows"]
    rates = ", ".join(
        f"{row['scaling']} {row['workers']}: {row['images_per_second']:.0f}" for row in rows
    )
    return f"images/s by scaling and workers {rates}; {', '.join(plots)}"


def recipes(bench: Bench) -> str:
    """What each recipe takes and reaches, in full; without CIFAR-10 only what needs no download."""
    names = ["quickstart"]
    if bench.data is not None:
        names += ["article", "fast", "fast_article", "record"]
    figures = []
    for name in names:
        data = [] if name == "quickstart" else [f"--data.dir={bench.data}"]
        short = ["--train.epochs=1"] if bench.quick else []
        flags = (f"--recipe={name}", *data, *short, "--logging.images=false", f"--out={name}")
        bench.run("distcnn.train", *flags)
        done = bench.finished(name)
        accuracy = done["test_accuracy"]
        figures.append(f"{name} {done['train_seconds']:.0f} s, {accuracy:.4f}")
    if bench.data is None:
        figures.append("the others need --data DIR")
    return "; ".join(figures)


def instances(bench: Bench) -> str:
    """Each instance of a divided GPU (MIG) trains a run of its own."""
    found = bench.machine.instances
    if not found:
        raise SkippedError("no GPU is divided (MIG)")
    runs = [bench.start(f"run{n}", visible=uuid) for n, uuid in enumerate(found)]
    codes = [run.wait() for run in runs]
    require(not any(codes), f"exit codes {codes}")
    from distcnn.searching.slots import divide_host

    slots = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in divide_host(len(found))]
    require(set(slots) >= set(found), f"search would use {slots}")
    return f"{len(found)} instances at once"


CHECKS = (
    Check("devices", "a GPU is used if there is one", "README", devices),
    Check("policy", "bfloat16 from capability 8.0, float16 from 7.0", "configuration", policy),
    Check("precisions", "auto chooses the fastest policy", "configuration", precisions),
    Check("xla", "XLA is on for GPUs, where it is faster; the fast form then off", "speed", xla),
    Check("xla-cache", "compiled code is kept for later starts", "configuration", xla_cache),
    Check("loss-scaling", "a step that overflows updates nothing", "lockstep", loss_scaling),
    Check("float16", "float16 with loss scaling trains as float32 does", "configuration", float16),
    Check("determinism", "the same weights again, also when interrupted", "resuming", determinism),
    Check("virtual-workers", "the same weights to the last bit", "lockstep", virtual_workers),
    Check("shared-gpu", "runs share a GPU with TF_FORCE_GPU_ALLOW_GROWTH", "scripts", shared_gpu),
    Check("largest-batch", "the largest batch is found", "tuning", largest_batch),
    Check("learning-rates", "the range test suggests a rate", "tuning", learning_rates),
    Check("profile", "steps can be profiled", "tensorboard", profile),
    Check("benchmark", "throughput as a table and as plots", "speed", benchmark),
    Check("recipes", "the time and the accuracy of each recipe", "recipes", recipes),
    Check("mig", "each instance of a divided GPU trains a run", "search", instances),
)
