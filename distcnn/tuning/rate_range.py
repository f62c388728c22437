"""The learning-rate range test: a run whose rate rises at every step until the loss diverges."""

from dataclasses import asdict, replace

from distcnn.config import Config
from distcnn.errors import UsageError
from distcnn.runtime.keras_internals import follows_schedule
from distcnn.training.loop import run_first_steps
from distcnn.training.setup import TrainingSetup
from distcnn.tuning.rate_curve import RateCurve


def with_free_rate(config: Config, steps: int) -> Config:
    """Returns the configuration of the test: that of the run, with a rate that can be set.

    Of several phases, it is that of the first one, since the others go on from what that trains.

    Args:
        config: The configuration of the run.
        steps: Number of steps of the test.
    """
    return replace(
        config,
        train=replace(
            config.train,
            epochs=steps,
            steps_per_execution=1,
            phases=[
                asdict(replace(phase, epochs=steps)) for phase in config.train.parsed_phases[:1]
            ],
        ),
        optimizer=replace(
            config.optimizer, schedule="constant", warmup_epochs=0.0, step_epochs=[], ema=0.0
        ),
        logging=replace(config.logging, profile=None),
    )


def run_range_test(setup: TrainingSetup, curve: RateCurve) -> None:
    """Trains one step at each rate; called in all processes together, which stop at the same step.

    Args:
        setup: The run, built from `with_free_rate`.
        curve: The rates; takes the losses, which are those of the global batch in every process.

    Raises:
        UsageError: If the model is compiled with a schedule, or its own step reports no loss.
        DistcnnError: If the weights that the run begins with cannot be loaded.
    """
    if follows_schedule(getattr(setup.optimizer, "inner_optimizer", setup.optimizer)):
        raise UsageError(
            "the model is compiled with a learning-rate schedule; expected a number, which the "
            "test can change"
        )
    backend, training = setup.backend, setup.training
    setup.optimizer.learning_rate = curve.rate(0)
    for step in run_first_steps(setup, curve.steps):
        metrics = training.metrics()
        if "loss" not in metrics:
            raise UsageError(
                f"the model's train_step reports {', '.join(metrics) or 'nothing'}; expected a "
                "metric with the name loss"
            )
        if backend.any_process(curve.add(float(metrics["loss"]))):
            return
        setup.optimizer.learning_rate = curve.rate(step)
        training.reset_metrics()
