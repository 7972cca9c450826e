"""The thin tool behind flow.dag.yaml: Prompt flow's inputs in, the conversation's answer out, in pieces.

Prompt flow is retired on 2027-04-20 (docs/promptflow-sunset.md); nothing but this file, flow.dag.yaml and
prompt_flow.py knows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import lru_cache
from typing import Any

from promptflow.core import tool  # type: ignore[import-untyped]
from promptflow.exceptions import SystemErrorException, UserErrorException  # type: ignore[import-untyped]

from flow.chat import checked
from flow.conversation import Endpoint, ask
from flow.target import endpoint_of, outputs_here
from infra.cli import REFUSED, WRONG_USE, UserError


@lru_cache
def endpoint() -> Endpoint:
    """The endpoint of the selected stack, or of $STACK_OUTPUTS; found once in a process."""
    return endpoint_of(outputs_here())


@tool  # type: ignore[untyped-decorator]
async def chat(question: str, chat_history: list[dict[str, Any]]) -> AsyncIterator[str]:
    """The answer to `question` after `chat_history`, a list of `{"inputs": {"question"}, "outputs": {"answer"}}`.

    Waits for the first piece: once it has returned, Prompt flow has sent status 200, whatever comes then.
    """
    try:
        earlier = [(str(turn["inputs"]["question"]), str(turn["outputs"]["answer"])) for turn in chat_history or []]
        pieces = ask(await asyncio.to_thread(endpoint), checked(question), earlier)
        first = await anext(pieces, "")
    except (KeyError, TypeError):
        raise UserErrorException("`chat_history` has to hold {inputs: {question}, outputs: {answer}}") from None
    except UserError as error:  # in Prompt flow's words: 400 for what the caller can mend, 500 for the rest
        kind = UserErrorException if error.code in (WRONG_USE, REFUSED) else SystemErrorException
        raise kind(error.message) from None

    async def answer() -> AsyncIterator[str]:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return answer()
