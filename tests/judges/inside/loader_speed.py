"""How fast LeRobot's own loader reads windows, as its training script does: a torch DataLoader over its dataset.

Asked: {"root", "windows": {key: [seconds]}, "items": indices in order, "batch", "seconds", "files": all files of the dataset,
"runs": [[is cold, workers]]}.
Answer: windows per second of each run, bytes that one process read per window, the video backend and versions.
"""

import torchvision_operators  # isort: skip # noqa: F401
import os
import time
from importlib import metadata

import answering
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def drop(files):
    """Take files out of the page cache."""
    for name in files:
        descriptor = os.open(name, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def warm(files):
    """Bring files into the page cache."""
    for name in files:
        with open(name, "rb") as file:
            while file.read(1 << 20):
                pass


def bytes_read():
    """Bytes that this process got from files so far."""
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def speed(dataset, request, workers):
    """Windows per second behind the first batch of every worker; whole rounds of the workers are counted."""
    loader = torch.utils.data.DataLoader(
        dataset, request["batch"], sampler=request["items"], num_workers=workers, prefetch_factor=2 if workers else None
    )
    batches, count = iter(loader), 0
    for _ in range(workers):
        next(batches)
    began = time.perf_counter()
    for number, batch in enumerate(batches, 1):
        count += len(batch["index"])
        if number >= 3 * workers and number % workers == 0 and time.perf_counter() - began > request["seconds"]:
            break
    return count / (time.perf_counter() - began)


request = answering.asked()
dataset = LeRobotDataset("judged/here", root=request["root"], delta_timestamps=request["windows"])
rates = []
for is_cold, workers in request["runs"]:
    (drop if is_cold else warm)(request["files"])
    rates.append(speed(dataset, request, workers))
sample = request["items"][:32]
before = bytes_read()
for item in sample:
    dataset[item]
answering.answer(
    rates=rates, bytes=(bytes_read() - before) / len(sample), backend=dataset.video_backend,
    versions={name: metadata.version(name) for name in ("lerobot", "torch")},
)  # fmt: skip
