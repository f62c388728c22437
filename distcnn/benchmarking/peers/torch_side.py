"""The step in PyTorch, with the settings that are known to be the fastest."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from distcnn.benchmarking.peers.side import Task, fastest
from distcnn.benchmarking.peers.spec import PeerSpec
from distcnn.benchmarking.peers.torch_models import GraphModel
from distcnn.benchmarking.progress import Say
from distcnn.errors import DistcnnError

_COMPILED: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {"torch.compile": {}},
    "cuda": {"torch.compile": {}, "torch.compile with CUDA graphs": {"mode": "reduce-overhead"}},
}
"""The forms to try on each device, with the options of `torch.compile`."""

_KERAS_ADAM_EPSILON = 1e-7


class TorchSide:
    """Trains the model of a step eagerly or compiled, whichever is faster.

    Args:
        task: What this process is told.
        say: Takes lines of progress.
        tuning: Whether to try the compiled form.

    Attributes:
        model: The model.
        optimizer: Its optimizer.
    """

    def __init__(self, task: Task, say: Say, *, tuning: bool = True) -> None:
        torch.set_num_threads(task.cores)
        flushes = torch.set_flush_denormal(True)
        torch.manual_seed(0)
        spec = task.spec()
        self._spec = spec
        self._device = _device(spec)
        if spec.gpu:
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.allow_tf32 = spec.tf32
            torch.backends.cuda.matmul.allow_tf32 = spec.tf32
        images, labels = (torch.from_numpy(array).to(self._device) for array in task.batch())
        self._images, self._labels = images, labels
        self.model = GraphModel(spec.nodes).to(self._device, memory_format=torch.channels_last)
        self.optimizer, fused = _optimizer(spec, self.model)
        self._loss = torch.tensor(float("nan"))
        candidates = {"eager": self._mean_loss}
        if tuning:
            for name, options in _COMPILED[self._device.type].items():
                candidates[name] = torch.compile(self._mean_loss, **options)
        steps = {name: partial(self.step, function) for name, function in candidates.items()}
        timed = {name: partial(_seconds, self, step) for name, step in steps.items()}
        best, words = fastest(timed, task.budget, say)
        self._step = steps[best]
        self.title = f"torch {torch.__version__}"
        self.precision = spec.precision
        self.settings = [
            words,
            "channels_last",
            *(["autocast bfloat16"] if spec.precision == "mixed_bfloat16" else []),
            f"{'fused ' if fused else ''}{spec.optimizer}",
            *(
                [f"cuDNN's fastest kernels, TF32 {'on' if spec.tf32 else 'off'}"]
                if spec.gpu
                else [
                    f"{torch.get_num_threads()} threads",
                    f"denormals {'flushed' if flushes else 'kept'}",
                ]
            ),
        ]

    @property
    def parameters(self) -> int:
        """Number of parameters, moving statistics included."""
        frozen = [weight for weight in self.model.parameters() if not weight.requires_grad]
        state = self.model.state_dict()
        held = sum(v.numel() for k, v in state.items() if not k.endswith("num_batches_tracked"))
        return held - sum(weight.numel() for weight in frozen)  # scales and offsets of none

    def run(self, steps: int) -> list[float]:
        """Trains; returns the seconds of each step, on a GPU their mean, as it works ahead."""
        if self._device.type == "cpu":
            return [_seconds(self, self._step) for _ in range(steps)]
        return [_seconds(self, self._step, steps)] * steps

    def loss(self) -> float:
        """Returns the loss of the last step."""
        return float(self._loss)

    def step(self, mean_loss: Callable[[Any, Any], Any]) -> None:
        """Trains one step with a form of the forward pass; on a GPU, does not wait for it."""
        if self._device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        loss = mean_loss(self._images, self._labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._limit_norms()
        self._loss = loss.detach()

    def wait(self) -> None:
        """Waits until the device has done what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _mean_loss(self, images: Any, labels: Any) -> Any:
        spec = self._spec
        # NHWC in memory, seen as NCHW, is what channels_last means.
        scaled = images.permute(0, 3, 1, 2).float() * spec.pixel_scale + spec.pixel_offset
        bfloat16 = spec.precision == "mixed_bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bfloat16):
            logits = self.model(scaled)
        return functional.cross_entropy(logits.float(), labels)

    @torch.no_grad()
    def _limit_norms(self) -> None:
        for layer, limit in self.model.limited:
            norms = layer.weight.norm(dim=1, keepdim=True)
            layer.weight.mul_(norms.clamp(max=limit) / (norms + _KERAS_ADAM_EPSILON))


def _device(spec: PeerSpec) -> Any:
    """Returns the device: a GPU if distcnn computes on one.

    Raises:
        DistcnnError: If PyTorch finds none.
    """
    if spec.gpu and not torch.cuda.is_available():
        raise DistcnnError(
            f"distcnn computes on {spec.gpu}, but torch {torch.__version__} finds no GPU; install "
            "a build of torch with CUDA, or set CUDA_VISIBLE_DEVICES= to compare on the CPU"
        )
    return torch.device("cuda" if spec.gpu else "cpu")


def _seconds(side: TorchSide, step: Callable[[], None], steps: int = 1) -> float:
    """Returns the seconds of each of some steps."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    side.wait()
    return (time.perf_counter() - start) / steps


def _optimizer(spec: PeerSpec, model: Any) -> tuple[Any, bool]:
    """Returns the optimizer, and whether it updates the weights in one fused operation."""

    def build(**options: Any) -> Any:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        if spec.optimizer == "adam":
            eps = _KERAS_ADAM_EPSILON
            return torch.optim.Adam(weights, lr=spec.learning_rate, eps=eps, **options)
        nesterov = spec.momentum > 0
        return torch.optim.SGD(
            weights, lr=spec.learning_rate, momentum=spec.momentum, nesterov=nesterov, **options
        )

    try:
        return build(fused=True), True
    except (RuntimeError, TypeError):  # PyTorch before 2.4 has no fused optimizers on CPUs
        return build(), False


def build(task: Task, say: Say) -> TorchSide:
    """Builds the side of this module."""
    return TorchSide(task, say)
