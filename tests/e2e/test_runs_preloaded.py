"""What a run answers that works with numpy, pandas or figures, in containers whose kernels have them imported."""

from __future__ import annotations

import asyncio
import io

import imagesize
import pytest
from e2e_rig import Rig

from sessions.model import RunStatus
from sessions.settings import BuildSettings

PRELOAD = BuildSettings().preload

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


async def test_the_triangle_comes_back_from_the_database(rig: Rig) -> None:
    result = await rig.run(
        "import matplotlib.pyplot as plt\nplt.plot([0, 1, 2, 0], [0, 2, 0, 0])\n"
        "plt.savefig('triangle.png')\nplt.close()"
    )
    assert (result.status, list(result.images)) == (RunStatus.OK, ["triangle.png"]), result.error
    artifact = await rig.service.artifact(result.images["triangle.png"].id)
    assert artifact.data.startswith(b"\x89PNG")
    assert min(imagesize.get(io.BytesIO(artifact.data))) > 100


async def test_shown_figures_and_saved_files_in_subdirectories(rig: Rig) -> None:
    result = await rig.run(
        "import os, warnings\nwarnings.simplefilter('error')\n"
        "import matplotlib.pyplot as plt\nos.makedirs('out/deep')\n"
        "plt.plot([1, 2])\nplt.title('中文标签 销售额')\nplt.savefig('out/deep/图.png')\nplt.show()\n"
        "plt.plot([2, 1])\nplt.show()\nopen('out/table.csv', 'w').write('a,b\\n')\nprint('done')"
    )
    # A missing glyph would be a warning, and so an error here.
    assert (result.status, result.output) == (RunStatus.OK, "done\n"), result.error
    assert set(result.images) == {"figure-1.png", "figure-2.png", "out/deep/图.png"}
    assert set(result.files) == {"out/table.csv"}
    assert [bundle.get("image") for bundle in result.results if "image" in bundle] == ["figure-1.png", "figure-2.png"]


async def test_results_are_as_they_stand_at_the_end(rig: Rig) -> None:
    result = await rig.run(
        "from IPython.display import HTML, clear_output, display, update_display\n"
        "display('gone')\nclear_output()\ndisplay('old', display_id='d')\nupdate_display('new', display_id='d')\n"
        "import pandas as pd\ndisplay(HTML('<b>x</b>'))\npd.DataFrame({'a': [1]})"
    )
    assert result.status is RunStatus.OK
    assert result.results[0] == {"text/plain": "'new'"}
    assert result.results[1]["text/html"] == "<b>x</b>"
    assert "text/html" in result.results[2]
    assert len(result.results) == 3


async def test_each_run_has_a_machine_of_its_own(rig: Rig) -> None:
    first, second = await asyncio.gather(
        *(
            rig.run(
                "import os, random, numpy, uuid\nopen('/tmp/mark', 'x')\nmark = 1\n"
                "print(os.getuid(), random.random(), numpy.random.rand(), uuid.uuid4(), sorted(os.listdir('/work')))"
            )
            for _ in range(2)
        )
    )
    assert (first.status, second.status) == (RunStatus.OK, RunStatus.OK)
    pairs = zip(first.output.split()[:4], second.output.split()[:4], strict=True)
    assert all(one != other for one, other in pairs)
    assert first.output.endswith("[]\n")
    assert (await rig.run("print('mark' in globals())")).output == "False\n"


async def test_linear_algebra_threads_and_processes_work_in_a_forked_kernel(rig: Rig) -> None:
    result = await rig.run(
        "import concurrent.futures as cf, multiprocessing as mp, numpy as np, threading\n"
        "a = np.random.rand(200, 200)\nprint(np.allclose(a @ np.linalg.inv(a), np.eye(200), atol=1e-4))\n"
        "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
        "with cf.ProcessPoolExecutor(2, mp_context=mp.get_context('fork')) as pool: print(sum(pool.map(abs, [-1, -2])))"
    )
    assert (result.status, result.output) == (RunStatus.OK, "True\nthread\n3\n"), result.error


async def test_nothing_is_left_of_all_these_runs(rig: Rig) -> None:
    await rig.settle()
