# SPDX-License-Identifier: Apache-2.0
"""The check of terms finds what it is for, and passes what is plain English."""

from pathlib import Path

import pytest

from tests.lint import terms


def found(source: str, path: str = "criagent/runtime/x.py") -> list[tuple[int, str]]:
    return [(hit.line, hit.term.found) for hit in terms.check(path, source)]


@pytest.mark.parametrize(
    ("source", "term"),
    [
        ("box_id = 1\n", "box"),
        ("def of(self, boxes):\n    pass\n", "boxes"),
        ("x.told = 1\n", "told"),
        ("class NeedsLowers:\n    pass\n", "lowers"),
        ("_OURS = 1\n", "ours"),
        ("f(words=1)\n", "words"),
        ("for row in x:\n    pass\n", "row"),
        ("def f(*, mapped: bool):\n    pass\n", "mapped"),
        ("class C:\n    mapped: bool = False\n", "mapped"),
        ('raise E("the path is no directory")\n', "is no"),
        ('raise E(f"device {name} is none")\n', "is none"),
        ('raise E(f"{x}: want a number, not {y}")\n', "want"),
        ('raise E("handler is configured no more")\n', "no more"),
        ('raise E("exec told no reason")\n', "tells"),
        ('"""A process of ours."""\n', "of ours"),
        ("x = 1  # made anew\n", "anew"),
        ('def f() -> None:\n    """Raises OSError\n\n    and the like.\n    """\n', "the like"),
    ],
)
def test_a_former_term_is_found(source: str, term: str) -> None:
    assert term in [name for _, name in found(source)]


@pytest.mark.parametrize(
    "source",
    [
        "sandbox_id = 1\n",
        "def has_row(row_id):\n    pass\n",
        "from criagent.store.rows import RowStore\n",
        "ids = mapped(userns)\n",
        'raise E("the handler is no longer configured")\n',
        'raise E("accepts no more clients")\n',
        'log.info("row_set_aside")\n',
        'NAME = "told"\n',
        "hours = flows = toolbox = 1\n",
        'SCRIPT = """\nlocal words="a b"\n"""\n',
    ],
)
def test_plain_english_and_other_meanings_pass(source: str) -> None:
    assert found(source) == []


def test_a_row_of_the_database_has_its_places() -> None:
    assert found("row = 1\n", "criagent/store/x.py") == []
    assert found("box = 1\n", "criagent/store/x.py") == [(1, "box")]


def test_pages_are_checked_outside_of_code() -> None:
    page = "A box.\n\n    a box\n\n```\nbox\n```\n\nThe `box` of a sandbox.\n"
    assert found(page, "docs/x.md") == [(1, "box")]


def test_the_table_of_terms_may_name_them() -> None:
    assert found("| sandbox | box |\n", "CONTRIBUTING.md") == []
    assert found("A box.\n", "CONTRIBUTING.md") == [(1, "box")]


def test_a_hit_has_place_and_replacement(capsys: pytest.CaptureFixture[str]) -> None:
    (hit,) = terms.check("criagent/a.py", "x = 1\nbox = 2\n")
    assert str(hit) == "criagent/a.py:2: box: write sandbox"
    assert terms.main(["tests/lint/__init__.py"]) == 0
    assert capsys.readouterr().out == ""


def test_the_exit_status_says_whether_there_is_a_hit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text("Made anew.\n")
    monkeypatch.setattr(terms, "ROOT", tmp_path)
    assert terms.main(["page.md"]) == 1
    assert capsys.readouterr().out == "page.md:1: anew: write again\n"
