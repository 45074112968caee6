"""Published benchmarks of image–text matching, read from a local copy as their authors give them away.

Nothing is downloaded, and the lists may only name files below the folder of the images. Where the authors always put
the right candidate at one place, its place is here a hash of the query's id, so that a model that prefers a place, or
wins ties by it, is at chance. Negatives that a benchmark leaves to chance follow from the seed and the id alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffsight.data.drawn_negatives import refcocog, vqa
from diffsight.data.hard_negatives import aro, attribute_pair, image_pairs, sugarcrepe, svo_kind, winoground
from diffsight.data.manifests import Manifest, collect
from diffsight.data.rows import Read, text_of
from diffsight.errors import SourceError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What is known of a benchmark.

    Attributes:
        name: What it is called here.
        description: What has to be matched, and what to know when results are compared.
        form: That of its queries, see `Query.form`.
        licence: Of the annotations and the images.
        citation: Who made it.
        layout: How the local copy must look.
        read: Opens the copy in a folder, with a seed.
    """

    name: str
    description: str
    form: str
    licence: str
    citation: str
    layout: str
    read: Callable[[Path, int], Read]


def read_benchmark(name: str, folder: str | Path, *, seed: int = 0) -> Manifest:
    """Read a benchmark.

    Args:
        name: A key of `BENCHMARKS`.
        folder: The local copy; see `Benchmark.layout`.
        seed: Chooses the negatives of ``refcocog`` and ``vqa``; the others come with theirs.

    Raises:
        SourceError: If there is no such benchmark, or the copy is absent or laid out in another way.
    """
    if name not in BENCHMARKS:
        raise SourceError(f"Unknown benchmark {name!r}. {nearest(name, BENCHMARKS)}")
    place = Path(folder).expanduser()
    try:
        rows, make = BENCHMARKS[name].read(place, seed)
        return collect(name, rows, make, where=str(place))
    except SourceError as error:
        raise SourceError(f"{error} The layout of {name} is: {BENCHMARKS[name].layout}") from error


_COCO, _VISUAL_GENOME = "COCO's images are their owners' on Flickr.", "Visual Genome's images: CC BY 4.0."
_COMVG = ("ComVG.csv", "compositional_visual_genome.csv")
_ARO = "Yuksekgonul et al., ICLR 2023, arXiv 2210.01936"

_ALL = (
    Benchmark(
        name="winoground",
        description="Two images and two captions of the same words, for the text, image and group score.",
        form="grid",
        licence="For research only; the agreement is among its files.",
        citation="Thrush et al., CVPR 2022, arXiv 2204.03162",
        layout="examples.jsonl and images/*.png of huggingface.co/datasets/facebook/winoground, or both in data/.",
        read=winoground,
    ),
    Benchmark(
        name="comvg",
        description="Sentence; two images that differ in subject, verb or object. 279 right images make 5,400 rows.",
        form="images",
        licence=f"MIT. {_VISUAL_GENOME}",
        citation="Jiang et al. (ComCLIP), arXiv 2211.13854",
        layout="ComVG.csv of github.com/eric-ai-lab/ComCLIP (columns sentence, pos_image_id, neg_image_id, neg_value) "
        "or Discffusion's compositional_visual_genome.csv, and comvg_images/ID.jpg or vg_concept/ID.jpg.",
        read=partial(image_pairs, _COMVG, ("comvg_images", "vg_concept"), lambda row: text_of(row, "neg_value")),
    ),
    Benchmark(
        name="svo",
        description="Sentence; two images that differ in subject, verb or object; authors report those with one.",
        form="images",
        licence="CC BY 4.0; the images, from the web, are their owners'.",
        citation="Hendricks & Nematzadeh, Findings of ACL 2021, arXiv 2106.09141",
        layout="svo_probes.csv of github.com/google-deepmind/svo_probes, and the images as images/ID.jpg.",
        read=partial(image_pairs, ("svo_probes.csv",), ("images",), svo_kind),
    ),
    Benchmark(
        name="aro-relation",
        description="Part of an image; subject and object exchanged. Authors: the mean over asymmetric relations.",
        form="texts",
        licence=f"MIT. {_VISUAL_GENOME}",
        citation=_ARO,
        layout="visual_genome_relation.json and images/*.jpg, as the authors' code downloads them.",
        read=partial(aro, "relation", lambda row: text_of(row, "relation_name")),
    ),
    Benchmark(
        name="aro-attribution",
        description="Part of an image; attributes exchanged. Authors report the mean over pairs with 25 rows or more.",
        form="texts",
        licence=f"MIT. {_VISUAL_GENOME}",
        citation=_ARO,
        layout="visual_genome_attribution.json and images/*.jpg, as the authors' code downloads them.",
        read=partial(aro, "attribution", attribute_pair),
    ),
    Benchmark(
        name="sugarcrepe",
        description="Image; its caption, and a fluent and plausible negative of one of seven kinds.",
        form="texts",
        licence=f"MIT. {_COCO}",
        citation="Hsieh et al., NeurIPS 2023, arXiv 2306.14610",
        layout="add_att.json … swap_obj.json (seven) of github.com/RAIVNLab/sugar-crepe, or data/*; val2017/*.jpg.",
        read=sugarcrepe,
    ),
    Benchmark(
        name="refcocog",
        description="Whole image; one of its sentences, and 9 of other images, as in Discffusion. It is no grounding: "
        "there are no boxes, and random sentences make it easy. Its splits share images.",
        form="texts",
        licence=f"CC BY 4.0. {_COCO}",
        citation="Mao et al., CVPR 2016, arXiv 1511.02283",
        layout="train2014/*.jpg, and refs(google).json: the list in refs(google).p. That pickle can run any code, "
        "and is not read here; convert one that you trust: import json, pickle; "
        "json.dump(pickle.load(open('refs(google).p', 'rb')), open('refs(google).json', 'w')).",
        read=refcocog,
    ),
    Benchmark(
        name="vqa",
        description="Image; a question with its most common answer, and with up to 9 others that questions of its type "
        "have and no annotator gave, or 'yes' against 'no'.",
        form="texts",
        licence=f"CC BY 4.0. {_COCO}",
        citation="Goyal et al., CVPR 2017, arXiv 1612.00837",
        layout="v2_OpenEnded_mscoco_val2014_questions.json and v2_mscoco_val2014_annotations.json of visualqa.org, and "
        "val2014/*.jpg.",
        read=vqa,
    ),
)
BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
