"""How a recipe runs through its data: batches, steps, tokens, arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.estimate import Shape, flops_per_token
from training.recipe import Recipe


@dataclass(frozen=True)
class Data:
    """The training rows as the model sees them.

    `span`: the length of the document that a token is in, averaged over tokens: what attention's cost follows from.
    """

    conversations: int
    rows: int
    tokens: int
    learned: int
    longest_row: int
    span: float


@dataclass(frozen=True)
class Schedule:
    """A recipe on its data, divided among processes. Where it is silent, transformers' defaults count."""

    recipe: Recipe
    shape: Shape
    data: Data
    processes: int = 1

    @property
    def batch(self) -> int:
        """Rows of one process's micro-batch."""
        return int(self.recipe.sft.get("per_device_train_batch_size", 8))

    @property
    def accumulated(self) -> int:
        return int(self.recipe.sft.get("gradient_accumulation_steps", 1))

    @property
    def rows_per_step(self) -> int:
        return self.batch * self.accumulated * self.processes

    @property
    def tokens_per_step(self) -> float:
        return self.data.tokens / self.data.rows * min(self.rows_per_step, self.data.rows)

    @property
    def steps_per_epoch(self) -> int:
        """As transformers counts: micro-batches are dealt to the processes, the last step of an epoch is not full.

        Where it has no rows for some of the processes, accelerate deals them rows of the epoch's beginning again.
        """
        batches = math.ceil(math.ceil(self.data.rows / self.batch) / self.processes)
        return max(math.ceil(batches / self.accumulated), 1)

    @property
    def steps(self) -> int:
        said = int(self.recipe.sft.get("max_steps", -1))
        return said if said > 0 else math.ceil(self.steps_per_epoch * float(self.recipe.sft.get("num_train_epochs", 3)))

    @property
    def epochs(self) -> float:
        return self.steps / self.steps_per_epoch

    @property
    def tokens(self) -> float:
        """Of the whole run."""
        return self.data.tokens * self.epochs

    @property
    def adapters(self) -> int:
        """Parameters of LoRA's adapters; 0 where all weights are trained."""
        model = self.recipe.model
        return self.shape.lora_parameters(model.lora_r, model.lora_target_modules) if model.use_peft else 0

    @property
    def flops_per_token(self) -> float:
        return flops_per_token(self.shape, self.data.span, self.adapters)

    @property
    def flops(self) -> float:
        """Of the whole run."""
        return self.tokens * self.flops_per_token
