"""Data sets that are opened and hashed once in a workspace, however many stages name them."""

from __future__ import annotations

from typing import Any

from pipeline.workspace import Workspace
from stages.data.registry import SourceSpec
from stages.data.source import ReaderSource, source_facts


def opened(workspace: Workspace, spec: SourceSpec) -> ReaderSource:
    """The source; raises what ``spec.open`` raises."""
    return workspace.once(spec, spec.open)


def facts_of(workspace: Workspace, spec: SourceSpec) -> dict[str, Any]:  # Any: JSON
    """What plans record about the source, its fingerprint included."""
    return workspace.once(("facts", spec), lambda: source_facts(opened(workspace, spec)))
