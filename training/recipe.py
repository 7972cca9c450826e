"""A training run is a recipe: one YAML file in three sections, read into frozen dataclasses.

    python -m training.recipe show local --set learning_rate=5e-4
    python -m training.recipe validate my-recipe.yaml
    python -m training.recipe diff local phi-3.5-mini

`model` and `data` hold the keys of the dataclasses below; `training` holds TRL's SFTConfig fields under their own
names and, first, the few keys of ours that say where and how the job runs. A recipe is given by the name of a file in
`training/recipes/` or by a path. Nothing here imports torch: the names of SFTConfig's fields lie beside this file, and
a test compares them with the installed TRL.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from infra import cli
from infra.cli import WRONG_USE, UserError

FOLDER = Path(__file__).parent / "recipes"
# what the job decides itself: where it writes, how it resumes, and how texts become ids and labels (prompt.py)
RESERVED = {
    "output_dir": "the job's --output says it",
    "resume_from_checkpoint": "a job that is started again resumes by itself",
    "completion_only_loss": "the labels are the assistant's tokens, or with `assistant_only_loss: false` all",
    "dataset_text_field": "rows are conversations, tokenised by training/prompt.py",
    "chat_template_path": "the section `model` names the template: chat_template",
    "use_cpu": "a GPU is used where there is one",
    "dataset_kwargs": "the job prepares the rows itself",
    "model_init_kwargs": "the section `model` says how the model is loaded",
    "logging_nan_inf_filter": "it would hide a loss that is no number",
    "use_liger_kernel": "TRL's own fused head is used; layers are compiled instead",
}
# attention that reads the documents' borders; the others would build a mask over the whole row
PACKED_ATTENTION = ("auto", "varlen", "flash_attention_2", "flash_attention_3", "flash_attention_4")
LORA_MODULES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

T = TypeVar("T")


@dataclass(frozen=True)
class ModelChoice:
    """Section `model`: what is trained and how, and what the result is called.

    `auto` leaves the choice to the job, which prints it with its reason. `dtype` is that of the weights while they are
    trained, `save_dtype` of the model that is saved. The `lora_` keys count with `use_peft`.
    """

    model_name_or_path: str
    registered_name: str
    chat_template: str
    model_revision: str = "main"
    dtype: str = "auto"
    save_dtype: str = "bfloat16"
    attn_implementation: str = "auto"
    use_peft: bool = False
    load_in_4bit: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: tuple[str, ...] = LORA_MODULES


@dataclass(frozen=True)
class DataChoice:
    """Section `data`: the source of `python -m training.dataset`, and its files' names in the data folder."""

    source: str
    split: str | None = None
    train_file: str = "train.jsonl"
    eval_file: str = "eval.jsonl"


@dataclass(frozen=True)
class JobChoice:
    """Our keys of section `training`: where the job runs, and when its model is good enough.

    `gate_min_gain` is in nats: by how much the loss on the held-out file must fall for the model to be approved.
    `cpu_threads`: of torch, in each process; 0 leaves the number to torch.
    """

    gate_min_gain: float
    environment: str = "training/environment"
    instance_count: int = 1
    process_count_per_instance: int = 1
    shm_size: str = "2g"
    timeout_minutes: int = 360
    cpu_threads: int = 0


@dataclass(frozen=True)
class Recipe:
    """A whole recipe; `sft` are the keyword arguments of TRL's SFTConfig."""

    name: str
    model: ModelChoice
    data: DataChoice
    job: JobChoice
    sft: Mapping[str, Any]

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The three sections, as they would stand in a file."""
        return {
            "model": dataclasses.asdict(self.model),
            "data": dataclasses.asdict(self.data),
            "training": {**dataclasses.asdict(self.job), **self.sft},
        }

    def as_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for every value (not for comments, order or the file's name)."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def world_size(self) -> int:
        return self.job.instance_count * self.job.process_count_per_instance


def load(name_or_file: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or file, with `key=value` changes applied, validated.

    Raises:
        UserError: exit code 2, one sentence: no such recipe, not YAML, an unknown key, a value or combination that
            cannot work.
    """
    path = _find(name_or_file)
    sections = _read(path)
    for change in changes:
        _apply(sections, change)
    recipe = _parse(path.stem, sections, source=str(path))
    _check(recipe)
    return recipe


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def add_recipe_options(parser: Any) -> None:
    """`--recipe` and `--set`, as every verb that takes a recipe has them."""
    parser.add_argument(
        "--recipe", required=True, metavar="NAME_OR_FILE", help=f"one of {', '.join(names())}; or a file"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value; repeatable")


def _wrong(message: str, next_command: str | None = None) -> UserError:
    return UserError(message, next_command=next_command, code=WRONG_USE)


def _find(name_or_file: str) -> Path:
    path = Path(name_or_file)
    if path.is_file():
        return path
    named = FOLDER / f"{name_or_file}.yaml"
    if named.is_file():
        return named
    raise _wrong(f"there is no recipe {name_or_file!r}: the recipes are {', '.join(names())}, or give a file")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _wrong(f"cannot read the recipe {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _wrong(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or list(values) != ["model", "data", "training"]:
        raise _wrong(f"the recipe {path} must have three sections in this order: model, data, training")
    for name, section in values.items():
        if not isinstance(section, dict):
            raise _wrong(f"the section `{name}` of the recipe {path} holds no keys")
    return values


def known_keys() -> dict[str, tuple[str, ...]]:
    """The keys of each section."""
    lines = (Path(__file__).parent / "sft_config_keys.txt").read_text(encoding="utf-8").splitlines()
    trl = [line for line in lines if line and not line.startswith("#")]
    return {
        "model": tuple(field.name for field in dataclasses.fields(ModelChoice)),
        "data": tuple(field.name for field in dataclasses.fields(DataChoice)),
        "training": (*(field.name for field in dataclasses.fields(JobChoice)), *trl),
    }


def _apply(sections: dict[str, dict[str, Any]], change: str) -> None:
    import yaml

    key, sign, text = change.partition("=")
    if not sign:
        raise _wrong(f"--set {change!r} is not KEY=VALUE")
    for section, keys in known_keys().items():
        if key in keys:
            sections[section][key] = yaml.safe_load(text)
            return
    raise _unknown(key, "--set", [name for keys in known_keys().values() for name in keys])


def _unknown(key: str, source: str, known: Sequence[str]) -> UserError:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    meant = f"; the nearest key is `{nearest[0]}`" if nearest else ""
    return _wrong(f"{source} has the unknown key `{key}`{meant}")


def _parse(name: str, sections: Mapping[str, Mapping[str, Any]], *, source: str) -> Recipe:
    known = known_keys()
    for section, values in sections.items():
        for key in values:
            if key not in known[section]:
                raise _unknown(key, f"the section `{section}` of {source}", known[section])
    ours = {field.name for field in dataclasses.fields(JobChoice)}
    training = {key: _meant(key, value) for key, value in sections["training"].items()}
    return Recipe(
        name=name,
        model=_section(ModelChoice, sections["model"], source),
        data=_section(DataChoice, sections["data"], source),
        job=_section(JobChoice, {key: value for key, value in training.items() if key in ours}, source),
        sft={key: value for key, value in training.items() if key not in ours},
    )


def _meant(key: str, value: Any) -> Any:
    """Two traps of YAML: `1e-3` (without a point) is read as text, and the `no` of save_strategy as False."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    if key.endswith("_strategy") and value is False:
        return "no"
    return value


def _section(kind: type[T], values: Mapping[str, Any], source: str) -> T:
    """The values as a dataclass; a missing or wrongly typed one raises UserError."""
    types = typing.get_type_hints(kind)
    checked = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # every kind is a dataclass
        if field.name not in values:
            if field.default is dataclasses.MISSING:
                raise _wrong(f"{source} lacks the key `{field.name}`")
            continue
        value, expected = values[field.name], types[field.name]
        if expected is float and type(value) is int:
            value = float(value)
        if expected == tuple[str, ...]:
            value = tuple(value) if isinstance(value, list) else value
            fits = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
        else:
            fits = isinstance(value, expected) and isinstance(value, bool) <= (
                expected is bool
            )  # a bool is an int, too
        if not fits:
            name = "list" if expected == tuple[str, ...] else getattr(expected, "__name__", str(expected))
            raise _wrong(f"`{field.name}` in {source} is {value!r}, which is no {name}")
        checked[field.name] = value
    return kind(**checked)


def _check(recipe: Recipe) -> None:
    """What TRL or Azure would refuse later, or, worse, accept. Raises UserError."""
    sft = recipe.sft
    for key, reason in RESERVED.items():
        if key in sft:
            raise _wrong(f"the recipe {recipe.name} sets `{key}`, which is not its to set: {reason}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", recipe.name):
        raise _wrong(f"the recipe's name {recipe.name!r} may hold letters, digits, `_`, `.` and `-` only")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}", recipe.model.registered_name):
        raise _wrong(f"`registered_name` {recipe.model.registered_name!r} is no name that Azure ML accepts for a model")
    if not template_path(recipe).is_file():
        known = ", ".join(sorted(path.stem for path in template_path(recipe).parent.glob("*.jinja")))
        raise _wrong(f"there is no chat template {recipe.model.chat_template!r}; there are {known}")
    for key in ("instance_count", "process_count_per_instance", "timeout_minutes"):
        if getattr(recipe.job, key) < 1:
            raise _wrong(f"`{key}` must be 1 or more")
    for key in ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"):
        if key in sft and (not isinstance(sft[key], int | float) or isinstance(sft[key], bool) or sft[key] <= 0):
            raise _wrong(f"`{key}` must be a number above 0, not {sft[key]!r}")
    _check_packing(recipe)
    _check_model(recipe)


def _check_packing(recipe: Recipe) -> None:
    sft = recipe.sft
    if not sft.get("packing"):
        return
    if not isinstance(sft.get("max_length"), int):
        raise _wrong("packing needs a `max_length`, the number of tokens in a packed row")
    attention = recipe.model.attn_implementation
    # `wrapped` has no borders to mind: its documents see their neighbours (the guide's way, kept as a baseline)
    if sft.get("packing_strategy", "bfd") != "wrapped" and attention not in PACKED_ATTENTION and "/" not in attention:
        raise _wrong(
            f"packing with {attention} attention builds a mask over the whole row (a third of the speed): set "
            "attn_implementation to auto"
        )


def _check_model(recipe: Recipe) -> None:
    model = recipe.model
    for key, known in {"dtype": ("auto", "float32", "bfloat16"), "save_dtype": ("float32", "bfloat16")}.items():
        if getattr(model, key) not in known:
            raise _wrong(f"`{key}` must be one of {', '.join(known)}, not {getattr(model, key)!r}")
    if model.load_in_4bit and not model.use_peft:
        raise _wrong("`load_in_4bit` freezes the weights, so it needs adapters to train: set use_peft to true")
    if model.use_peft and "lm_head" in model.lora_target_modules:
        raise _wrong("`lora_target_modules` names lm_head, whose weights the fused loss reads without an adapter")
    if model.use_peft and model.lora_r < 1:
        raise _wrong("`lora_r` must be 1 or more")


def template_path(recipe: Recipe) -> Path:
    return Path(__file__).parent / "templates" / f"{recipe.model.chat_template}.jinja"


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """`section.key` to the two values, for each key whose values differ; None stands for a key that is not set."""
    left, right = one.as_dict(), other.as_dict()
    keys = [(section, key) for section in left for key in {**left[section], **right[section]}]
    pairs = {f"{section}.{key}": (left[section].get(key), right[section].get(key)) for section, key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def main(argv: list[str]) -> int:
    parser = cli.parser("training.recipe", "Look at a recipe: show it whole, validate it, or compare two.")
    parser.add_argument("verb", choices=("show", "validate", "diff"))
    parser.add_argument("recipes", nargs="+", metavar="NAME_OR_FILE", help=f"one of {', '.join(names())}; or a file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value; repeatable")
    args = parser.parse_args(argv)
    if len(args.recipes) != (2 if args.verb == "diff" else 1):
        raise _wrong(f"{args.verb} takes {'two recipes' if args.verb == 'diff' else 'one recipe'}")
    found = [load(name, args.set) for name in args.recipes]
    if args.verb == "diff":
        pairs = differences(*found)
        cli.result({key: list(pair) for key, pair in pairs.items()}, as_json=args.json)
    elif args.verb == "show" and not args.json:
        print(found[0].as_yaml(), end="")
    elif args.verb == "show":
        cli.result(found[0].as_dict(), as_json=True)
    else:
        cli.result({"recipe": found[0].name, "valid": True, "fingerprint": found[0].fingerprint}, as_json=args.json)
    return 0


if __name__ == "__main__":
    cli.run(main)
