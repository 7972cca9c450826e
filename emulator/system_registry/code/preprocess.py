"""Step 3: conversations to token ids, by the model's own chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import step

Rows = list[dict[str, Any]]
MOST = 4096  # tokens of a conversation where nobody asks for fewer: the longest that Phi-3-mini-4k takes


def main() -> None:
    args = step.arguments(
        max_seq_length=int,
        train_file_path=Path,
        validation_file_path=Path,
        test_file_path=Path,
        model_selector_output=Path,
        output_dir=Path,
    )
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model_selector_output)
    longest = args.max_seq_length if (args.max_seq_length or -1) > 0 else MOST
    longest = min(longest, tokenizer.model_max_length)
    for name, rows in _splits(args).items():
        ids = [_encoded(tokenizer, row["messages"], longest) for row in rows]
        step.write_lines(args.output_dir / f"{name}.jsonl", ids)
        cut = sum(len(one) == longest for one in ids)
        print(f"{name}: {len(ids)} conversations, {sum(map(len, ids))} tokens, {cut} as long as is allowed ({longest})")
    step.hand_over(args.model_selector_output, args.output_dir, max_seq_length=longest)


def _encoded(tokenizer: Any, messages: Rows, longest: int) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    found: list[int] = tokenizer(text, add_special_tokens=False, truncation=True, max_length=longest)["input_ids"]
    return found


def _splits(args: Any) -> dict[str, Rows]:
    """The three sets; what is missing is taken from the training rows, a fifth for one, a tenth each for both."""
    train = step.read_rows(args.train_file_path)
    given = {"validation": args.validation_file_path, "test": args.test_file_path}
    missing = [name for name, path in given.items() if path is None]
    found = {name: step.read_rows(path) for name, path in given.items() if path}
    for name in missing:
        count = max(1, len(train) // (5 if len(missing) == 1 else 10))
        found[name], train = train[-count:], train[:-count] or train
    return {"train": train, **found}


if __name__ == "__main__":
    main()
