"""What scripts of models take for granted, run in a real container: fonts, backends, packages, paths, processors."""

from __future__ import annotations

import time

import pytest
from e2e_rig import Rig

from sessions.model import RunStatus

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

STRICT = "import warnings; warnings.simplefilter('error')\n"
"""A glyph that no font has is a warning, and so an error."""

DRAW = """
import matplotlib.pyplot as plt
fig, ax = plt.subplots()
ax.plot([-1, 1])
ax.set_title('中文 日本語カナ 한국어 ✓', fontweight='bold')
ax.set_xlabel(r'能量 $E=mc^2$ 与 $\\mathrm{速度}_{下标}$')
for name in ('a.png', 'a.pdf', 'a.svg'):
    fig.savefig(name)
plt.close()
"""


@pytest.mark.parametrize(
    "settings",
    [
        "import seaborn as sns; sns.set_theme(); sns.set_style('whitegrid')",
        "import matplotlib.pyplot as plt; plt.style.use('ggplot')",
        "import matplotlib.pyplot as plt; plt.rcdefaults(); plt.rcParams['font.family'] = 'serif'",
        "import matplotlib.pyplot as plt; plt.rcParams['font.sans-serif'] = ['SimHei']",
        "import matplotlib.pyplot as plt; plt.rcParams['font.family'] = ['Malgun Gothic', 'Arial Unicode MS']",
        "import matplotlib; matplotlib.rc('font', family='monospace'); matplotlib.rc('pdf', fonttype=42)",
        "import matplotlib; matplotlib.rcParams['mathtext.fontset'] = 'stix'",
        "import matplotlib; matplotlib.rcParams['mathtext.fontset'] = 'cm'",
    ],
)
async def test_labels_in_other_scripts_whatever_the_settings(rig: Rig, settings: str) -> None:
    result = await rig.run(STRICT + settings + DRAW)
    assert (result.status, result.stderr) == (RunStatus.OK, ""), result.error
    assert set(result.images) | set(result.files) == {"a.png", "a.svg", "a.pdf"}


async def test_fonts_named_for_single_texts(rig: Rig) -> None:
    code = """
import matplotlib.pyplot as plt
from matplotlib.font_manager import FontProperties
plt.title('标题', fontproperties=FontProperties(family='Microsoft YaHei'))
plt.xlabel('标签', fontname='SimSun')
plt.ylabel('标签', family='黑体')
plt.plot([1], label='图例')
plt.legend(prop={'family': 'STHeiti', 'weight': 'bold'})
plt.savefig('a.png')
"""
    result = await rig.run(STRICT + code)
    assert (result.status, result.stderr) == (RunStatus.OK, ""), result.error


async def test_a_font_that_is_not_there_is_told_once(rig: Rig) -> None:
    code = """
import matplotlib.pyplot as plt
plt.rcParams['font.family'] = 'No Such Font'
for number in range(3):
    plt.figure()
    plt.title('中文')
    plt.xlabel('x', fontproperties={'fname': '/usr/share/fonts/none/simhei.ttf'})
    plt.savefig('a.png')
    plt.close()
"""
    result = await rig.run(STRICT + code)
    assert result.status is RunStatus.OK, result.error
    assert sorted(result.stderr.splitlines()) == [
        "findfont: Font family 'No Such Font' not found.",
        "findfont: Font file '/usr/share/fonts/none/simhei.ttf' not found.",
    ]


@pytest.mark.parametrize(
    "choice",
    [
        "import matplotlib; matplotlib.use('Agg')",
        "import matplotlib.pyplot as plt; plt.switch_backend('agg')",
        "import os; os.environ['MPLBACKEND'] = 'Agg'",
        "import matplotlib; matplotlib.use('TkAgg')",
        "import matplotlib.pyplot as plt; plt.switch_backend('svg')",
        "import matplotlib; matplotlib.use('nbAgg')",
        "import os; os.environ['MPLBACKEND'] = 'nbagg'; import matplotlib; matplotlib.use('notebook')",
        "%matplotlib notebook",
        "%matplotlib widget",
        "%matplotlib qt",
        "%matplotlib agg",
        "get_ipython().run_line_magic('matplotlib', 'tk')",
    ],
)
async def test_show_shows_with_any_backend(rig: Rig, choice: str) -> None:
    code = "\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nplt.plot([2, 1])\nplt.show()"
    result = await rig.run(choice + code)
    assert (result.status, result.stderr, list(result.images)) == (RunStatus.OK, "", ["figure-1.png", "figure-2.png"])


async def test_one_figure_shown_with_agg_and_one_saved(rig: Rig) -> None:
    code = """
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
shown, axes = plt.subplots()
shown.show()
saved, axes = plt.subplots()
saved.savefig('saved.png')
"""
    result = await rig.run(code)
    assert (result.status, list(result.images)) == (RunStatus.OK, ["figure-1.png", "saved.png"]), result.error


@pytest.mark.parametrize("renderer", ["", "import plotly.io; plotly.io.renderers.default = 'browser'\n", "'chrome'"])
async def test_plotly_shows_a_figure_that_a_front_end_can_draw(rig: Rig, renderer: str) -> None:
    before, argument = (renderer, "") if "=" in renderer else ("", renderer)
    result = await rig.run(f"{before}import plotly.express as px\npx.line(x=[1, 2], y=[3, 4]).show({argument})")
    assert result.status is RunStatus.OK, result.error
    assert "application/vnd.plotly.v1+json" in result.results[-1]
    assert "plotly" in result.results[-1]["text/html"]
    assert not result.truncated


async def test_what_cannot_be_drawn_and_what_fails_in_passing_is_told(rig: Rig) -> None:
    code = """
import matplotlib.pyplot as plt
open('script.py', 'w').write('1 / 0');
%run script.py
plt.rcParams['text.usetex'] = True
plt.title('x')
plt.show()
"""
    result = await rig.run(code)
    assert (result.status, result.error) == (RunStatus.OK, None)
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "latex" in result.stderr


async def test_documents_are_written_and_read(rig: Rig) -> None:
    code = """
import docx, fpdf, html5lib, io, pandas as pd, pdfplumber, pptx, pypdf
from reportlab.pdfgen import canvas
page = canvas.Canvas('a.pdf'); page.drawString(99, 700, 'Hello'); page.save()
print(pypdf.PdfReader('a.pdf').pages[0].extract_text().strip(), pdfplumber.open('a.pdf').pages[0].extract_text())
document = docx.Document(); document.add_heading('标题'); document.save('a.docx')
pptx.Presentation().save('a.pptx')
table = pd.DataFrame({'a': [1]})
print(len(table.style.to_html()) > 0, 'tabular' in table.to_latex())
print(len(pd.read_html(io.StringIO('<table><tr><td>1</td></tr></table>'), flavor='html5lib')))
"""
    result = await rig.run(code)
    assert (result.output, set(result.files)) == ("Hello Hello\nTrue True\n1\n", {"a.pdf", "a.docx", "a.pptx"}), (
        result.error
    )


async def test_nest_asyncio_is_there_in_kernels_and_scripts(rig: Rig) -> None:
    code = """
import nest_asyncio
nest_asyncio.apply()
import asyncio, subprocess, sys
async def main(): return 4
print(asyncio.run(main()), await main())
script = 'import asyncio, nest_asyncio; nest_asyncio.apply()\\n'
script += 'async def main(): return asyncio.get_event_loop().run_until_complete(asyncio.sleep(0, 5))\\n'
script += 'print(asyncio.run(main()))'
subprocess.run([sys.executable, '-c', script]);
"""
    result = await rig.run(code)
    assert (result.output, result.stderr) == ("4 4\n5\n", ""), result.error


async def test_mnt_data_is_the_working_directory(rig: Rig) -> None:
    code = """
import os
os.makedirs('/mnt/data/out', exist_ok=True)
open('/mnt/data/x.csv', 'w').write('a')
open('out/y.csv', 'w').write('b')
print(open('x.csv').read(), open('/mnt/data/out/y.csv').read(), sorted(os.listdir('/mnt/data')), os.getcwd())
os.remove('/mnt/data/x.csv')
open('/mnt/data/z.csv', 'w').write('c');
"""
    result = await rig.run(code)
    assert result.output == "a b ['out', 'x.csv'] /work\n", result.error
    assert set(result.files) == {"out/y.csv", "z.csv"}


async def test_the_processors_are_those_of_the_sandbox(rig: Rig) -> None:
    code = """
import os, multiprocessing, psutil, subprocess, sys, joblib
print(os.cpu_count(), os.process_cpu_count(), multiprocessing.cpu_count(), joblib.cpu_count(), psutil.cpu_count())
print(len(os.sched_getaffinity(0)), len(psutil.Process().cpu_affinity()))
child = 'import os; print(os.cpu_count(), len(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"])'
print(subprocess.run([sys.executable, '-c', child], capture_output=True, text=True).stdout)
"""
    result = await rig.run(code)
    assert result.output.split() == ["1"] * 10, result.error


async def test_pip_says_at_once_that_there_is_no_network(rig: Rig) -> None:
    code = """
import subprocess, sys
for package in ('no-such-package', 'pandas'):
    done = subprocess.run([sys.executable, '-m', 'pip', 'install', package], capture_output=True, text=True)
    print(done.returncode, done.stdout.count('already satisfied: pandas'), len(done.stderr.splitlines()))
    print(done.stderr, file=sys.stderr)
"""
    before = time.monotonic()
    result = await rig.run(code)
    assert time.monotonic() - before < 10
    assert [line.split()[:2] for line in result.output.splitlines()] == [["1", "0"], ["0", "1"]], result.error
    assert result.stderr.count("This sandbox has no network") == 1
    assert "pip list" in result.stderr
    assert "Retrying" not in result.stderr
