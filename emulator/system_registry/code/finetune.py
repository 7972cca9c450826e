"""Step 4: fine-tune, on the loss of every token, with LoRA where it is asked for; the merged weights are the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import step

TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]  # Phi-3's linear layers, fused as it has them


SAME = (  # as the Trainer's own arguments
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "optim", "seed"),
    *("learning_rate", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("gradient_accumulation_steps", "lr_scheduler_type", "logging_steps"),
)


def arguments() -> Any:
    whole = {"lora_alpha", "lora_r", "num_train_epochs", "max_steps", "per_device_train_batch_size", "seed"}
    whole |= {"per_device_eval_batch_size", "warmup_steps", "gradient_accumulation_steps", "logging_steps"}
    whole |= {"save_total_limit"}
    broken = {"lora_dropout", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"}
    words = {"apply_lora", "merge_lora_weights", "optim", "lr_scheduler_type", "precision", "evaluation_strategy"}
    types: dict[str, Any] = dict.fromkeys(whole, int) | dict.fromkeys(broken | {"max_grad_norm"}, float)
    types |= dict.fromkeys(words | {"apply_deepspeed", "deepspeed_stage"}, str)
    folders = ("preprocess_output", "model_selector_output", "pytorch_model_folder")
    return step.arguments(**types, **dict.fromkeys(folders, Path))


def main() -> None:
    args = arguments()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model_selector_output)
    model: Any = AutoModelForCausalLM.from_pretrained(args.model_selector_output, dtype=torch.float32)
    _say_what_is_left_out(args)
    if args.apply_lora == "true":
        model = _with_lora(model, args)
    trainer = Trainer(
        model=model,
        args=_settings(args),
        train_dataset=_rows(args.preprocess_output / "train.jsonl"),
        eval_dataset=_rows(args.preprocess_output / "validation.jsonl"),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        _save(trainer, tokenizer, args)


def _rows(path: Path) -> Any:
    from datasets import Dataset  # type: ignore[import-untyped]

    ids = [one for one in step.read_lines(path) if len(one) > 1]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]})


def _with_lora(model: Any, args: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _settings(args: Any) -> Any:
    import torch
    from transformers import TrainingArguments

    graphics = torch.cuda.is_available()
    if not graphics:
        torch.set_num_threads(1)  # the registry's small models gain nothing from more, and lose on a busy machine
    return TrainingArguments(
        output_dir=str(args.pytorch_model_folder / "checkpoints"),
        **{name: getattr(args, name) for name in SAME},
        eval_strategy="no" if args.evaluation_strategy == "disable" else "epoch",
        save_strategy="no",
        bf16=graphics and args.precision == "16",
        use_cpu=not graphics,
        report_to=[],
        disable_tqdm=True,
    )


def _say_what_is_left_out(args: Any) -> None:
    if args.apply_deepspeed == "true":
        print(f"DeepSpeed (stage {args.deepspeed_stage}) is left out: it changes where states lie, not what is learned")
    if args.precision == "16":
        print("precision 16 needs a GPU; without one the model computes in 32 bits")


def _save(trainer: Any, tokenizer: Any, args: Any) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if args.apply_lora == "true":
        if args.merge_lora_weights == "false":
            step.fail("ACFTValidationException", "merge_lora_weights=false is not emulated")
        model = model.merge_and_unload()
    model.save_pretrained(args.pytorch_model_folder)
    tokenizer.save_pretrained(args.pytorch_model_folder)
    step.hand_over(args.preprocess_output, args.pytorch_model_folder)
    history = [one for one in trainer.state.log_history if "loss" in one or "eval_loss" in one]
    for one in history:
        named = {"train_loss": "loss", "validation_loss": "eval_loss", "learning_rate": "learning_rate"}
        step.log_metrics({name: one[key] for name, key in named.items() if key in one}, one["step"])


if __name__ == "__main__":
    main()
