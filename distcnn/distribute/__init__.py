"""Over which devices a run is spread: one backend, chosen once."""

from distcnn.distribute.base import Backend, peers_watched
from distcnn.distribute.strategies import build_backend, choose_strategy

__all__ = ["Backend", "build_backend", "choose_strategy", "peers_watched"]
