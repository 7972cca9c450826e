"""The thin tool behind flow.dag.yaml: Prompt flow's inputs in, the conversation's answer out.

Prompt flow is retired on 2027-04-20; nothing but this file and flow.dag.yaml knows it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from promptflow.core import tool  # type: ignore[import-untyped]

from flow.chat import checked, endpoint_of
from flow.conversation import Reply, Settings, ask, messages
from infra.outputs import load_outputs


@tool  # type: ignore[untyped-decorator]
async def chat(question: str, chat_history: list[dict[str, Any]]) -> str:
    """The answer to `question` after `chat_history`, a list of `{"inputs": {"question"}, "outputs": {"answer"}}`.

    The stack is the selected one, or that of $STACK_OUTPUTS.
    """
    earlier = [(turn["inputs"]["question"], turn["outputs"]["answer"]) for turn in chat_history or []]
    endpoint = await asyncio.to_thread(lambda: endpoint_of(load_outputs()))
    reply = Reply()
    async for _ in ask(endpoint, messages(checked(question), earlier), Settings(), reply=reply):
        pass
    return reply.text
