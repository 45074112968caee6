"""Evaluates in child processes that are killed with SIGKILL at random moments, until one is left to finish."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from diffsight.backbones import load
from diffsight.evaluation.runner import evaluate, make_job
from diffsight.evaluation.task import folder_task
from diffsight.scoring.racing import PooledRace
from diffsight.zero_shot.settings import Settings


def main():
    out, samples, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)  # a child of a fork may not use the threads of its parent
    settings = Settings(policy=PooledRace(max_draws=24))
    job = make_job(folder_task(samples), load("tiny-fashion", device="cpu"), settings=settings, limit=30)
    random.seed(0)
    done = 0
    while True:
        child = os.fork()
        if child == 0:
            evaluate(job, out, batch_size=16, commit_every=4)
            os._exit(0)
        if done == kills:
            sys.exit(os.waitpid(child, 0)[1])
        time.sleep(random.uniform(0.05, 0.9))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the run ended before kill {done + 1}")
        done += 1


if __name__ == "__main__":
    main()
