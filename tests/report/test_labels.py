"""Names in a narrow picture: none leaves it, none hides another."""

from __future__ import annotations

from recbole_kd.report.labels import WIDE, label_sides


def test_a_name_stands_to_the_left_where_it_fits() -> None:
    assert label_sides([(0.5, 0.5)], ["BPR"]) == ["top left"]
    assert label_sides([(0.18, 0.5)], ["KD from LightGCN"]) == ["top right"], "on the left it would leave the picture"
    assert label_sides([(0.18, 0.5)], ["KD from LightGCN"], WIDE) == ["top left"]
    assert label_sides([(0.5, 0.5), (0.5, 0.2)], ["BPR", ""]) == ["top left", ""]


def test_names_do_not_hide_each_other() -> None:
    names = ["a long name, 1", "a long name, 2", "a long name, 3", "a long name, 4"]
    assert label_sides([(0.5, 0.5), (0.52, 0.51)], names[:2]) == ["bottom right", "top left"], "the higher one chooses"
    sides = label_sides([(0.5, 0.5)] * 4, names)
    assert sorted(sides) == ["", "bottom right", "top left", "top right"], "where there is no room there is no name"


def test_a_name_hides_no_other_point_where_it_can_stand_elsewhere() -> None:
    assert label_sides([(0.5, 0.5), (0.42, 0.55)], ["BPR 20", ""]) == ["top right", ""]
    around = [(0.42, 0.55), (0.58, 0.55), (0.58, 0.44)]
    assert label_sides([(0.5, 0.5), *around], ["BPR 20", "", "", ""])[0] == "top left", "points are on all sides"
