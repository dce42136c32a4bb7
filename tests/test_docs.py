"""The pages of docs/ and the README: their links, their table of contents, what they generate.

`make docs` builds the site and is stricter; these tests need neither Sphinx nor a second.
"""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import intro_pipe

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
WRITTEN = [REPOSITORY / "README.md", *PAGES]
PACKAGES = ("cli", "pipeline", "stages", "store", "benchmarks")
CALL = re.compile(r"intro-pipe ((?:[a-z]+-)?[a-z]+)((?:[^`|\n#$]|\\\n)*)")
LINK = re.compile(r"\]\((?!https?:)([^)\s]*)\)")


def named(page):
    return str(page.relative_to(REPOSITORY))


@pytest.fixture(scope="module")
def site():
    """The modules with which `docs/conf.py` completes the pages."""
    sys.path.insert(0, str(DOCS))
    names = ("command_line", "contents", "python_api")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(DOCS))
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope="module")
def commands(site):
    return site.command_line.commands()


def text_of(page):
    """What a page says outside of its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors_of(page):
    """The anchors of its headings, by GitHub's rule."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def broken_links(page):
    for link in LINK.findall(text_of(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in anchors_of(target):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_every_link_of_a_page_leads_somewhere(page):
    assert list(broken_links(page)) == []


def test_every_page_is_in_the_table_of_contents(site):
    listed = {"index"}
    for page in PAGES:
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        added = site.contents.with_toctrees(name, page.read_text()).removeprefix(page.read_text())
        entries = re.findall(r"^[^\s`:].*$", added, re.MULTILINE)
        listed |= {(page.parent / each).relative_to(DOCS).as_posix() for each in entries}

    assert {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES} == listed


def test_the_command_reference_has_every_option(site):
    reference = site.command_line.reference()
    sections = dict(re.findall(r"^## intro-pipe (\S+)\n(.*?)(?=^## |\Z)", reference, re.M | re.S))

    for name, command in site.command_line.commands().items():
        options = [option for p in command.params for option in p.opts if option.startswith("--")]
        assert "--json" in options
        assert [o for o in options if f"{o} " not in sections[name].replace("`", " ")] == [], name


def test_the_generated_references_are_in_their_pages(site):
    assert site.command_line.MARK in (DOCS / "reference" / "command-line.md").read_text()
    assert site.python_api.MARK in (DOCS / "reference" / "api.md").read_text()


def test_the_api_reference_has_every_public_name(site):
    titles = re.findall(r"^## (\w+)$", site.python_api.reference(), re.MULTILINE)

    assert titles == list(intro_pipe.__all__)


def test_every_page_that_the_code_names_exists():
    named = {
        f"{path.relative_to(REPOSITORY)} names {page}"
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*.py")
        for page in re.findall(r"docs/[\w/.-]+\.md", path.read_text())
        if not (REPOSITORY / page).is_file()
    }

    assert named == set()


def unknown_options(page, commands):
    """Options that a page gives to a command that does not have them."""
    for name, words in CALL.findall(re.sub(r"\\\n", " ", page.read_text())):
        if name in commands:
            known = {option for p in commands[name].params for option in p.opts} | {"--help"}
            used = re.findall(r"(?<![\w-])--[a-z][a-z-]*", words)
            yield from (f"{name} {option}" for option in used if option not in known)


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_the_commands_of_a_page_have_the_options_that_it_shows(page, commands):
    assert list(unknown_options(page, commands)) == []


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_the_names_that_a_page_imports_are_public(page):
    imported = re.findall(r"from intro_pipe import (.+)", page.read_text())
    names = {name.strip() for line in imported for name in line.split(",")}

    assert names <= set(intro_pipe.__all__)
