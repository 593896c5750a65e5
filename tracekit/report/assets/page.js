// Glue between the page's data and plotly: what is drawn when, and what a click shows. Texts are set as text, never as markup.
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, within) => (within || document).querySelector(selector);
  const all = (selector, within) => Array.from((within || document).querySelectorAll(selector));
  const options = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const NOT_COMPARED = 0, EQUAL = 1, FIRST = 2, LAST = 254;

  // ------------------------------------------------------------ numbers

  function decoded(map) {
    if (!map.bytes) {
      const text = atob(map.codes);
      map.bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
      map.codes = null;
    }
    return map.bytes;
  }
  const row = (map, index) => decoded(map).subarray(index * map.columns, (index + 1) * map.columns);
  function ratio(map, code) {
    if (code === NOT_COMPARED) return NaN;
    if (code === EQUAL) return 0;
    if (code > LAST) return Infinity;
    return Math.pow(10, map.low + ((code - FIRST) / (LAST - FIRST)) * (map.high - map.low));
  }
  function said(value) {
    if (Number.isNaN(value)) return "not compared";
    if (value === 0) return "equal";
    if (!Number.isFinite(value)) return "not finite";
    return (value < 1e-3 || value >= 1e5 ? value.toExponential(1) : Number(value.toPrecision(2)).toString()) + "x";
  }
  function stepText(map, column) {
    const first = column * map.bin;
    return map.bin === 1 ? "step " + first : "steps " + first + " to " + (first + map.bin - 1);
  }

  // ------------------------------------------------------------ what hovers

  const hover = document.getElementById("hover");
  function showHover(event, title, lines) {
    hover.replaceChildren();
    const head = document.createElement("b");
    head.textContent = title;
    hover.append(head, ...lines.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
    hover.hidden = false;
    const { clientX: x, clientY: y } = event;
    hover.style.left = Math.min(x + 14, window.innerWidth - hover.offsetWidth - 8) + "px";
    hover.style.top = (y + hover.offsetHeight + 24 > window.innerHeight ? y - hover.offsetHeight - 10 : y + 14) + "px";
  }
  const hideHover = () => { hover.hidden = true; };

  // ------------------------------------------------------------ charts

  const copy = (value) => JSON.parse(JSON.stringify(value));
  function drawMap(section, chart, which) {
    const map = section.maps[which];
    const figure = copy(map.figure);
    figure.data[0].z = Array.from({ length: map.rows }, (_, index) => row(map, index));
    Plotly.newPlot(chart, figure.data, figure.layout, options);
    chart.on("plotly_hover", (found) => {
      const [site, column] = cell(found.points[0], map);
      const lines = [stepText(map, column)];
      for (const other of section.maps) lines.push(other.label + ": " + said(ratio(other, row(other, site)[column])));
      showHover(found.event, section.sites[site].name, lines);
    });
    chart.on("plotly_unhover", hideHover);
    chart.on("plotly_click", (found) => showSite(section, cell(found.points[0], map)[0], true));
    mark(section);
  }
  const cell = (point, map) => [Math.round(point.y), Math.round((point.x - (map.bin - 1) / 2) / map.bin)];

  function drawLayers(section, chart) {
    Plotly.newPlot(chart, copy(section.layers.data), copy(section.layers.layout), options);
    chart.on("plotly_hover", (found) => {
      const point = found.points[0];
      showHover(found.event, section.sites[point.x].name, [said(point.y)]);
    });
    chart.on("plotly_unhover", hideHover);
    chart.on("plotly_click", (found) => showSite(section, found.points[0].x, true));
  }

  function drawSteps(section, chart) {
    const figure = copy(section.steps);
    section.maps.forEach((map, which) => {
      const values = Array.from(row(map, section.site), (code) => ratio(map, code));
      figure.data[which].x = values.map((_, column) => column * map.bin);
      figure.data[which].y = values.map((value) => (Number.isFinite(value) ? Math.max(value, Math.pow(10, map.low)) : null));
    });
    figure.data.length = section.maps.length;
    if (section.maps[0].columns > 150) figure.data.forEach((line) => { line.mode = "lines"; });
    Plotly.react(chart, figure.data, figure.layout, { ...options, displayModeBar: false });
  }

  function mark(section) {
    const chart = one(".error-chart", section.parts.errors);
    if (!chart || !chart.layout) return;
    Plotly.relayout(chart, {
      shapes: [{
        type: "line", xref: "paper", x0: 0, x1: 1, y0: section.site, y1: section.site,
        line: { color: "#4c7fe0", width: 1 }, opacity: 0.9,
      }],
    });
  }

  function showFacts(section) {
    const place = section.parts.errors;
    const site = section.sites[section.site];
    one(".site-select", place).value = String(section.site);
    const facts = one(".site-facts", place);
    facts.replaceChildren();
    for (const [label, text] of site.rows) {
      const term = Object.assign(document.createElement("dt"), { textContent: label });
      const value = Object.assign(document.createElement("dd"), { textContent: text });
      if (label === "at fault" || label === "first off") [term, value].forEach((element) => element.classList.add("fault"));
      facts.append(term, value);
    }
    const labels = section.maps.map((map, which) => (which ? "red" : "blue") + ": " + map.label);
    one(".steps-legend", place).textContent = "By step; " + labels.join(", ") + ".";
  }

  function showSite(section, index, scroll) {
    const place = section.parts.errors;
    section.site = index;
    showFacts(section);
    if (!window.Plotly) return;
    drawSteps(section, one(".steps-chart", place));
    mark(section);
    if (scroll && place.getBoundingClientRect().top < 0) place.scrollIntoView({ block: "start" });
  }

  function firstSite(section) {
    if (section.culprits.length) return section.culprits[0];
    let best = 0, most = -1;
    const map = section.maps[0];
    for (let index = 0; index < map.rows; index++) {
      const top = row(map, index).reduce((one, other) => Math.max(one, other), 0);
      if (top > most) [best, most] = [index, top];
    }
    return best;
  }

  // Drawn when it comes near the view: a page of several pairs is there at once.
  const waiting = new Map();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting && waiting.has(entry.target)) drawNow(entry.target);
  }, { rootMargin: "1000px" });
  function drawNow(chart) {
    const draw = waiting.get(chart);
    waiting.delete(chart);
    watcher.unobserve(chart);
    draw(chart);
    chart.dataset.drawn = String(Math.round(performance.now())); // milliseconds since the page was asked for
  }
  function later(chart, draw) {
    if (!chart) return;
    waiting.set(chart, draw);
    if (window.Plotly) watcher.observe(chart);
  }
  // plotly takes longer to start than all the rest: everything else answers first.
  function startPlotly() {
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
    waiting.forEach((_, chart) => watcher.observe(chart));
  }

  function prepare(section, number) {
    section.parts = {};
    for (const name of ["verdict", "tokens", "errors", "own", "logits", "config"]) {
      section.parts[name] = one('#' + name + ' [data-of="' + number + '"]');
    }
    if (!section.maps.length) return;
    const place = section.parts.errors;
    const chart = one(".error-chart", place);
    section.site = firstSite(section);
    section.which = 0;
    one(".site-select", place).addEventListener("change", (event) => showSite(section, Number(event.target.value), false));
    if (section.maps.length > 1) {
      section.maps.forEach((map, which) => {
        const button = Object.assign(document.createElement("button"), { type: "button", textContent: map.label });
        button.setAttribute("aria-pressed", String(which === 0));
        button.addEventListener("click", () => {
          all("button", button.parentElement).forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
          drawMap(section, chart, which);
        });
        one(".switch", place).append(button);
      });
    }
    showFacts(section);
    later(chart, () => {
      drawMap(section, chart, 0);
      setTimeout(() => drawSteps(section, one(".steps-chart", place)));
    });
    later(one(".layers-chart", section.parts.own), (element) => drawLayers(section, element));
  }
  data.forEach(prepare);

  // ------------------------------------------------------------ tokens

  function toFirst(place) {
    const strip = one(".tokens", place), first = one(".col.first", place);
    if (!strip || !first) return;
    strip.scrollLeft = first.offsetLeft - strip.clientWidth / 2;
  }
  all(".to-first").forEach((button) => button.addEventListener("click", () => {
    const place = button.parentElement.parentElement;
    toFirst(place);
  }));
  const visibleTokens = () => all("#tokens [data-of]").filter((place) => !place.hidden).forEach(toFirst);
  visibleTokens();

  // ------------------------------------------------------------ tabs

  const tabs = all('[role="tab"]');
  function select(number) {
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === number));
      tab.tabIndex = index === number ? 0 : -1;
    });
    all("[data-of]").forEach((place) => { place.hidden = Number(place.dataset.of) !== number; });
    visibleTokens();
  }
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => select(index));
    tab.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1, Home: -index, End: tabs.length - 1 - index }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      const next = (index + move + tabs.length) % tabs.length;
      select(next);
      tabs[next].focus();
    });
  });
  all(".show-section").forEach((button) => button.addEventListener("click", () => {
    const number = tabs.findIndex((tab) => tab.textContent === button.dataset.title);
    if (number >= 0) select(number);
    document.getElementById("verdict").scrollIntoView();
    (tabs[number] || document.getElementById("main")).focus();
  }));

  // ------------------------------------------------------------ seeds and config

  const table = one("table.seeds");
  if (table) {
    const body = table.tBodies[0], rows = Array.from(body.rows), heads = all("thead th", table);
    const texts = rows.map((line) => line.textContent.toLowerCase());
    const filter = one(".seed-filter"), state = one(".state-filter"), count = one(".seed-count");
    const apply = () => {
      const wanted = filter.value.trim().toLowerCase();
      let shown = 0;
      rows.forEach((line, index) => {
        const keep = (!state.value || line.dataset.state === state.value) && texts[index].includes(wanted);
        line.hidden = !keep;
        shown += keep ? 1 : 0;
      });
      count.textContent = shown + " of " + rows.length + " seeds";
    };
    filter.addEventListener("input", apply);
    state.addEventListener("change", apply);
    heads.forEach((head, column) => {
      const button = one("button", head);
      if (!button) return;
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (line) => line.cells[column].textContent.trim();
        const compare = (a, b) => {
          const [first, second] = [key(a), key(b)];
          if (!first || !second) return first ? -1 : second ? 1 : 0; // what is empty comes last either way
          return (down ? -1 : 1) * first.replace(/,/g, "").localeCompare(second.replace(/,/g, ""), "en", { numeric: true });
        };
        body.append(...Array.from(body.rows).sort(compare));
      });
    });
  }
  all(".only-apart").forEach((box) => box.addEventListener("change", () => {
    one("table.config", box.closest("[data-of]")).classList.toggle("apart-only", box.checked);
  }));

  // ------------------------------------------------------------ theme

  const theme = document.getElementById("theme"), root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", "Switch to " + (isDark() ? "light" : "dark"));
  };
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();
  window.addEventListener("scroll", hideHover, { passive: true });
  root.dataset.ready = String(Math.round(performance.now()));
  requestAnimationFrame(() => setTimeout(startPlotly));
})();
