"""The base model, part by part: its configuration, its tokenizer, and last its weights."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cli import WRONG_USE, UserError
from training import lora, ranks
from training import recipe as recipes
from training.estimate import Shape, shape_of
from training.mishaps import is_memory_full
from training.prompt import stop_ids
from training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from training.plan import Plan

HASHED_BYTES = 16 * 2**20
LOADABLE = (
    "name a folder with config.json, tokenizer.json and *.safetensors, or a model on a hub that can be reached "
    "(HF_ENDPOINT says which)"
)


def identity_of(name: str, recipe: Recipe) -> str:
    """A short text that differs for another base model: a hub's name and revision, or a hash of a folder's files.

    Of a large file only the beginning is read, where safetensors lists what it holds, and its size.
    """
    if not Path(name).is_dir():
        return f"{name}@{recipe.model.model_revision}"
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(name).iterdir() if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + file.read(HASHED_BYTES))
    return digest.hexdigest()[:16]


def read_shape(name: str, recipe: Recipe) -> Shape:
    """Raises UserError, exit code 2: no such model, or one of another architecture."""
    from transformers import AutoConfig

    if not Path(name).is_dir() and name.count("/") != 1:
        raise UserError(
            f"there is no model folder {name}",
            next_command="python -m training.small_model --out DIR --corpus FILE   (makes one), or name one on the hub",
            code=WRONG_USE,
        )
    with loading(name):
        return shape_of(AutoConfig.from_pretrained(name, **revision(name, recipe)).to_dict())


def read_tokenizer(name: str, recipe: Recipe) -> Any:
    """The tokenizer with the recipe's chat template. Raises UserError for one without Phi-3's control tokens."""
    from transformers import AutoTokenizer

    with loading(name):
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


def load_weights(name: str, plan: Plan, *, whole: bool = False) -> PreTrainedModel:
    """The model as the plan says, on the device of this process; `whole`: as its users will have it, to be measured.

    Raises:
        UserError: it cannot be loaded, or there is no memory for it.
    """
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    recipe, settings = plan.schedule.recipe, plan.settings
    options: dict[str, Any] = {"dtype": settings.dtype.value, "attn_implementation": plan.attention.value}
    if plan.hardware.kind == "cuda":
        options["device_map"] = {"": ranks.local_rank()}
    if recipe.model.load_in_4bit and not whole:
        options["quantization_config"] = lora.four_bit(settings)
    elif whole and plan.hardware.kind == "cuda":
        options["dtype"] = recipe.model.save_dtype
    with loading(name):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, **options, **revision(name, recipe))
    return model


def revision(name: str, recipe: Recipe) -> dict[str, str]:
    """The keyword argument that pins a model of the hub; a folder has no revisions."""
    return {} if Path(name).is_dir() else {"revision": recipe.model.model_revision}


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    """Raises UserError for a model that cannot be loaded, or that there is no memory for."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the model {name}: {str(error).splitlines()[0].rstrip(': ')}", next_command=LOADABLE
        ) from None
    except (RuntimeError, MemoryError) as error:
        if not is_memory_full(error):
            raise
        raise UserError(
            f"out of memory while {name} was loaded",
            next_command="end what else uses this device (nvidia-smi, free -h), or take a larger one",
        ) from None
