"""Fixtures that several folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.local_azure import LocalAzure


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAzure]:
    """A running emulator, one for the whole test session."""
    made = LocalAzure.start(tmp_path_factory.mktemp("emulator"))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def workspace(azure: LocalAzure) -> str:
    """The ARM id of a workspace with a cluster `cpu`."""
    return azure.make_workspace()
