// The page of flow.serve. Texts get into it by textContent alone, so nothing of an answer is ever read as HTML.
"use strict";

const by = (id) => document.getElementById(id);
let conversation = null;
let asking = null; // the AbortController of the answer that is coming

async function call(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    const given = prompt("The key of this chat:");
    if (given) {
      sessionStorage.setItem("key", given.trim());
      return call(path, options);
    }
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new Error(told?.error?.message ?? `The server answers ${answer.status}.`);
  }
  return answer;
}

function add(kind, text) {
  const said = document.createElement("div");
  said.className = `said ${kind}`;
  said.textContent = text;
  by("thread").append(said);
  said.scrollIntoView({ block: "end" });
  return said;
}

function trouble(text) {
  by("trouble").textContent = text ?? "";
  by("trouble").hidden = !text;
}

function button(text, label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.title = label;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

async function list() {
  const all = await (await call("/conversations")).json();
  by("list").replaceChildren(...all.map((one) => {
    const line = document.createElement("li");
    line.className = one.id === conversation ? "now" : "";
    const title = one.title || one.id;
    line.append(button(title, title, () => guarded(() => open(one.id))));
    line.append(button("×", `Delete “${title}”`, () => guarded(() => remove(one.id, title))));
    return line;
  }));
}

async function open(id) {
  if (asking) asking.abort();
  const turns = [];
  for (let page = null; page === null || page.length;) {
    const after = turns.length ? turns[turns.length - 1].number : 0;
    page = await (await call(`/conversation?id=${encodeURIComponent(id)}&after=${after}`)).json();
    turns.push(...page);
  }
  conversation = id;
  by("thread").replaceChildren();
  for (const turn of turns) {
    add("user", turn.question);
    add("model", turn.answer);
  }
  await list();
}

async function remove(id, title) {
  if (!confirm(`Delete “${title}” for ever?`)) return;
  await call(`/conversation?id=${encodeURIComponent(id)}`, { method: "DELETE" });
  if (id === conversation) fresh();
  await list();
}

function fresh() {
  if (asking) asking.abort();
  conversation = null;
  by("thread").replaceChildren();
  by("question").focus();
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice("data: ".length));
  }
}

async function stream(question, said, signal) {
  const body = JSON.stringify({ question, conversation });
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body, signal };
  for await (const event of events(await call("/chat", options))) {
    if (event.error) throw new Error(event.error);
    if (event.conversation) conversation = event.conversation;
    if (event.done) return;
    said.textContent += event.piece;
    said.scrollIntoView({ block: "end" });
  }
  throw new Error("The answer breaks off before its end; it was not stored.");
}

async function ask(question) {
  trouble(null);
  const asked = add("user", question), said = add("model", "");
  said.classList.add("coming");
  asking = new AbortController();
  by("send").hidden = true;
  by("stop").hidden = false;
  by("question").value = "";
  const mine = asking;
  try {
    await stream(question, said, mine.signal);
  } catch (error) {
    asked.remove();
    said.remove();
    if (!by("question").value) by("question").value = question; // to be sent again
    if (error.name !== "AbortError") throw error;
  } finally {
    said.classList.remove("coming");
    if (asking === mine) asking = null;
    by("send").hidden = false;
    by("stop").hidden = true;
  }
  await list();
}

async function guarded(act) {
  try {
    await act();
  } catch (error) {
    trouble(error instanceof TypeError ? "The chat's server cannot be reached." : error.message);
  }
}

by("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = by("question").value.trim();
  if (question && !asking) guarded(() => ask(question));
});
by("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    by("ask").requestSubmit();
  }
});
by("stop").addEventListener("click", () => asking && asking.abort());
by("new").addEventListener("click", fresh);
guarded(list);
