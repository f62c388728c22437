"""The section `optimizer`."""

from dataclasses import dataclass, field
from typing import Literal

from distcnn.config.sections.bounds import (
    require,
    require_at_least,
    require_finite,
    require_fraction,
)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and learning rate."""

    name: str = "adam"
    """Optimizer. adamw: Adam with decoupled weight decay. sgd: with Nesterov momentum. lars (You et
    al. 2017), lamb (You et al. 2020): for large batches."""
    lr: float = 1e-3
    """Base learning rate, for a global batch of optimizer.base_batch_size images."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Scale the learning rate by global batch / base batch (linear, Goyal et al. 2017) or by the
    square root of this ratio (sqrt)."""
    base_batch_size: int = 64
    """Global batch size that optimizer.lr was tuned for."""
    schedule: str = "constant"
    """Learning rate after the warm-up. cosine: decays to final_lr_factor. one_cycle: rises over
    the first 30 % of the run, then decays like cosine. step: multiplied by step_factor at each of
    step_epochs."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up to the scaled learning rate, from the base rate if that is lower
    (Goyal et al. 2017), else from zero."""
    step_epochs: list[float] = field(default_factory=list)
    """Epochs after which schedule=step lowers the learning rate."""
    step_factor: float = 0.1
    """Factor on the learning rate at each of step_epochs."""
    final_lr_factor: float = 0.0
    """Final learning rate of cosine and one_cycle, as a fraction of the scaled rate."""
    momentum: float = 0.9
    """Momentum of sgd and lars; 0 disables it."""
    weight_decay: float = 0.0
    """Weight decay of adamw, sgd (both decoupled), lars and lamb; biases and normalisation weights
    are excluded."""
    bias_lr_factor: float = 1.0
    """Factor on the learning rate of biases and normalisation weights (Jordan 2024 uses 64 with
    sgd)."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the one before it: the head has the full rate,
    a layer N places before it layer_decay**N times that (0 < layer_decay <= 1)."""
    clip_norm: float = 0.0
    """Clip the gradients to this global norm; 0 disables clipping."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is evaluated and saved
    in place of the weights; 0 disables it."""

    def __post_init__(self) -> None:
        """Validates the values and their combinations."""
        require_finite("optimizer", self)
        require(self.lr > 0, f"optimizer.lr is {self.lr}; expected a value above 0")
        names = ("warmup_epochs", "final_lr_factor", "weight_decay", "clip_norm", "step_factor")
        require(
            self.bias_lr_factor > 0,
            f"optimizer.bias_lr_factor is {self.bias_lr_factor}; expected a value above 0",
        )
        require(
            0 < self.layer_decay <= 1,
            f"optimizer.layer_decay is {self.layer_decay}; expected 0 < layer_decay <= 1",
        )
        require_at_least("optimizer", self, 0, *names)
        require_at_least("optimizer", self, 1, "base_batch_size")
        require_fraction("optimizer", self, "momentum", "ema")
        require(
            (self.schedule == "step") == bool(self.step_epochs),
            f"optimizer.schedule is {self.schedule} with step_epochs {self.step_epochs}; the "
            "schedule step needs --optimizer.step_epochs, and no other schedule accepts it",
        )
        require(
            self.weight_decay == 0 or self.name != "adam",
            "optimizer.weight_decay is set, but adam has none; use --optimizer.name adamw",
        )
        require(
            self.schedule != "one_cycle" or self.warmup_epochs == 0,
            "optimizer.schedule one_cycle has its own warm-up; drop --optimizer.warmup_epochs",
        )
