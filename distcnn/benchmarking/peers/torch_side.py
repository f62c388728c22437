"""The step in PyTorch, with the settings that are known to be the fastest on a CPU."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from distcnn.benchmarking.peers.side import Task, fastest
from distcnn.benchmarking.peers.spec import PeerSpec
from distcnn.benchmarking.peers.torch_models import GraphModel
from distcnn.benchmarking.progress import Say

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
        images, labels = task.batch()
        self._images, self._labels = torch.from_numpy(images), torch.from_numpy(labels)
        self.model = GraphModel(spec.nodes).to(memory_format=torch.channels_last)
        self.optimizer, fused = _optimizer(spec, self.model)
        self._loss = float("nan")
        candidates = {"eager": self._mean_loss}
        if tuning:
            candidates["torch.compile"] = torch.compile(self._mean_loss)
        steps = {name: _stepper(self, function) for name, function in candidates.items()}
        best, words = fastest(steps, task.budget, say)
        self._step = steps[best]
        self.title = f"torch {torch.__version__}"
        self.precision = spec.precision
        self.settings = [
            words,
            "channels_last",
            *(["autocast bfloat16"] if spec.precision == "mixed_bfloat16" else []),
            f"{'fused ' if fused else ''}{spec.optimizer}",
            f"{torch.get_num_threads()} threads",
            f"denormals {'flushed' if flushes else 'kept'}",
        ]

    @property
    def parameters(self) -> int:
        """Number of parameters, moving statistics included."""
        frozen = [weight for weight in self.model.parameters() if not weight.requires_grad]
        state = self.model.state_dict()
        held = sum(v.numel() for k, v in state.items() if not k.endswith("num_batches_tracked"))
        return held - sum(weight.numel() for weight in frozen)  # scales and offsets of none

    def run(self, steps: int) -> list[float]:
        """Trains; returns the seconds of each step."""
        return [self._step() for _ in range(steps)]

    def loss(self) -> float:
        """Returns the loss of the last step."""
        return self._loss

    def step(self, mean_loss: Callable[[Any, Any], Any]) -> float:
        """Trains one step with a form of the forward pass; returns its seconds."""
        start = time.perf_counter()
        loss = mean_loss(self._images, self._labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._limit_norms()
        self._loss = loss.item()
        return time.perf_counter() - start

    def _mean_loss(self, images: Any, labels: Any) -> Any:
        spec = self._spec
        # NHWC in memory, seen as NCHW, is what channels_last means.
        scaled = images.permute(0, 3, 1, 2).float() * spec.pixel_scale + spec.pixel_offset
        bfloat16 = spec.precision == "mixed_bfloat16"
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = self.model(scaled)
        return functional.cross_entropy(logits.float(), labels)

    @torch.no_grad()
    def _limit_norms(self) -> None:
        for layer, limit in self.model.limited:
            norms = layer.weight.norm(dim=1, keepdim=True)
            layer.weight.mul_(norms.clamp(max=limit) / (norms + _KERAS_ADAM_EPSILON))


def _stepper(side: TorchSide, mean_loss: Callable[[Any, Any], Any]) -> Callable[[], float]:
    return lambda: side.step(mean_loss)


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
