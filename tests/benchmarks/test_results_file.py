"""A section is put in place of the one before, and nothing else changes."""

from benchmarks.results_file import put_section


def test_a_section_replaces_the_one_before(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n<!-- size: begin -->\nold\n<!-- size: end -->\n\n## More\n", encoding="utf-8"
    )
    put_section(page, "size", "new\n")
    assert page.read_text(encoding="utf-8") == (
        "# Page\n\n<!-- size: begin -->\nnew\n<!-- size: end -->\n\n## More\n"
    )


def test_a_section_that_was_not_there_comes_last(tmp_path):
    page = tmp_path / "results.md"
    put_section(page, "size", "first")
    put_section(page, "cost", "other")
    put_section(page, "size", "second")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Results\n\n<!-- size: begin -->\nsecond\n<!-- size: end -->")
    assert text.index("second") < text.index("other")
    assert "first" not in text
