"""Another library is loaded without a trace in the process's global state."""

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched() -> Iterator[None]:
    """Leave the process's settings as they were.

    These are random states, filters of warnings, logging levels, the default dtype and the number of threads.
    spaCy draws from Python's `random` and adds filters of warnings where it is imported.
    """
    python, arrays = random.getstate(), np.random.get_state()
    dtype, threads, errors = torch.get_default_dtype(), torch.get_num_threads(), np.geterr()
    levels = {name: logging.getLogger(name).level for name in (None, *logging.root.manager.loggerDict)}
    disabled = logging.root.manager.disable
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        np.seterr(**errors)
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.disable(disabled)
