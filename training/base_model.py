"""The base model, part by part: its configuration, its tokenizer, and last its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cli import WRONG_USE, UserError
from training import ranks
from training import recipe as recipes
from training.estimate import Shape, shape_of
from training.prompt import stop_ids
from training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.plan import Plan


def read_shape(name: str, recipe: Recipe) -> Shape:
    """Raises UserError, exit code 2: no such model, or one of another architecture."""
    from transformers import AutoConfig

    if not Path(name).is_dir() and name.count("/") != 1:
        raise UserError(
            f"there is no model folder {name}",
            next_command="python -m training.small_model --out DIR --corpus FILE   (makes one), or name one on the hub",
            code=WRONG_USE,
        )
    with _explained(name):
        return shape_of(AutoConfig.from_pretrained(name, **revision(name, recipe)).to_dict())


def read_tokenizer(name: str, recipe: Recipe) -> Any:
    """The tokenizer with the recipe's chat template. Raises UserError for one without Phi-3's control tokens."""
    from transformers import AutoTokenizer

    with _explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name, **revision(name, recipe))
    try:
        stop_ids(tokenizer)
    except ValueError as error:
        raise UserError(
            f"cannot train {name}: {error}",
            next_command="set model_name_or_path to a Phi-3 or Phi-3.5 model",
            code=WRONG_USE,
        ) from None
    tokenizer.chat_template = recipes.template_path(recipe).read_text(encoding="utf-8")
    return tokenizer


def load_weights(name: str, plan: Plan, *, trained: bool = False) -> PreTrainedModel:
    """The model as the plan says, on the device of this process. One that is `trained` is loaded whole, in no case
    quantised, as its users will.

    Raises:
        UserError: it cannot be loaded, or there is no memory for it.
    """
    import torch
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    recipe, settings = plan.schedule.recipe, plan.settings
    options: dict[str, Any] = {"dtype": settings.dtype.value, "attn_implementation": plan.attention.value}
    if torch.cuda.is_available():
        options["device_map"] = {"": ranks.local_rank()}
    if recipe.model.load_in_4bit and not trained:
        from training.lora import four_bit

        options["quantization_config"] = four_bit(settings)
    with _explained(name):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, **options, **revision(name, recipe))
    return model


def revision(name: str, recipe: Recipe) -> dict[str, str]:
    """The keyword argument that pins a model of the hub; a folder has no revisions."""
    return {} if Path(name).is_dir() else {"revision": recipe.model.model_revision}


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the model {name}: {str(error).splitlines()[0]}") from None
