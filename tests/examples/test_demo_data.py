"""The drawings that the examples are tried on."""

from examples.demo_data import draw_shapes, shapes


def read(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*.png")}


def test_the_same_pictures_are_drawn_each_time():
    once = read(draw_shapes(num_classes=3, per_class=2))

    assert len(once) == 6
    assert read(draw_shapes(num_classes=3, per_class=2)) == once


def test_no_two_pictures_are_the_same():
    pictures = list(read(draw_shapes(num_classes=10, per_class=3)).values())

    assert len(set(pictures)) == 30


def test_there_are_as_many_classes_as_asked_for():
    assert shapes(num_classes=4, per_class=2).num_classes == 4
