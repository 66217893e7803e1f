"""How faults are told: equal ones in one line."""

from __future__ import annotations

from workbench.data.faults import Fault, report


def test_equal_faults_are_one_line_with_a_count_and_the_first_places() -> None:
    missing = [
        Fault("missing image", "there is no such file in pictures", n, file_name=f"{n}.jpg") for n in range(2770)
    ]
    other = Fault("unknown category", "its category_id 9 is not among the categories", 3, 7)
    assert report([*missing, other]).splitlines() == [
        "2,771 faults: 2,770 missing image, 1 unknown category",
        "  2,770 times: there is no such file in pictures [missing image]: "
        "image 0 (0.jpg); image 1 (1.jpg); image 2 (2.jpg); ...",
        "  image 3, annotation 7: its category_id 9 is not among the categories [unknown category]",
    ]
    assert len(report([*missing, other], every_place=True).splitlines()) == 2772


def test_mended_faults_stand_apart() -> None:
    mended = [Fault("area", "it has no area; the area of its mask is taken", 1, n, mended=True) for n in (1, 2)]
    broken = Fault("file name", "its file name leads out of the folder x", 2, detail="'../a'")
    assert report([*mended, broken]).splitlines() == [
        "1 fault: 1 file name",
        "  image 2: its file name leads out of the folder x: '../a' [file name]",
        "2 mended faults: 2 area",
        "  2 times: it has no area; the area of its mask is taken [area]: image 1, annotation 1; image 1, annotation 2",
    ]
    assert report([]) == "No faults found."
