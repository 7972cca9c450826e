"""Two small languages of a job: the placeholders of its command, and ISO 8601 durations."""

from __future__ import annotations

import re

from emulator.arm.schema import ArmError


def substitute(command: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    """Fill `${{inputs.x}}` and `${{outputs.y}}`, and keep an optional `$[[…]]` only if its input was given.

    Raises ArmError 400 for a name that the job does not have.
    """

    def value(match: re.Match[str]) -> str:
        found = {"inputs": inputs, "outputs": outputs}[match[1]].get(match[2])
        if found is None:
            raise ArmError(400, "UserError", f"The command uses {match[0]}, which the job does not define.")
        return found

    def optional(match: re.Match[str]) -> str:
        names = re.findall(r"\$\{\{\s*inputs\.([\w.-]+)\s*\}\}", match[1])
        return match[1] if all(name in inputs for name in names) else ""

    command = re.sub(r"\$\[\[(.*?)\]\]", optional, command)
    return re.sub(r"\$\{\{\s*(inputs|outputs)\.([\w.-]+)\s*\}\}", value, command)


def parse_duration(text: str | None) -> float | None:
    """Seconds of an ISO 8601 duration of days, hours, minutes and seconds, such as PT1H30M; None for None."""
    if not text:
        return None
    match = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?", text)
    if match is None:
        raise ArmError(400, "UserError", f"'{text}' is not a duration.")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
