"""The files of the page, without a browser: nothing from elsewhere, nothing inline, every text in both languages."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from serving.loading import PRETRAINED
from tasks.kinds import KINDS

PAGE = Path(__file__).resolve().parents[2] / "serving/page"
FILES = sorted(PAGE.iterdir())
MODULES = [path for path in FILES if path.suffix == ".js"]
VOID = {"link", "meta", "input", "br"}
# Names that are made of a prefix and what the server says.
MADE = re.compile(r'sayOf\("(\w+)"')


class Read(HTMLParser):
    """Keeps the elements of a file with their attributes, and which are open."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.inline = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.inline += data


def read() -> Read:
    found = Read()
    found.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    assert not found.open
    return found


def languages() -> dict[str, dict[str, str]]:
    content = (PAGE / "words.js").read_text(encoding="utf-8")
    blocks = re.findall(r"^  (en|zh): \{\n(.*?)^  \},$", content, re.M | re.S)
    found = {name: re.findall(r'^    (\w+): "(.*)",$', block, re.M) for name, block in blocks}
    for (name, pairs), (_, block) in zip(found.items(), blocks, strict=True):
        assert len(pairs) == len([line for line in block.splitlines() if line.strip()]), name
        assert len({key for key, _ in pairs}) == len(pairs), name
    return {name: dict(pairs) for name, pairs in found.items()}


def test_nothing_comes_from_elsewhere_and_nothing_is_inline():
    for path in FILES:
        content = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import|\bdata:image|url\(\"?http", content), path.name
    found = read()
    assert not found.inline.strip()
    for tag, attributes in found.elements:
        assert tag != "style"
        assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            if (target := attributes.get(name) or "#").startswith("#"):
                continue
            assert (PAGE / target).is_file(), target


def test_modules_make_no_html_of_text_and_import_what_is_there():
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setAttribute\(.style"
    for path in MODULES:
        content = path.read_text(encoding="utf-8")
        assert not re.search(forbidden, content), path.name
        assert content.startswith("/** "), path.name
        assert max(map(len, content.splitlines())) <= 120, path.name
        for names, module in re.findall(r'^import \{ (.*?) \} from "\./(\w+\.js)";$', content, re.M):
            exported = (PAGE / module).read_text(encoding="utf-8")
            for name in names.split(", "):
                assert re.search(rf"^export (async )?(const|class|function\*?) {name}\b", exported, re.M), name
                assert len(re.findall(rf"\b{name}\b", content)) > 1, f"{path.name} does not use {name}"


def test_ids_are_there_once_and_labels_name_controls():
    found = read()
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in found.elements:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            if name in attributes:
                assert attributes[name] in ids, (tag, attributes)
        if tag in ("select", "textarea", "input"):
            assert any(each.get("for") == attributes["id"] for _, each in found.elements), attributes
    html = dict(found.elements)["html"]
    assert html["lang"] == "en"
    asked = {id_ for path in MODULES for id_ in re.findall(r'find\("([\w-]+)"\)', path.read_text(encoding="utf-8"))}
    assert asked <= set(ids)


def test_every_text_is_there_in_both_languages_and_used():
    texts = languages()
    assert texts["en"].keys() == texts["zh"].keys()
    content = "".join(path.read_text(encoding="utf-8") for path in MODULES if path.name != "words.js")
    page = read()
    used = {str(each[name]) for _, each in page.elements for name in ("data-say", "data-say-label") if name in each}
    for key in texts["en"]:
        places = [sorted(re.findall(r"\{\w+\}", texts[name][key])) for name in texts]
        assert places[0] == places[1], key
        assert re.search(r"[\u4e00-\u9fff]", texts["zh"][key]), f"{key} is no Chinese"
        made = any(key.startswith(prefix) and key != prefix for prefix in MADE.findall(content))
        assert key in used or made or re.search(rf"\b{key}\b", content), f"nobody says {key}"
    assert used <= texts["en"].keys()
    for key in re.findall(r'\bsay\("(\w+)"', content):
        assert key in texts["en"], key


def test_every_kind_that_can_be_served_has_a_panel():
    content = (PAGE / "panels.js").read_text(encoding="utf-8")
    table = content[content.index("export const KINDS = {") : content.index("\n};")]
    assert set(re.findall(r"^  (\w+): \{", table, re.M)) == {*KINDS, PRETRAINED}


@pytest.mark.parametrize("name", ["index.html", "page.css", "page.js", "icon.svg"])
def test_what_the_browser_asks_for_is_small(name: str):
    assert 0 < (PAGE / name).stat().st_size < 40_000
