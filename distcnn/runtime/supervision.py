"""The connection between `distcnn.horovodrun` and the launcher that supervises it, if one does.

The supervisor sends orders (`t`: stop and save, `k`: kill) and gets events, one JSON object a line.
When the supervisor dies, the orders end, and so does the process.
"""

import json
import os
import threading
from collections.abc import Callable, MutableMapping
from typing import Any, Self

SUPERVISED = "DISTCNN_SUPERVISED"
"""Environment variable with the descriptors of orders and events, as `4,5`."""


class Supervision:
    """The end of the connection at the ranks' launcher.

    Args:
        orders: Descriptor to read orders from.
        events: Descriptor to write events to.
    """

    def __init__(self, orders: int, events: int) -> None:
        self._orders = orders
        self._events = events
        self._lock = threading.Lock()

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> Self | None:
        """Returns the connection that the environment names, and removes it from there."""
        orders, comma, events = environment.pop(SUPERVISED, "").partition(",")
        if not comma:
            return None
        for descriptor in (int(orders), int(events)):
            os.set_inheritable(descriptor, False)
        return cls(int(orders), int(events))

    def tell(self, **event: Any) -> None:
        """Sends an event."""
        line = json.dumps(event).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._events, line) :]

    def listen(self, obey: Callable[[bytes], None]) -> None:
        """Calls a function with each order, in a thread; ends the process with the supervisor."""

        def read() -> None:
            while order := os.read(self._orders, 1):
                obey(order)
            os._exit(1)  # the ranks' own processes notice, and stop them

        threading.Thread(target=read, daemon=True).start()
