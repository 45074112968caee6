import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsight.errors import InputError, PromptError
from diffsight.synthesis.bag import DOMAINS, TRICKS, TrickOptions, make_trick
from diffsight.synthesis.banks import read_aliases, read_bank, read_superclasses
from diffsight.synthesis.plan import PAPER_TRICKS
from diffsight.synthesis.tricks import Guidance, Merged, Trick, sample
from diffsight.synthesis.wording import Bank, Wording, article, fill, turn

FULL = TrickOptions(
    templates=("a photo of {a class}",),
    aliases={"cat": ("cat", "kitten")},
    superclass="animal",
    bank=Bank(prompts={"cat": ("a cat asleep", "a cat in the sun"), "owl": ("an owl at night",)}),
)
ALL = "+".join(name for name in TRICKS if name != "merged")


def prompts(trick, name="cat", count=4, **place):
    return [sample(trick, name, place.get("class_index", 0), index).prompt for index in range(count)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base", "an image of an owl"),
        ("photo", "a photo of an owl"),
        ("class-prompt", "owl"),
        ("random-guidance", "an image of an owl"),
        ("templates", "a photo of an owl"),
        ("aliases", "an image of an owl"),
        ("superclass", "an image of an owl, a type of animal"),
        ("bank", "an owl at night"),
    ],
)
def test_what_a_trick_says(name, expected):
    only = {
        option: getattr(FULL, option) for option in ("templates", "aliases", "superclass", "bank") if option == name
    }
    assert set(prompts(make_trick(name, TrickOptions(**only)), "owl")) == {expected}


def test_the_papers_ten_domains_each_come_once():
    said = prompts(make_trick("multi-domain"), "airplane", 10)
    assert set(said) == {f"{article(domain)} {domain} of an airplane" for domain in DOMAINS}
    assert sample(make_trick("multi-domain"), "cat", 0, 3).domain in DOMAINS
    satellite = prompts(make_trick("satellite", TrickOptions(domains=("map", "old photo"))), "forest", 2)
    assert set(satellite) == {
        "a satellite photo of a forest in the style of a map",
        "a satellite photo of a forest in the style of an old photo",
    }


def test_the_presets_wording_is_the_codes():
    assert prompts(make_trick("base", PAPER_TRICKS), "airplane", 1) == ["an image of airplane"]
    said = set(prompts(make_trick("multi-domain", PAPER_TRICKS), "airplane", 10))
    assert "a photo of a airplane" in said
    assert len(said) == 10
    assert sample(make_trick("base", PAPER_TRICKS), "cat", 0, 0).guidance_scale == 7.5
    random = make_trick("random-guidance", PAPER_TRICKS)
    scales = Counter(sample(random, "cat", 0, index).guidance_scale for index in range(2000))
    assert set(scales) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert min(scales.values()) > 330  # 400 expected, standard deviation 18


def test_random_scales_are_uniform():
    trick = make_trick("random-guidance")
    scales = np.sort([sample(trick, "cat", 0, index).guidance_scale for index in range(4000)])
    assert scales.min() >= 1
    assert scales.max() <= 5
    # Kolmogorov-Smirnov at p = 0.001
    assert np.abs((scales - 1) / 4 - np.linspace(0, 1, 4000)).max() < 1.95 / 4000**0.5


@settings(deadline=None)
@given(
    name=st.sampled_from(["cat", "owl"]),
    class_index=st.integers(0, 50),
    index=st.integers(0, 10**6),
    seed=st.integers(0, 9),
)
def test_what_an_image_gets_follows_from_its_address(name, class_index, index, seed):
    trick = make_trick(ALL, FULL)
    first = sample(trick, name, class_index, index, seed=seed)
    assert sample(make_trick(ALL, FULL), name, class_index, index, seed=seed) == first


def test_seed_and_class_decide():
    trick = make_trick("multi-domain", TrickOptions(guidance=Guidance(low=1, high=5)))
    of = {
        (seed, name): [sample(trick, name, 0, index, seed=seed) for index in range(20)]
        for seed in (0, 1)
        for name in ("cat", "dog")
    }
    scales = {key: tuple(one.guidance_scale for one in given) for key, given in of.items()}
    assert len({*scales.values()}) == 4
    assert len({tuple(one.domain for one in given) for given in of.values()}) > 1


@pytest.mark.parametrize("count", [3, 30, 100, 101, 103])
def test_merging_takes_the_same_number_of_each(count):
    trick = make_trick("merged")
    assert isinstance(trick, Merged)
    total = Counter()
    for label in range(9):
        of = Counter(sample(trick, f"class {label}", label, index).trick for index in range(count))
        assert max(of.values()) - min(of.values()) <= (count % 3 > 0)
        total += of
    assert set(total) == {"class-prompt", "multi-domain", "random-guidance"}
    assert max(total.values()) == min(total.values())  # what is left over goes round the classes


def test_a_merged_set_has_the_first_images_of_each_single_set():
    merged, single = make_trick("base+multi-domain"), make_trick("multi-domain")
    for label in (0, 1):
        of = [one for index in range(40) if (one := sample(merged, "cat", label, index)).trick == "multi-domain"]
        assert of == [sample(single, "cat", label, index) for index in range(20)]
        assert max(Counter(one.domain for one in of).values()) == 2  # no domain is left out by the alternation


@given(count=st.integers(1, 60), start=st.integers(0, 1000))
def test_in_turn_each_comes_once_before_any_comes_again(count, start):
    first = [turn(count, index, 0, "x") for index in range(start * count, (start + 1) * count)]
    assert sorted(first) == list(range(count))


def test_templates_domains_and_names_are_all_combined():
    wording = Wording(
        templates=("{a domain} of {a class}", "{class}, {domain}"),
        domains=("sketch", "oil painting"),
        aliases={"owl": ("owl", "barn owl")},
        superclass={"owl": "bird"},
    )
    said = [choice.prompt for choice in wording.choices("owl")]
    assert len(said) == len({*said}) == 8
    assert "an oil painting of a barn owl, a type of bird" in said
    trick = Trick(name="mine", prompts=wording)
    assert sorted(prompts(trick, "owl", 8)) == sorted(said)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("airplane", "an"), ("cat", "a"), ("hour glass", "an"), ("unicorn", "a"), ("umbrella", "an"),
        ("European robin", "a"), ("X-ray", "an"), ("SUV", "an"), ("T-shirt/top", "a"), ("3D rendering", "a"),
        ("8-ball", "an"), ("18-wheeler", "an"), ("1-euro coin", "a"), ("Ankle boot", "an"), ("user", "a"), ("ewe", "a"),
    ],
)  # fmt: skip
def test_the_article_is_the_spoken_one(word, expected):
    assert fill("{a class}", word, None) == f"{expected} {word}"


def test_braces_can_be_said():
    assert fill("{{{class}}} of {a domain}", "cat", "sketch") == "{cat} of a sketch"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_trick("multidomain"), "Unknown trick 'multidomain'. Did you mean 'multi-domain'"),
        (lambda: make_trick("base+base"), "two tricks of different names; got base, base"),
        (lambda: make_trick("base", TrickOptions(domains=("sketch",))), "domains belongs to the trick multi-domain or"),
        (lambda: make_trick("bank"), "needs a file of prompts"),
        (lambda: make_trick("templates", TrickOptions(templates=("a photo",))), "one place for the class"),
        (
            lambda: make_trick("templates", TrickOptions(templates=("a {clas}",))),
            "placeholder {clas}; known are {class}",
        ),
        (lambda: make_trick("templates", TrickOptions(templates=("a {class",))), "stray brace"),
        (lambda: make_trick("templates", TrickOptions(templates=("{class} {domain}",))), "no place for a domain"),
        (lambda: make_trick("multi-domain", TrickOptions(form="a drawing of {class}")), "one place for the domain"),
        (lambda: make_trick("multi-domain", TrickOptions(form="a {domain}")), "one place for the class"),
        (lambda: make_trick("multi-domain", TrickOptions(domains=("a {x}",))), "without braces; got 'a {x}'"),
        (lambda: make_trick("multi-domain", TrickOptions(domains=(" ",))), "A domain is a word"),
        (lambda: Guidance(low=5, high=1), "a range goes up; got 5 to 1"),
        (lambda: Guidance(low=-1, high=1), "from 0 to 100"),
        (lambda: Guidance(low=1.5, high=2, whole=True), "Whole scales need whole bounds"),
        (lambda: sample(make_trick("bank", FULL_BANK), "dog", 0, 0), "no prompt for 'dog'"),
        (lambda: Bank(prompts={"cat": (" ",)}), "1 to 1000 characters"),
        (
            lambda: prompts(make_trick("superclass", TrickOptions(superclass={"cat": "pet"})), "dog"),
            "'dog' is a type of",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(InputError) as refused:
        make()
    assert message in str(refused.value)


FULL_BANK = TrickOptions(bank=FULL.bank)


def test_a_bank_of_templates_and_one_of_classes(tmp_path):
    lines, classes = tmp_path / "bank.txt", tmp_path / "bank.json"
    lines.write_text("\ufeffa photo of {a class}\n\n  {class} in the rain \na photo of {a class}\n", encoding="utf-8")
    bank = read_bank(lines, ["cat", "owl"])
    assert [choice.prompt for choice in bank.choices("owl")] == ["a photo of an owl", "owl in the rain"]
    classes.write_text(json.dumps({"cat": ["a  cat {asleep}", "a cat"], "owl": ["an owl"]}))
    bank = read_bank(classes, ["cat", "owl"])
    assert [choice.prompt for choice in bank.choices("cat")] == ["a cat {asleep}", "a cat"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bank.txt", b"a photo\n", "one place for the class"),
        ("bank.txt", b"\n\n", "no prompt. Write one per line"),
        ("bank.txt", b"\xff\xfe\x00", "not UTF-8 (byte 0)"),
        ("bank.json", b"[1]", "JSON object"),
        ("bank.json", b"{", "is not JSON"),
        ("bank.json", b'{"cat": ["a cat"]}', "no prompt for 'owl'"),
        ("bank.json", b'{"cat": ["a cat"], "owl": ["x"], "dgo": ["x"]}', "'dgo', which is no class here"),
        ("bank.json", b'{"cat": "a cat", "owl": ["x"]}', "must be a list of texts"),
        ("bank.json", b'{"cat": [], "owl": ["x"]}', "with at least one"),
        ("bank.json", b'{"cat": ["' + b"x" * 1001 + b'"], "owl": ["x"]}', "empty or over 1000 characters"),
    ],
)
def test_a_bad_bank_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError) as refused:
        read_bank(tmp_path / name, ["cat", "owl"])
    assert message in str(refused.value)
    assert name in str(refused.value)


def test_a_bank_that_is_too_large_or_absent_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diffsight.synthesis.banks.LARGEST_FILE", 10)
    (tmp_path / "bank.txt").write_text("a photo of {a class}")
    with pytest.raises(PromptError, match="20 bytes, over the limit of 10"):
        read_bank(tmp_path / "bank.txt", ["cat"])
    with pytest.raises(PromptError, match="is missing"):
        read_bank(tmp_path / "none.txt", ["cat"])


def test_aliases_and_superclasses_are_read(tmp_path):
    file = tmp_path / "names.json"
    file.write_text('{"crane": ["crane bird"]}')
    assert read_aliases(file, ["crane", "owl"]) == {"crane": ("crane bird",)}
    trick = make_trick("aliases", TrickOptions(aliases=read_aliases(file, ["crane", "owl"])))
    assert prompts(trick, "crane", 1) == ["an image of a crane bird"]
    assert prompts(trick, "owl", 1) == ["an image of an owl"]
    file.write_text('{"crane": "bird", "owl": "bird"}')
    assert read_superclasses(file, ["crane", "owl"]) == {"crane": "bird", "owl": "bird"}
    with pytest.raises(PromptError, match="what 'cat' is a type of"):
        read_superclasses(file, ["crane", "owl", "cat"])


def test_long_lists_are_told_by_their_hash():
    many = Bank(prompts={"cat": tuple(f"a cat {number}" for number in range(150))})
    assert set(many.to_dict()["bank"]) == {"count", "sha256"}
    assert FULL.bank.to_dict()["bank"]["owl"] == ["an owl at night"]
