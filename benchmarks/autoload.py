"""What this package adds to every `import torch`, in thread CPU time: `python -m benchmarks.autoload`.

Each round is a process of its own. PyTorch's search for entry points of the group `torch.backends` is there with and
without this package, and stands beside for comparison.
"""

import json
import statistics
import subprocess
import sys

MEASURE = """
import os
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
from time import thread_time
start = thread_time()
import torch
torch_done = thread_time()
from importlib.metadata import entry_points
found = entry_points(group="torch.backends")
searched = thread_time()
for entry_point in found:
    if entry_point.name.startswith("neftune"):
        entry_point.load()()
print([torch_done - start, searched - torch_done, thread_time() - searched])
"""


def main(rounds: int = 15) -> None:
    """Print the median and the largest of each, in milliseconds."""
    command = [sys.executable, "-c", MEASURE]
    times = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(rounds)
    ]
    print(f"{'ms of thread CPU time':34}{'median':>8}{'largest':>9}")
    parts = ("import torch", "PyTorch's search for entry points", "this package's entry points")
    for name, column in zip(parts, zip(*times, strict=True), strict=True):
        print(f"{name:34}{statistics.median(column) * 1e3:8.1f}{max(column) * 1e3:9.1f}")


if __name__ == "__main__":
    main()
