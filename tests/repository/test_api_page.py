"""Every public name is on the API page, and the site of the documents builds without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import spectrim

# mkdocs in a process of its own that can reach nothing
OFFLINE = """
import socket, sys

def refused(*_):
    raise OSError("no network in this test")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refused
from mkdocs.__main__ import cli
cli(["build", "--strict", "--config-file", sys.argv[1], "--site-dir", sys.argv[2]])
"""


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, "-c", OFFLINE, str(root / "mkdocs.yml"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_name_is_on_the_page(root):
    page = (root / "docs" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: spectrim\.(\w+)$", page, re.M)
    assert sorted(named) == sorted(spectrim.__all__)


def test_the_site_documents_every_public_name(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    missing = [name for name in spectrim.__all__ if f'id="spectrim.{name}"' not in page]
    assert missing == []
    assert spectrim.SpectrimError.__doc__.partition("\n")[0] in page


def test_the_site_fetches_nothing(site):
    pages = {page.name: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    fetched = re.compile(r'(?:src|<link[^>]*href)="(?:https?:)?//[^"]*"')
    assert {
        name: fetched.findall(text) for name, text in pages.items() if fetched.search(text)
    } == {}
    assert {"index.html", "api.html", "results.html", "CONTRIBUTING.html"} <= set(pages)


def test_the_site_has_the_files_that_its_pages_link_to(site, root):
    assert (site / "recipes" / "default.yaml").read_text() == (
        root / "recipes" / "default.yaml"
    ).read_text()
