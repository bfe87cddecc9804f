"""Tests of the page, as a browser would read it."""

import html.parser
import re

import pytest

VOID = {"meta", "img", "br", "path", "use", "rect", "image", "link"}


class _Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects what a browser would look at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.values = [], [], [], []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "data":
            self.values.append([float(dict(attrs)["value"]), ""])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "data" in self.open:
            self.values[-1][1] += data


@pytest.fixture(scope="module")
def page(written):
    text = (written[1] / "report.html").read_text()
    return _Page(text)


def test_tags_nest(page):
    assert page.open == []
    assert page.tags.count("h1") == 1


def test_ids_are_unique(page):
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_references_inside_the_page_lead_somewhere(written):
    text = (written[1] / "report.html").read_text()
    targets = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    ids = set(re.findall(r' id="([^"]+)"', text))
    assert targets
    assert {a or b for a, b in targets} <= ids


def test_nothing_is_fetched(written, page):
    for tag, name, value in page.attributes:
        if name in ("src", "srcset", "data", "action", "poster"):
            assert value.startswith("data:"), (tag, name, value)
        if name in ("href", "xlink:href") and tag != "a":
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    text = (written[1] / "report.html").read_text()
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    # What is left is the address that the published source cites, and nothing else.
    assert set(re.findall(r"https?://[^\s\"'<)]*", text)) == {
        "https://arxiv.org/abs/1503.02531"
    }
    assert ("a", "href", "https://arxiv.org/abs/1503.02531") in page.attributes


def test_hostile_text_stays_text(synthetic, written, page):
    assert synthetic.hostile in page.text
    assert f"A note: {synthetic.hostile}" in page.text
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert "<img src=x" not in (written[1] / "report.html").read_text()


def test_numbers_on_the_page_are_those_of_the_json(written, page):
    made, _, _ = written

    def numbers(value):
        if isinstance(value, dict):
            return set().union(*map(numbers, value.values()))
        if isinstance(value, list):
            return set().union(*map(numbers, value))
        return {float(value)} if isinstance(value, int | float) else set()

    known = numbers({k: v for k, v in made.items() if k != "examples"})
    student, teacher = (made["roles"][r]["cost"] for r in ("student", "teacher"))
    for key in ("parameters", "nbytes", "flops", "throughput", "compile_seconds"):
        known.add(student[key] / teacher[key])
    for key in ("p50", "p95"):
        known.add(student["latency_ms"][key] / teacher["latency_ms"][key])
    known.add(sum(made["stage_seconds"].values()))
    assert len(page.values) > 60
    for value, text in page.values:
        assert value in known, (value, text)


def test_what_is_read_is_the_number_behind_it_rounded(page):
    checked = 0
    for value, text in page.values:
        match = re.fullmatch(r"([+\u2212]?[\d,]+(?:\.(\d+))?)(?: ±.*| \(.*|)", text)
        if match:
            shown = float(match[1].replace(",", "").replace("\N{MINUS SIGN}", "-"))
            digits = len(match[2] or "")
            assert shown == pytest.approx(value, abs=0.5000001 * 10**-digits), text
            checked += 1
    assert checked > 50


def test_the_page_tells_how_to_repeat_the_run(page):
    for text in (
        "python -m kdjax.main --config=configs/digits_kd.py",
        '"temperature": 4.0',
        "jax 0.10.2",
        "device kind cpu",
        "0123abc",
        "1 min 15 s",
        "1, 2, 3",
    ):
        assert text in page.text, text


def test_light_dark_print_and_phone_are_catered_for(written):
    text = (written[1] / "report.html").read_text()
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    # Figures follow the colours of the page: no fixed ink is left in them.
    figures = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--ink)" in figures
    assert "var(--student)" in figures
    assert "#1b1f24" not in figures
    assert "#0072b2" not in figures
