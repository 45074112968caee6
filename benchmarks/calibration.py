"""How far stated probabilities are from the share of right answers, for each way to get them, from a stored run.

    python benchmarks/calibration.py runs/default

Temperature and Platt scaling are fitted on every second image and measured on the others: they have seen labels, the
posterior has not.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from diffsight.evaluation.metrics.reliability import reliability
from diffsight.evaluation.rescoring import read_errors
from diffsight.store.run import Run
from diffsight.zero_shot.calibration import Temperature, fit_platt, fit_temperature, posterior


def main() -> None:
    """Print the expected calibration error of each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = Run.load(parser.parse_args().run)
    stored = read_errors(run, len(run.manifest.fingerprint_fields["owner"]))
    column = stored.losses.index(run.manifest.fingerprint_fields["settings"]["loss"])
    tables = [table[:, :, column].astype(np.float64) for table in stored.tables]
    labels = np.array(stored.labels)
    learnt, held_out = slice(0, None, 2), slice(1, None, 2)

    def error(probabilities: np.ndarray, truth: np.ndarray) -> float:
        return reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == truth).error

    zero_shot = np.stack([posterior(table) for table in tables])
    nominal = np.stack([Temperature(1.0).probabilities(table) for table in tables])
    temperature = fit_temperature(tables[learnt], labels[learnt])
    scaled = np.stack([temperature.probabilities(table) for table in tables[held_out]])
    lines = [
        f"softmax(-error), as the papers write it: ECE {error(nominal, labels):.3f}, "
        f"mean confidence {nominal.max(axis=1).mean():.3f}",
        f"posterior, no labels: ECE {error(zero_shot, labels):.3f}, mean confidence {zero_shot.max(axis=1).mean():.3f}",
        f"temperature {temperature.scale:.0f}, fitted: ECE {error(scaled, labels[held_out]):.3f} on the other half",
    ]
    calls = np.array([np.isfinite(table).sum() for table in tables])
    if len(np.unique(calls)) > 1:
        right = zero_shot.argmax(axis=1) == labels
        platt = fit_platt(calls[learnt], right[learnt])
        found = reliability(platt.confidence(calls[held_out]), right[held_out]).error
        lines.append(f"Platt on the number of calls, fitted: ECE {found:.3f} on the other half")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
