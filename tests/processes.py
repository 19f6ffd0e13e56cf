"""Runs a function in several processes with gloo, as torchrun would."""

from __future__ import annotations

import datetime
import io
import multiprocessing
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch
from torch import distributed

FORK = multiprocessing.get_context("fork")  # torch is imported already


def run_on(world, function, *arguments, timeout=20.0):
    """Results of `function(*arguments)` on each process; the text of what one raised."""
    if world == 1:
        return [function(*arguments)]
    with tempfile.TemporaryDirectory() as folder:
        store = (Path(folder) / "store").as_uri()
        ends = [FORK.Pipe(duplex=False) for _ in range(world)]
        processes = [
            FORK.Process(
                target=_run, args=(ends[rank][1], store, rank, world, timeout, function, arguments)
            )
            for rank in range(world)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads that other tests left
            for process in processes:
                process.start()
        try:
            for _, sender in ends:
                sender.close()
            answers = [receiver.recv_bytes() for receiver, _ in ends]
        finally:
            for process in processes:
                process.join(5)
                process.kill()
    return [torch.load(io.BytesIO(answer), weights_only=False) for answer in answers]


def _run(sender, store, rank, world, timeout, function, arguments):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    told |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 0, "TORCHELASTIC_RUN_ID": "tests"}
    os.environ.update({name: str(value) for name, value in told.items()})
    if "accelerate" in sys.modules:  # the parent may have been one by itself
        sys.modules["accelerate"].state.AcceleratorState._reset_state(True)
    distributed.init_process_group(
        "gloo",
        init_method=store,
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=timeout),
    )
    try:
        answer = function(*arguments)
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
        if not isinstance(error, (RuntimeError, ValueError)):
            answer = traceback.format_exc()
    file = io.BytesIO()
    torch.save(answer, file)
    sender.send_bytes(file.getvalue())
    sender.close()
