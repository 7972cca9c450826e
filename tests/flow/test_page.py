"""The chat page in a real browser (needs a Chromium on PATH or in $CHROMIUM)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.flow.serving import served
from tests.support import browser
from tests.support.browser import Page
from tests.support.stub_endpoint import Stub, stub_endpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.find() is None, reason="there is no Chromium here")]

THREAD = "[...document.querySelectorAll('.said')].map(one => one.textContent)"
TITLES = "[...document.querySelectorAll('#list li button:first-child')].map(one => one.textContent)"
IDLE = "!document.querySelector('.coming') && document.getElementById('stop').hidden"


def type_in(question: str) -> str:
    send = "document.getElementById('ask').requestSubmit()"
    return f"document.getElementById('question').value = {question!r}; {send}"


def on_the_page(folder: Path, act: Callable[[Page, Stub], Awaitable[None]], **env: str) -> Page:
    """Open the page of a server over a stub endpoint, act on it, and look that it troubled nobody."""

    async def visit(stub: Stub, url: str) -> Page:
        (folder / "profile").mkdir()
        async with browser.browser(folder / "profile") as page:
            page.key = env.get("CHAT_KEY", "")
            await page.send("Page.navigate", url=url)
            await page.until("document.readyState === 'complete'")
            await act(page, stub)
        assert page.hosts <= {url.removeprefix("http://"), "127.0.0.1"}, page.hosts
        return page

    with stub_endpoint() as stub, served(folder / "server", stub.url, **env) as server:
        return asyncio.run(visit(stub, server.url))


def test_an_answer_streams_into_the_page_and_the_conversation_is_listed(tmp_path: Path) -> None:
    async def act(page: Page, stub: Stub) -> None:
        stub.pause = 0.3
        await page.run(type_in("one two three four five six"))
        half = await page.until(f"{THREAD}[1] && {THREAD}")
        assert half[0] == "one two three four five six" and half[1] != half[0]
        stub.pause = 0
        await page.until(IDLE)
        assert await page.run(THREAD) == ["one two three four five six"] * 2
        assert await page.until(f"{TITLES}.length && {TITLES}") == ["one two three four five six"]
        await page.run(type_in("and again"))
        await page.until(f"{IDLE} && {THREAD}.length === 4")
        assert len(stub.asked[-1]["messages"]) == 3
        if folder := os.environ.get("SCREENSHOTS"):
            await page.screenshot(Path(folder) / "chat.png")
        await page.run("document.getElementById('new').click()")
        assert await page.run(THREAD) == []
        await page.run("document.querySelector('#list li button').click()")
        await page.until(f"{THREAD}.length === 4")

    assert on_the_page(tmp_path, act).troubles == []


def test_html_in_question_and_answer_is_text(tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script> <b>bold</b>"

    async def act(page: Page, stub: Stub) -> None:
        await page.run(type_in(evil))
        await page.until(f"{IDLE} && {THREAD}.length === 2 && {TITLES}.length")
        await page.run("location.reload()")
        await page.until(f"{TITLES}.length")
        await page.run("document.querySelector('#list li button').click()")
        assert await page.until(f"{THREAD}.length === 2 && {THREAD}") == [evil, evil]
        assert await page.run("document.querySelectorAll('main img, main b, nav b, main script').length") == 0
        assert await page.run("document.title") == "Chat"
        if folder := os.environ.get("SCREENSHOTS"):
            await page.screenshot(Path(folder) / "html.png")

    assert on_the_page(tmp_path, act).troubles == []


def test_an_answer_that_breaks_off_is_said_and_the_question_can_be_sent_again(tmp_path: Path) -> None:
    async def act(page: Page, stub: Stub) -> None:
        stub.cut_after = 2
        await page.run(type_in("one two three"))
        trouble = await page.until("document.getElementById('trouble').textContent")
        assert "breaks off before its end" in trouble
        assert await page.run(THREAD) == []
        assert await page.run("document.getElementById('question').value") == "one two three"
        if folder := os.environ.get("SCREENSHOTS"):
            await page.screenshot(Path(folder) / "trouble.png")
        stub.cut_after = None
        await page.run("document.getElementById('ask').requestSubmit()")
        await page.until(f"{IDLE} && {THREAD}.length === 2")
        assert await page.run("document.getElementById('trouble').hidden")

    on_the_page(tmp_path, act)


def test_stop_ends_the_answer(tmp_path: Path) -> None:
    async def act(page: Page, stub: Stub) -> None:
        stub.pause = 0.1
        await page.run(type_in("word " * 500))
        await page.until(f"{THREAD}[1]")
        await page.run("document.getElementById('stop').click()")
        await page.until(f"{IDLE} && {THREAD}.length === 0")
        for _ in range(100):
            if stub.left:
                return
            await asyncio.sleep(0.1)
        raise AssertionError("the endpoint went on")

    on_the_page(tmp_path, act)


def test_the_page_asks_for_the_key_once(tmp_path: Path) -> None:
    async def act(page: Page, stub: Stub) -> None:
        await page.until("sessionStorage.getItem('key')")
        await page.run(type_in("hello"))
        await page.until(f"{IDLE} && {THREAD}.length === 2")

    assert on_the_page(tmp_path, act, CHAT_KEY="the-key").dialogs == ["The key of this chat:"]


def test_a_conversation_can_be_deleted(tmp_path: Path) -> None:
    async def act(page: Page, stub: Stub) -> None:
        await page.run(type_in("hello"))
        await page.until(f"{IDLE} && {TITLES}.length === 1")
        await page.run("document.querySelector('#list li button:last-child').click()")
        await page.until(f"{TITLES}.length === 0 && {THREAD}.length === 0")

    assert on_the_page(tmp_path, act).dialogs == ["Delete “hello” for ever?"]
