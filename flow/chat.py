"""`python -m flow.chat`: ask the endpoint, with the conversation remembered.

With a QUESTION it prints the answer; without one it is a session: /new, /history, /export, /quit.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flow.conversation import Endpoint, Reply, Settings, ask
from flow.history import History, checked_id, turns, valid_text
from flow.stores import history_of
from flow.target import endpoint_of, outputs_here, user_here
from infra import cli
from infra.cli import UserError, say
from infra.outputs import add_stack_options

if TYPE_CHECKING:
    import httpx

LONGEST_QUESTION = 100_000
"""Characters; the endpoint takes bodies of a megabyte at most."""


def new_conversation() -> str:
    return uuid.uuid4().hex[:12]


@dataclass
class Chat:
    """One user's conversation with an endpoint, kept in a history."""

    endpoint: Endpoint
    history: History
    conversation: str
    user: str = "user"
    settings: Settings = field(default_factory=Settings)
    client: httpx.AsyncClient | None = None

    async def stream(
        self, question: str, *, reply: Reply | None = None, key: str | None = None
    ) -> AsyncGenerator[str, None]:
        """Ask; the answer's pieces as they come, stored as one turn when the last one is out.

        Args:
            reply: filled along the way.
            key: with the same key as before, nothing is stored again.

        Raises:
            UserError: an empty or overlong question, or an endpoint that does not answer; nothing is stored then.
        """
        question, reply = checked(question), Reply() if reply is None else reply
        last = await asyncio.to_thread(self.history.last, self.user, self.conversation, self.settings.window)
        earlier = [(turn.question, turn.answer) for turn in last]
        answer = ask(self.endpoint, question, earlier, self.settings, reply=reply, client=self.client)
        async with aclosing(answer) as pieces:  # who leaves ends the request at once
            async for piece in pieces:
                yield piece
        stored = asyncio.to_thread(self._append, key or uuid.uuid4().hex, question, reply.text)
        await asyncio.shield(stored)  # an answer that was shown whole is kept, even if its reader leaves now

    def _append(self, key: str, question: str, answer: str) -> None:
        try:
            self.history.append(self.user, self.conversation, key, question, answer)
        except UserError as error:
            told = f"the answer is whole but was not stored: {error.message}"
            raise UserError(told, next_command=error.next_command) from None

    async def answer(self, question: str, show: Callable[[str], None] = lambda piece: None) -> Reply:
        """Ask, `show` each piece as it comes, give the whole back. Raises as `stream` does."""
        reply = Reply()
        async for piece in self.stream(question, reply=reply):
            show(piece)
        return reply


def checked(question: str) -> str:
    """The question without blanks around it. Raises UserError (wrong use) if it is empty or far too long."""
    question = valid_text(question).strip()
    if not question:
        raise UserError("the question is empty", next_command='python -m flow.chat "QUESTION"', code=cli.WRONG_USE)
    if len(question) > LONGEST_QUESTION:
        raise UserError(
            f"the question has {len(question)} characters; {LONGEST_QUESTION} is the limit", code=cli.WRONG_USE
        )
    return question


def main(argv: list[str]) -> int:
    parser = cli.parser(
        "flow.chat", "Ask the endpoint; without a question, a session with /new /history /export /quit."
    )
    parser.add_argument("question", nargs="?", metavar="QUESTION")
    parser.add_argument("--conversation", metavar="ID", help="go on with this one (default: a new one)")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt (default: none)")
    add_stack_options(parser)
    given = parser.parse_args(argv)
    if given.question is not None:
        checked(given.question)
    conversation = new_conversation() if given.conversation is None else given.conversation
    checked_id(conversation, "conversation")
    outputs = outputs_here(given.stack, given.outputs)
    settings = Settings(system=given.system)
    chat = Chat(endpoint_of(outputs), history_of(outputs), conversation, user_here(), settings)
    if given.question is None:
        return session(chat)
    say(f"conversation {chat.conversation}")
    once(chat, given.question, as_json=given.json)
    return 0


def once(chat: Chat, question: str, *, as_json: bool) -> None:
    """One question; the answer goes to stdout as it comes, or as one JSON object at the end."""
    reply = asyncio.run(chat.answer(question, _nothing if as_json else _show))
    if as_json:
        values = {"answer": reply.text, "conversation": chat.conversation, "usage": reply.usage}
        cli.result(values, as_json=True)
    else:
        print(flush=True)


def _show(piece: str) -> None:
    """Print a piece as it comes."""
    print(harmless(piece), end="", flush=True)


def harmless(text: str) -> str:
    """The text without control characters: neither an answer nor a stored one may steer a terminal."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")


def _nothing(piece: str) -> None:
    pass


def session(chat: Chat) -> int:
    """Questions line by line until /quit or the end of the input; a failed or interrupted one does not end the
    session.
    """
    say(f"conversation {chat.conversation}; /new /history /export /quit")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        if line == "/quit":
            return 0
        if not line:
            continue
        try:
            if line.startswith("/"):
                _command(chat, line)
            else:
                once(chat, line, as_json=False)
        except UserError as error:
            say(f"error: {error}")
        except KeyboardInterrupt:
            say("\ninterrupted; the answer was not stored. /quit ends the session")


def _command(chat: Chat, line: str) -> None:
    match line:
        case "/new":
            chat.conversation = new_conversation()
            say(f"conversation {chat.conversation}")
        case "/history":
            for turn in turns(chat.history, chat.user, chat.conversation):
                print(f"{turn.number}. {harmless(turn.question)}\n   {harmless(turn.answer)}", flush=True)
        case "/export":
            said: list[dict[str, str]] = []
            for turn in turns(chat.history, chat.user, chat.conversation):
                said += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
            print(json.dumps({"messages": said}, ensure_ascii=True), flush=True)
        case _:
            say(f"unknown command {line.split()[0]}; /new /history /export /quit")


if __name__ == "__main__":
    cli.run(main)
