"""Everything that is decided and derived, computed before the weights are loaded and printed before the first step."""

from __future__ import annotations

from dataclasses import dataclass

from training.estimate import gigabytes
from training.hardware import Hardware
from training.schedule import Schedule
from training.settings import ASSUMED_MFU, Choice, Settings, decide


@dataclass(frozen=True)
class Plan:
    """A run before it begins. `price`: of one node for an hour, None where nobody said it."""

    schedule: Schedule
    hardware: Hardware
    attention: Choice[str]
    settings: Settings
    nodes: int = 1
    price: float | None = None

    @property
    def peak_flops(self) -> float | None:
        """Dense bfloat16 FLOP/s of all processes together."""
        return self.hardware.peak * self.schedule.processes if self.hardware.peak else None

    @property
    def hours(self) -> float | None:
        """An estimate by an assumed share of the peak; None where the peak is not known."""
        if self.peak_flops is None:
            return None
        return self.schedule.flops / (self.peak_flops * ASSUMED_MFU) / 3600

    def lines(self) -> list[str]:
        """The plan for a reader, one thing a line."""
        return [*self._what(), *self._how(), *self._notes(), *self._how_much()]

    def _what(self) -> list[str]:
        schedule, data, recipe = self.schedule, self.schedule.data, self.schedule.recipe
        trained = f"{schedule.adapters:,} more in adapters" if schedule.adapters else "all of them trained"
        packed = f"packed ({recipe.sft.get('packing_strategy', 'bfd')})" if recipe.sft.get("packing") else "padded"
        each = f"{schedule.processes} processes on {self.nodes} node(s), each" if schedule.processes > 1 else "one"
        return [
            f"recipe {recipe.name} ({recipe.fingerprint}) on {each} {self.hardware}",
            f"model: {schedule.shape.parameters:,} parameters, {trained}",
            f"data: {data.conversations:,} conversations, {data.tokens:,} tokens, {data.learned / data.tokens:.0%} of "
            f"them learned; {data.rows:,} rows of at most {data.longest_row:,} tokens, {packed}",
        ]

    def _how(self) -> list[str]:
        chosen = self.settings
        arithmetic = "bfloat16 by autocast" if chosen.autocast.value else f"{chosen.dtype.value} throughout"
        lines = [
            f"weights: {chosen.dtype}",
            f"arithmetic: {arithmetic} ({chosen.autocast.reason})",
            f"attention: {self.attention}",
            f"optimizer: {chosen.optimizer}",
            f"gradient checkpointing: {_yes(chosen.checkpointing)}",
            f"compiled layers: {_yes(chosen.compiled)}",
        ]
        return [*lines, f"sharded by FSDP2: {_yes(chosen.sharded)}"] if self.schedule.processes > 1 else lines

    def _notes(self) -> list[str]:
        """What a reader should know of settings that are there for the sake of a comparison."""
        sft, notes = self.schedule.recipe.sft, []
        if self.settings.dtype.value == "bfloat16" and not self.schedule.adapters:
            notes.append("note: the weights are bfloat16, in which small updates round to nothing")
        if sft.get("packing") and sft.get("packing_strategy") == "wrapped":
            notes.append("note: in `wrapped` rows a document sees its neighbours")
        if sft.get("assistant_only_loss") is False:
            notes.append("note: all tokens are learned, the user's too (assistant_only_loss: false)")
        return notes

    def _how_much(self) -> list[str]:
        schedule = self.schedule
        counted = "4 a frozen and 6 a trained parameter" if schedule.adapters else "6 a parameter"
        return [
            f"global batch: {schedule.batch} rows x {schedule.accumulated} accumulated x {schedule.processes} "
            f"process(es) = {schedule.rows_per_step} rows, about {schedule.tokens_per_step:,.0f} tokens",
            f"steps: {schedule.steps:,} ({schedule.steps_per_epoch:,} an epoch, {schedule.epochs:.3g} epochs), "
            f"{schedule.tokens:,.0f} tokens",
            f"model FLOPs: {schedule.flops_per_token:.3g} a token, {schedule.flops:.3g} in all ({counted}, causal "
            f"attention over {schedule.data.span:,.0f} tokens; what is computed again is not counted)",
            f"memory of a process: about {self.settings.memory} of {gigabytes(self.hardware.memory)}",
            f"time: {self._time()}",
        ]

    def _time(self) -> str:
        if self.hours is None:
            return f"known after the first steps: no peak is on record for the {self.hardware.name}"
        time = f"about {self.hours:.2g} hours, at an assumed {ASSUMED_MFU:.0%} of the peak"
        if self.price is None:
            return time
        return f"{time}; cost: about {self.hours * self.nodes * self.price:.2f} at {self.price:g} an hour and node"


def make(
    schedule: Schedule, hardware: Hardware, attention: Choice[str], *, nodes: int = 1, price: float | None = None
) -> Plan:
    """A plan, with everything decided that the recipe leaves open. Raises UserError where the model cannot fit."""
    return Plan(schedule, hardware, attention, decide(schedule, hardware), nodes, price)


def _yes(choice: Choice[bool]) -> str:
    return f"{'yes' if choice.value else 'no'} ({choice.reason})"
