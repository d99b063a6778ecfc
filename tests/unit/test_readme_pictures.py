"""The picture of accuracies over densities, drawn from records."""

import pytest

from scripts.parts import readme_pictures as pictures

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_picture_stores_the_numbers_that_it_shows(tmp_path):
    drawn = tmp_path / "drawn.png"
    assert pictures.stored_numbers(drawn) == ""
    drawn.write_bytes(pictures.accuracy_by_density())
    assert drawn.read_bytes().startswith(PNG)
    assert pictures.stored_numbers(drawn) == pictures.numbers()


def test_points_are_means_over_the_seeds_by_percent_kept(monkeypatch):
    rows = {0.02: ["50.0", "54.0", "55.0"], 0.5: ["88.0"]}
    found = {kept: [{"Last Epoch Test Top 1": value} for value in values] for kept, values in rows.items()}
    monkeypatch.setattr(pictures, "sweep_rows", lambda _: found)
    assert pictures.points("SubnetConv") == [(2, 53, pytest.approx(2.6458, abs=1e-4)), (50, 88, 0)]


def test_a_picture_of_other_numbers_is_out_of_date_and_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "ACCURACY_BY_DENSITY", tmp_path / "picture.png")
    assert pictures.update_picture(check=True) == 1 and not pictures.ACCURACY_BY_DENSITY.exists()
    assert pictures.update_picture(check=False) == 0 and pictures.update_picture(check=True) == 0
    monkeypatch.setattr(pictures, "numbers", lambda: "other numbers")
    assert pictures.update_picture(check=True) == 1
