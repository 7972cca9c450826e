"""--target: the resources that an operation is confined to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.state import Resource


@dataclass(frozen=True)
class Targets:
    """URNs, with `*` for any part of one. None given means that everything is meant."""

    urns: tuple[str, ...] = ()
    dependents: bool = False

    def include(self, urn: str) -> bool:
        return not self.urns or any(fnmatchcase(urn, pattern.replace("[", "[[]")) for pattern in self.urns)

    def check(self, resources: Iterable[Resource]) -> None:
        """Raise CliError for a target that names nothing."""
        known = [one.urn for one in resources]
        for pattern in self.urns:
            if not any(Targets((pattern,)).include(urn) for urn in known):
                raise CliError(f"no resource named '{pattern}' found; `pulumi stack --show-urns` lists them")

    def to_delete(self, doomed: list[Resource]) -> list[Resource]:
        """Those of `doomed` that are meant, with all that depends on them. Raises CliError where one is not named."""
        if not self.urns:
            return doomed
        going = {one.urn for one in doomed if self.include(one.urn)}
        missed = _with_dependents(going, doomed) - going
        if missed and not self.dependents:
            raise CliError(
                f"{min(missed)} will be destroyed but was not specified in --target list: name it too, or add "
                "--target-dependents"
            )
        return [one for one in doomed if one.urn in going | missed]


EVERYTHING = Targets()


def _with_dependents(going: set[str], resources: list[Resource]) -> set[str]:
    found = set(going)
    while more := {one.urn for one in resources if one.urn not in found and found & set(one.needs())}:
        found |= more
    return found
