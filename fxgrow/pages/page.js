"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const make = (tag, text = "", kind = "") => {
    const node = document.createElement(tag);
    if (text) node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };

  // ------------------------------------------------------------------ table

  const body = one("#groups tbody");
  const rows = all("#groups tbody tr");
  const rowOf = new Map(rows.map((row) => [Number(row.dataset.g), row]));
  const words = rows.map((row) => {
    const group = data.groups[Number(row.dataset.g)];
    return `${group.name} ${group.more}`.toLowerCase();
  });
  const seek = one("#seek");
  const status = one("#status");
  const count = one("#count");

  function filter() {
    const wanted = seek.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const group = data.groups[Number(row.dataset.g)];
      const fits = status.value === "all" || group.state.includes(status.value);
      row.hidden = !(fits && wanted.every((word) => words[i].includes(word)));
      shown += row.hidden ? 0 : 1;
    });
    count.textContent = `${shown} of ${rows.length}`;
  }

  function sort(head) {
    const key = head.dataset.key;
    const first = head.classList.contains("num") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    all("#groups th").forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => data.groups[Number(row.dataset.g)][key];
    const sorted = [...rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null); // unknown ones last
      return sign * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
    });
    body.append(...sorted);
  }

  seek.addEventListener("input", filter);
  status.addEventListener("change", filter);
  all("#groups th button").forEach((button) =>
    button.addEventListener("click", () => sort(button.closest("th"))));
  filter();

  // ---------------------------------------------------------------- picture

  const net = one("#net");
  if (!net) return;
  const sheet = one(".sheet");
  const strip = one(".strip");
  const about = one("#about");
  const hint = about.cloneNode(true).childNodes;
  const boxes = all(".n", net);
  const wiresAt = boxes.map(() => []);
  all(".wires path", net).forEach((path) => {
    const [source, target] = path.dataset.e.split(" ").map(Number);
    wiresAt[source].push([target, path.getAttribute("d")]);
  });
  const front = document.createElementNS("http://www.w3.org/2000/svg", "g");
  front.setAttribute("class", "wires front");
  const wires = document.createElementNS("http://www.w3.org/2000/svg", "path");
  front.append(wires);
  one(".wires", net).after(front);
  const roles = ["carries", "consumer", "per_unit", "norm", "producer"]; // the last one wins
  const titles = {
    producer: "written by", norm: "normalised by", per_unit: "held per unit in",
    consumer: "read by", carries: "runs through",
  };
  let lit = [];
  let pinned = null;
  let shown = null;

  function clear() {
    lit.forEach((box) => box.classList.remove("on", ...roles));
    lit = [];
    wires.setAttribute("d", "");
    all(".strip i").forEach((tick) => tick.remove());
    net.classList.remove("lit");
    all("tr.hot", body).forEach((row) => row.classList.remove("hot"));
  }

  function light(index) {
    if (shown === index) return;
    shown = index;
    clear();
    if (index === null) {
      about.replaceChildren(...[...hint].map((node) => node.cloneNode(true)));
      return;
    }
    const group = data.groups[index];
    const role = new Map();
    for (const name of roles) for (const i of group.nodes[name] || []) role.set(i, name);
    for (const [i, name] of role) {
      boxes[i].classList.add("on", name);
      lit.push(boxes[i]);
    }
    mark(role);
    const through = new Set(["producer", "norm", "per_unit", "carries"]
      .flatMap((name) => group.nodes[name] || []));
    const lines = [];
    for (const i of through) {
      for (const [target, line] of wiresAt[i]) if (role.has(target)) lines.push(line);
    }
    wires.setAttribute("d", lines.join(""));
    net.classList.add("lit");
    rowOf.get(index)?.classList.add("hot");
    describe(group);
  }

  const height = net.height.baseVal.value;
  const tops = boxes.map((box) => box.transform.baseVal[0].matrix.f);

  function mark(role) {
    const ticks = new Map(); // one for every two pixels or so, however many layers there are
    for (const [i, name] of role) ticks.set(Math.round((300 * tops[i]) / height), name);
    for (const [place, name] of ticks) {
      const line = make("i", "", name);
      line.style.top = `${place / 3}%`;
      strip.append(line);
    }
  }

  function describe(group) {
    const lines = [make("p")];
    lines[0].append(make("b", group.name), ` · ${group.about}`);
    if (group.why) lines.push(make("p", group.why));
    for (const name of [...roles].reverse()) {
      const nodes = group.nodes[name] || [];
      if (!nodes.length) continue;
      const line = make("p");
      const names = nodes.slice(0, 12).map((i) => data.nodes[i]).join(", ");
      const more = nodes.length > 12 ? ` and ${nodes.length - 12} more` : "";
      line.append(make("span", titles[name], `r ${name}`), " ", make("code", names + more));
      lines.push(line);
    }
    about.replaceChildren(...lines);
  }

  function pin(index) {
    pinned = pinned === index ? null : index;
    all("tr.pinned", body).forEach((row) => row.classList.remove("pinned"));
    if (pinned !== null) rowOf.get(pinned)?.classList.add("pinned");
    light(pinned);
  }

  function reveal(index) {
    if (pinned !== index) return;
    const nodes = data.groups[index].nodes;
    const first = (nodes.producer || nodes.consumer || [0])[0];
    sheet.scrollTo({ top: tops[first] - 60 });
  }

  const groupOf = (event) => {
    const row = event.target.closest("#groups tbody tr");
    if (row) return Number(row.dataset.g);
    const box = event.target.closest(".n");
    const index = box ? data.writes[Number(box.dataset.i)] : -1;
    return index < 0 ? null : index;
  };
  for (const place of [body, net]) {
    place.addEventListener("pointerover", (event) => light(groupOf(event) ?? pinned));
    place.addEventListener("pointerleave", () => light(pinned));
  }
  body.addEventListener("focusin", (event) => light(groupOf(event) ?? pinned));
  net.addEventListener("click", (event) => {
    const index = groupOf(event);
    pin(index);
    if (index !== null) rowOf.get(index)?.scrollIntoView({ block: "nearest" });
  });
  body.addEventListener("click", (event) => {
    const index = groupOf(event);
    pin(index);
    reveal(index);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") pin(null);
    if (event.key === "Enter" && event.target.matches("#groups tr")) event.target.click();
  });

  // Only boxes in sight are part of the page: however long the network, pointing is quick.
  const layer = document.createElementNS("http://www.w3.org/2000/svg", "g");
  net.append(layer);
  let around = null;
  function attach() {
    const [from, to] = [sheet.scrollTop, sheet.scrollTop + sheet.clientHeight];
    if (around && from - around[0] >= 150 && around[1] - to >= 150) return;
    around = [from - 600, to + 600];
    const seen = (_, i) => tops[i] >= around[0] && tops[i] <= around[1];
    layer.replaceChildren(...boxes.filter(seen));
    boxes.forEach((box, i) => seen(box, i) || box.remove());
  }
  window.addEventListener("beforeprint", () => layer.replaceChildren(...boxes));
  window.addEventListener("afterprint", () => { around = null; attach(); });

  const view = one("b", strip);
  function follow() {
    attach();
    view.style.top = `${(100 * sheet.scrollTop) / sheet.scrollHeight}%`;
    view.style.height = `${(100 * sheet.clientHeight) / sheet.scrollHeight}%`;
  }
  sheet.addEventListener("scroll", follow, { passive: true });
  window.addEventListener("resize", follow);
  strip.addEventListener("click", (event) => {
    const place = strip.getBoundingClientRect();
    const share = (event.clientY - place.top) / place.height;
    sheet.scrollTo({ top: share * sheet.scrollHeight - sheet.clientHeight / 2 });
  });
  follow();
})();
