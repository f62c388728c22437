"""Over which devices a run is spread: one backend, chosen once."""

from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.strategies import build_backend, choose_strategy

__all__ = ["Backend", "build_backend", "choose_strategy", "reporting_lost_peers"]
