import re

import pytest
from made_runs import make_comparison

from diffsight.report.compared import comparison_page


def headings(page):
    return re.findall(r"<th scope=\"col\"[^>]*>([^<]*)</th>", page.split("</thead>")[0])


@pytest.mark.parametrize(
    ("gone", "change"),
    [("peak GB", {"memory": None}), ("coverage", {"coverage": 1.0}), ("± over seeds", {"sd": None})],
)
def test_what_no_row_has_is_no_column(tmp_path, gone, change):
    whole = headings(comparison_page(make_comparison(), tmp_path))
    rest = headings(comparison_page(make_comparison(**change), tmp_path))
    assert gone in whole
    assert rest == [name for name in whole if name != gone]


def test_time_and_cost_of_an_image_stand_in_the_table(tmp_path):
    page = comparison_page(make_comparison(), tmp_path)
    row = dict(zip(headings(page), re.findall(r">([^<>\n]+)</t[dh]>", page.split("<tbody>")[1]), strict=False))
    assert row["method"] == "A · pixels-knn · hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    cells = page.split("<tbody>")[1].split("</tr>")[0]
    for text in ("98.3%", "[87.1%, 99.8%]", "12,345.6", "123,456.7", "1 h 56 min", "few-shot"):
        assert f">{text}</td>" in cells


def test_a_folder_is_called_by_its_name(tmp_path):
    page = comparison_page(make_comparison(), tmp_path)
    assert "B · pretrained · timm:mobilenetv3_small_100.lamb_in1k (failed)" in page
    assert "far/away" not in page
