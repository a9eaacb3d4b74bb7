"""SIGTERM and Ctrl-C while a model trains: noted, and acted on once the step is finished."""

import signal
import threading
import time
from types import FrameType
from typing import Any

from transformers import TrainerCallback


# Launchers pass on a Ctrl-C that the terminal has sent to every process already.
SAME_SIGNAL_SECONDS = 1.0


class StopSignals:
    """
    Notes SIGTERM and SIGINT inside a `with`. A second Ctrl-C, a second later, is a KeyboardInterrupt at once.

    Outside the main thread, and for a signal that is ignored (as under nohup), everything stays as it was.

    Attributes:
        received: number of the first signal, 0 before.
    """

    def __init__(self) -> None:
        self.received, self._since = 0, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if (before := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt


class StopAfterStep(TrainerCallback):
    """Saves and stops at the end of a step, once the processes have agreed on a signal."""

    agreed: int = 0

    def on_step_end(self, args, state, control, **kwargs):
        """Asks for a checkpoint, unless the run makes none, and for the end."""
        if self.agreed:
            control.should_save = control.should_save or args.save_strategy != "no"
            control.should_training_stop = True
        return control
