"""The README and the site hold together: links, figures, navigation."""

import re

import pytest
import yaml

from tests.docs.pages import PAGES, ROOT

README = PAGES["README.md"]
LINKS = [
    (page, *link.split("#"))
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md")
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", PAGES[page])
]


def anchors(page: str) -> set[str]:
    """The ids that the headings of a page get, on the site and on a repository's page alike."""
    headings = re.findall(r"(?m)^#+ (.+)$", PAGES[page])
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("link", LINKS, ids="#".join)
def test_a_link_leads_somewhere(link):
    _, path, *anchor = link

    assert (ROOT / path).exists()
    assert not anchor or anchor[0] in anchors(path)


def test_the_readme_is_short():
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("figure", re.findall(r"\d+ of \d+", README))
def test_a_score_in_the_readme_was_measured(figure):
    assert figure in PAGES["docs/correctness.md"] + PAGES["docs/backbones.md"]


@pytest.mark.parametrize("figure", ["12.42", "100.8", "4.2"])
def test_a_time_in_the_readme_was_measured(figure):
    assert figure in README
    assert f"| {figure} |" in PAGES["docs/performance.md"]


def test_every_page_is_in_the_navigation():

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = re.findall(r"[\w/]+\.md", str(config["nav"]))

    assert sorted(f"docs/{name}" for name in named) == sorted(p for p in PAGES if "docs/" in p)
