"""A training run is a recipe: one YAML file in three sections, read into frozen dataclasses.

    python -m training.recipe show local --set learning_rate=5e-4
    python -m training.recipe validate my-recipe.yaml
    python -m training.recipe diff phi-3.5-mini phi-3.5-mini-lora

`model` holds TRL's ModelConfig fields and three keys of ours, `data` the source of the conversations, `training` TRL's
SFTConfig fields and a few keys of ours that say where and how the job runs. A recipe is given by the name of a file in
`training/recipes/` or by a path. Nothing here imports torch: SFTConfig's fields and their types lie beside this file in
`sft_config_keys.txt`, and a test compares them with the installed TRL. docs/recipes.md lists every key.

A recipe whose section `model` names a `component` is of the other kind: training/component_recipe.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from infra import cli
from training.recipe_values import check_kind, meant, nearest, parse_change, section_of, unknown_key, wrong

if TYPE_CHECKING:
    from training.component_recipe import ComponentRecipe

FOLDER = Path(__file__).parent / "recipes"
TEMPLATES = Path(__file__).parent / "templates"
KEYS = Path(__file__).parent / "sft_config_keys.txt"
LORA_MODULES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""The linear modules of a Phi-3 layer."""

Sections: TypeAlias = dict[str, dict[str, Any]]
AnyRecipe: TypeAlias = "Recipe | ComponentRecipe"
"""Both have name, model.registered_name, data, job, fingerprint, as_dict() and as_yaml()."""


@dataclass(frozen=True)
class ModelChoice:
    """Section `model`: what is trained and how, and what the result is called.

    All keys but `registered_name`, `chat_template` and `save_dtype` are TRL's ModelConfig's. `auto` leaves the choice
    to the job, which prints it with its reason. `dtype` is that of the weights while they are trained, `save_dtype` of
    the model that is saved. The `lora_` keys count with `use_peft`.
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
    """Section `data`: the source of `python -m training.dataset`, and its files' names in the data folder.

    `revision`: of a data set on the hub.
    """

    source: str
    split: str | None = None
    revision: str | None = None
    train_file: str = "train.jsonl"
    eval_file: str = "eval.jsonl"


@dataclass(frozen=True)
class JobChoice:
    """Our keys of section `training`: where the job runs, and when its model is good enough.

    `compute`: `gpu` is the stack's GPU cluster, `cpu` its CPU cluster, `any` the CPU cluster where there is one, else
    the GPU cluster. `process_count_per_instance`: 0 is one for each GPU of a node, or one without GPUs.
    `gate_min_gain` is in nats: by how much the loss on the held-out file must fall for the model to be approved.
    `gate_max_forgetting` too: by how much it may rise on the second domain; null where that means nothing, as for a
    model that began with random weights.
    `cpu_threads`: of torch, in each process; 0 leaves the number to torch.
    `checkpoint_minutes`: between two checkpoints at most, besides `save_steps`; 0 leaves it to them.
    `baseline`: accept settings that are known to be bad, because the recipe is there to be compared with.
    """

    gate_min_gain: float
    gate_max_forgetting: float | None = 0.05
    compute: str = "gpu"
    environment: str = "training/environment"
    instance_count: int = 1
    process_count_per_instance: int = 0
    shm_size: str = "2g"
    timeout_minutes: int = 360
    cpu_threads: int = 0
    checkpoint_minutes: float = 30.0
    baseline: bool = False


# These decide where and how long a job runs and when it saves, and nothing of what it learns.
OUTSIDE_FINGERPRINT = (
    *("compute", "environment", "shm_size", "timeout_minutes"),
    *("checkpoint_minutes", "save_strategy", "save_steps", "save_total_limit", "logging_steps"),
)


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
        model = {key: list(one) if isinstance(one, tuple) else one for key, one in vars(self.model).items()}
        return {"model": model, "data": dict(vars(self.data)), "training": {**vars(self.job), **self.sft}}

    def as_yaml(self) -> str:
        return as_yaml(self.as_dict())

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for every value that decides what is learned.

        Not for comments, order or the file's name, nor for the job's place and limits: a run that ran out of time goes
        on from its checkpoints with more of it.
        """
        values = self.as_dict()
        values["training"] = {key: one for key, one in values["training"].items() if key not in OUTSIDE_FINGERPRINT}
        return fingerprint(values)


def as_yaml(sections: Sections) -> str:
    import yaml

    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)


def fingerprint(sections: Sections) -> str:
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:16]


def load(name_or_file: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or file, with `key=value` changes applied, validated.

    Raises:
        UserError: exit code 2, one sentence: no such recipe, not YAML, an unknown key, a value or combination that
            cannot work; a recipe of the other kind, which our own job cannot run.
    """
    recipe = load_any(name_or_file, changes)
    if not isinstance(recipe, Recipe):
        raise wrong(
            f"the recipe {recipe.name} is for the registry's component {recipe.model.component}, not for our own job",
            f"python -m training.submit --recipe {name_or_file}",
        )
    return recipe


def load_any(name_or_file: str, changes: Sequence[str] = ()) -> AnyRecipe:
    """A recipe of either kind, as `load`."""
    from training import component_recipe
    from training.recipe_checks import check

    path = find(name_or_file)
    sections = _read(path)
    if component_recipe.is_one(sections):
        return component_recipe.parse(path.stem, sections, changes, source=str(path))
    for change in changes:
        key, value = parse_change(change)
        section = next((name for name, keys in known_keys().items() if key in keys), None)
        if section is None:
            raise unknown_key(key, "--set", [name for keys in known_keys().values() for name in keys])
        sections[section][key] = value
    recipe = _parse(path.stem, sections, source=str(path))
    check(recipe)
    return recipe


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def add_recipe_options(parser: Any) -> None:
    """`--recipe` and `--set`, as every verb that takes a recipe has them."""
    parser.add_argument(
        "--recipe", required=True, metavar="NAME_OR_FILE", help=f"one of {', '.join(names())}; or a file"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value; repeatable")


def find(name_or_file: str) -> Path:
    """The file of a recipe. Raises UserError naming the nearest recipe."""
    path = Path(name_or_file)
    if path.is_file():
        return path
    named = FOLDER / f"{name_or_file}.yaml"
    if named.is_file():
        return named
    hint = nearest(name_or_file, names()) or f": the recipes are {', '.join(names())}, or give a file"
    raise wrong(f"there is no recipe {name_or_file!r}{hint}", "ls training/recipes")


def _read(path: Path) -> Sections:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise wrong(f"cannot read the recipe {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise wrong(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or list(values) != ["model", "data", "training"]:
        raise wrong(
            f"the recipe {path} must have three sections in this order: model, data, training",
            f"cp {FOLDER / 'local.yaml'} my-recipe.yaml   (a file to start from)",
        )
    for name, section in values.items():
        if not isinstance(section, dict):
            raise wrong(f"the section `{name}` of the recipe {path} holds no keys")
    return values


def sft_keys() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """SFTConfig's fields: the kinds of value that each takes, and the values where they are counted."""
    found = {}
    for line in KEYS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, kinds, *values = line.split()
            found[name] = (tuple(kinds.split("|")), tuple(values))
    return found


def known_keys() -> dict[str, tuple[str, ...]]:
    """The keys of each section."""
    return {
        "model": tuple(field.name for field in dataclasses.fields(ModelChoice)),
        "data": tuple(field.name for field in dataclasses.fields(DataChoice)),
        "training": (*(field.name for field in dataclasses.fields(JobChoice)), *sft_keys()),
    }


def _parse(name: str, sections: Mapping[str, Mapping[Any, Any]], *, source: str) -> Recipe:
    known = known_keys()
    for section, values in sections.items():
        for key in values:
            if key not in known[section]:
                raise unknown_key(str(key), f"the section `{section}` of {source}", known[section])
    ours = {field.name for field in dataclasses.fields(JobChoice)}
    sft_kinds = sft_keys()
    training = {key: meant(key, value) for key, value in sections["training"].items()}
    for key in training.keys() - ours:
        training[key] = check_kind(key, training[key], *sft_kinds[key], source=source)
    return Recipe(
        name=name,
        model=section_of(ModelChoice, sections["model"], source),
        data=section_of(DataChoice, sections["data"], source),
        job=section_of(JobChoice, {key: value for key, value in training.items() if key in ours}, source),
        sft={key: value for key, value in training.items() if key not in ours},
    )


def template_path(recipe: Recipe) -> Path:
    return TEMPLATES / f"{recipe.model.chat_template}.jinja"


def differences(one: AnyRecipe, other: AnyRecipe) -> dict[str, tuple[Any, Any]]:
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
        raise wrong(f"{args.verb} takes {'two recipes' if args.verb == 'diff' else 'one recipe'}")
    found = [load_any(name, args.set) for name in args.recipes]
    if args.verb == "diff":
        _show_differences(*found, as_json=args.json)
    elif args.verb == "show" and not args.json:
        print(found[0].as_yaml(), end="")
    elif args.verb == "show":
        cli.result(found[0].as_dict(), as_json=True)
    else:
        cli.result({"recipe": found[0].name, "valid": True, "fingerprint": found[0].fingerprint}, as_json=args.json)
    return 0


def _show_differences(one: AnyRecipe, other: AnyRecipe, *, as_json: bool) -> None:
    pairs = differences(one, other)
    if as_json:
        cli.result({key: list(pair) for key, pair in pairs.items()}, as_json=True)
        return
    for key, (left, right) in pairs.items():
        print(f"{key}: {_shown(left)} -> {_shown(right)}")


def _shown(value: Any) -> str:
    return "(not set)" if value is None else value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    cli.run(main)
