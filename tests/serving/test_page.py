"""The page at / in a real browser: every panel, both languages, keyboard, light and dark, 360 pixels, and no error.

The answers come from `page_server.py` and are known; `test_page_served.py` asks real models. Without a browser these
tests are skipped, and `test_page_files.py` reads the files alone.
"""

from __future__ import annotations

import json
import shlex
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import MISSING, Browser, browser, wait
from page_server import CONTEXT, MODELS, SECRET, STORY, page_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
BOXES = """return [...document.querySelectorAll('.number input')]
  .map(({ name, labels, value, min, max, step }) => [name, labels[0].innerText, value, min, max, step])"""
READY = "return document.querySelector('#notes:not([hidden])') && !document.querySelector('#run').disabled"
# What is wrong for somebody who cannot see well: names of controls, contrast of texts (WCAG 2.2, 1.4.3), ids.
FAULTS = (Path(__file__).with_name("faults.js")).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with page_server() as running:
        yield running


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser() as opened:
        opened.downloads(tmp_path_factory.mktemp("downloads"))
        yield opened


@pytest.fixture
def page(window: Browser, server: Any) -> Iterator[Browser]:
    """Yield the page as it is at first; afterwards its console must be empty."""
    window.size(1200, 900)
    window.media(prefers_color_scheme="light")
    open_page(window, server.address)
    server.asked.clear()
    yield window
    assert window.messages() == []


def open_page(window: Browser, address: str) -> None:
    window.open(address)
    window.wait("return document.querySelectorAll('#model option').length")


def choose(page: Browser, name: str) -> None:
    page.run(
        "const m = document.querySelector('#model'); m.value = arguments[0]; m.dispatchEvent(new Event('change'))", name
    )


def enter(page: Browser, selector: str, text: str) -> None:
    """Put a text with tabs into a box, where a person pastes it: the key would move the focus."""
    page.run("document.querySelector(arguments[0]).value = arguments[1]", selector, text)


def run_example(page: Browser, name: str, number: int = 0) -> None:
    choose(page, name)
    page.click(f".example:nth-of-type({number + 1})")
    page.wait(READY)


def bars(page: Browser, where: str = "#result") -> list[list[str]]:
    """Return label and value of each bar."""
    cells = "[...bar.children].slice(0, 2).map((cell) => cell.innerText)"
    script = f"return [...document.querySelectorAll(arguments[0] + ' .bar')].map((bar) => {cells})"
    return page.run(script, where)


def test_a_label_has_bars_and_an_unsure_answer_says_so(page: Browser, server: Any):
    run_example(page, "news")
    assert page.text("#title") == "Which label fits?"
    assert page.texts("#facts span")[:2] == ["classification", "7 labels"]
    assert page.text(".headline strong") == "体育"
    assert bars(page)[0] == ["体育", "88.0%"]
    assert len(bars(page)) == 5
    width = "return getComputedStyle(document.querySelector('.bar-line'), '::before').width"
    line = page.run("return document.querySelector('.bar-line').getBoundingClientRect().width")
    page.wait(f"return Math.abs(parseFloat((() => {{{width}}})()) - {0.88 * line}) < 1")
    page.click(".result .plain")
    assert len(bars(page)) == 7
    assert page.run("return document.activeElement.getAttribute('aria-expanded')") == "true"
    assert page.texts(".note") == []
    page.type("[name=text_a]", "?")
    page.click("#run")
    page.wait("return document.querySelector('.note')?.innerText.startsWith('Unsure')")
    assert server.asked[0] == {"instances": [{"text_a": "女篮最后三秒投进关键一球，逆转夺冠"}], "parameters": {}}
    # What the times say: parts, sum, and the same as words.
    assert page.texts(".time .legend li")[:3] == ["queue 0.4 ms", "tokenize 0.3 ms", "compute 11.6 ms"]


def test_a_pair_is_swapped_and_asked_both_ways(page: Browser, server: Any):
    run_example(page, "pairs")
    assert page.text("#title") == "How do two texts relate?"
    assert bars(page) == [["same", "92.0%"], ["different", "8.0%"]]
    page.click(".extras button")
    assert page.run("return document.querySelector('[name=text_a]').value") == "今天的天气好不好呀"
    page.click("[name=bothWays]")
    page.click("#run")
    page.wait("return document.querySelectorAll('.beside .block').length === 2")
    assert page.texts(".block h3") == ["First → second", "Second → first"]
    assert bars(page, ".block:nth-child(1)")[0] == ["same", "75.0%"]
    assert bars(page, ".block:nth-child(2)")[0] == ["same", "92.0%"]
    first, second = server.asked[-1]["instances"]
    assert (first["text_a"], first["text_b"]) == (second["text_b"], second["text_a"])


def test_a_threshold_decides_labels_at_once(page: Browser, server: Any):
    run_example(page, "topics")
    assert page.texts(".chips li") == ["service", "price"]
    page.run(
        "const s = document.querySelector('#threshold'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
        0.3,
    )
    assert page.texts(".chips li") == ["service", "price", "place"]
    assert page.text("#result [role=status]") == "3 of 4 labels at or above 0.30"
    assert page.texts(".bar.chosen .bar-label") == ["service", "price", "place"]
    assert len(server.asked) == 1


def test_a_score_is_a_number(page: Browser):
    run_example(page, "stars")
    assert page.text(".headline strong") == "3.75"


def test_names_are_marked_where_they_stand_behind_an_emoji(page: Browser):
    run_example(page, "names")
    marks = page.run(
        "return [...document.querySelectorAll('mark')].map((m) => [m.firstChild.data, m.lastChild.innerText])"
    )
    assert marks == [["李明", "name"], ["上海", "address"], ["Seattle", "address"], ["微软公司", "company"]]
    assert page.texts(".result .legend li") == ["name × 1", "address × 2", "company × 1"]
    colours = page.run("return [...document.querySelectorAll('mark')].map((m) => getComputedStyle(m).backgroundColor)")
    assert colours[1] == colours[2]
    assert len(set(colours)) == 3
    assert page.texts("tbody tr:first-child td") == ["李明", "name", "2–4", "97.0%"]
    page.type("[name=text_a]", "天气很好")
    page.click("#run")
    page.wait("return document.querySelector('.note')")
    assert page.texts("mark") == []


def test_answers_are_marked_in_the_text(page: Browser):
    run_example(page, "questions")
    assert page.text(".headline strong") == "二〇二六年的冬天"
    assert page.texts("mark") == ["二〇二六年的冬天"]
    assert page.text(".result .marked") == CONTEXT
    assert [label for label, _ in bars(page)] == ["二〇二六年的冬天", "冬天", "The text has no answer", "一个小团队"]
    page.click(".bars li:nth-child(4) button")
    assert page.texts("mark") == ["一个小团队"]
    assert page.texts("[aria-pressed=true] .bar-label") == ["一个小团队"]
    page.type("[name=question]", "谁的？")
    page.click("#run")
    page.wait("return document.querySelector('.headline strong').innerText === 'The text has no answer'")
    assert page.texts("mark") == []


def test_a_choice_has_letters_and_bars(page: Browser, server: Any):
    run_example(page, "choices")
    assert server.asked[-1]["instances"][0]["choices"] == ["太阳镜", "雨伞"]
    assert page.texts(".letter") == ["A", "B"]
    assert page.text(".chosen .bar-label").split() == ["B雨伞", "chosen"]
    assert page.texts(".field label")[0] == "Context"


def test_a_click_fills_a_gap_and_text_of_a_model_is_no_html(page: Browser):
    run_example(page, "pretrained")
    assert page.text(".large") == "今天天气很好，适合好步。"
    assert [label for label, _ in bars(page, ".gaps .block:nth-child(2)")][-1] == SECRET
    page.click(".gaps .block:nth-child(2) li:nth-child(4) button")
    assert page.text(".large") == "今天天气很好，适合美步。"
    assert page.text("#status") == "今天天气很好，适合美步。"
    page.click(".gaps .block:nth-child(1) li:nth-child(5) button")
    assert page.run("return document.querySelectorAll('#result img').length") == 0
    page.click(".result > .plain")
    assert page.run("return document.querySelector('[name=text_a]').value") == f"今天天气很{SECRET}，适合美步。"
    page.type("[name=text_a]", "今天", clear=True)
    page.click(".extras button")
    assert page.run("return document.querySelector('[name=text_a]').value") == "今天[MASK]"
    page.type("[name=text_a]", "没有空缺")
    page.click("#run")
    page.wait("return document.querySelector('.vector')")
    assert page.text(".headline-quiet") == "A vector of 2 numbers, length 1"


@pytest.mark.parametrize("name", ["vectors", "pretrained"])
def test_several_texts_have_their_nearest_and_a_matrix(page: Browser, name: str):
    choose(page, name)
    page.click("#modes button:nth-child(2)")
    page.type("[name=lines]", "猫在睡觉\n一只猫睡着了\n\n股市下跌")
    page.click("#run")
    page.wait(READY)
    assert page.texts(".matrix tbody td") == ["1.00", "0.80", "0.00", "0.80", "1.00", "0.60", "0.00", "0.60", "1.00"]
    assert bars(page) == [["一只猫睡着了", "0.800"], ["股市下跌", "0.000"]]
    page.click(".matrix tbody tr:nth-child(3) button")
    assert bars(page)[0] == ["一只猫睡着了", "0.600"]
    for text, wrong in (("猫", "at least two"), ("猫\n" * 9, "at most 8"), ("猫\n[MASK]", "leave [MASK] out")):
        page.type("[name=lines]", text)
        page.click("#run")
        assert wrong in page.text("#wrong-lines")
    assert page.run("return document.activeElement.name") == "lines"


def test_a_cosine_is_shown_with_its_label(page: Browser):
    run_example(page, "vectors")
    assert page.text(".headline").split() == ["1", "0.812", "Cosine"]
    assert bars(page) == [["Cosine", "0.8123"]]


def test_a_text_is_streamed_and_can_be_stopped(page: Browser, server: Any):
    server.slow.set()
    server.goes_on.clear()
    choose(page, "stories")
    page.click(".example")
    page.wait("return document.querySelector('.growing')")
    assert page.run("return document.querySelector('#run').disabled && !document.querySelector('#stop').hidden")
    server.goes_on.set()
    page.wait(READY)
    assert page.text(".result .large") == "".join(STORY)
    assert page.texts(".hypotheses li span:first-child") == ["".join(STORY), "图书馆亮着灯。"]
    assert page.texts("#notes > .quiet") == ["9 of 128 tokens"]
    assert page.text("#result > .quiet").startswith("18 characters, ")
    assert page.texts(".time .legend li")[2] == "compute 42 ms"
    sent = server.asked[-1]
    assert sent["stream"] is True
    assert sent["parameters"] == {}
    # What differs from the model's own is asked for; an empty box is the model's own.
    assert page.run(BOXES) == [
        ["max_new_tokens", "Most tokens", "64", "1", "64", "1"],
        ["num_beams", "Beams", "5", "1", "8", "1"],
        ["temperature", "Drawn: temperature", "", "0.1", "2", "0.1"],
        ["top_p", "Drawn: top p", "", "0.05", "1", "0.05"],
    ]
    for name, value in (("max_new_tokens", ""), ("num_beams", "1"), ("temperature", "0.8"), ("top_p", "0.95")):
        page.type(f"[name={name}]", value)
    page.click("#run")
    page.wait(READY)
    assert server.asked[-1]["parameters"] == {"num_beams": 1, "temperature": 0.8, "top_p": 0.95}
    server.slow.set()
    server.goes_on.clear()
    page.click("#run")
    page.wait("return document.querySelector('.growing')")
    page.click("#stop")
    page.wait("return document.querySelector('#status').textContent === 'Stopped.'")
    server.goes_on.set()
    assert page.run("return document.querySelector('#stop').hidden")
    assert page.texts(".growing") == []


def test_a_stream_that_is_cut_or_left_is_no_answer(page: Browser, server: Any):
    choose(page, "stories")
    server.cut = True
    try:
        page.click(".example")
        page.wait("return !document.querySelector('#problem').hidden")
    finally:
        server.cut = False
    assert page.text("#problem").startswith("The server does not answer")
    assert page.text("#result").startswith("Type a text")
    server.slow.set()
    server.goes_on.clear()
    page.click("#run")
    page.wait("return document.querySelector('.growing')")
    choose(page, "news")
    page.wait("return !document.querySelector('#run').disabled")
    server.goes_on.set()
    assert page.text("#result").startswith("Type a text")
    assert page.texts(".past") == []


def test_a_server_with_a_key_asks_for_it_and_one_that_loads_is_waited_for(page: Browser, server: Any):
    server.key, server.loading = "s3cret", 1
    try:
        page.open(server.address)
        page.wait("return document.querySelector('#key')")
        page.type("#key", "s3cret")
        page.press("enter")
        page.wait("return document.querySelector('#before').innerText.startsWith('The server is loading')")
        page.wait("return document.querySelectorAll('#model option').length === 10")
        run_example(page, "news")
        assert page.text(".headline strong") == "体育"
    finally:
        server.key, server.loading = "", 0
    assert all("401" in each for each in page.messages())


def test_many_lines_are_asked_in_parts_and_downloaded(page: Browser, server: Any, window: Browser):
    choose(page, "news")
    page.click("#modes button:nth-child(2)")
    page.type("[name=lines]", "一场球\n手机\n\n又一场球\n芯片\n电脑")
    page.click("#run")
    page.wait(READY)
    assert [len(each["instances"]) for each in server.asked] == [2, 2, 1]
    assert [len(json.loads(page.run("return document.querySelector('pre').textContent"))["tokens"])] == [5]
    assert page.texts("#notes > .quiet") == []
    assert page.text("#status") == "5 of 5 lines answered"
    assert page.texts("tbody td:nth-child(3)") == ["体育", "科技", "体育", "科技", "科技"]
    page.click(".result .plain")
    file = window.folder / "predictions.tsv"
    wait(file.is_file, "a download", 10)
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == ["No.", "Text", "Prediction", "Confidence"]
    assert rows[3] == ["3", "又一场球", "体育", "88.0%"]
    choose(page, "pairs")
    page.click("#modes button:nth-child(2)")
    page.type("[name=lines]", "a b")
    page.click("#run")
    assert page.text("#wrong-lines") == "Line 1 has no tab between two texts."


def test_what_is_wrong_stands_beside_its_box(page: Browser, server: Any):
    page.click("#run")
    assert page.text("#wrong-text_a") == "Write something here."
    assert page.run("return document.activeElement.getAttribute('aria-invalid')") == "true"
    assert not server.asked
    page.type("[name=text_a]", "this is too long")
    page.click("#run")
    page.wait("return document.querySelector('#wrong-text_a').innerText.startsWith('text_a is too long')")
    described = page.run("return document.querySelector('[name=text_a]').getAttribute('aria-describedby')")
    assert "wrong-text_a" in described
    page.type("[name=text_a]", "busy")
    page.click("#run")
    page.wait("return !document.querySelector('#problem').hidden")
    assert page.text("#problem") == "256 texts wait Try again in 7 s."
    assert not page.run("return document.querySelector('[aria-invalid]')")
    choose(page, "stories")
    page.type("[name=text_a]", "图书馆")
    page.type("[name=max_new_tokens]", "31")
    page.click("#run")
    page.wait("return document.querySelector('#wrong-max_new_tokens').innerText === '31 is unlucky'")
    # The browser itself tells the console of every status above 400.
    assert all("Failed to load resource" in each for each in page.messages())


def test_a_run_goes_by_keyboard_alone(page: Browser):
    page.press("tab")
    assert page.run("return document.activeElement.className") == "skip"
    names = []
    for _ in range(9):
        page.press("tab")
        names.append(page.run("const a = document.activeElement; return a.id || a.dataset.language || a.innerText"))
    assert names[:5] == ["model", "zh", "en", "One text", "Many lines"]
    assert names[5:8] == ["box-text_a", "run", "clear"]
    page.type("[name=text_a]", "一场球")
    page.press("control", "enter")
    page.wait(READY)
    assert page.text("#status") == "体育 88.0%"
    outline = (
        "document.querySelector('#run').focus(); return getComputedStyle(document.querySelector('#run')).outlineStyle"
    )
    assert page.run(outline) == "solid"


def test_both_languages_say_everything(page: Browser):
    page.type("[name=text_a]", "一场球")
    page.click("#run")
    page.wait(READY)
    english = page.text("main")
    page.click("[data-language=zh]")
    assert page.run("return document.documentElement.lang") == "zh-CN"
    assert page.run("return document.querySelector('[name=text_a]').value") == "一场球"
    assert page.text("#title") == "属于哪个标签？"
    assert bars(page)[0] == ["体育", "88.0%"]
    kept = ["news", "Keras", "Ctrl", "JSON", "curl"]
    chinese = page.text("main")
    words = {word for word in english.split() if word.isascii() and word.isalpha() and len(word) > 2}
    assert words & set(chinese.split()) <= set(kept)
    page.click("[data-language=en]")
    assert page.text("#title") == "Which label fits?"


def test_runs_are_kept_and_shown_again(page: Browser, server: Any):
    run_example(page, "news")
    run_example(page, "names")
    assert page.texts(".past-model") == ["names", "news"]
    page.click(".runs li:nth-child(2) button")
    assert page.text(".headline strong") == "体育"
    assert page.run("return document.querySelector('#model').value") == "news"
    assert page.run("return document.querySelector('[name=text_a]').value").startswith("女篮")
    assert page.run("return document.activeElement.id") == "answer"
    assert len(server.asked) == 2
    for _ in range(20):
        page.run("document.querySelector('#form').requestSubmit()")
        page.wait("return !document.querySelector('#run').disabled")
    assert len(page.texts(".past")) == 20


def test_the_copied_command_asks_the_same(page: Browser):
    page.run(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => { window.copied = text; }}})"
    )
    page.type("[name=text_a]", "it's 一场球")
    page.click("#run")
    page.wait(READY)
    page.click(".note-actions button")
    assert page.text(".note-actions button") == "Copied"
    words = shlex.split(page.run("return window.copied"))
    assert words[0] == "curl"
    name, kind = words[words.index("-H") + 1].split(": ")
    request = urllib.request.Request(words[2], words[words.index("-d") + 1].encode(), {name: kind})
    with urllib.request.urlopen(request) as reply:
        told = json.load(reply)
    page.click("summary")
    assert json.loads(page.text("pre")) == told


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_panel_is_readable_in_both_schemes_and_on_a_telephone(page: Browser, server: Any, scheme: str):
    page.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    page.size(360, 740)
    light = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(250, 249, 247)") is (scheme == "light")
    for name in MODELS:
        run_example(page, name)
        modes = len(page.texts("#modes button"))
        assert page.run(FAULTS) == [], name
        assert page.run("return document.documentElement.scrollWidth") <= 360, name
        if modes > 1:
            page.click("#modes button:nth-child(2)")
            enter(
                page, "[name=lines]", "猫在睡觉\t一\n一只猫睡着了\t二" if name == "pairs" else "猫在睡觉\n一只猫睡着了"
            )
            page.click("#run")
            page.wait(READY)
            assert page.run(FAULTS) == [], name
            assert page.run("return document.documentElement.scrollWidth") <= 360, name


def test_the_faults_are_found(page: Browser):
    """The check itself can fail: a control without a name, grey on grey, an id that comes twice."""
    page.run(
        "const b = document.querySelector('#clear'); b.textContent = ''; b.removeAttribute('aria-label');"
        "document.querySelector('#facts').style.color = '#bbb';"
        "document.querySelector('.empty').id = 'title'"
    )
    found = " ".join(page.run(FAULTS))
    assert "no name" in found
    assert "contrast" in found
    assert "twice" in found


def test_a_server_that_is_gone_is_told(page: Browser, window: Browser):
    with page_server() as other:
        open_page(window, other.address)
    page.type("[name=text_a]", "一场球")
    page.click("#run")
    page.wait("return !document.querySelector('#problem').hidden")
    assert page.text("#problem").startswith("The server does not answer")
    assert all("ERR_CONNECTION_REFUSED" in each for each in page.messages())


def test_the_policy_forbids_what_is_inline(page: Browser):
    page.run(
        "const s = document.createElement('script'); s.textContent = 'window.ran = true'; document.body.append(s);"
        "document.body.setAttribute('style', 'color: red')"
    )
    assert page.run("return window.ran ?? false") is False
    assert len([each for each in page.messages() if "Content Security Policy" in each]) >= 2
