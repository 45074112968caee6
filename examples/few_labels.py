"""From a folder of photographs, some of them labelled by their sub-folder, to a classifier in a folder of its own.

    python examples/few_labels.py PHOTOGRAPHS OUT [MODEL]

Half of the photographs of each class are learnt from and half are for measuring. With tiny-fashion, which is in the
package, it runs offline; for photographs of the world take sd-1.5 or another model of `diffsight ls models`.
"""

import sys
from pathlib import Path

from diffsight import FeatureExtractor, FeatureProbe, open_source
from diffsight.data.splits import hold_out


def main(photographs: str, out: str, model: str = "tiny-fashion") -> None:
    """Learn, measure, keep."""
    source = open_source(f"folder:{photographs}")
    if source.labels is None or source.class_names is None:
        raise SystemExit("Put the photographs into one sub-folder for each class.")
    names = [source.class_names[label] for label in source.labels]
    train, test = hold_out(source.labels, share=0.5, seed=0)

    extractor = FeatureExtractor(model, pool=2)
    probe = FeatureProbe(extractor).fit(source.select(train.tolist()), [names[i] for i in train])
    accuracy = probe.score(source.select(test.tolist()), [names[i] for i in test])
    sys.stdout.write(
        f"{accuracy:.0%} of {len(test)} photographs that it has not seen, of {len(probe.classes_)} classes\n"
    )

    probe.save(Path(out))
    again = FeatureProbe.load(out)
    for position in test[:3].tolist():
        sys.stdout.write(f"{source.ids[position]}: {again.predict(source.select([position]))[0]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
