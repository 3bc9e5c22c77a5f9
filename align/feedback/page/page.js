"use strict";
// Texts of a conversation become text nodes and nothing else; what is saved is on the server's disk before "Saved" shows.

const STRENGTHS = [["significantly", "s"], ["better", "b"], ["slightly", "l"], ["negligibly", "n"]];
const PART = 20000, MORE = 10; // characters that are laid out together; parts that are shown when more are wanted
// C0 but for tab and line feed, DEL, C1, soft hyphen, marks and overrides of direction, what has no width, fillers,
// tags, selectors of variants (but for those of emoji), in which whole texts can hide.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\u{e0000}-\u{e0fff}\ud800-\udfff]+/gu;

const FENCED = /^```[^\n]*\n[\s\S]*?(?:^```|$(?![\s\S]))/gm;

const $ = id => document.getElementById(id);
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};

let annotator = "";
let state = null; // what the server told last
let choice = null; // what is said of the item so far
let armed = ""; // what the next number means: "unsafe", "equal", or a choice
let sending = false;
let fading = 0;
let former = null; // the last attempt to save: its content and its id, so that a second one is known as the same

// ---- texts

function visible(text) {
  return [...text].map(sign => "\\u" + sign.codePointAt(0).toString(16).padStart(4, "0")).join("");
}

function laySigns(node, text) {
  let at = 0;
  for (const found of text.matchAll(HIDDEN)) {
    node.append(text.slice(at, found.index), make("span", "hidden-sign", visible(found[0])));
    at = found.index + found[0].length;
  }
  node.append(text.slice(at));
}

function lay(node, text) { // what stands between fences in letters of one width, whose columns can be compared
  let at = 0;
  for (const found of text.matchAll(FENCED)) {
    const code = make("span", "code");
    laySigns(node, text.slice(at, found.index));
    laySigns(code, found[0]);
    node.append(code);
    at = found.index + found[0].length;
  }
  laySigns(node, text.slice(at));
}

function partEnd(text, at) { // behind the last line or word that fits; not between the halves of a surrogate pair
  const end = at + PART;
  if (end >= text.length) return text.length;
  for (const sign of ["\n", " "]) {
    const found = text.lastIndexOf(sign, end - 1);
    if (found > at + PART / 2) return found + 1;
  }
  return /[\ud800-\udbff]/.test(text[end - 1]) ? end - 1 : end;
}

function textNode(whole) {
  const text = whole.replace(/\r\n/g, "\n");
  const box = make("div", "said"), inside = make("div", "text"), more = make("button", "more");
  more.type = "button";
  let at = 0;
  const go = parts => {
    for (let part = 0; part < parts && at < text.length; part++) {
      const block = make("div"), end = partEnd(text, at);
      lay(block, text.slice(at, end));
      inside.append(block);
      at = end;
    }
    more.disabled = at >= text.length; // it stays: what came into its place would be clicked
    more.textContent = more.disabled ? "All is shown" : `Show more (${(text.length - at).toLocaleString("en")} characters are left)`;
  };
  go(1);
  more.hidden = at >= text.length;
  more.addEventListener("click", () => go(MORE));
  box.append(inside, more);
  return box;
}

// ---- what is chosen

const ids = () => state.item.replies.map(one => one.id);
const number = id => ids().indexOf(id) + 1;
const rankOf = id => choice.ranking.findIndex(rank => rank.includes(id));

function wholeRanking() { // whom nobody has put anywhere comes last, together
  if (!choice.ranking.length) return [];
  const rest = ids().filter(id => rankOf(id) < 0);
  return rest.length ? [...choice.ranking, rest] : choice.ranking;
}

function fresh(said) {
  choice = {
    ranking: said ? said.ranking.map(rank => [...rank]).slice(0, ids().length === 2 ? 1 : undefined) : [],
    strength: said ? said.strength : null,
    bad: said ? said.all_bad : false,
    unsafe: new Set(said ? said.unsafe : []),
    edits: new Map(said && said.edited ? [[said.edited.of, said.edited.text]] : []),
    editing: said && said.edited ? said.edited.of : "",
    began: performance.now() - (said ? 1000 * said.seconds : 0),
  };
  former = null;
  armed = "";
  $("comment").value = said ? said.comment : "";
}

function choose(id, together) {
  const count = ids().length, at = rankOf(id), rank = choice.ranking[at];
  if (tiedAll() && !together) {
    choice.ranking = [[id]];
  } else if (at >= 0) {
    const left = rank.filter(one => one !== id);
    choice.ranking.splice(at, 1, ...(left.length ? [left] : []));
  } else if (together && choice.ranking.length) {
    choice.ranking[choice.ranking.length - 1].push(id);
  } else if (count === 2) {
    choice.ranking = [[id]]; // the other one comes second
  } else {
    choice.ranking.push([id]);
  }
  const rest = ids().filter(one => rankOf(one) < 0);
  if (count > 2 && rest.length === 1 && at < 0) choice.ranking.push(rest);
  show();
}

const tiedAll = () => choice.ranking.length === 1 && choice.ranking[0].length === ids().length;

function tie() {
  choice.ranking = tiedAll() ? [] : [ids()];
  show();
}

function flag(id) {
  if (!choice.unsafe.delete(id)) choice.unsafe.add(id);
  show();
}

const canEdit = id => choice.ranking.length ? rankOf(id) === 0 : choice.bad;

function edit(id) {
  id = id || ids().find(canEdit);
  if (!id) return say("Choose the best reply first, then edit it.");
  choice.editing = id;
  if (!choice.edits.has(id)) choice.edits.set(id, state.item.replies[number(id) - 1].reply);
  show();
  $("edited").focus();
}

function edited() { // what is shown as edited is what is saved
  const of = choice.editing;
  if (!of || !canEdit(of)) return null;
  const text = choice.edits.get(of);
  const before = state.item.replies[number(of) - 1].reply.replace(/\r\n?/g, "\n"); // as a text field has it
  return text.trim() && text.replace(/\r\n?/g, "\n") !== before ? {of, text} : null;
}

// ---- the page

function build() {
  const item = state.item, talk = $("conversation"), replies = $("replies");
  talk.replaceChildren(...item.prompt.map(turn => {
    const box = make("div", "turn " + (turn.role === "user" ? "user" : "other"));
    box.append(make("div", "role", turn.role), textNode(turn.content));
    return box;
  }));
  replies.replaceChildren(...item.replies.map((one, at) => {
    const card = make("article", "reply"), head = make("div", "head"), acts = make("div", "row");
    card.dataset.id = one.id;
    card.setAttribute("aria-label", `Reply ${at + 1}`);
    const button = (name, text, act, key) => {
      const made = make("button", name, text + (key ? " " : ""));
      made.type = "button";
      if (key) made.append(make("kbd", "", key));
      made.addEventListener("click", act);
      acts.append(made);
      return made;
    };
    head.append(make("h2", "", `Reply ${at + 1}`), make("span", "rank"));
    button("unsafe", "Unsafe", () => flag(one.id), `u ${at + 1}`);
    button("edit", "Edit", () => edit(one.id), "e");
    card.append(head, textNode(one.reply), acts);
    return card;
  }));
  $("picks").replaceChildren(...item.replies.map((one, at) => {
    const pick = make("button", "choose", String(at + 1));
    pick.type = "button";
    pick.dataset.id = one.id;
    pick.setAttribute("aria-label", `Reply ${at + 1}`);
    pick.addEventListener("click", () => meant(one.id));
    return pick;
  }));
  $("bad").firstElementChild.textContent = item.replies.length === 2 ? "Both bad" : "All bad";
  fresh(state.former);
  show();
}

function ordinal(at) {
  return ["best", "2nd", "3rd"][at] || `${at + 1}th`;
}

function show() {
  const ranking = wholeRanking(), tied = ranking.length === 1;
  for (const card of $("replies").children) {
    const id = card.dataset.id, at = ranking.findIndex(rank => rank.includes(id));
    const together = at >= 0 && ranking[at].length > 1;
    const mark = card.querySelector(".rank");
    mark.textContent = at < 0 ? "" : tied ? "tied" : ordinal(at) + (together ? ", tied" : "");
    card.classList.toggle("best", at === 0 && !tied);
    card.classList.toggle("flagged", choice.unsafe.has(id));
    card.querySelector(".unsafe").setAttribute("aria-pressed", choice.unsafe.has(id));
    card.querySelector(".edit").disabled = !canEdit(id);
  }
  for (const pick of $("picks").children) {
    pick.classList.toggle("best", rankOf(pick.dataset.id) === 0);
    pick.setAttribute("aria-pressed", rankOf(pick.dataset.id) >= 0);
  }
  $("strength").disabled = ranking.length < 2;
  for (const radio of $("strength").querySelectorAll("input")) radio.checked = ranking.length > 1 && radio.value === choice.strength;
  $("tie").setAttribute("aria-pressed", tied);
  $("bad").setAttribute("aria-pressed", choice.bad);
  $("join-rank").hidden = ids().length < 3;
  $("join-rank").disabled = !choice.ranking.length || choice.ranking.flat().length === ids().length;
  $("join-rank").setAttribute("aria-pressed", armed === "equal");
  const editing = choice.editing && canEdit(choice.editing);
  $("edit").hidden = !editing;
  if (editing) {
    $("edit").querySelector("label").textContent = `Reply ${number(choice.editing)}, edited: better than it was`;
    $("edited").wrap = choice.edits.get(choice.editing).length > PART ? "off" : "soft"; // a megabyte takes seconds to wrap
    if ($("edited").value !== choice.edits.get(choice.editing)) $("edited").value = choice.edits.get(choice.editing);
  }
  $("verdict").textContent = armed === "unsafe" ? "Number of the unsafe reply?" : armed === "equal" ? "Which one is as good?" : verdict(ranking);
  $("save").classList.toggle("ready", !missing());
}

function verdict(ranking) {
  const order = ranking.map(rank => rank.map(number).sort().join(" = ")).join(" > ");
  const parts = [order || (choice.bad ? "" : "Which reply is best?")];
  if (ranking.length > 1) parts.push({null: "how much better?", better: "better"}[choice.strength] || `${choice.strength} better`);
  if (choice.bad) parts.push(ids().length === 2 ? "both bad" : "all bad");
  if (choice.unsafe.size) parts.push("unsafe: " + [...choice.unsafe].map(number).sort().join(", "));
  if (edited()) parts.push(`${number(choice.editing)} edited`);
  return parts.filter(Boolean).join(" · ");
}

function missing() {
  const ranks = wholeRanking().length;
  if (!ranks && !choice.bad) return "Choose the best reply first, or say that they are tied or all bad.";
  if (ranks > 1 && !choice.strength) return "How much better is it? Choose that too.";
  return "";
}

function say(text, wrong) {
  const box = $("said");
  box.textContent = text;
  box.hidden = !text;
  box.classList.toggle("wrong", Boolean(wrong));
  clearTimeout(fading);
  if (text && !wrong) fading = setTimeout(() => { box.hidden = true; }, 3000);
}

function told(answer) {
  state = answer;
  $("who").textContent = annotator;
  $("who").hidden = false;
  $("bar").max = Math.max(state.total, 1);
  $("bar").value = state.done;
  $("progress").textContent = `${state.done} of ${state.total}` +
    (state.done === state.total && state.left_by_others ? `; ${state.left_by_others} left by others` : "");
  $("undo").disabled = !state.latest;
  $("join").hidden = true;
  const open = Boolean(state.item);
  $("task").hidden = $("decide").hidden = !open;
  $("end").hidden = open;
  if (open) build();
  else $("end-note").textContent = `${state.done} by you. More may come when others undo theirs: reload the page to see.`;
  scrollTo(0, 0);
  $(open ? "conversation" : "end").focus({preventScroll: true});
}

// ---- the server

async function ask(path, body) {
  const how = body ? {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)} : {};
  let answer, found;
  try {
    answer = await fetch(path, {...how, cache: "no-store", credentials: "same-origin", redirect: "error"});
    found = await answer.json();
  } catch {
    throw new Error("the server does not answer");
  }
  if (!answer.ok) throw new Error(found.error || `the server says ${answer.status}`);
  return found;
}

async function send(body, done) {
  if (sending) return;
  sending = true;
  document.body.classList.add("sending");
  try {
    told(await ask("/judgments", body));
    say(done);
  } catch (error) {
    say(`Not saved: ${error.message}. What you chose is still here; try again.`, true);
  } finally {
    sending = false;
    document.body.classList.remove("sending");
  }
}

function attempt(content) { // the same content is the same judgment, however often it is sent
  const text = JSON.stringify(content);
  if (!former || former.text !== text) former = {text, id: crypto.randomUUID()};
  return {id: former.id, ...content};
}

function save() {
  if (!state || !state.item) return;
  const lacks = missing();
  if (lacks) {
    say(lacks);
    if (wholeRanking().length) $("strength").querySelector("input").focus();
    return;
  }
  const ranking = wholeRanking();
  const content = {
    item: state.item.id, annotator, shown: ids(), ranking,
    strength: ranking.length > 1 ? choice.strength : null,
    all_bad: choice.bad, unsafe: ids().filter(id => choice.unsafe.has(id)),
    edited: edited(), comment: $("comment").value.trim(),
  };
  send({...attempt(content), seconds: Math.round(performance.now() - choice.began) / 1000}, "Saved.");
}

function undo() {
  if (!state || !state.latest) return say("There is nothing to take back.");
  send(attempt({undoes: state.latest, annotator}), "Taken back; say it anew.");
}

async function begin(name) {
  try {
    const found = await ask("/state?annotator=" + encodeURIComponent(name));
    annotator = found.annotator;
    for (const kept of [sessionStorage, localStorage]) kept.setItem("annotator", annotator);
    say("");
    told(found);
  } catch (error) {
    $("join").hidden = false;
    say(error.message, true);
  }
}

// ---- keys and buttons

function toggle(details) {
  details.open = !details.open;
  if (details.open) details.scrollIntoView({block: "start"});
}

function keys() {
  $("keys").hidden = !$("keys").hidden;
  $("help").setAttribute("aria-expanded", !$("keys").hidden);
  if (!$("keys").hidden) scrollTo(0, 0);
}

function meant(id) { // what a reply's number says now
  const was = armed;
  armed = "";
  if (was === "unsafe") flag(id);
  else choose(id, was === "equal");
}

function arm(what) {
  armed = armed === what ? "" : what;
  show();
}

function pressed(key) {
  const strength = STRENGTHS.find(one => one[1] === key);
  if (key === "?") keys();
  else if (key === "z") undo();
  else if (key === "g" && !$("guideline").hidden) toggle($("guideline"));
  else if (!state || !state.item) return false;
  else if (key >= "1" && key <= String(Math.min(ids().length, 9)) && key.length === 1) {
    meant(ids()[Number(key) - 1]);
  } else if (strength) { choice.strength = strength[0]; show(); }
  else if (key === "=") arm("equal");
  else if (key === "u") arm("unsafe");
  else if (key === "t") tie();
  else if (key === "0") { choice.ranking = []; show(); }
  else if (key === "x") { choice.bad = !choice.bad; show(); }
  else if (key === "e") edit("");
  else if (key === "c") $("comment").focus();
  else if (key === "Enter") save();
  else return false;
  return true;
}

document.addEventListener("keydown", event => {
  const writes = event.target.matches("textarea, input:not([type=radio])");
  if (event.isComposing || event.repeat && event.key === "Enter") return;
  if (event.key === "Escape") {
    if (writes) event.target.blur();
    else if (armed) arm(armed);
    return;
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    save();
    return;
  }
  if (writes || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" && event.target.matches("button, summary")) return;
  if (pressed(event.key.length === 1 ? event.key.toLowerCase() : event.key)) event.preventDefault();
});

document.addEventListener("click", event => { // after the mouse, Enter saves and does not press the button again
  const button = event.target.closest && event.target.closest("button");
  if (button && event.detail) button.blur();
});

for (const [name, key] of STRENGTHS) {
  const label = make("label"), radio = make("input");
  radio.type = "radio";
  radio.name = "strength";
  radio.value = name;
  radio.addEventListener("change", () => { choice.strength = name; show(); });
  label.append(radio, make("span", "", name), make("kbd", "", key));
  $("strength").append(label);
}
$("tie").addEventListener("click", tie);
$("bad").addEventListener("click", () => { choice.bad = !choice.bad; show(); });
$("join-rank").addEventListener("click", () => arm("equal"));
$("save").addEventListener("click", save);
$("undo").addEventListener("click", undo);
$("help").addEventListener("click", keys);
$("edited").addEventListener("input", () => { choice.edits.set(choice.editing, $("edited").value); $("verdict").textContent = verdict(wholeRanking()); });
$("drop-edit").addEventListener("click", () => { choice.edits.delete(choice.editing); choice.editing = ""; show(); });
$("who").addEventListener("click", () => {
  for (const kept of [sessionStorage, localStorage]) kept.removeItem("annotator");
  location.reload();
});
$("join").addEventListener("submit", event => { event.preventDefault(); $("guideline").open = false; begin($("name").value.trim()); });

(async () => {
  try {
    const {text} = await ask("/guideline");
    $("guideline").hidden = !text;
    $("guideline").open = Boolean(text) && !localStorage.getItem("annotator");
    $("guideline").querySelector(".text").replaceWith(textNode(text));
  } catch (error) {
    return say(error.message, true);
  }
  const name = sessionStorage.getItem("annotator") || localStorage.getItem("annotator"); // a tab stays with its own
  $("who").hidden = true;
  if (name) return begin(name);
  $("join").hidden = false;
  $("name").focus();
})();
