"""A session as a Jupyter notebook: a cell per run, with its outputs, that runs again. Pure.

nbformat makes the cells and the outputs. It takes a while to import, so this module is imported for a notebook alone.
The format is https://nbformat.readthedocs.io/en/latest/format_description.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nbformat import NotebookNode, v4

from gateway.http.render.outputs import NotebookRun, Output, output_content
from sessions.languages import Variables, traits_of
from sessions.sanitize import well_formed

_INJECTED = "injected-parameters"  # as papermill has it: https://papermill.readthedocs.io


def notebook(runs: Iterable[NotebookRun], *, language: str, kernel_name: str, has_older: bool = False) -> NotebookNode:
    """The whole notebook: for each run a cell with its code, after a cell that sets its variables, if it had any.

    If the session `has_older` runs, a text at the top says that they were left out.
    """
    cells = [_missing()] if has_older else []
    traits = traits_of(kernel_name)
    cells += [cell for run in runs for cell in _cells(run, traits.variables)]
    kernelspec = {"name": kernel_name, "display_name": language.capitalize(), "language": language}
    language_info = {"name": language, **traits.language_info}
    made: NotebookNode = v4.new_notebook(  # type: ignore[no-untyped-call]
        cells=cells, metadata={"kernelspec": kernelspec, "language_info": language_info}
    )
    return made


def _missing() -> NotebookNode:
    text = "**Older runs were left out**: read them at `/runs`. What they had set is missing when this runs again."
    cell: NotebookNode = v4.new_markdown_cell(text, id="left-out")  # type: ignore[no-untyped-call]
    return cell


def _cells(run: NotebookRun, variables: Variables | None) -> list[NotebookNode]:
    asked = run.run
    cells = []
    if asked.variables and variables is not None:
        source = "\n".join(variables.source(name, value) for name, value in asked.variables.items())
        cells.append(_cell(source, id=f"{asked.run_id}-variables", metadata={"tags": [_INJECTED]}))
    outputs = [_output(output, run.images) for output in run.outputs]
    return [*cells, _cell(asked.code, id=asked.run_id, execution_count=run.execution_count, outputs=outputs)]


def _cell(source: str, **fields: Any) -> NotebookNode:
    cell: NotebookNode = v4.new_code_cell(well_formed(source), **fields)  # type: ignore[no-untyped-call]
    return cell


def _output(output: Output, images: Mapping[str, bytes]) -> NotebookNode:
    message = {"header": {"msg_type": output.msg_type}, "content": output_content(output, images)}
    made: NotebookNode = v4.output_from_msg(message)  # type: ignore[no-untyped-call]
    return made
