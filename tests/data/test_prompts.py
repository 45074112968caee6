from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsight.data.prompts import TEMPLATES, PromptSet, li2023_pet_names, templates_for
from diffsight.errors import PromptError

HEADER = "prompt,classname,classidx\n"


def write(tmp_path, content):
    path = tmp_path / "prompts.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_templates_and_names():
    prompts = PromptSet.from_templates(["cat", "dog"], ["a photo of a {}.", "a {c}"])
    assert prompts.class_names == ("cat", "dog")
    assert prompts.prompts == ("a photo of a cat.", "a cat", "a photo of a dog.", "a dog")
    assert prompts.owner == (0, 0, 1, 1)
    assert PromptSet.from_templates(["cat", "dog"], "{}").prompts == ("cat", "dog")


def test_names_and_templates_may_hold_braces():
    prompts = PromptSet.from_templates(["{x}", "a {}"], "{{{}}}")
    assert prompts.prompts == ("{{x}}", "{a {}}")


def test_white_space_in_names_is_made_single():
    assert PromptSet.from_templates(["  ankle\n boot", "bag "], "a {}").prompts == ("a ankle boot", "a bag")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "at least two classes; got none"),
        (["cat"], "at least two classes; got only 'cat'"),
        (["cat", " "], "class 1 is empty"),
        (["cat", "Cat "], "'cat' = 'Cat'"),
        (["ice  cream", "ICE CREAM", "dog"], "'ice cream' = 'ICE CREAM'"),
        (["caf\u00e9", "cafe\u0301"], "Class names must differ"),
        ("cat dog", "must be a list"),
    ],
)
def test_bad_class_names(names, reason):
    with pytest.raises(PromptError, match=reason):
        PromptSet.from_templates(names, "a {}")


@pytest.mark.parametrize(
    ("templates", "reason"),
    [
        ([], "no template"),
        ("", "empty"),
        ("  ", "empty"),
        ("a photo", "no place"),
        ("a {} of a {}", "one {} or {c}"),
        ("a {c} {}", "one {} or {c}"),
        ("a {name}", "one {} or {c}"),
        ("a {0}", "one {} or {c}"),
        ("a {c.__class__}", "one {} or {c}"),
        ("a {:>10}", "one {} or {c}"),
        ("a {!r}", "one {} or {c}"),
        ("a {", "stray brace"),
        ("a } {}", "stray brace"),
        ("{{}}", "no place"),
        (["a {}", "A  {}"], "Templates must differ"),
        (["a {}", "a {c}"], "Prompts must differ"),
    ],
)
def test_bad_templates(templates, reason):
    with pytest.raises(PromptError, match=reason):
        PromptSet.from_templates(["cat", "dog"], templates)


def test_different_classes_must_not_say_the_same():
    with pytest.raises(PromptError, match="'a big cat' = 'a big cat'"):
        PromptSet.from_templates(["cat", "big cat"], ["a big {}", "a {}"])


def test_original_format(tmp_path):
    path = write(
        tmp_path,
        HEADER + '"a photo of a Beagle dog, a type of pet.",beagle,1\n"a ""cat""",abyssinian,0\na dog,beagle,1\n',
    )
    prompts = PromptSet.from_csv(path)
    assert prompts.class_names == ("abyssinian", "beagle")
    assert prompts.prompts == ("a photo of a Beagle dog, a type of pet.", 'a "cat"', "a dog")
    assert prompts.owner == (1, 0, 1)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_byte_order_mark_and_newlines(tmp_path, mark, newline):
    text = mark + HEADER + "un café,café,0\nein Müsli,Müsli,1\n"
    prompts = PromptSet.from_csv(write(tmp_path, text.replace("\n", newline)))
    assert prompts.class_names == ("café", "Müsli")
    assert prompts.prompts == ("un café", "ein Müsli")


def test_columns_in_any_order_and_others(tmp_path):
    path = write(tmp_path, "classidx,note,classname,prompt\n0,x,cat,a cat\n1,y,dog,a dog\n")
    assert PromptSet.from_csv(path).prompts == ("a cat", "a dog")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no column"),
        (HEADER, "no prompts"),
        ("prompt,classname\na cat,cat\n", "no column 'classidx'"),
        ("prompt;classname;classidx\na cat;cat;0\n", "no column"),
        (HEADER + "a cat,cat,0\na dog,dog,one\n", "line 3.*'one'"),
        (HEADER + "a cat,cat,0\na dog,dog,-1\n", "line 3.*'-1'"),
        (HEADER + "a cat,cat,0\na dog,dog,1.0\n", "line 3.*'1.0'"),
        (HEADER + f"a cat,cat,0\na dog,dog,{'9' * 5000}\n", "line 3"),
        (HEADER + "a cat,cat,0\na dog,dog,2\n", "1 is missing, 2 is there"),
        (HEADER + "a cat,cat,1\na dog,dog,999999999\n", "0, 1 is missing|0 is missing"),
        (HEADER + "a cat,cat,0\na dog,dog,0\n", "line 3: class 0 is 'dog' here and 'cat' before"),
        (HEADER + "a photo of a dog, a pet,dog,0\na cat,cat,1\n", "line 2.*comma"),
        (HEADER + "a cat,cat\na dog,dog,1\n", "line 2.*fields"),
        (HEADER + "a cat,cat,0\n,dog,1\n", "line 3: the prompt is empty"),
        (HEADER + "a cat,cat,0\na dog, ,1\n", "line 3: the class name is empty"),
        (HEADER + "a cat,cat,0\n", "at least two classes"),
        (HEADER + "a pet,cat,0\nA pet,dog,1\n", "'a pet' = 'A pet'"),
        (HEADER + "a cat,cat,0\na tomcat,CAT,1\n", "'cat' = 'CAT'"),
        (HEADER + '"a cat,cat,0\n', "not CSV|fields"),
        (HEADER.encode() + b"caf\xe9,cafe,0\n", "not UTF-8"),
        ("prompt,classname,classidx\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_bad_files(tmp_path, content, reason):
    with pytest.raises(PromptError, match=rf"prompts\.csv.*({reason})"):
        PromptSet.from_csv(write(tmp_path, content))


def test_line_numbers_count_lines_inside_quotes(tmp_path):
    with pytest.raises(PromptError, match="line 4"):
        PromptSet.from_csv(write(tmp_path, HEADER + '"a\ncat",cat,0\na dog,dog,x\n'))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(PromptError, match="No such file"):
        PromptSet.from_csv(tmp_path / "no.csv")
    with pytest.raises(PromptError, match="directory"):
        PromptSet.from_csv(tmp_path)


def test_duplicates_are_allowed_when_asked_for_and_known(tmp_path):
    # As ImageNet's file has two classes "missile".
    path = write(tmp_path, HEADER + "a missile,missile,0\na cat,cat,1\na missile,missile,2\n")
    with pytest.raises(PromptError, match="missile"):
        PromptSet.from_csv(path)
    prompts = PromptSet.from_csv(path, allow_duplicates=True)
    assert prompts.duplicates() == ((0, 2),)
    assert PromptSet.from_templates(["cat", "dog"], "a {}").duplicates() == ()


@pytest.mark.parametrize(
    ("names", "prompts", "owner"),
    [
        (("a", "b"), ("x", "y"), (0, 0)),
        (("a", "b"), ("x", "y", "z"), (0, 1)),
        (("a", "b"), ("x", "y", "z"), (0, 1, 2)),
        (("a", "b"), ("x", " "), (0, 1)),
    ],
)
def test_sets_made_by_hand_are_checked(names, prompts, owner):
    with pytest.raises(PromptError):
        PromptSet(names, prompts, owner)


texts = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(st.lists(texts, min_size=2, max_size=5, unique_by=lambda text: text.casefold()), st.data())
def test_files_give_back_what_was_written(tmp_path_factory, names, data):
    marks = st.sampled_from(["", ",", '"', "\n", " "])
    prompts = tuple(f"{index}{data.draw(marks)}{name}" for index, name in enumerate(names))
    before = PromptSet(tuple(names), prompts, tuple(range(len(names))))
    path = tmp_path_factory.mktemp("csv") / "p.csv"
    before.to_csv(path)
    assert PromptSet.from_csv(path, allow_duplicates=True) == before


def test_fingerprint_tells_sets_apart():
    base = PromptSet.from_templates(["cat", "dog"], "a {}")
    assert base.fingerprint() == PromptSet.from_templates(["cat", "dog"], "a {c}").fingerprint()
    others = [
        replace(base, class_names=("Cat", "dog")),
        replace(base, prompts=("a cat", "a dog.")),
        replace(base, owner=(1, 0)),
    ]
    assert len({p.fingerprint() for p in [base, *others]}) == 4


def test_every_preset_makes_prompts():
    for preset, known in TEMPLATES.items():
        for dataset in known:
            PromptSet.from_templates(["cat", "dog"], templates_for(preset, dataset))
    assert templates_for("clip", "anything") == ("a photo of a {}.",)


def test_papers_presets_do_not_answer_for_other_data():
    with pytest.raises(PromptError, match="cifar10"):
        templates_for("li2023", "cifar")
    with pytest.raises(PromptError, match="li2023"):
        templates_for("li2022")


def test_pet_names_as_li_et_al_have_them():
    assert li2023_pet_names(["Abyssinian", "American Bulldog", "Beagle"]) == (
        "Abyssinian cat",
        "American Bulldog",
        "Beagle dog",
    )
