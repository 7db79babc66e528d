"""What the playground withstands: hostile output, too much of it, wrong tokens; and that everybody can use it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser_rig import watched_page
from client_rig import ALICE
from playground_rig import Playground, process_gateway
from playwright.sync_api import Browser, Page, expect
from serve_rig import Gateway, run_command

HOSTILE_HTML = """
<img src=x onerror="parent.owned = 1"><img src="/runcode?code=1"><script>parent.owned = 2</script></script>
<svg onload="parent.owned = 3"><script>parent.owned = 4</script><a xlink:href="javascript:parent.owned = 5">a</a></svg>
<iframe srcdoc="<script>top.owned = 6</script>"></iframe><object data="/docs"></object>
<base href="https://evil.example/"><meta http-equiv="refresh" content="0;url=https://evil.example/">
<link rel="stylesheet" href="https://evil.example/x.css">
<style>@import "https://evil.example/y.css"; td { background: url(https://evil.example/z.png) }
.seen { color: rgb(1, 2, 3) }</style><form action="https://evil.example/"><button>Send</button></form>
<a href="https://evil.example/" ping="/x">link</a>
<table onclick="parent.owned = 7"><tr>
<td class="seen" style="background: url('https://evil.example/q'); min-width: 177px">cell</td></tr></table>
<p style="position: fixed; top: 0">over</p><math><mtext><script>parent.owned = 8</script></mtext></math>
"""
HOSTILE_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="80" height="60" onload="top.owned = 9">'
    '<script>top.owned = 10</script><image href="https://evil.example/i.png" width="9" height="9"/>'
    '<rect width="80" height="60" fill="teal"/></svg>'
)
HOSTILE = f"""
import sys
from IPython.display import HTML, SVG, Javascript, display
print("<img src=x onerror='owned = 11'></script><b>bold</b>")
print("\\x1b[31mred \\x1b[1mbold\\x1b[0m plain \\x1b]8;;https://evil.example\\x07link\\x1b]8;;\\x07")
print("\\x1b[38;2;1;2;3mrgb\\x1b[m")
print("</pre><script>owned = 12</script>", file=sys.stderr)
display(HTML({HOSTILE_HTML!r}))
display(SVG({HOSTILE_SVG!r}))
display(Javascript("owned = 13"))
class Rude(Exception): pass
raise Rude("<img src=x onerror='owned = 14'>\\x1b[31m")
"""
SHOW_ALL = """
import sys
from IPython.display import HTML, SVG, display
for n in range(16): print(f"\\x1b[{30 + n if n < 8 else 82 + n}mcolour {n}\\x1b[0m", end=" ")
print("warned", file=sys.stderr)
rows = "".join(f"<tr><th>{n}</th><td>{n * n}</td></tr>" for n in range(4))
display(HTML(f"<table><thead><tr><th></th><th>square</th></tr></thead><tbody>{rows}</tbody></table>"))
svg = '<svg xmlns="http://www.w3.org/2000/svg" width="80" height="60"><rect width="80" height="60" fill="teal"/></svg>'
display(SVG(svg))
open("made.csv", "w").write("a,b")
1 / 0
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with process_gateway() as gateway:
        yield gateway


def test_hostile_output_is_text_or_stays_in_its_frame(browser: Browser, served: Gateway) -> None:
    with watched_page(browser, served.url) as (page, watch):
        tab = Playground(page, served.url)
        tab.open()
        tab.run(HOSTILE, "The code raised an exception")
        expect(tab.output).to_contain_text("<img src=x onerror='owned = 11'></script><b>bold</b>")
        expect(tab.output).to_contain_text("</pre><script>owned = 12</script>")
        expect(tab.output.locator(".exception")).to_contain_text("<img src=x onerror='owned = 14'>")
        expect(tab.output.locator(".fg-ansi-1").first).to_have_text("red ")
        expect(tab.output.get_by_text("rgb", exact=True)).to_have_css("color", "rgb(1, 2, 3)")
        picture = tab.output.locator("img")
        expect(picture).to_have_count(1)
        expect(picture).to_have_js_property("naturalWidth", 80)

        frame = tab.output.frame_locator("iframe.html")
        expect(frame.locator("td")).to_have_text("cell")
        expect(frame.locator("td")).to_have_css("color", "rgb(1, 2, 3)")
        expect(frame.locator("td")).to_have_css("min-width", "177px")
        expect(frame.locator("td")).to_have_css("background-image", "none")
        expect(frame.locator("script, iframe, object, base, link, form, [onclick], [href], [ping]")).to_have_count(0)
        assert tab.output.locator("iframe").get_attribute("sandbox") == ""
        assert page.evaluate("window.owned") is None
        assert not tab.output.evaluate("output => [...output.querySelectorAll('b, script, a[href*=evil]')].length")
        assert page.url.startswith(served.url)
        assert not [url for url in watch.urls if "code=1" in url]


def test_names_of_files_hide_nothing(browser: Browser, served: Gateway) -> None:
    with watched_page(browser, served.url) as (page, _):
        tab = Playground(page, served.url)
        tab.open()
        tab.make_session()
        tab.run("for name in (' ', '\u202egpj.exe', '<b>.txt'): open(name, 'w').write('x')")
        page.locator("#files summary").click()
        for place in (tab.output.locator(".downloads a"), page.locator("#files-list button.link")):
            expect(place).to_have_count(3)
            assert sorted(place.all_inner_texts()) == ['" "', "<b>.txt", "\ufffdgpj.exe"]


@pytest.mark.parametrize("piece", ["<a", "<style>", '<a "', "<style", "<p a='"])
def test_tags_that_are_not_closed_do_not_stop_the_page(browser: Browser, served: Gateway, piece: str) -> None:
    with watched_page(browser, served.url) as (page, _):
        tab = Playground(page, served.url)
        tab.open()
        html = f"'<p>seen</p>' + {piece!r} * (400_000 // {len(piece)})"
        tab.run(f"from IPython.display import HTML\nHTML({html})")
        expect(tab.output.frame_locator("iframe").locator("p").first).to_have_text("seen")


def test_ten_megabytes_of_output_leave_a_page_that_answers(browser: Browser, served: Gateway) -> None:
    with watched_page(browser, served.url) as (page, _):
        tab = Playground(page, served.url)
        tab.open()
        tab.run("print(('x' * 99 + '\\n') * 70_000)\nprint('y' * 1_000_000)\nprint('the end')\nprint('z' * 3_000_000)")
        tab.run("for n in range(700): print(f'{n} ' + ('x' * 99 + '\\n') * 100)\nprint('the end')")
        expect(tab.output).to_contain_text("the end")
        expect(tab.output.locator(".dropped")).to_contain_text("characters before it are not shown")
        kept = tab.output.evaluate("output => output.textContent.length")
        assert 200_000 < kept < 600_000
        assert tab.output.evaluate("output => output.querySelectorAll('*').length") < 20_000


def test_results_beyond_a_number_are_counted_and_progress_stays_on_its_line(browser: Browser, served: Gateway) -> None:
    with watched_page(browser, served.url) as (page, _):
        tab = Playground(page, served.url)
        tab.open()
        tab.run("from IPython.display import display\nfor n in range(210): display(n)")
        expect(tab.output.locator(".result")).to_have_count(200)
        expect(tab.output).to_contain_text("10 more results are not shown here")
        tab.run("for n in range(101): print(f'\\r{n} %', end='')\nprint(' done')")
        expect(tab.output).to_have_text("100 % done\n")


def test_the_end_is_shown_after_much_text_without_newlines_and_many_small_pieces(
    browser: Browser, served: Gateway
) -> None:
    with watched_page(browser, served.url) as (page, _):
        tab = Playground(page, served.url)
        tab.open()
        parts = "for n in range(80): print('x' * 8000, end='', file=[sys.stdout, sys.stderr][n % 2], flush=True)"
        tab.run(f"import sys\n{parts}\nprint('\\nthe end')")
        expect(tab.output).to_contain_text("the end")
        expect(tab.output.locator(".dropped")).to_contain_text("characters before it are not shown")
        tab.run("for n in range(70): display('x' * 8000)\nprint('the end')")
        expect(tab.output).to_contain_text("the end")
        tab.run("print(''.join(f'\\x1b[3{n % 8}mx' for n in range(300_000)))\nprint('the end')")
        expect(tab.output).to_contain_text("the end")
        assert tab.output.evaluate("output => output.querySelectorAll('*').length") < 30_000
        tab.run("print('y' * 3_000_000, end='')")
        assert 200_000 < tab.output.evaluate("output => output.textContent.length") < 600_000


def test_displays_that_are_replaced_do_not_push_text_out(browser: Browser, served: Gateway) -> None:
    with watched_page(browser, served.url) as (page, _):
        tab = Playground(page, served.url)
        tab.open()
        tab.run(
            "from IPython.display import clear_output, display\nprint('kept')\n"
            "for n in range(60):\n    clear_output(wait=True)\n    display(f'{n} ' + 'x' * 8000)\n"
            "shown = display('first', display_id=True)\n"
            "for n in range(60): shown.update(f'{n} ' + 'x' * 8000)\nprint('the end')"
        )
        expect(tab.output).to_contain_text("kept")
        expect(tab.output).to_contain_text("the end")
        expect(tab.output.locator(".result")).to_have_count(2)
        expect(tab.output.locator(".dropped")).to_have_count(0)


def test_what_is_displayed_can_be_updated_and_cleared(browser: Browser, served: Gateway) -> None:
    with watched_page(browser, served.url) as (page, _):
        tab = Playground(page, served.url)
        tab.open()
        tab.run(
            "from IPython.display import HTML, clear_output, display\ndisplay('gone')\nprint('text')\nclear_output()\n"
            "shown = display('first', display_id=True)\nshown.update(HTML('<p>second</p>'))\n"
            "display(HTML('<div></div><script>1</script>'))"
        )
        expect(tab.output.frame_locator("iframe").locator("p")).to_have_text("second")
        expect(tab.output).to_contain_text("text")
        expect(tab.output).not_to_contain_text("gone")
        expect(tab.output).not_to_contain_text("first")
        expect(tab.output).to_contain_text("needs scripts, which are not run here")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_asked_for_kept_in_the_tab_and_in_no_address(browser: Browser) -> None:
    with process_gateway(CELLBLOCK_AUTH_REQUIRED="true") as gateway:
        made = run_command(gateway.data_dir, "token", "create", "--tenant", "alice", "--json")
        token = json.loads(made.stdout)["token"]
        with watched_page(browser, gateway.url, expected="401|HTTP Authentication failed") as (page, watch):
            tab = Playground(page, gateway.url)
            tab.open()
            expect(tab.problem).to_contain_text("This gateway needs a token")
            field = page.get_by_label("Token", exact=True)
            field.fill("cb_wrong")
            tab.button("Use it").click()
            expect(tab.problem).to_contain_text("does not know this token")
            field.fill("cb_wröng 漢")
            tab.button("Use it").click()
            expect(tab.problem).to_contain_text("does not know this token")
            _use_when_known(tab, token)

            tab.make_session()
            tab.run("print('for alice')")
            expect(tab.output).to_have_text("for alice\n")
            page.reload()
            expect(tab.output).to_have_text("for alice\n")
            tab.button("Copy as…").click()
            assert token not in page.locator("#call-text").inner_text()
            assert "$CELLBLOCK_TOKEN" in page.locator("#call-text").inner_text()
            page.get_by_role("dialog").get_by_role("button", name="Close").click()
            assert page.evaluate("localStorage.length") == 0
            assert token not in page.evaluate("document.cookie + location.href")

            page.get_by_role("link", name="Status").click()
            expect(page.locator("#figures")).to_be_visible()
            page.go_back()
            expect(tab.output).to_have_text("for alice\n")

            run_command(gateway.data_dir, "token", "revoke", json.loads(made.stdout)["id"])
            while tab.problem.is_hidden():  # until the gateway knows, which takes it some seconds
                tab.begin("print('again')")
                expect(tab.button("Run")).to_be_enabled()
                page.wait_for_timeout(200)
            expect(tab.problem).to_contain_text("does not know this token")
            expect(page.get_by_label("Token", exact=True)).to_be_visible()
            assert not [url for url in watch.urls if token in url or "token=" in url]


def _use_when_known(tab: Playground, token: str) -> None:
    """Type it until the gateway knows it, which takes it some seconds."""
    for _ in range(60):
        tab.page.get_by_label("Token", exact=True).fill(token)
        tab.button("Use it").click()
        tab.page.wait_for_timeout(1_000)
        if tab.problem.is_hidden():
            return
    raise AssertionError(tab.problem.inner_text())


# --- everybody --------------------------------------------------------------------------------------------------------


def serious(page: Page) -> list[str]:
    """What axe-core calls serious or critical."""
    violations = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}"
        for one in violations
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 400), ("dark", 360)])
def test_axe_finds_nothing_serious(browser: Browser, served: Gateway, scheme: str, width: int) -> None:
    viewport = {"width": width, "height": 900}
    with watched_page(browser, served.url, color_scheme=scheme, viewport=viewport) as (page, _):
        tab = Playground(page, served.url)
        tab.open()
        expect(page.locator("#language")).to_have_value("python")
        assert serious(page) == []
        tab.make_session()
        tab.run(SHOW_ALL, "The code raised an exception")
        page.locator("#files summary").click()
        page.locator("#recent summary").click()
        expect(page.locator("#files-list")).to_contain_text("made.csv")
        expect(page.locator("#recent-list a").first).to_be_visible()
        tab.button("Token").click()
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        tab.button("Copy as…").click()
        assert serious(page) == []
        page.keyboard.press("Escape")
        tab.begin("input('name? ')")
        expect(tab.output.get_by_label("name?")).to_be_visible()
        assert serious(page) == []
        tab.output.get_by_label("name?").press("Enter")
        expect(tab.state).to_have_text("Finished")
        page.once("dialog", lambda dialog: dialog.accept())
        tab.button("End session").click()
        expect(page.locator("#session")).to_have_value("")


# --- with containers --------------------------------------------------------------------------------------------------


@pytest.mark.docker
def test_the_first_run_of_a_first_visit_draws_a_figure(browser: Browser, gateway: Gateway) -> None:
    with watched_page(browser, gateway.url, expected="401") as (page, _):
        tab = Playground(page, gateway.url)
        tab.open()
        page.get_by_label("Token", exact=True).fill(ALICE)
        tab.button("Use it").click()
        expect(page.locator("#language")).to_have_value("python")
        tab.button("Run").click()
        expect(tab.state).to_have_text("Finished")
        figure = tab.output.locator("figure img")
        expect(figure).to_be_visible()
        assert figure.evaluate("image => image.naturalWidth") > 100
        tab.run("import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})")
        expect(tab.output.frame_locator("iframe").locator("tbody tr")).to_have_count(2)
